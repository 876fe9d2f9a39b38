"""What each selection policy prefers, by hand-worked cases."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from adapterhub_cl.replay import generated, hard, herding, importance, k_center
from adapterhub_cl.types import Example


class Told:
    def __init__(self, losses: Sequence[float] = (), points: Any = ()) -> None:
        self._losses, self._points = list(losses), points

    def losses(self) -> list[float]:
        return self._losses

    def embeddings(self) -> Any:
        return np.asarray(self._points, np.float32)

    def write(self, count: int, seed: int) -> list[tuple[Example, float]]:
        raise AssertionError("not asked for")


def test_hard_takes_the_highest_losses_first() -> None:
    examples = [Example(str(k), "a") for k in range(4)]
    assert hard.Policy().select(examples, 2, random.Random(0), Told([0.1, 2.0, 0.5, 3.0])) == [3, 1]


def test_importance_weights_are_exp_of_minus_loss_over_the_proposal() -> None:
    examples = [Example("x", "a"), Example("y", "a"), Example("z", "b"), Example("w", "a")]
    found = [math.exp(w) for w in importance.log_weights([0.0, math.log(2), 0.0, 0.0], examples)]
    raw = [1 / 0.75, 0.5 / 0.75, 1 / 0.25, 1 / 0.75]
    assert found == pytest.approx([w / sum(raw) for w in raw])
    tiny = importance.log_weights([5000.0, 5001.0], examples[:2])
    assert sum(math.exp(w) for w in tiny) == pytest.approx(1.0), "no underflow"


def test_importance_draws_in_proportion_to_its_weights() -> None:
    examples = [Example("x", "a"), Example("y", "a"), Example("z", "b"), Example("w", "b")] * 2
    losses = [0.0, math.log(3)] * 4
    draws = Counter(
        importance.Policy().select(examples, 1, random.Random(seed), Told(losses))[0] % 2 for seed in range(4000)
    )
    assert draws[0] / 4000 == pytest.approx(0.75, abs=0.03)


def test_herding_follows_the_mean() -> None:
    points = np.array([[0.0], [1.0], [2.0], [9.0]])  # mean 3: nearest is 2; with it 1 gives 1.5, 9 gives 5.5
    assert herding.herd(points, 2) == [2, 1]
    assert sorted(herding.herd(points, 9)) == [0, 1, 2, 3]


def test_herding_gives_every_answer_its_share() -> None:
    examples = [Example(str(k), "ab"[k % 2]) for k in range(8)]
    points = [[1.0, k] for k in range(8)]
    chosen = herding.Policy().select(examples, 4, random.Random(0), Told(points=points))
    assert Counter(examples[i].answer for i in chosen) == {"a": 2, "b": 2}


def test_k_center_reaches_every_cluster() -> None:
    points = [[0.0, 0.1 * k] for k in range(5)] + [[10.0, 0.1 * k] for k in range(5)] + [[0.0, 50.0]]
    chosen = k_center.Policy().select([Example(str(k)) for k in range(11)], 3, random.Random(0), Told(points=points))
    assert {0 if i < 5 else 1 if i < 10 else 2 for i in chosen} == {0, 1, 2}


def test_generated_drops_the_unsure_the_doubled_and_the_copied() -> None:
    known = [Example("turn on the lamp in the hall", "lights"), Example("one two three four five six seven eight", "x")]
    written = [
        (Example("play some jazz for me", "music"), 0.9),
        (Example("Play some  jazz for me!", "music"), 0.8),  # nearly the same
        (Example("turn on the lamp in the hall", "lights"), 0.95),  # a user's own
        (Example("he said one two three four five six seven eight and nine more words", "x"), 0.9),  # quotes one
        (Example("gibberish nobody would say", "lights"), 0.1),  # unsure
        (Example("wake me at seven", "alarm"), 0.7),
    ]
    kept = [example.input for example, _ in generated.novel(written, known, 0.5)]
    assert kept == ["play some jazz for me", "wake me at seven"]
    assert generated.novel([], known, 0.5) == []


def test_a_long_copy_in_a_script_without_spaces_is_a_copy() -> None:
    known = [Example("我今天早上在北京火车站丢了一个黑色的钱包请帮我找", "help")]
    copied = Example("你好" + "早上在北京火车站丢了一个黑色的钱包" + "还有别的事情要问谢谢你们帮忙", "help")
    other = Example("明天的天气怎么样我要不要带雨伞出门呢", "weather")
    assert [example for example, _ in generated.novel([(copied, 0.9), (other, 0.8)], known, 0.5)] == [other]
