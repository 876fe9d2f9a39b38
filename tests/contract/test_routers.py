"""What every router keeps to, also one that a third party brings."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch

from adapterhub_cl.errors import UsageError
from adapterhub_cl.merging.factors import Factors
from adapterhub_cl.routing import ROOM, BaseRouter, build

NAMES = ROOM.names()
pytestmark = pytest.mark.parametrize("name", NAMES)
TASKS = ("news", "reviews", "sums")
WIDTH = 10


class Stub:
    """Inputs whose hidden states are given."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden

    @property
    def texts(self) -> Sequence[str]:
        return [""] * len(self.hidden)

    def activity(self, directions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        unit = self.hidden / self.hidden.norm(dim=1, keepdim=True)
        return torch.stack([(unit @ v.T).abs() for v in directions.values()]).mean(0)

    def losses(self, tasks: Sequence[str]) -> torch.Tensor:
        return torch.stack([(self.hidden - centre(task)).square().mean(1) for task in tasks], 1)


def centre(task: str) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(sum(map(ord, task))))


def known(router: BaseRouter, task: str, seed: int = 0, count: int = 30) -> Any:
    """What the router learns of a task."""
    draw = torch.Generator().manual_seed(1000 * seed + sum(map(ord, task)))
    if router.reads == "samples":
        return centre(task) + 0.3 * torch.randn(count, WIDTH, generator=draw)
    if router.reads == "factors":  # it amplifies the task's own direction
        noise = 0.05 * torch.randn(1, WIDTH, generator=draw)
        return {layer: Factors(torch.randn(7, 1, generator=draw), centre(task)[None] + noise) for layer in ("q", "v")}
    return None


def made(name: str, tasks: Sequence[str] = TASKS) -> BaseRouter:
    return build(name, ROOM.get(name).trial_options(tasks))


def fitted(name: str, tasks: Sequence[str] = TASKS) -> BaseRouter:
    router = made(name)
    for task in tasks:
        router.learn(task, known(router, task))
    router.solve()
    return router


def inputs(count: int = 20) -> tuple[Stub, list[str]]:
    draw = torch.Generator().manual_seed(99)
    rows = [centre(task) + 0.3 * torch.randn(count, WIDTH, generator=draw) for task in TASKS]
    return Stub(torch.cat(rows)), [task for task in TASKS for _ in range(count)]


def by_task(router: BaseRouter, seen: Stub) -> torch.Tensor:
    """Scores with the columns in the order of `TASKS`."""
    return router.scores(seen)[:, [router.tasks.index(task) for task in TASKS if task in router.tasks]]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-6, atol=1e-6)


def test_it_says_what_it_is(name: str) -> None:
    router = ROOM.get(name)
    assert issubclass(router, BaseRouter)
    assert is_dataclass(router.Config)
    assert 10 < len(router.purpose) < 120
    assert router.reads in ("samples", "factors", "")
    module = inspect.getmodule(router)
    assert module is not None
    assert "Choose it" in (module.__doc__ or "").replace("\n", " "), (
        "the module docstring says when to choose it: Choose it when …"
    )
    assert len(inspect.getsource(module).splitlines()) <= 160
    assert all(field.metadata.get("help") for field in fields(router.Config))


