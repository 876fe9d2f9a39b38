"""The live page: what it shows, to whom, and that no text from a hub can do anything there. No server is needed."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from registry_support import BASE, publish_into

from adapterhub_cl.registry import Registry
from adapterhub_cl.registry.usage import Counted
from adapterhub_cl.server import page_ask, page_route, page_steer
from adapterhub_cl.server.page_facts import ROWS, fresh_facts, live_facts, sheet
from adapterhub_cl.server.page_steering import Steering
from adapterhub_cl.traffic.journal import Journal, KeptAnswer, Said
from adapterhub_cl.traffic.lesson_book import Lesson, Lessons
from adapterhub_cl.types import Evaluation, Example, Prediction, Route, Task

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"
HIDDEN = "safe\u202egnp.exe\u0007\u2066"


class ScriptedAsker:
    """Answers every text with the same words, all of them hostile."""

    def __init__(self) -> None:
        route = Route("x", {"news@v1": 1.0}, {EVIL: 1.0}, 0.9, False, 1.0, 0.5, {EVIL: 2.0}, ((EVIL, EVIL, 0.5),))
        self.engine = SimpleNamespace(route=lambda texts, explain: [route])

    async def named(self, model: str) -> str:
        return model

    def writing(self, *_: Any) -> None:
        return None

    def request(self, *_: Any) -> Any:
        return SimpleNamespace(answered_by=None)

    async def answers(self, *_: Any) -> list[Prediction]:
        return [Prediction("x", "news@v1", EVIL + HIDDEN, 0.9, {EVIL: 0.9, HIDDEN: 0.1}, "news", {}, 0.8)]


def page_of(registry: Registry, role: str = "steer") -> TestClient:
    """The pages of a hub without an engine, as one role sees them."""
    app = FastAPI()
    fresh = fresh_facts(registry)
    steering = Steering(registry, [], fresh.forget)
    app.include_router(page_route.routes(registry, fresh, steering))
    app.include_router(page_ask.routes(ScriptedAsker()))  # type: ignore[arg-type]
    app.include_router(page_steer.routes(steering))

    class AsRole:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("state", {}).update(key="me", role=role)
            await app(scope, receive, send)

    return TestClient(AsRole(), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A hub with every kind of text that comes from outside."""
    registry = Registry.create(tmp_path_factory.mktemp("page") / "hub", BASE)
    for score in (0.75, 0.5):
        with registry.new_draft("news") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"weights")
            task = Task("news", "choice", labels=(EVIL, HIDDEN), metric="accuracy")
            manifest = {"kind": "trained", "rank": 8, "status": "active", "strategy": EVIL, "score": score}
            registry.publish(draft, manifest, task=task, evaluations=[Evaluation("news", "accuracy", score, 10)])
    registry.rollback("news@latest")
    registry.start_canary("news@v2", 0.25)
    registry.set_alias("news@v1", "stable", detail={"why": EVIL})
    registry.count_requests([Counted("news@v1", "news", 30, 20, 0, 18.0, "2026-11-29T10:00:00")])
    registry.count_requests([Counted("base", "", 10, 0, 10, 1.0, "2026-11-29T11:00:00")])
    journal = Journal(registry.path)
    now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    rows = [KeptAnswer(f"a{k}", now, "news", "news@v1", Example(EVIL), EVIL, 0.5, 0.8, k == 0) for k in range(4)]
    journal.keep(rows)
    journal.say(*(Said(f"a{k}", False, EVIL, "news") for k in range(3)))
    taken = [one.said for one in journal.judged() if one.said.id == "a0"]
    Lessons(journal).begin(Lesson("news", "update", "canary", "news@v1", "news@v2", 0.25, EVIL + HIDDEN, id=1), taken)
    return registry


@pytest.fixture(scope="module")
def page(hub: Registry) -> Iterator[TestClient]:
    with page_of(hub) as client:
        yield client


SHOWN = ("/", "/page/versions", "/page/traffic", "/page/adapter/news", "/page/ask")


