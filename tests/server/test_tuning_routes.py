"""Files and fine-tuning jobs over HTTP, asked by OpenAI's own client; a stub stands in for the training."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from server_support import REFERENCE, Running, running

from adapterhub_cl.server.api_keys import add_key

STUB = Path(__file__).with_name("stub_training.py")
ROWS = [
    {"text": f"the {thing} is {word}", "label": word} for thing in ("pen", "cup", "car") for word in ("good", "bad")
]
JSONL = "\n".join(map(json.dumps, ROWS)).encode() + b"\n"
ENDED = ("succeeded", "failed", "cancelled")


def stub(hub: Path) -> list[str]:
    return [sys.executable, str(STUB), "--hub", str(hub), "--json"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = shutil.copytree(REFERENCE, tmp_path_factory.mktemp("tuned") / "hub")
    with running(folder, train=stub(folder), max_body=100_000, max_files=200_000) as found:
        yield found


def upload(client: openai.OpenAI, content: bytes = JSONL, name: str = "rows.jsonl") -> str:
    return client.files.create(file=(name, content), purpose="fine-tune").id


def create(client: openai.OpenAI, suffix: str | None = None, **asked: Any) -> Any:
    asked = {"model": "base", "training_file": asked.pop("training_file", None) or upload(client), **asked}
    return client.fine_tuning.jobs.create(**asked, **({"suffix": suffix} if suffix else {}))


def until(client: openai.OpenAI, job_id: str, wanted: Callable[[Any], bool], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not wanted(job := client.fine_tuning.jobs.retrieve(job_id)):
        assert time.monotonic() < end, job
        time.sleep(0.05)
    return job


def ended(client: openai.OpenAI, job_id: str) -> Any:
    return until(client, job_id, lambda job: job.status in ENDED)


def test_files(tuned: Running) -> None:
    client = tuned.client()
    file = client.files.create(file=("../../my rows\n.jsonl", JSONL), purpose="fine-tune")
    assert (file.bytes, file.purpose, file.status) == (len(JSONL), "fine-tune", "processed")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).content == JSONL
    other = upload(client)
    assert [one.id for one in client.files.list()][:2] == [other, file.id]
    assert client.files.list(limit=1).has_more
    oldest_first = list(client.files.list(order="asc", limit=1))  # the client asks for every page
    assert [one.id for one in oldest_first] == [one.id for one in client.files.list()][::-1]
    assert list(client.files.list(purpose="batch")) == []
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    kept = {path.name for path in (tuned.hub.folder / "server/files").iterdir()}
    assert not any("rows" in name or file.id in name for name in kept)


def test_a_job_from_upload_to_answer(tuned: Running) -> None:
    client = tuned.client()
    numbers: Any = {"n_epochs": 2, "batch_size": "auto", "learning_rate_multiplier": 0.5}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": numbers}}
    file, held_out = upload(client), upload(client, b'{"text": "the hat is bad", "label": "bad"}\n')
    job = create(
        client, "quick-1", training_file=file, validation_file=held_out, method=method, seed=7, metadata={"team": "a"}
    )
    assert job.hyperparameters.n_epochs == 2
    assert (job.hyperparameters.batch_size, job.hyperparameters.learning_rate_multiplier) == ("auto", 0.5)
    assert (job.seed, job.metadata, job.method.type) == (7, {"team": "a"}, "supervised")
    job = ended(client, job.id)
    assert (job.status, job.fine_tuned_model, job.error) == ("succeeded", "tickets@v1", None)
    assert job.finished_at >= job.created_at
    folder = tuned.hub.folder / "server/files"
    asked = f"add-task quick-1 {folder / file}.jsonl --eval {folder / held_out}.jsonl"
    assert (
        f"{asked} --epochs 2 --learning-rate 0.00125 --seed 7" in (tuned.hub.folder.parent / "starts.txt").read_text()
    )
    question: Any = [{"role": "user", "content": "they charged my card twice"}]
    assert client.chat.completions.create(model=job.fine_tuned_model, messages=question).model == "tickets@v1"
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
    told = [event.message for event in reversed(events)]
    assert told[0] == f"created: add-task quick-1, learning from {file}"
    assert told[1:3] == ["training started", "settings: epochs=2"]
    assert told[-1].startswith("tickets@v1 is ready")
    epoch: Any = next(event for event in events if event.message.startswith("epoch 1"))
    assert epoch.type == "metrics"
    assert epoch.data == {"epoch": 1, "epochs": 2, "train_loss": 0.5, "valid_accuracy": 0.75, "valid_loss": 0.4}
    assert list(client.fine_tuning.jobs.checkpoints.list(job.id)) == []
    found = client.fine_tuning.jobs.list(metadata={"team": "a"})
    assert [one.id for one in found] == [job.id]
    assert list(client.fine_tuning.jobs.list(metadata={"team": "b"})) == []


def test_an_update_and_a_name_of_its_own(tuned: Running) -> None:
    client = tuned.client()
    rows = (REFERENCE.parent / "adapterhub_cl/demo/tickets.train.jsonl").read_bytes()
    job = create(client, model="tickets@v1", training_file=upload(client, rows), hyperparameters={"n_epochs": 1})
    assert ended(client, job.id).status == "succeeded"
    starts = (tuned.hub.folder.parent / "starts.txt").read_text()
    assert "update tickets /" in starts
    job = create(client, model="auto")
    assert ended(client, job.id).status == "succeeded"
    assert f"add-task ft-{job.id[6:18]} /" in (tuned.hub.folder.parent / "starts.txt").read_text()


def test_conversations_become_a_choice_task_where_that_is_asked(tuned: Running) -> None:
    client = tuned.client()
    said = [
        {"messages": [{"role": "user", "content": row["text"]}, {"role": "assistant", "content": row["label"]}]}
        for row in ROWS
    ]
    file = upload(client, "\n".join(map(json.dumps, said)).encode())
    job = create(client, "quick-kind", training_file=file, extra_body={"kind": "choice"})
    assert ended(client, job.id).status == "succeeded"
    starts = (tuned.hub.folder.parent / "starts.txt").read_text().splitlines()
    assert "--kind choice" in next(line for line in starts if "quick-kind" in line)
    with pytest.raises(openai.BadRequestError, match="keeps the kind"):
        create(client, model="tickets@v1", training_file=file, extra_body={"kind": "choice"})


def test_the_rows_that_are_learned_are_not_the_score(tuned: Running) -> None:
    client = tuned.client()
    file = upload(client)
    with pytest.raises(openai.BadRequestError, match="must be another one") as refused:
        create(client, "same", training_file=file, validation_file=file)
    assert refused.value.param == "validation_file"


def test_jobs_come_in_pages(tuned: Running) -> None:
    client = tuned.client()
    made = [create(client, f"quick-page{k}").id for k in range(3)]
    first = client.fine_tuning.jobs.list(limit=2)
    assert [job.id for job in first.data] == made[:0:-1]
    assert first.has_more
    assert [job.id for job in client.fine_tuning.jobs.list(limit=1, after=made[1]).data] == [made[0]]
    with pytest.raises(openai.BadRequestError, match="after"):
        client.fine_tuning.jobs.list(after="ftjob-none")
    for job_id in made:
        assert ended(client, job_id).status == "succeeded"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (JSONL + b"{broken\n", "line 7"),
        (JSONL + b'{"text": "no label"}\n', "line 7"),
        (b'{"a": 1}\n{"a": 2}\n', "file-"),
        (b"\xff\xfe\x00\n", "file-"),
        (b"\n\n", "no rows"),
    ],
    ids=["syntax", "no answer", "no layout", "bytes", "blank"],
)
def test_bad_rows_are_named(tuned: Running, content: bytes, word: str) -> None:
    client = tuned.client()
    bad = upload(client, content)
    with pytest.raises(openai.BadRequestError) as told:
        create(client, "quick-bad", training_file=bad)
    assert (told.value.code, told.value.param) == ("invalid_training_file", "training_file")
    assert word in told.value.message
    assert str(tuned.hub.folder) not in told.value.message
    with pytest.raises(openai.BadRequestError) as told:
        create(client, "quick-bad", validation_file=bad)
    assert (told.value.code, told.value.param) == ("invalid_validation_file", "validation_file")
    client.files.delete(bad)


@pytest.mark.parametrize(
    ("asked", "status", "word"),
    [
        ({"training_file": "file-" + "0" * 24}, 400, "no file"),
        ({"training_file": "../../hub.toml"}, 400, "no file"),
        ({"validation_file": "file-x"}, 400, "no file"),
        ({"suffix": "../up"}, 400, "not a valid name"),
        ({"suffix": "Größe"}, 400, "not a valid name"),
        ({"suffix": "base"}, 400, "base"),
        ({"suffix": "auto"}, 400, "auto"),
        ({"suffix": "tickets"}, 400, "model='tickets' updates it"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"model": "nothing"}, 404, "nothing"),
        ({"model": "../x"}, 400, "not a valid name"),
        ({"model": "tickets", "suffix": "other"}, 400, "leave the suffix out"),
        ({"model": "all"}, 400, "several tasks"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, 400, "n_epochs"),
        ({"hyperparameters": {"learning_rate_multiplier": -1}}, 400, "learning_rate_multiplier"),
        ({"hyperparameters": {"rank": 4}}, 400, "rank"),
        ({"method": {"type": "dpo", "dpo": {}}}, 400, "'dpo'"),
        ({"method": {"type": "reinforcement"}}, 400, "'reinforcement'"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 400, "integrations"),
        ({"seed": -1}, 400, "seed"),
        ({"metadata": {"k": "v" * 600}}, 400, "metadata"),
        ({"strategy": "replay"}, 400, "'strategy'"),
    ],
    ids=str,
)
def test_bad_jobs(tuned: Running, asked: dict[str, Any], status: int, word: str) -> None:
    client = tuned.client()
    body = {"model": "base", "training_file": upload(client), "suffix": "quick-never", **asked}
    if "model" in asked and "suffix" not in asked:
        del body["suffix"]
    answer = httpx2.post(f"{tuned.url}/v1/fine_tuning/jobs", json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]["message"]
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_unknown_and_wrong_ids(tuned: Running) -> None:
    for path in ("files/file-" + "0" * 24, "files/hub.toml", "files/..%2f..%2fhub.toml", "fine_tuning/jobs/ftjob-1"):
        for more in ("", "/content", "/events", "/checkpoints"):
            answer = httpx2.get(f"{tuned.url}/v1/{path}{more}")
            assert answer.status_code == 404, (path, more)
            assert "error" in answer.json()
    assert httpx2.delete(f"{tuned.url}/v1/files/file-{'0' * 24}").status_code == 404
    assert httpx2.post(f"{tuned.url}/v1/fine_tuning/jobs/..%2f..%2fx/cancel").status_code == 404


def test_bad_uploads(tuned: Running) -> None:
    def post(data: dict[str, Any], **files: Any) -> httpx2.Response:
        return httpx2.post(f"{tuned.url}/v1/files", data=data, files=files or None)

    good: Any = ("rows.jsonl", JSONL)
    assert "purpose" in post({"purpose": "batch"}, file=good).json()["error"]["message"]
    assert "purpose" in post({}, file=good).json()["error"]["message"]
    assert post({"purpose": "fine-tune"}).json()["error"]["param"] == "file"
    assert post({"purpose": "fine-tune", "file": "text"}).status_code == 400
    assert "empty" in post({"purpose": "fine-tune"}, file=("rows.jsonl", b"")).json()["error"]["message"]
    assert post({"purpose": "fine-tune", "expires_after": "1"}, file=good).json()["error"]["code"] == "unsupported"
    assert post({"purpose": "fine-tune"}, file=good, more=good).status_code == 400
    headers = {"content-type": "multipart/form-data; boundary=x"}
    for body in (b"", b"nonsense", b"--x\r\n\r\nhalf"):
        assert httpx2.post(f"{tuned.url}/v1/files", content=body, headers=headers).status_code == 400


def test_a_page_of_another_site_changes_nothing(tuned: Running) -> None:
    def post(origin: str) -> httpx2.Response:
        files = {"file": ("rows.jsonl", JSONL)}
        return httpx2.post(
            f"{tuned.url}/v1/files", data={"purpose": "fine-tune"}, files=files, headers={"origin": origin}
        )

    for origin in ("https://example.org", "null", f"{tuned.url}1"):
        assert post(origin).json()["error"]["code"] == "forbidden"
    assert post(tuned.url).status_code == 200


def test_uploads_have_limits(tuned: Running) -> None:
    client = tuned.client()
    with pytest.raises(openai.APIStatusError) as told:
        upload(client, b" " * 100_001)
    assert told.value.status_code == 413

    def pieces() -> Iterator[bytes]:  # no content-length
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(200):
            yield b" " * 1000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert httpx2.post(f"{tuned.url}/v1/files", content=pieces(), headers=headers).status_code == 413
    room = 200_000 - sum(one.bytes for one in client.files.list())
    made = [upload(client, b" " * 50_000) for _ in range(room // 50_000)]
    with pytest.raises(openai.APIStatusError, match="200000") as told:
        upload(client, b" " * 50_000)
    assert told.value.status_code == 413
    for file_id in made:
        client.files.delete(file_id)
    assert upload(client)


def test_a_refusal_by_the_gate(tuned: Running) -> None:
    client = tuned.client()
    job = ended(client, create(client, "gate-1").id)
    assert (job.status, job.fine_tuned_model, job.error.code) == ("failed", None, "gate_refused")
    assert "forgets reviews" in job.error.message
    events: list[Any] = list(client.fine_tuning.jobs.list_events(job.id))
    verdict = next(event for event in events if "the gate refused" in event.message)
    assert verdict.level == "error"
    assert verdict.data["gate"]["effects"][0]["task"] == "reviews"


def test_errors_do_not_name_the_hubs_folder(tuned: Running) -> None:
    client = tuned.client()
    job = ended(client, create(client, "broken-1").id)
    assert job.status == "failed"
    assert job.error.message == "cannot read x.jsonl"


def test_cancel_and_a_file_in_use(tuned: Running) -> None:
    client = tuned.client()
    file = upload(client)
    job = create(client, "long-1", training_file=file)
    waits = create(client, "quick-waits")
    runs = tuned.hub.folder / "runs"
    until(client, job.id, lambda now: now.status == "running" and any(runs.glob("long-1-*")))
    with pytest.raises(openai.ConflictError, match=job.id):
        client.files.delete(file)
    with pytest.raises(openai.BadRequestError, match="already"):
        create(client, "long-1")
    assert client.fine_tuning.jobs.cancel(waits.id).status == "cancelled"
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert not list(runs.glob("long-1-*")), "nothing is left to be resumed"
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.fine_tuning.jobs.cancel(job.id)
    assert client.files.delete(file).deleted
    assert "quick-waits" not in (tuned.hub.folder.parent / "starts.txt").read_text()


def test_who_may_train(tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secrets = {role: add_key(keys, role, role) for role in ("read", "ask", "steer")}
    folder = shutil.copytree(REFERENCE, tmp_path / "hub")
    with running(folder, train=stub(folder), keys=str(keys)) as served:
        with pytest.raises(openai.AuthenticationError):
            upload(served.client())
        for role in ("read", "ask"):
            client = served.client(secrets[role])
            with pytest.raises(openai.PermissionDeniedError):
                upload(client)
            with pytest.raises(openai.PermissionDeniedError):
                create(client, "quick-1", training_file="file-" + "0" * 24)
        client = served.client(secrets["steer"])
        file, job = upload(client), create(client, "quick-1")
        reader = served.client(secrets["read"])
        assert reader.files.retrieve(file).id == file
        assert ended(reader, job.id).status == "succeeded"
        for forbidden in (
            lambda: reader.files.content(file),
            lambda: reader.files.delete(file),
            lambda: reader.fine_tuning.jobs.cancel(job.id),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                forbidden()


@pytest.mark.slow
def test_a_real_training(tmp_path: Path) -> None:
    folder = shutil.copytree(REFERENCE, tmp_path / "hub")
    with running(folder) as served:
        client = served.client()
        job = create(client, "things", hyperparameters={"n_epochs": 1})
        job = until(client, job.id, lambda now: now.status in ENDED, 300)
        assert (job.status, job.fine_tuned_model) == ("succeeded", "things@v1"), job.error
        question: Any = [{"role": "user", "content": "the pen is good"}]
        asked = time.monotonic()
        answer = client.chat.completions.create(model="things@v1", messages=question)
        assert time.monotonic() - asked < 5
        assert answer.model == "things@v1"
        assert answer.choices[0].message.content in ("good", "bad")
        assert job.trained_tokens > 0
