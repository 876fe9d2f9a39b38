"""What `list` and `show` tell of the requests that were answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cli_support import Cl

from adapterhub_cl.registry import Counted, Registry

Publish = Callable[..., Any]
AT = "2026-03-01T10:00:00.000+00:00"


@pytest.fixture
def counted(registry: Registry, publish: Publish) -> Registry:
    publish("mood")
    publish("taste")
    rows = [Counted("mood@v1", "mood", 12, 9, 0, 8.1, AT), Counted("mood@v1", "taste", 3, 1, 0, 0.4, AT)]
    registry.count_requests([*rows, Counted("base", "", 2, 0, 2, 0.2, AT)])
    return registry


def test_list_as_json_has_the_number_of_requests(counted: Registry, cl: Cl) -> None:
    rows = cl("list", "--json", "--hub", counted.path).json
    assert {row["ref"]: row["requests"] for row in rows} == {"mood@v1": 15, "taste@v1": 0}


def test_show_tells_the_requests(counted: Registry, cl: Cl) -> None:
    said = cl("show", "mood", "--hub", counted.path).out
    (line,) = [line for line in said.splitlines() if line.startswith("requests ")]
    assert line.split(maxsplit=1)[1].startswith("15, the last ")
    assert line.endswith(" ago; 10 routed with mean confidence 0.85; mood 12, taste 3")
    assert "\nrequests " not in cl("show", "taste", "--hub", counted.path).out


def test_show_as_json_has_the_usage(counted: Registry, cl: Cl) -> None:
    first, _ = cl("show", "mood", "--hub", counted.path, "--json").json["usage"]
    assert first == {
        "ref": "mood@v1",
        "task": "mood",
        "requests": 12,
        "routed": 9,
        "fallbacks": 0,
        "mean_confidence": pytest.approx(0.9),
        "last_at": AT,
    }
    assert cl("show", "taste", "--hub", counted.path, "--json").json["usage"] == []
