"""Answer answers against transformers' own `generate`, the distribution they are drawn from, stop strings, streams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl.answering import Answer, writing
from adapterhub_cl.answering.writing import Writing, write_rows
from adapterhub_cl.data.batches import to_left_padded
from adapterhub_cl.errors import UsageError

PROMPTS = ((1, 40, 41, 42), (1, 90, 17, 63, 204, 11, 12, 13, 250), (1, 7), (1, 260, 261, 33, 120))


@dataclass
class Scripted:
    """Stands for a model: writes the given ids whatever it is asked, as transformers' greedy search would."""

    script: Sequence[Sequence[int]]
    steps: int = 0
    device: str = "cpu"

    def generate(self, input_ids: torch.Tensor, max_new_tokens: int, **given: Any) -> None:
        for step in range(max_new_tokens):
            scores = torch.zeros(len(self.script), 300)
            for row, ids in enumerate(self.script):
                scores[row, ids[step] if step < len(ids) else 2] = 20.0
            self.steps += 1
            scores = given["logits_processor"](input_ids, scores)
            input_ids = torch.cat([input_ids, scores.argmax(-1)[:, None]], 1)
            if given["stopping_criteria"](input_ids, scores).all():
                return


def say(tokenizer: Any, texts: Sequence[str], rows: Sequence[Writing], **more: Any) -> list[Answer]:
    """These texts written by the scripted model, one token for each byte."""
    return write_rows(
        Scripted([in_bytes(tokenizer, text) for text in texts]), tokenizer, [(1,)] * len(texts), rows, **more
    )


def in_bytes(tokenizer: Any, text: str) -> list[int]:
    """A text's ids, one for each byte: characters outside ASCII take several."""
    from tokenizers import pre_tokenizers

    pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [tokenizer.convert_tokens_to_ids(c) for word, _ in pre.pre_tokenize_str(text) for c in word]


def taken(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, list[int]]]:
    """The ids that each later call of `write_rows` took for its rows."""
    calls: list[dict[int, list[int]]] = []

    def spy(*given: Any, **more: Any) -> list[Answer]:
        found = real(*given, **more)
        calls.append({row: [token for token, _ in one.tokens] for row, one in enumerate(found)})
        return found

    real = writing.write_rows
    monkeypatch.setitem(globals(), "write_rows", spy)
    return calls


