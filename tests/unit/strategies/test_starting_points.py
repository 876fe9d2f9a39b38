"""Where each strategy starts from, and which can be combined."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.strategies import DEFAULT, ROOM, BaseStrategy, Past, build, isolated
from adapterhub_cl.types import AdapterRecord


def record(name: str) -> AdapterRecord:
    return AdapterRecord(name, 1, "trained", name, 4, 100, "2026-01-01", "active", Path(name))


PAST = Past([record("a"), record("b")])


def test_the_default_is_known() -> None:
    assert DEFAULT in ROOM.names()


def test_isolated_starts_afresh_and_does_nothing_else() -> None:
    assert build("isolated").parent(PAST) is None
    hooks = ("begin", "review", "penalty", "before_step", "after_step", "end", "remember", "state", "restore")
    assert all(getattr(isolated.Strategy, hook) is getattr(BaseStrategy, hook) for hook in hooks)


@pytest.mark.parametrize(
    ("name", "makes", "shared"),
    [
        ("isolated", "fresh", False),
        ("reptile", "fresh", False),
        ("multitask", "fresh", True),
        ("sequential", "continued", True),
        ("replay", "continued", True),
        ("lwf", "continued", True),
        ("sdft", "continued", True),
        ("olora", "stacked", True),
        ("replay+olora", "stacked", True),
        ("lwf+ewc+replay", "continued", True),
    ],
)
def test_what_each_makes_and_from_what(name: str, makes: str, shared: bool) -> None:
    strategy = build(name)
    assert (strategy.makes, strategy.shared) == (makes, shared)
    assert strategy.parent(Past()) is None
    parent = strategy.parent(PAST)
    assert (parent.ref if parent else None) == (None if makes == "fresh" else "b@v1")


def test_multitask_repeats_the_rows_of_small_tasks_where_it_is_asked_to() -> None:
    tasks = ["a"] * 9 + ["b"] * 3 + ["c"] * 2
    assert list(build("multitask").repeats(tasks)) == [1] * 14
    often = build("multitask", {"multitask.balance": True}).repeats(tasks)
    assert list(often) == [1] * 9 + [3] * 3 + [4] * 2
    assert list(build("replay+olora").repeats(["a", "a"])) == [1, 1]


def test_the_order_of_names_does_not_matter() -> None:
    one, other = build("replay+olora"), build("olora + replay")
    assert one.name == other.name == "olora+replay"
    assert list(one.parts) == list(other.parts)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("ewc+olora", "continues training the newest adapter.*stacks a new adapter"),
        ("isolated+replay", "isolated cannot be combined"),
        ("replay+der", "both mix in"),
        ("replay+replay", "names a strategy twice"),
        ("multitask+lwf", "multitask cannot be combined"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        build(text)


def test_two_that_project_gradients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapterhub_cl.strategies import lwf

    monkeypatch.setattr(lwf.Strategy, "projects", True)
    with pytest.raises(UsageError, match="inflora and lwf both project gradients"):
        build("inflora+lwf")


def test_unknown_names_and_options_have_their_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown strategy 'replays'") as error:
        build("replays")
    assert "replay" in error.value.hint
    with pytest.raises(UnknownNameError, match=r"unknown strategy option 'ewc\.strength'") as error:
        build("replay", {"ewc.strength": 1})
    assert "replay.ratio" in error.value.hint