def test_what_serves(page: TestClient) -> None:
    text = page.get("/").text
    for told in (">news@v1</a>", "latest, stable", "0.750", "25.0 %", ">news@v2</a>", "canary", "0.633", "33.3 %"):
        assert told in text, told
    assert "2</td></tr>" in text, "two judged answers wait"


def test_versions_and_traffic(page: TestClient) -> None:
    versions = page.get("/page/versions").text
    assert versions.index("news@v2") < versions.index("news@v1")
    assert "nothing to compare" in versions
    traffic = page.get("/page/traffic").text
    assert traffic.index("news@v1") < traffic.index(">base<")
    assert "0.800" in traffic, "the router's confidence by day"
    assert "25.0 %" in traffic, "one of four fitted no task"


def test_an_adapter(page: TestClient) -> None:
    text = page.get("/page/adapter/news").text
    for action in ("promote", "roll-back", "end-canary", "pin"):
        assert f'value="{action}"' in text
    assert "news@v2 answers 25.0 % of news" in text
    assert page.get("/page/adapter/nothing").status_code == 404
    assert page.get("/page/adapter/..%2Fnews").status_code in (400, 404)
    assert page.get("/page/adapter/News").status_code == 400


@pytest.mark.parametrize("path", SHOWN)
def test_no_text_of_a_hub_becomes_markup(page: TestClient, path: str) -> None:
    for query in ("", f"?q={quote(EVIL + HIDDEN)}&sheet=<b>"):
        answer = page.get(path + query)
        assert answer.status_code == 200
        assert "<script>alert" not in answer.text
        assert "<img" not in answer.text
        assert not {"\u202e", "\u0007", "\u2066"} & set(answer.text)
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.text.count("<script") == 1, "the page's own"
        assert " style=" not in answer.text


def test_an_answer_is_text(page: TestClient) -> None:
    answer = page.post("/page/ask", data={"text": EVIL + HIDDEN, "model": EVIL})
    assert answer.status_code == 200
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert "\u202e" not in answer.text
    assert answer.text.count("&lt;script&gt;alert(1)") >= 6, "question, model, answer, label, task, sample"


def test_samples_are_for_those_who_steer(hub: Registry) -> None:
    asked = {"text": "x", "model": "auto"}
    with page_of(hub, "steer") as mine, page_of(hub, "ask") as other:
        whole, less = mine.post("/page/ask", data=asked).text, other.post("/page/ask", data=asked).text
    sample = '<td class="text wider">'
    assert sample in whole
    assert sample not in less
    assert "0.500" in less, "how near it is"


def test_what_a_reader_sees(hub: Registry) -> None:
    with page_of(hub, "read") as page:
        text = page.get("/page/adapter/news").text
        assert "/page/steer" not in text
        assert "role <code>steer</code>" in text
        assert "<form" not in page.get("/page/ask").text


def test_every_field_has_a_label(page: TestClient) -> None:
    for path in SHOWN:
        text = page.get(path).text
        fields = re.findall(r"<(?:input|select|textarea)(?![^>]*type=\"(?:hidden|checkbox)\")[^>]*id=\"(\w+)\"", text)
        assert fields
        for field in fields:
            assert f'<label for="{field}">' in text
        ids = re.findall(r' id="([\w-]+)"', text)
        assert len(ids) == len(set(ids)), path
        assert 'href="#main"' in text
        assert 'id="main"' in text


def test_forms_that_are_none(page: TestClient) -> None:
    for sent in ({"json": {"text": "x"}}, {"content": b"\xff"}, {"files": {"text": ("a", b"x")}}):
        assert page.post("/page/ask", **sent).status_code == 415  # type: ignore[arg-type]
    long = page.post("/page/ask", data={"text": "x" * 20_001})
    assert long.status_code == 400
    assert "20,001" in long.text
    assert len(long.text) < 30_000


def test_the_report_keeps_its_own_policy(page: TestClient) -> None:
    answer = page.get("/page/report")
    assert "<script" not in answer.text
    assert "default-src 'none'; style-src 'unsafe-inline'" in answer.headers["content-security-policy"]
    assert 'id="lineage"' in answer.text
    assert page.get("/page/live.js").headers["content-type"].startswith("text/javascript")
    assert page.get("/page/live.css").text.count("prefers-color-scheme: dark") == 1


