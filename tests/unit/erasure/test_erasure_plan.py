"""What belongs to a task: nothing is left out, and nothing else is taken."""

from __future__ import annotations

import pytest
from erasure_support import Repeater, publish, rows, tree

from adapterhub_cl.erasure.places import reads_the_past
from adapterhub_cl.erasure.removal import forget, look
from adapterhub_cl.errors import UnknownNameError, UsageError
from adapterhub_cl.registry import Registry


def fates(hub: Registry, task: str, **options: bool) -> dict[str, str]:
    return {version.ref: version.does for version in look(hub, task, **options).versions}


def test_everything_that_holds_something_of_the_task_is_named(world: Registry) -> None:
    before = tree(world.path)
    plan = look(world, "news")
    assert {v.ref: (v.does, v.why) for v in plan.versions} == {
        "news@v1": ("removed", "made for news"),
        "news@v2": ("removed", "made for news"),
        "topics@v2": ("retired", "learned from rows of news"),
        "solo@v1": ("retired", "learned from rows of news"),
        "both@v1": ("re-derived", "answers for news"),
        "slim@v1": ("re-derived", "answers for news"),
    }
    order = [version.ref for version in plan.versions]
    assert order.index("news@v2") < order.index("both@v1") < order.index("slim@v1")
    assert (plan.samples, plan.elsewhere) == (6 + 2 + 1, {"mood@v1": 1})
    assert plan.evaluations == 4
    assert plan.runs == ("runs/feed-1", "runs/news-1", "runs/other-1", "runs/pupil-1", "runs/reader-1")
    assert plan.streams == ("streams/news/replay-0",)
    assert set(plan.others) == {"routers/analytic.json", "logs/news", "adapters/news/.tmp-999999999-abcd"}
    assert plan.serve == {"topics": "topics@v1"}  # mood by what both@v1 is made again as
    assert look(world, "news", may_repeat=False).serve == {"mood": "mood@v1", "topics": "topics@v1"}
    assert plan.tasks_without_adapter == ("solo",)
    assert plan.aliases == {"both@production": None, "slim@tiny": None}
    assert tree(world.path) == before
    assert fates(world, "news", may_repeat=False)["both@v1"] == "retired"


def test_another_task_of_the_same_hub(world: Registry) -> None:
    found = fates(world, "topics")
    assert found == {"topics@v1": "removed", "topics@v2": "removed"}
    assert look(world, "topics").elsewhere == {}


def test_what_was_made_before_the_past_was_written_down_counts(hub: Registry) -> None:
    publish(hub, "early", "early", seed=1, strategy="replay", learned_from=None)
    publish(hub, "news", "news", seed=2)
    publish(hub, "plain", "plain", seed=3, strategy="ewc", learned_from=None)
    publish(hub, "late", "late", seed=4, strategy="ewc+replay", learned_from=None)
    publish(hub, "gone", "gone", seed=5, strategy="no-such-strategy", learned_from=None)
    recipe = {"kind": "pruned", "recipe": {"verb": "prune", "parents": ["early@v1"]}}
    publish(hub, "slim", seed=6, strategy="replay", edges=[("early@v1", "pruned_from")], learned_from=None, **recipe)
    assert set(fates(hub, "news")) == {"news@v1", "late@v1", "gone@v1"}


def test_a_version_that_started_from_one_of_the_task_has_its_weights(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1)
    publish(hub, "sport", "sport", seed=2, edges=[("news@v1", "started_from")], learned_from=[])
    (sport,) = (version for version in look(hub, "news").versions if version.ref == "sport@v1")
    assert (sport.does, sport.why) == ("retired", "started from news@v1")


def test_what_stored_logits_or_generated_texts_told_counts(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1)
    told = {"edges": [("news@v1", "updated_from")], "strategy": "der", "memory": True}
    publish(hub, "second", "second", seed=2, **told)  # type: ignore[arg-type]
    publish(hub, "third", "third", seed=3, strategy="der", learned_from=["second"], read_from=["second@v1"])
    publish(hub, "fourth", "fourth", seed=4, strategy="replay", learned_from=["second"], read_from=["second@v1"])
    assert set(fates(hub, "news")) == {"news@v1", "second@v1", "third@v1"}
    wrote = {"edges": [("news@v1", "updated_from")], "replay": {"policy": "generated", "samples": 0}}
    publish(hub, "second", "second", seed=5, **wrote)  # type: ignore[arg-type]
    publish(hub, "fifth", "fifth", seed=6, strategy="replay", learned_from=["second"], read_from=["second@v2"])
    assert "fifth@v1" in fates(hub, "news")