def test_its_name_and_options_are_known_without_torch(name: str) -> None:
    code = (
        f"import sys; from adapterhub_cl.routing import build; build({name!r}, {{}}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        build(name, {"nonsense": 1})
    with pytest.raises(UsageError, match=r"other\.thing"):
        build(name, {"other.thing": 1})


def test_scores_have_a_column_for_each_task(name: str) -> None:
    router = fitted(name)
    seen, _ = inputs()
    scores = router.scores(seen)
    assert router.tasks == list(TASKS)
    assert scores.shape == (60, 3)
    assert scores.dtype == torch.float32
    assert router.familiarity(seen, scores).shape == (60,)


def test_it_knows_the_tasks_apart(name: str) -> None:
    router = fitted(name)
    seen, truth = inputs()
    found = [router.tasks[k] for k in router.scores(seen).argmax(1).tolist()]
    if router.input_matters:
        assert sum(a == b for a, b in zip(found, truth, strict=True)) >= 55
    else:
        assert len(set(found)) == 1


def test_the_order_of_learning_does_not_matter(name: str) -> None:
    seen, _ = inputs()
    one, other = fitted(name), fitted(name, TASKS[::-1])
    assert other.tasks == list(TASKS[::-1])
    assert close(by_task(one, seen), by_task(other, seen))
    assert close(one.familiarity(seen, one.scores(seen)), other.familiarity(seen, other.scores(seen)))


def test_what_came_and_went_leaves_no_trace(name: str) -> None:
    seen, _ = inputs()
    router = fitted(name, ("reviews", "trivia", "news"))
    router.unlearn("trivia", known(router, "trivia"))
    router.learn("sums", known(router, "sums"))
    router.unlearn("news", known(router, "news"))
    router.learn("news", known(router, "news"))
    router.solve()
    straight = fitted(name)
    assert sorted(router.tasks) == sorted(TASKS)
    assert close(by_task(router, seen), by_task(straight, seen))


def test_a_task_can_learn_further_samples(name: str) -> None:
    seen, _ = inputs()
    whole = fitted(name)
    if whole.reads != "samples":
        pytest.skip("it reads no samples")
    parts = made(name)
    for task in TASKS:
        parts.learn(task, known(parts, task)[:11])
    for task in TASKS:
        parts.learn(task, known(parts, task)[11:])
    parts.solve()
    assert parts.tasks == list(TASKS)
    assert close(by_task(parts, seen), by_task(whole, seen))
    parts.unlearn("sums", known(parts, "sums")[:11])
    assert "sums" in parts.tasks
    parts.unlearn("sums", known(parts, "sums")[11:])
    assert "sums" not in parts.tasks


def test_it_comes_back_from_its_state(name: str) -> None:
    seen, _ = inputs()
    router = fitted(name)
    state = {key: value.clone() for key, value in router.state().items()}
    back = made(name)
    back.restore(router.tasks, state)
    scores = router.scores(seen)
    assert torch.equal(back.scores(seen), scores)
    assert torch.equal(back.familiarity(seen, scores), router.familiarity(seen, scores))
    # and goes on from there as the first one does
    for one in (router, back):
        one.unlearn("news", known(one, "news"))
        if one.input_matters:  # else it may miss a task that its options name
            one.solve()
    assert close(back.scores(seen), router.scores(seen))
    assert back.tasks == ["reviews", "sums"]


def test_a_state_is_a_copy(name: str) -> None:
    seen, _ = inputs()
    router = fitted(name)
    state = router.state()
    before = {key: value.clone() for key, value in state.items()}
    router.learn("trivia", known(router, "trivia"))
    router.solve()
    assert all(torch.equal(state[key], before[key]) for key in before)
    assert router.scores(seen).shape == (60, 4)


def test_one_task_is_enough(name: str) -> None:
    seen, _ = inputs()
    router = made(name, ["news"])
    router.learn("news", known(router, "news"))
    router.solve()
    scores = router.scores(seen)
    assert scores.shape == (60, 1)
    assert not torch.isnan(router.familiarity(seen, scores)).any()


def test_the_same_samples_give_the_same_scores(name: str) -> None:
    seen, _ = inputs()
    assert torch.equal(fitted(name).scores(seen), fitted(name).scores(seen))


def test_rows_do_not_depend_on_each_other(name: str) -> None:
    seen, _ = inputs()
    router = fitted(name)
    whole = router.scores(seen)
    alone = torch.cat([router.scores(Stub(row[None])) for row in seen.hidden])
    assert torch.allclose(alone, whole, rtol=1e-5, atol=1e-5)