# -- greedy ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_greedy_rows_are_transformers_own(
    load_pico: Callable[..., Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, calls = load_pico(kind), taken(monkeypatch)
    limits = (12, 3, 20, 7)
    found = write_rows(base.model, base.tokenizer, PROMPTS, [Writing(max_new_tokens=n) for n in limits])
    theirs = base.model.generate(
        **to_left_padded(PROMPTS, 0), max_new_tokens=max(limits), do_sample=False, pad_token_id=0, eos_token_id=2
    )
    for row, (limit, one) in enumerate(zip(limits, found, strict=True)):
        ids = theirs[row, len(PROMPTS[1]) :].tolist()[:limit]
        ids = ids[: ids.index(2) + 1] if 2 in ids else ids
        assert calls[0][row] == ids
        assert one.text == base.tokenizer.decode(ids, skip_special_tokens=True)
        assert one.finished == (ids[-1] == 2)
        whole = torch.tensor([[*PROMPTS[row], *ids]])
        logs = base.model(input_ids=whole).logits[0].log_softmax(-1)[len(PROMPTS[row]) - 1 : -1]
        right = math.exp(float(logs.gather(-1, torch.tensor(ids)[:, None]).mean()))
        assert one.confidence == pytest.approx(right, rel=1e-3)
    assert len({tuple(ids) for ids in calls[0].values()}) == 4


def test_an_end_of_text_ends_a_row_and_no_other(tokenizer: Any) -> None:
    model = Scripted([[40, 2, 41, 41], [50, 51, 52, 53]])
    first, second = write_rows(model, tokenizer, [(1,), (1,)], [Writing(max_new_tokens=4)] * 2)
    assert (first.text, first.finished) == (tokenizer.decode([40]), True)
    assert (second.text, second.finished) == (tokenizer.decode([50, 51, 52, 53]), False)
    ended = Scripted([[40, 2], [50, 2]])
    write_rows(ended, tokenizer, [(1,), (1,)], [Writing(max_new_tokens=30)] * 2)
    assert ended.steps == 2  # nothing is computed when all rows are done


# -- drawing -----------------------------------------------------------------------------------------


def far_from(counts: Counter[int], chances: torch.Tensor, draws: int) -> float:
    """Pearson's chi-square of the counts, in standard deviations above its mean; rare tokens are pooled."""
    often = [k for k, p in enumerate(chances.tolist()) if p * draws >= 8]
    pairs = [(counts[k], float(chances[k]) * draws) for k in often]
    pairs.append((draws - sum(n for n, _ in pairs), draws - sum(e for _, e in pairs)))
    terms = [(n - e) ** 2 / e for n, e in pairs if e > 1]
    return (sum(terms) - (len(terms) - 1)) / (2 * max(1, len(terms) - 1)) ** 0.5


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.7, 0.8), (1.0, 0.35)])
@torch.no_grad()
def test_draws_follow_the_softmax(
    pico_base: Any, monkeypatch: pytest.MonkeyPatch, temperature: float, top_p: float
) -> None:
    calls, draws = taken(monkeypatch), 3000
    for start in range(0, draws, 500):
        rows = [Writing(1, temperature, top_p, seed) for seed in range(start, start + 500)]
        write_rows(pico_base.model, pico_base.tokenizer, [PROMPTS[0]] * 500, rows)
    counts = Counter(ids[0] for call in calls for ids in call.values())
    assert sum(counts.values()) == draws
    chances = (pico_base.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).softmax(-1)
    order, kept, total = chances.argsort(descending=True).tolist(), [], 0.0
    for token in order:  # the fewest of the likeliest tokens that together have top_p
        if total >= top_p:
            break
        kept.append(token)
        total += float(chances[token])
    wanted = torch.zeros(300)
    wanted[kept] = chances[kept] / chances[kept].sum()
    assert set(counts) <= set(kept)
    assert len(counts) > 5
    assert far_from(counts, wanted, draws) < 4
    other = (chances.log() * 1.3).softmax(-1)  # the check would notice another temperature
    assert far_from(counts, other, draws) > 4


def test_the_same_seed_gives_the_same_text_whatever_else_is_in_the_batch(pico_base: Any) -> None:
    drawn = Writing(16, 0.9, 0.95, seed=5)
    [alone] = write_rows(pico_base.model, pico_base.tokenizer, PROMPTS[:1], [drawn])
    rows = [Writing(24), Writing(3, 2.0, seed=5), drawn, Writing(9, 0.9, 0.95, seed=6)]
    mixed = write_rows(pico_base.model, pico_base.tokenizer, [*PROMPTS[1:3], PROMPTS[0], PROMPTS[0]], rows)
    assert mixed[2].text == alone.text
    assert mixed[2].confidence == pytest.approx(alone.confidence, rel=1e-4)
    assert mixed[3].text != alone.text[: len(mixed[3].text)]  # another seed
    [greedy] = write_rows(pico_base.model, pico_base.tokenizer, PROMPTS[1:2], [Writing(24)])
    assert mixed[0].text == greedy.text


# -- stop strings and streams ------------------------------------------------------------------------


def streamed(tokenizer: Any, text: str, writing: Writing) -> tuple[Answer, list[str]]:
    pieces: list[str] = []

    def emit(piece: str) -> bool:
        pieces.append(piece)
        return True

    [found] = say(tokenizer, [text], [writing], emit=[emit])
    return found, pieces