@pytest.mark.parametrize(("policy", "counts"), [("reservoir", False), ("generated", True), ("no-longer-there", True)])
def test_samples_count_as_written_unless_their_policy_keeps_data(hub: Registry, policy: str, counts: bool) -> None:
    publish(hub, "news", "news", seed=1)
    kept = {"edges": [("news@v1", "updated_from")], "replay": {"policy": policy, "samples": 0}}
    publish(hub, "second", "second", seed=2, **kept)  # type: ignore[arg-type]
    publish(hub, "third", "third", seed=3, strategy="replay", learned_from=["second"], read_from=["second@v1"])
    assert ("third@v1" in fates(hub, "news")) is counts


def test_deleted_versions_are_found_on_disk_and_their_children_by_the_log(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1)
    publish(hub, "news", "news", seed=2)
    publish(hub, "mood", "mood", seed=3, samples=rows(["a line that both of them have in common"]))
    publish(hub, "mid", "mid", seed=4, edges=[("news@v1", "trained_on_top_of")])
    publish(hub, "leaf", "leaf", seed=5, edges=[("mid@v1", "updated_from")])
    hub.delete("news@v1")
    hub.delete("mid@v1")
    assert set(fates(hub, "news")) == {"news@v1", "news@v2", "mid@v1", "leaf@v1"}
    hub.collect(hub.garbage())
    assert not (hub.adapters_dir / "mid").exists()
    assert set(fates(hub, "news")) == {"news@v2", "leaf@v1"}


def test_what_came_from_a_deleted_version_that_never_knew_it_stays(hub: Registry) -> None:
    publish(hub, "news", "news", seed=1)
    publish(hub, "mood", "mood", seed=2)
    publish(hub, "mood", "mood", seed=3, edges=[("mood@v1", "updated_from")])
    hub.delete("mood@v1")
    hub.collect(hub.garbage())
    assert set(fates(hub, "news")) == {"news@v1"}
    Registry.rebuild_at(hub.path)
    assert set(fates(hub, "news")) == {"news@v1"}
    (hub.path / "index.db").unlink()  # and the log with it: nothing is left to tell
    Registry.rebuild_at(hub.path)
    assert set(fates(Registry.open(hub.path), "news")) == {"news@v1"} | {"mood@v2"}


def test_a_deleted_version_that_keeps_the_same_samples_goes_too(hub: Registry) -> None:
    same = rows(["a line that both of them have in common"])
    publish(hub, "news", "news", seed=1, samples=same)
    publish(hub, "mood", "mood", seed=2, samples=same)
    publish(hub, "mood", "mood", seed=3, samples=rows(["something else entirely, and long enough"]))
    hub.delete("mood@v1")
    plan = look(hub, "news")
    assert [v.ref for v in plan.versions] == ["news@v1", "mood@v1"]
    assert plan.elsewhere == {}


def test_unknown_names(world: Registry) -> None:
    with pytest.raises(UnknownNameError) as caught:
        look(world, "nwes")
    assert caught.value.near == ["news"]
    with pytest.raises(UsageError):
        look(world, "../news")
    publish(world, "extra", "mood", seed=77)
    with pytest.raises(UnknownNameError) as caught:
        look(world, "extra")
    assert "its task is mood" in caught.value.hint
    forget(world, "news", Repeater(world))
    with pytest.raises(UnknownNameError) as caught:
        look(world, "news")
    assert "was forgotten on" in caught.value.hint
    assert "verify --forgotten news" in caught.value.hint


def test_a_strategy_that_nobody_knows_is_taken_to_read(world: Registry) -> None:
    found = [reads_the_past(name) for name in ("", "isolated", "replay", "ewc+replay", "multitask", "nonesuch")]
    assert found == [False, False, True, True, True, True]
