"""OpenAI's own client against a running server: models, chat, completions, streams, and which version answered."""

from __future__ import annotations

import json
import math
from typing import Any

import openai
import pytest
from server_support import Running

TICKET = "they charged my card twice"


def ask(served: Running, text: str = TICKET, **options: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    options = {"model": "auto", **options}
    return served.client().chat.completions.create(messages=messages, **options)  # type: ignore[arg-type]


def test_models(served: Running) -> None:
    client = served.client()
    names = [model.id for model in client.models.list()]
    assert names[:2] == ["auto", "base"]
    assert {"tickets", "tickets@v1", "all@v2"} <= set(names)
    assert "sum@v1" not in names, "the gate refused it"
    assert client.models.retrieve("tickets@v1").id == "tickets@v1"
    assert client.models.retrieve("tickets@latest").resolves_to == "tickets@v1"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


@pytest.mark.parametrize("model", ["auto", "tickets", "tickets@v1", "tickets@latest"])
def test_a_choice_task_answers_with_its_label_as_predict_does(served: Running, model: str) -> None:
    answer = ask(served, model=model)
    (right,) = served.engine.predict([TICKET], task="tickets")
    assert answer.choices[0].message.content == right.prediction == "billing"
    assert answer.model == "tickets@v1"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 1


def test_the_headers_say_who_answered(served: Running) -> None:
    client = served.client()
    messages: Any = [{"role": "user", "content": TICKET}]
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=messages)
    record = served.hub.get("tickets@v1")
    assert raw.headers["x-adapter"] == "tickets@v1"
    assert raw.headers["x-adapter-sha256"] == record.manifest["files"]["adapter_model.safetensors"]["sha256"]
    assert raw.headers["x-task"] == "tickets"
    assert raw.headers["x-fallback"] == "false"
    assert 0.5 < float(raw.headers["x-router-confidence"]) <= 1
    messages = [{"role": "user", "content": "int main(void) { return 0; }"}]
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=messages, max_tokens=3)
    assert (raw.headers["x-adapter"], raw.headers["x-fallback"]) == ("base", "true")
    assert "x-adapter-sha256" not in raw.headers


def test_a_long_input_that_was_cut_is_said(served: Running) -> None:
    client = served.client()
    found = [
        client.chat.completions.with_raw_response.create(
            model="tickets", messages=[{"role": "user", "content": TICKET * times}]
        ).headers.get("x-input-cut")
        for times in (1, 200)
    ]
    assert found == [None, "true"]


def test_written_answers_whole_and_streamed_are_the_same(served: Running) -> None:
    options: dict[str, Any] = {"model": "facts", "max_tokens": 12}
    whole = ask(served, "who runs the bakery", **options)
    text = whole.choices[0].message.content
    assert text == served.engine.predict(["who runs the bakery"], task="facts", max_new_tokens=12)[0].prediction
    pieces, reasons, usage = [], [], None
    for chunk in ask(served, "who runs the bakery", stream=True, stream_options={"include_usage": True}, **options):
        assert chunk.model == "facts@v1"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons.append(choice.finish_reason)
    assert "".join(pieces) == text
    assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
    assert usage == whole.usage


def test_a_streamed_label(served: Running) -> None:
    chunks = list(ask(served, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "billing"


def test_several_answers_differ_by_their_seeds(served: Running) -> None:
    options: dict[str, Any] = {"model": "base", "n": 3, "temperature": 1.5, "max_tokens": 8}
    first, again, other = (ask(served, "Once", seed=seed, **options) for seed in (7, 7, 8))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert texts == [choice.message.content for choice in again.choices]
    assert len({*texts, *(choice.message.content for choice in other.choices)}) > 2
    streamed: dict[int, str] = {}
    for chunk in ask(served, "Once", seed=7, stream=True, **options):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[k] for k in range(3)] == texts


def test_logprobs(served: Running) -> None:
    answer = ask(served, "who runs the bakery", model="facts", logprobs=True, max_tokens=4)
    logs = answer.choices[0].logprobs.content
    assert len(logs) == answer.usage.completion_tokens
    (right,) = served.engine.predict(["who runs the bakery"], task="facts", max_new_tokens=4)
    assert math.exp(sum(row.logprob for row in logs) / len(logs)) == pytest.approx(right.confidence, rel=1e-4)
    label = ask(served, logprobs=True).choices[0].logprobs.content
    assert [row.token for row in label] == ["billing"]
    assert math.exp(label[0].logprob) == pytest.approx(0.835, abs=0.01)


def test_completions_go_on_from_the_text_as_it_is(served: Running) -> None:
    client = served.client()
    found = client.completions.create(model="base", prompt=["Once upon", "The river"], max_tokens=5, logprobs=0)
    assert [choice.index for choice in found.choices] == [0, 1]
    assert (
        found.choices[0].text
        == served.engine.generate("Once upon", adapter="base", raw=True, max_new_tokens=5).prediction
    )
    assert len(found.choices[0].logprobs.tokens) == 5
    pieces = client.completions.create(model="base", prompt="Once upon", max_tokens=5, stream=True)
    assert "".join(p.choices[0].text for p in pieces) == found.choices[0].text


def test_stop_strings(served: Running) -> None:
    client = served.client()
    whole = client.completions.create(model="base", prompt="The", max_tokens=24).choices[0].text
    word = whole.split()[3]
    cut = client.completions.create(model="base", prompt="The", max_tokens=24, stop=[word]).choices[0]
    assert cut.text == whole[: whole.index(word)]
    assert cut.finish_reason == "stop"


def test_predict_takes_a_batch(served: Running) -> None:
    import httpx2

    body = {"inputs": [TICKET, "wake me in ten minutes"]}
    found = httpx2.post(f"{served.url}/v1/predict", json=body, timeout=60).json()["data"]
    assert [(row["prediction"], row["adapter"]) for row in found] == [
        ("billing", "tickets@v1"),
        ("set timer", "commands@v1"),
    ]
    assert found[0]["scores"]["billing"] == pytest.approx(found[0]["confidence"])
    assert len(found[0]["adapter_sha256"]) == 64


def test_a_conversation_with_text_parts_and_a_developer_message(served: Running) -> None:
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": [{"type": "text", "text": TICKET}]},
    ]
    answer = served.client().chat.completions.create(model="tickets", messages=messages)
    assert answer.choices[0].message.content == "billing"


def test_the_async_client(served: Running) -> None:
    import asyncio

    async def many() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="x", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": TICKET}]
            calls = [client.chat.completions.create(model=m, messages=messages) for m in ("auto", "tickets@v1") * 8]
            return list(await asyncio.gather(*calls))

    assert {answer.choices[0].message.content for answer in asyncio.run(many())} == {"billing"}


def test_the_metrics_count(served: Running) -> None:
    import httpx2

    ask(served)
    page = httpx2.get(f"{served.url}/metrics").text
    assert 'adapterhub_answers_total{adapter="tickets@v1",task="tickets"}' in page
    assert 'adapterhub_requests_total{route="/v1/chat/completions",status="200"}' in page
    assert "adapterhub_queue 0.0" in page


def test_unicode_goes_through(served: Running) -> None:
    chunks = list(ask(served, "日本語 🎉 \u2028 </script>", model="base", max_tokens=3, stream=True))
    assert json.dumps([c.model for c in chunks])
