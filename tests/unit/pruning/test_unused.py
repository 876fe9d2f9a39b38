"""Which versions may go: the table of decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapterhub_cl.pruning.unused import Verdict, VersionUse, decide
from adapterhub_cl.types import AdapterRecord, Edge

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def version(name: str, number: int, *, task: str = "news", status: str = "active", **more: Any) -> AdapterRecord:
    at = (NOW - timedelta(days=100 - number)).isoformat()
    more = {"kind": "trained", "rank": 8, "bytes": 10, **more}
    return AdapterRecord(name, number, task=task, created_at=at, status=status, path=Path(name), **more)


def known(*records: AdapterRecord, **more: Any) -> VersionUse:
    used = {record.ref: datetime.fromisoformat(record.created_at) for record in records}
    return VersionUse(records, more.pop("edges", []), more.pop("serving", {}), used | more.pop("used", {}), **more)


def verdicts(about: VersionUse, days: float = 30) -> Mapping[str, Verdict]:
    return {verdict.record.ref: verdict for verdict in decide(about, NOW, days)}


OLD = version("news", 1)
NEW = version("news", 2, aliases=("latest",))


def test_an_old_version_that_nothing_speaks_for_is_proposed() -> None:
    found = verdicts(known(OLD, NEW, serving={"news": "news@v2"}))
    assert found["news@v1"].proposed
    assert "no alias" in found["news@v1"].reason
    assert found["news@v1"].to_json()["bytes"] == 10
    assert not found["news@v2"].proposed


def asked(requests: int, days: float) -> VersionUse:
    """`OLD` answered so many requests, the last so many days ago."""
    at = {OLD.ref: NOW - timedelta(days=days)}
    return known(OLD, NEW, used=at, answered=at, requests={OLD.ref: requests})


@pytest.mark.parametrize(
    ("about", "end"),
    [
        (known(OLD, NEW), "; no requests were counted"),
        (asked(12, days=40), "; answered 12 requests, the last 40 days ago"),
        (asked(1, days=30), "; answered 1 request, the last 30 days ago"),
    ],
)
def test_a_proposal_tells_how_many_requests_were_answered(about: VersionUse, end: str) -> None:
    verdict = verdicts(about)["news@v1"]
    assert verdict.proposed
    assert verdict.reason == f"no alias, nothing built on it, not used in 30 days{end}"
    assert verdict.requests == verdict.to_json()["requests"] == about.requests.get("news@v1", 0)


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (known(OLD, NEW, serving={"news": "news@v1"}), "serves news"),
        (known(replace(OLD, aliases=("production",)), NEW), "has the alias production"),
        (known(OLD, NEW, runs={"news@v1": "run-7"}), "the unfinished run run-7 needs it"),
        (known(OLD, NEW, edges=[Edge("news@v2", "news@v1", "updated_from")]), "news@v2 descends from it"),
        (known(OLD, NEW, samples={"news@v1"}), "has the only replay samples of news"),
        (known(OLD, NEW, used={"news@v1": NOW - timedelta(days=3)}), "used 3 days ago"),
        (asked(12, days=3), "answered 12 requests, the last 3 days ago"),
    ],
)
def test_each_of_these_keeps_a_version(about: VersionUse, why: str) -> None:
    found = verdicts(about)["news@v1"]
    assert not found.proposed
    assert found.reason == why


def test_the_only_adapter_of_a_task_stays_and_one_of_two_goes() -> None:
    latest = replace(OLD, aliases=("latest",))
    assert verdicts(known(latest))["news@v1"].reason == "the only adapter for news"
    other = version("press", 5, aliases=("latest",))
    found = verdicts(known(latest, other))
    assert found["news@v1"].proposed  # longest unused first,
    assert found["press@v5"].reason == "the only adapter for news"  # and then the other is the last one
    rejected = replace(other, status="rejected", aliases=())
    assert not verdicts(known(latest, rejected))["news@v1"].proposed


def test_an_adapter_that_took_the_task_over_counts() -> None:
    merged = version("both", 5, task="", aliases=("latest",), manifest={"takes_over": ["news", "mood"]})
    found = verdicts(known(replace(OLD, aliases=("latest",)), merged))
    assert found["news@v1"].proposed
    assert "mood" in found["both@v5"].reason


def test_an_adapter_of_no_task_is_left_to_the_user() -> None:
    assert "decide yourself" in verdicts(known(version("x", 1, task="", aliases=("latest",))))["x@v1"].reason


def test_of_two_that_keep_samples_the_one_used_last_stays() -> None:
    third = version("news", 3, aliases=("latest",))
    found = verdicts(known(OLD, replace(NEW, aliases=()), third, samples={"news@v1", "news@v2"}))
    assert found["news@v1"].proposed
    assert found["news@v2"].reason == "has the only replay samples of news"


def test_a_pruned_copy_is_no_descendant_but_what_was_built_on_it_is() -> None:
    third = version("news", 3, aliases=("latest",))
    copy = Edge("news@v2", "news@v1", "pruned_from")
    records = (OLD, replace(NEW, aliases=()), third)
    assert verdicts(known(*records, edges=[copy]))["news@v1"].proposed
    built = [copy, Edge("news@v3", "news@v2", "updated_from")]
    assert verdicts(known(*records, edges=built))["news@v1"].reason == "news@v3 descends from it"
    copies = [copy, Edge("news@v3", "news@v2", "pruned_from")]
    assert verdicts(known(*records, edges=copies))["news@v1"].proposed


def test_what_descends_only_by_a_rejected_version_counts_through_it() -> None:
    middle, third = replace(NEW, status="rejected", aliases=()), version("news", 3, aliases=("latest",))
    edges = [Edge("news@v2", "news@v1", "updated_from")]
    assert verdicts(known(OLD, middle, third, edges=edges))["news@v1"].proposed
    for relation in ("updated_from", "pruned_from"):  # a copy of what was built on it
        after = [*edges, Edge("news@v3", "news@v2", relation)]
        assert not verdicts(known(OLD, middle, third, edges=after))["news@v1"].proposed


def test_lineage_in_a_circle_ends() -> None:
    edges = [Edge("news@v1", "news@v2", "pruned_from"), Edge("news@v2", "news@v1", "pruned_from")]
    assert verdicts(known(OLD, NEW, edges=edges))["news@v1"].proposed


def test_old_rejected_versions_are_proposed_and_young_ones_not() -> None:
    old, young = version("news", 2, status="rejected"), version("news", 99, status="rejected")
    found = verdicts(known(NEW, replace(old, version=3), young, serving={"news": "news@v2"}))
    assert found["news@v3"].proposed
    assert found["news@v3"].reason.startswith("refused by the gate")
    assert found["news@v99"].reason == "used 1 days ago"
