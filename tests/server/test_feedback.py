"""Answers that are kept, what is said of them, and a canary that answers its share."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from server_support import Running, running

from adapterhub_cl.server.api_keys import add_key

Start = Callable[..., Running]
TICKET = "they charged my card twice"


@pytest.fixture(scope="module")
def kept(routed_copy: Callable[[], Path]) -> Iterator[tuple[Running, str]]:
    """A server that keeps answers, and the id of one."""
    with running(routed_copy(), log=True) as found:
        yield found, post(found, "predict", inputs=[TICKET], model="tickets").json()["data"][0]["id"]


def post(served: Running, route: str, key: str = "", **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{served.url}/v1/{route}", json=body, headers=headers, timeout=60)


def test_answers_are_kept_and_judged(serving: Start) -> None:
    served = serving(log=True)
    client = served.client()
    messages: Any = [{"role": "user", "content": f"{TICKET}, write to jane@doe.org"}]
    chat = client.chat.completions.create(model="tickets", messages=messages, n=2)
    stream = [*client.chat.completions.create(model="tickets", messages=messages, stream=True)]
    rows = post(served, "predict", inputs=[TICKET, "hello"], model="tickets").json()["data"]
    said = [
        post(served, "feedback", id=chat.id, label="delivery"),
        post(served, "feedback", id=chat.id, choice=1, correct=False),
        post(served, "feedback", id=stream[0].id, thumb="up"),
        post(served, "feedback", id=rows[1]["id"], label="delivery"),
        post(served, "feedback", id=rows[1]["id"], label="billing"),
    ]
    assert [one.status_code for one in said] == [200] * 5, [one.text for one in said]
    assert said[0].json()["answer"] == "delivery"
    assert said[0].json()["task"] == "tickets"
    judged = served.hub.traffic.judged()
    assert len(judged) == 4
    assert len({one.kept.conversation for one in judged}) == 2
    assert {one.said.right for one in judged} == {"delivery", None, "billing"}
    assert judged[0].kept.example.input == f"{TICKET}, write to <email>"
    assert all(one.kept.ref == "tickets@v1" and one.kept.task == "tickets" for one in judged)
    assert len([*served.hub.traffic.answers(unjudged=True)]) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"id": "chatcmpl-unknown", "correct": True}, 404, "answer_not_found"),
        ({"id": "../../etc/passwd", "correct": True}, 404, "answer_not_found"),
        ({"id": "", "correct": True}, 400, "invalid_request"),
        ({"id": "ID"}, 400, "invalid_request"),
        ({"id": "ID", "correct": True, "thumb": "up"}, 400, "invalid_request"),
        ({"id": "ID", "label": "no such label"}, 400, "unknown_label"),
        ({"id": "ID", "label": "delivery", "task": "../tickets"}, 400, "invalid_request"),
        ({"id": "ID", "choice": 3, "correct": True}, 404, "answer_not_found"),
        ({"id": "ID", "thumb": "sideways"}, 400, "invalid_request"),
        ({"id": "ID", "correct": True, "stars": 5}, 400, "unsupported"),
        ({"id": ["ID"], "correct": True}, 400, "invalid_request"),
    ],
)
def test_feedback_that_cannot_be_used(kept: tuple[Running, str], body: dict[str, Any], status: int, code: str) -> None:
    served, known = kept
    said = post(served, "feedback", **{key: known if value == "ID" else value for key, value in body.items()})
    assert (said.status_code, said.json()["error"]["code"]) == (status, code), said.text


def test_feedback_is_taken_back(serving: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    asks, reads = add_key(keys, "jane", "ask"), add_key(keys, "joe", "read")
    served = serving(log=True, keys=str(keys))
    row = post(served, "predict", asks, inputs=[TICKET], model="tickets").json()["data"][0]
    assert post(served, "feedback", asks, id=row["id"], label="delivery").status_code == 200

    def take_back(key: str, answer: str) -> httpx2.Response:
        where = f"{served.url}/v1/feedback/{answer}"
        return httpx2.delete(where, headers={"authorization": f"Bearer {key}"}, timeout=60)

    assert take_back(reads, row["id"]).status_code == 403
    assert take_back(asks, "pred-unknown").json()["error"]["code"] == "answer_not_found"
    done = take_back(asks, row["id"])
    assert (done.status_code, done.json()) == (
        200,
        {"object": "feedback", "id": row["id"], "deleted": True, "learned": False},
    )
    assert served.hub.traffic.judged() == []
    assert take_back(asks, row["id"]).json()["error"]["code"] == "feedback_not_found"


def test_nothing_is_kept_unless_asked_for(serving: Start) -> None:
    served = serving()
    row = post(served, "predict", inputs=[TICKET], model="tickets").json()["data"][0]
    said = post(served, "feedback", id=row["id"], correct=True)
    assert (said.status_code, said.json()["error"]["code"]) == (400, "not_kept")
    assert not (served.hub.folder / "traffic.db").exists()


def test_who_said_it_is_recorded(serving: Start, tmp_path: Any) -> None:
    keys = tmp_path / "keys.json"
    asks, reads = add_key(keys, "jane", "ask"), add_key(keys, "joe", "read")
    served = serving(log=True, keys=str(keys))
    row = post(served, "predict", asks, inputs=[TICKET], model="tickets").json()["data"][0]
    assert post(served, "feedback", reads, id=row["id"], correct=True).status_code == 403
    assert post(served, "feedback", asks, id=row["id"], correct=True).status_code == 200
    [one] = served.hub.traffic.judged()
    assert (one.kept.asked_by, one.said.said_by) == ("jane", "jane")


def test_a_canary_answers_its_share_of_the_conversations(serving: Start) -> None:
    served = serving(log=True)
    registry = served.hub.registry
    twin = copy_of(served, "tickets@v1")
    assert registry.serving()["tickets"] == "tickets@v1"
    registry.start_canary(twin, 0.5)
    texts = [f"{TICKET} {k}" for k in range(60)]
    first = [row["adapter"] for row in post(served, "predict", inputs=texts, model="tickets").json()["data"]]
    again = [row["adapter"] for row in post(served, "predict", inputs=texts, model="tickets").json()["data"]]
    assert first == again
    assert 15 < first.count(twin) < 45
    named = post(served, "predict", inputs=texts, model="tickets@v1").json()["data"]
    assert {row["adapter"] for row in named} == {"tickets@v1"}
    talk = {"x-conversation": "user-17"}
    ask = [{"role": "user", "content": TICKET}]
    heard = set()
    for k in range(4):  # a conversation stays with its version, whatever is said in it
        body = {"model": "tickets", "messages": [{"role": "user", "content": f"{ask[0]['content']} {k}"}]}
        heard.add(httpx2.post(f"{served.url}/v1/chat/completions", json=body, headers=talk).headers["x-adapter"])
    assert len(heard) == 1
    registry.end_canary("tickets", "a test")
    after = post(served, "predict", inputs=texts, model="tickets").json()["data"]
    assert {row["adapter"] for row in after} == {"tickets@v1"}


def copy_of(served: Running, ref: str) -> str:
    """Another version with the same weights, which serves nothing."""
    registry = served.hub.registry
    record = registry.get(ref)
    draft = registry.new_draft(record.name)
    for path in record.path.iterdir():
        if path.name != "manifest.json":
            shutil.copy(path, draft.path / path.name)
    told = {k: v for k, v in record.manifest.items() if k not in ("version", "files", "name", "created_at")}
    made = registry.publish(draft, told, task=registry.task(record.task), serve=False)
    return made.ref