def test_a_damaged_journal_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "hub", BASE)
    publish_into(registry, "news", score=0.5)
    (registry.path / "traffic.db").write_bytes(b"no database" * 100)
    with page_of(registry) as page:
        text = page.get("/").text
    assert "news@v1" in text
    assert "Skipped." in text


def test_an_empty_hub_and_one_that_is_gone(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "hub", BASE)
    with page_of(registry) as page:
        for path in ("/", "/page/versions", "/page/traffic"):
            assert page.get(path).status_code == 200
    registry.path.rename(tmp_path / "gone")
    with page_of(registry) as page:
        for path in ("/", "/page/versions", "/page/adapter/news"):
            answer = page.get(path)
            assert answer.status_code == 503
            assert answer.headers["content-type"].startswith("text/html")
            assert str(tmp_path) not in answer.text


def test_end_a_canary(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "hub", BASE)
    for number in range(2):
        publish_into(registry, "news", content=bytes([number]) * 9)
    registry.rollback("news@latest")
    registry.start_canary("news@v2", 0.1)
    with page_of(registry) as page:
        token = re.findall(r'name="token" value="(\w+)"', page.get("/page/adapter/news").text)[0]
        form = {"action": "end-canary", "ref": "news", "token": token}
        confirm = page.post("/page/steer", data=form)
        assert "news@v2 answers 10% of news; news@v1 will answer all of it." in confirm.text
        form |= {"token": re.findall(r'name="token" value="(\w+)"', confirm.text)[0], "alias": "canary"}
        assert ">done</span>" in page.post("/page/steer/do", data=form).text
        assert page.post("/page/steer", data={**form, "token": token}).status_code == 400, "there is none any more"
    assert registry.canaries() == {}
    assert registry.events("news", 1)[0].detail["reason"] == "ended on the page by me"


def many(registry: Registry, count: int) -> None:
    """Copies of the hub's only version under other names, each with a task that it serves."""
    with closing(sqlite3.connect(registry.path / "index.db")) as connection:
        for table in ("versions", "tasks", "serving", "aliases", "evaluations"):
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            (row,) = [dict(zip(columns, one, strict=True)) for one in connection.execute(f"SELECT * FROM {table}")]
            row.pop("id", None)
            sql = f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
            for k in range(count):
                name = f"n{k:04d}"
                connection.execute(sql, [v.replace("news", name) if isinstance(v, str) else v for v in row.values()])
        connection.commit()


def test_a_thousand_adapters_come_in_sheets(tmp_path: Path) -> None:
    registry = Registry.create(tmp_path / "hub", BASE)
    publish_into(registry, "news", score=0.5)
    many(registry, 1000)
    with page_of(registry) as page:
        first, last = page.get("/").text, page.get("/?sheet=99999").text
        assert first.count('<th scope="row"') == ROWS
        assert "1,001 tasks, page 1 of 21" in first
        assert "page 21 of 21" in last
        assert ">news@v1</a>" in last
        assert len(first) < 80_000
        hit = page.get("/?q=N0500 v1").text
        assert hit.count('<th scope="row"') == 1
        assert "1 of 1,001 tasks" in hit
        assert page.get("/?q=nobody").text.count("No task fits") == 1
        assert "page 2 of 21" in page.get("/page/versions?sheet=2").text
        assert ">n0500@v1<" in page.get("/page/adapter/n0500").text


def test_facts_are_read_once_for_many_requests(hub: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    monkeypatch.setattr("adapterhub_cl.server.page_facts.live_facts", lambda r: reads.append(r) or live_facts(r))
    with page_of(hub) as page:
        for path in SHOWN:
            page.get(path)
    assert len(reads) == 1


@pytest.mark.parametrize("number", ["", "0", "-1", "x", "²", "9" * 50, "1.5", "\u0663"])
def test_a_sheet_that_does_not_exist_is_the_nearest(number: str) -> None:
    found = sheet(["a", "b"], str, "", number)
    assert (found.number, found.last, list(found.rows)) == (1, 1, ["a", "b"])