def test_a_stop_string_that_spans_tokens_ends_the_text_before_it(tokenizer: Any) -> None:
    found, pieces = streamed(tokenizer, "one two END three", Writing(stop=("END", "never")))
    assert (found.text, found.finished) == ("one two ", True)
    assert "".join(pieces) == "one two "
    assert len(pieces) > 3
    # What looked like its beginning and was not is given out.
    found, pieces = streamed(tokenizer, "EN ENE E", Writing(stop=("END",)))
    assert found.text == "".join(pieces) == "EN ENE E"
    # The limit comes while the end of the text may still be the beginning of a stop string.
    found, pieces = streamed(tokenizer, "xyEND", Writing(max_new_tokens=4, stop=("END",)))
    assert found.text == "".join(pieces) == "xyEN"
    assert not found.finished


def test_one_rows_stop_string_is_not_anothers(tokenizer: Any) -> None:
    first, second = say(tokenizer, ["a.b", "a.b"], [Writing(stop=(".",)), Writing(stop=("b",))])
    assert (first.text, second.text) == ("a", "a.")


@given(
    text=st.text("abE🙂ß", max_size=12),
    stops=st.lists(st.text("abE🙂ß", min_size=1, max_size=3), max_size=3),
    limit=st.integers(1, 40),
)
def test_streams_are_the_text_and_never_a_stop_string_or_half_a_character(
    tokenizer: Any, text: str, stops: list[str], limit: int
) -> None:
    found, pieces = streamed(tokenizer, text, Writing(limit, stop=tuple(stops)))
    assert "".join(pieces) == found.text
    assert not any(stop in found.text for stop in stops)
    whole = text.encode()[:limit].decode(errors="replace")
    assert whole.startswith(found.text)
    if not any(stop in whole for stop in stops):
        assert found.text == whole
    if limit >= len(text.encode()):
        assert "�" not in found.text
    assert all("�" not in piece for piece in pieces[:-1])


def test_characters_of_several_tokens_come_whole(tokenizer: Any) -> None:
    found, pieces = streamed(tokenizer, "é🙂日本", Writing())
    assert pieces == ["é", "🙂", "日", "本"]
    assert found.text == "é🙂日本"


def test_who_says_no_gets_no_more_and_the_others_go_on(tokenizer: Any) -> None:
    heard: list[str] = []

    def enough(piece: str) -> bool:
        heard.append(piece)
        return len(heard) < 3

    first, second = say(tokenizer, ["abcdefgh", "ABCDEFGH"], [Writing()] * 2, emit=[enough, None])
    assert heard == ["a", "b", "c"]
    assert (first.text, first.finished) == ("abc", False)
    assert second.text == "ABCDEFGH"


def test_halting_ends_all_as_they_are(tokenizer: Any) -> None:
    pieces: list[str] = []

    def emit(piece: str) -> bool:
        pieces.append(piece)
        return True

    found = say(
        tokenizer,
        ["abEFG", "xyzuvw"],
        [Writing(stop=("EFGH",)), Writing()],
        emit=[emit, None],
        halt=lambda: len(pieces) == 2,
    )
    assert [one.text for one in found] == ["ab", "xy"]
    pieces.clear()
    halted = iter([False, False, False, True])
    [found[0]] = say(tokenizer, ["abEFG"], [Writing(stop=("EFGH",))], emit=[emit], halt=lambda: next(halted))
    assert found[0].text == "".join(pieces) == "abEF"  # what was held back comes too
    assert not found[0].finished


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be 1 or more"),
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": math.inf}, "--temperature"),
        ({"temperature": math.nan}, "--temperature"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.1}, "--top-p"),
        ({"top_p": math.nan}, "--top-p"),
        ({"stop": ("a", "")}, "empty stop string"),
    ],
)
def test_settings_that_cannot_be_used(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Writing(**wrong)


def test_a_tiny_temperature_is_nearly_greedy(pico_base: Any) -> None:
    rows = [Writing(8), Writing(8, 1e-4, seed=3), Writing(8, 2.0, top_p=1e-9, seed=3)]
    found = write_rows(pico_base.model, pico_base.tokenizer, [PROMPTS[0]] * 3, rows)
    assert found[0].text == found[1].text == found[2].text
