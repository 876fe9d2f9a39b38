"""The keeper: whole conversations, masked, in the background; a disk that refuses costs no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from traffic_support import answer

from adapterhub_cl.errors import StorageError
from adapterhub_cl.traffic import keeper as module
from adapterhub_cl.traffic.conversations import canary_answers, conversation_of, held_back, place_of
from adapterhub_cl.traffic.journal import Journal
from adapterhub_cl.traffic.keeper import Keeper

FOR_GOOD = 36_500  # days: the answers of these tests have fixed dates, which grow old


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    made = Keeper(Journal(tmp_path), 1.0, FOR_GOOD, lambda: {"news"})
    yield made
    made.close()


def test_what_is_kept_is_masked(keeper: Keeper) -> None:
    keeper.keep(answer(1, "mail me: jane@doe.org", answer="call 030 1234567"))
    keeper.flush()
    kept = keeper.journal.get("a-1")
    assert kept.example.input == "mail me: <email>"
    assert kept.answer == "call <number>"


def test_half_a_character_does_not_stop_the_others(keeper: Keeper) -> None:
    keeper.keep(answer(1, "half \ud800 a character", answer="\udfff"))
    keeper.keep(answer(2))
    keeper.flush()
    assert [row.id for row in keeper.journal.answers()] == ["a-1", "a-2"]


def test_an_answer_of_a_task_that_was_forgotten_meanwhile_is_not_kept(keeper: Keeper) -> None:
    for row in (answer(1, task="gone"), answer(2, task=""), answer(3)):
        keeper.keep(row)
    keeper.flush()
    assert [row.id for row in keeper.journal.answers()] == ["a-2", "a-3"]


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    made = Keeper(Journal(tmp_path), 1.0, FOR_GOOD, lambda: {"news"})
    for k in range(50):
        made.keep(answer(k))
    made.close()
    assert len([*made.journal.answers()]) == 50


def test_a_share_keeps_whole_conversations(tmp_path: Path) -> None:
    made = Keeper(Journal(tmp_path), 0.3, FOR_GOOD, lambda: {"news"})
    for k in range(300):
        made.keep(answer(k, conversation=f"c{k // 3}"))
    made.close()
    kept = [row.conversation for row in made.journal.answers()]
    assert 0.15 < len(kept) / 300 < 0.45
    assert all(kept.count(one) == 3 for one in set(kept))


def test_a_full_disk_costs_nothing_once_there_is_room(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    real, full = keeper.journal.keep, [True]

    def keep(rows: Any) -> None:
        if rows and full[0]:
            raise StorageError("no space left", "free some")
        real(rows)

    monkeypatch.setattr(keeper.journal, "keep", keep)
    keeper.keep(answer(1))
    with pytest.raises(StorageError):
        keeper.flush()
    keeper.keep(answer(2))
    full[0] = False
    keeper.flush()
    assert [row.id for row in keeper.journal.answers()] == ["a-1", "a-2"]


def test_the_oldest_go_where_a_disk_never_has_room(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 3)
    monkeypatch.setattr(keeper, "flush", lambda: None)
    for k in range(5):
        keeper.keep(answer(k))
    assert keeper.lost == 2
    assert [row.id for row in keeper._rows] == ["a-2", "a-3", "a-4"]
    keeper._rows.clear()


def test_places_are_even_and_stay() -> None:
    places = [place_of(str(k)) for k in range(2000)]
    assert all(0 <= place < 1 for place in places)
    assert places == [place_of(str(k)) for k in range(2000)]
    assert 0.45 < sum(places) / 2000 < 0.55
    assert sum(held_back(map(str, range(1000)), 0.2)) == pytest.approx(200, abs=40)


def test_a_conversation_stays_with_its_canary() -> None:
    talks = [conversation_of(f"hello {k}") for k in range(1000)]
    chosen = [canary_answers("news@v2", 0.1, talk) for talk in talks]
    assert 60 < sum(chosen) < 140
    assert chosen == [canary_answers("news@v2", 0.1, talk) for talk in talks]
    assert [canary_answers("news@v3", 0.1, talk) for talk in talks] != chosen
    assert not canary_answers("news@v2", 0.99, "")  # a request without a conversation is nobody's guinea pig
    assert conversation_of("hi", "user-1") == conversation_of("other", "user-1") != conversation_of("hi")
