"""Counters of requests: adding up, from several processes at once, and what takes them away."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from registry_support import Publish, rows_of

from adapterhub_cl.consolidation import proposals
from adapterhub_cl.errors import StorageError, UnknownNameError, UsageError
from adapterhub_cl.registry import Counted, Registry, Usage
from adapterhub_cl.registry.index import open_sqlite

AT = "2026-03-01T10:00:00.000+00:00"
ONE = Counted("news@v1", "news", 3, 2, 0, 1.5, AT)
COUNT = """
import sys
from adapterhub_cl.registry import Counted, Registry
hub = Registry.open(sys.argv[1])
for i in range(30):
    rows = [Counted("news@v1", "news", 2, 1, 0, 0.5, f"2026-03-01T10:00:{i:02}+00:00")]
    assert hub.count_requests([*rows, Counted("base", "", 1, 0, 1, 0.25, "2026-03-01T10:00:00+00:00")]) == 3
"""


def test_counts_add_up_and_the_newest_moment_stays(hub: Registry, publish: Publish) -> None:
    publish()
    assert hub.usage() == []
    assert hub.count_requests([]) == 0
    later = replace(ONE, requests=1, routed=1, confidence_sum=0.75, last_at="2026-03-02T01:00:00+02:00")
    assert hub.count_requests([ONE, later, Counted("base", "news", 4, 0, 3, 0.3, AT)]) == 8
    assert hub.count_requests([replace(ONE, task="", routed=0, confidence_sum=0.0)]) == 3
    assert hub.count_requests([replace(ONE, last_at="2025-01-01T00:00:00")]) == 3
    news = Usage("news@v1", "news", 7, 5, 0, 0.75, "2026-03-01T23:00:00.000+00:00")
    assert hub.usage() == [
        Usage("base", "news", 4, 0, 3, pytest.approx(0.1), AT),
        Usage("news@v1", "", 3, 0, 0, None, AT),
        news,
    ]
    assert hub.usage("base")[0].to_json()["fallbacks"] == 3
    assert hub.usage("news@latest") == hub.usage("news") == hub.usage("news@v1")
    assert hub.usage("news")[1] == news
    with pytest.raises(UnknownNameError):
        hub.usage("mews")


def test_an_adapter_called_base_is_not_the_base(hub: Registry, publish: Publish) -> None:
    publish("base")
    hub.count_requests([replace(ONE, ref="base@v1"), Counted("base", "", 1, 0, 0, 0.0, AT)])
    assert [(row.ref, row.requests) for row in hub.usage()] == [("base", 1), ("base@v1", 3)]
    assert [row.ref for row in hub.usage("base")] == ["base"]
    assert [row.ref for row in hub.usage("base@latest")] == ["base@v1"]
    hub.delete("base@v1")
    assert [row.ref for row in hub.usage()] == ["base"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"requests": 1}, "invalid counts"),
        ({"routed": -1}, "invalid counts"),
        ({"requests": 0, "routed": 0}, "invalid counts"),
        ({"fallbacks": 1}, "only the base can"),
        ({"confidence_sum": float("nan")}, "confidence"),
    ],
)
def test_what_cannot_be_a_count_is_refused(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(ONE, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "said"), [({"ref": "news"}, "is not a version"), ({"last_at": "noon"}, "is not a time")]
)
def test_one_row_that_cannot_be_used_stops_all(
    hub: Registry, publish: Publish, wrong: dict[str, str], said: str
) -> None:
    publish()
    with pytest.raises(UsageError, match=said):
        hub.count_requests([ONE, replace(ONE, **wrong)])  # type: ignore[arg-type]
    assert hub.usage() == []


def test_two_processes_count_at_once(hub: Registry, publish: Publish) -> None:
    publish()
    running = [
        subprocess.Popen([sys.executable, "-c", COUNT, hub.path], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert [process.communicate()[1] for process in running] == ["", ""]
    base, news = hub.usage()
    assert (base.requests, base.fallbacks, base.mean_confidence) == (60, 60, 0.25)
    assert (news.requests, news.routed, news.mean_confidence) == (120, 60, 0.5)
    assert news.last_at == "2026-03-01T10:00:29.000+00:00"


def test_a_deleted_version_and_a_dropped_task_lose_their_counters(hub: Registry, publish: Publish) -> None:
    publish()
    publish()
    publish("mood", task="mood")
    rows = [ONE, replace(ONE, ref="news@v2"), replace(ONE, ref="mood@v1", task="mood"), replace(ONE, ref="mood@v1")]
    hub.count_requests(rows)
    hub.delete("news@v1")
    assert [(row.ref, row.task) for row in hub.usage()] == [
        ("mood@v1", "mood"),
        ("mood@v1", "news"),
        ("news@v2", "news"),
    ]
    hub.drop_task("mood")
    assert [(row.ref, row.task) for row in hub.usage()] == [("mood@v1", "news"), ("news@v2", "news")]
    # what an engine counted of them and brings too late
    assert hub.count_requests([ONE, replace(ONE, ref="mood@v1", task="mood", requests=5)]) == 5
    assert [(row.ref, row.task) for row in hub.usage("mood")] == [("mood@v1", ""), ("mood@v1", "news")]


def test_a_task_that_is_erased_leaves_no_name_among_the_counters(hub: Registry, publish: Publish) -> None:
    publish("secret", task="secret")
    publish("both", task="mood")
    hub.count_requests([replace(ONE, ref=ref, task="secret") for ref in ("secret@v1", "both@v1")])
    hub.count_requests([replace(ONE, ref="both@v1", task="mood"), Counted("base", "secret", 1, 0, 1, 0.1, AT)])
    hub.erase("secret", {"secret@v1": None}, {}, {"tombstone": "tombstones/secret.json"})
    hub.scrub()
    assert [(row.ref, row.task) for row in hub.usage()] == [("both@v1", "mood")]
    assert hub.count_requests([replace(ONE, ref="both@v1", task="secret"), replace(ONE, ref="secret@v1")]) == 3
    assert "secret" not in str(rows_of(hub)["requests"])


def test_a_rebuilt_index_carries_the_counters_over_where_the_old_one_can_be_read(
    hub: Registry, publish: Publish
) -> None:
    publish()
    publish()
    hub.count_requests([ONE, replace(ONE, ref="news@v2"), Counted("base", "", 2, 0, 1, 0.5, AT)])
    before = hub.usage()
    hub.rebuild()
    hub.rebuild()
    assert hub.usage() == before
    raw = open_sqlite(hub.path / "index.db")
    raw.execute("DROP TABLE requests")
    raw.close()
    events = hub.events()
    hub.rebuild()
    assert hub.usage() == []
    assert hub.events() == events  # the log does not depend on them
    (hub.path / "index.db").unlink()
    assert Registry.open(hub.path).usage() == []


def test_reading_counters_imports_neither_sqlalchemy_nor_torch(hub: Registry, publish: Publish) -> None:
    publish()
    hub.count_requests([ONE])
    code = (
        "import sys; from adapterhub_cl.registry import Registry; r = Registry.open(sys.argv[1]);"
        "print(len(r.usage()), sorted({'sqlalchemy', 'alembic', 'torch', 'filelock'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, hub.path], capture_output=True, text=True, check=True)
    assert done.stdout == "1 []\n"


def test_counters_read_the_same_through_sqlalchemy(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish()
    hub.count_requests([ONE])
    natively = hub.usage(), hub.usage("news")
    monkeypatch.setattr(hub._index, "reading", hub._index._reading_engine)
    assert (hub.usage(), hub.usage("news")) == natively


def test_a_hub_that_cannot_be_written_counts_nothing(
    hub: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    publish()

    def refuse() -> None:
        raise StorageError("no permission to write")

    monkeypatch.setattr(hub._index, "lock", refuse)
    with pytest.raises(StorageError):
        hub.count_requests([ONE])
    assert hub.usage() == []


def test_an_index_that_went_away_is_not_made_anew(hub: Registry, publish: Publish) -> None:
    """The hub was moved while an engine worked: an empty index in its old place would hide that."""
    publish()
    moved = hub.path.with_name("moved")
    hub.path.rename(moved)
    with pytest.raises(StorageError, match="is gone"):
        hub.count_requests([ONE])
    assert not hub.path.exists()
    assert Registry.open(moved).count_requests([ONE]) == ONE.requests


def test_use_is_what_was_answered(hub: Registry, publish: Publish) -> None:
    """`prune --unused` goes by the last request, and tells how many there were."""
    publish()
    publish()
    publish()
    now = datetime.now(UTC) + timedelta(days=100)
    asked = (now - timedelta(days=3)).isoformat()
    hub.count_requests([replace(ONE, last_at=asked), replace(ONE, task="", last_at=AT)])
    assert proposals.last_used(hub, [hub.get("news@v1")])["news@v1"] == datetime.fromisoformat(hub.usage()[1].last_at)
    found = {verdict.record.ref: verdict for verdict in proposals.unused(hub, 30, now)}
    assert not found["news@v1"].proposed
    assert found["news@v1"].reason == "answered 6 requests, the last 3 days ago"
    assert found["news@v1"].to_json()["requests"] == 6
    assert found["news@v2"].proposed
    assert found["news@v2"].reason.endswith("not used in 30 days; no requests were counted")
    found = {v.record.ref: v for v in proposals.unused(hub, 30, now + timedelta(days=37))}
    assert found["news@v1"].proposed
    assert found["news@v1"].reason.endswith("not used in 30 days; answered 6 requests, the last 40 days ago")
