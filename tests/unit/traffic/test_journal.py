"""The journal: what is kept comes back, what is dropped is gone from the file, and nobody else may read it."""

from __future__ import annotations

import sqlite3
import stat
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from traffic_support import answer

from adapterhub_cl.errors import HubError, IntegrityError, StorageError, UnknownNameError, UsageError
from adapterhub_cl.traffic.journal import Journal, Said
from adapterhub_cl.traffic.lesson_book import CANARY, GATHERED, PROMOTED, Lesson, Lessons, take
from adapterhub_cl.types import Example


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path)


def test_an_empty_hub_has_no_journal_and_reading_makes_none(journal: Journal) -> None:
    assert [*journal.answers()] == []
    assert journal.judged() == []
    assert journal.counts() == {}
    assert journal.drop(task="news") == 0
    assert journal.count("news") == 0
    assert not journal.file.exists()
    with pytest.raises(UnknownNameError):
        journal.get("a-1")


def test_answers_come_back_as_they_were(journal: Journal) -> None:
    talk = Example.conversation([{"role": "system", "content": "s"}, {"role": "user", "content": "hé😀"}])
    rows = [answer(2), answer(1, example=talk, confidence=None, routing=None, out_of_distribution=True, task="")]
    journal.keep(rows)
    journal.keep([replace(rows[0], answer="another")])  # the same id again
    assert [*journal.answers()] == [rows[1], rows[0]]
    assert [*journal.answers("news")] == [rows[0]]
    assert [*journal.answers("")] == [rows[1]]
    assert journal.get("a-2") == rows[0]


def test_only_the_owner_may_read_it(journal: Journal) -> None:
    journal.keep([answer(1)])
    for path in journal.file.parent.glob("traffic.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_days(journal: Journal) -> None:
    assert journal.days(14) == []
    today, before = datetime.now(UTC), datetime.now(UTC) - timedelta(days=3)
    for number, (at, routing, outside) in enumerate(
        ((today, 0.5, False), (today, 0.7, True), (today, None, False), (before, None, False))
    ):
        journal.keep([answer(number, at=at.isoformat(), routing=routing, out_of_distribution=outside)])
    journal.keep([answer(9, at="2020-01-01T00:00:00.000+00:00")])
    now, then = journal.days(14)
    assert (now.day, now.answers, now.routed, now.unknown) == (today.date().isoformat(), 3, 2, 1)
    assert now.confidence == pytest.approx(0.6)
    assert (then.answers, then.routed, then.confidence, then.unknown) == (1, 0, None, 0)


def test_feedback_is_replaced_and_waits_again(journal: Journal) -> None:
    journal.keep([answer(1), answer(2)])
    journal.say(Said("a-1", False, "world", "news"))
    lesson = Lessons(journal).begin(Lesson("news", "update", id=1), [one.said for one in journal.judged()])
    assert lesson is not None
    assert journal.judged(waiting=True) == []
    assert journal.judged()[0].said.lesson == lesson.id
    journal.say(Said("a-1", True, None, "news"))
    [one] = journal.judged("news", waiting=True)
    assert one.said.good is True
    assert one.right == "sports"
    assert [row.id for row in journal.answers(unjudged=True)] == ["a-2"]
    assert journal.counts() == {"news": {"answers": 2, "judged": 1, "waiting": 1}}
    with pytest.raises(UnknownNameError):
        journal.say(Said("a-2", True, None, "news"), Said("a-9", True, None, "news"))
    assert len(journal.judged()) == 1


def test_a_lesson_takes_feedback_only_as_it_was_gathered(journal: Journal) -> None:
    journal.keep([answer(1), answer(2)])
    journal.say(Said("a-1", False, "world", "news"), Said("a-2", True, None, "news"))
    gathered = [one.said for one in journal.judged()]
    journal.say(Said("a-1", False, "business", "news", at=gathered[0].at))
    assert Lessons(journal).begin(Lesson("news", "update", id=1), gathered) is None
    assert Lessons(journal).all() == []
    assert len(journal.judged(waiting=True)) == 2
    journal.withdraw("a-1")
    assert Lessons(journal).begin(Lesson("news", "update", id=1), gathered) is None
    assert Lessons(journal).begin(Lesson("news", "update", id=1), gathered[1:]) is not None
    assert journal.judged(waiting=True) == []


def test_feedback_is_taken_back_by_all_or_none(journal: Journal) -> None:
    journal.keep([answer(1), answer(2), answer(3)])
    journal.say(Said("a-1", False, "wrong on purpose", "news"), Said("a-2", True, None, "news"))
    with journal.writing() as connection:
        assert take(connection, [one.said for one in journal.judged() if one.said.id == "a-2"], 1)
    for ids, error in ((("a-1", "a-3"), UsageError), (("a-1", "unknown"), UnknownNameError)):
        with pytest.raises(error):
            journal.withdraw(*ids)
        assert len(journal.judged()) == 2
    assert journal.withdraw("a-1", "a-2", "a-2") == ["a-2"]
    assert journal.judged() == []
    assert len([*journal.answers()]) == 3
    assert b"wrong on purpose" not in b"".join(path.read_bytes() for path in journal.file.parent.glob("traffic.db*"))


def test_what_is_dropped_is_gone_from_the_file(journal: Journal) -> None:
    secret = "the quick brown secret 0x5ca1ab1e"
    journal.keep([answer(1, secret), answer(2), answer(3, ref="news@v2", task="mail")])
    journal.say(Said("a-2", False, secret, "mail"))
    Lessons(journal).begin(Lesson("news", "update", id=1, reason=secret), [])
    assert journal.count("news", ["news@v2"]) == 4  # three answers and a lesson
    assert journal.drop(task="news", lessons=True, refs=["news@v2"]) == 3
    assert journal.count("news") == 0
    assert journal.judged() == []
    for path in journal.file.parent.glob("traffic.db*"):
        assert secret.encode() not in path.read_bytes(), path.name


def test_old_answers_expire(journal: Journal) -> None:
    journal.keep([answer(1), answer(2, at="2999-01-01T00:00:00.000+00:00")])
    assert journal.expire(1) == 1
    assert [row.id for row in journal.answers()] == ["a-2"]


def test_a_newer_format_and_a_damaged_file_are_told(journal: Journal) -> None:
    journal.keep([answer(1)])
    with sqlite3.connect(journal.file) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(HubError, match="newer version"):
        journal.keep([answer(2)])
    for path in journal.file.parent.glob("traffic.db*"):
        path.unlink()
    journal.file.write_bytes(b"no database" * 1000)
    with pytest.raises(IntegrityError, match=r"journal .*traffic\.db is damaged"):
        [*journal.answers()]


def test_a_read_only_folder_is_told(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    journal.file.mkdir()
    with pytest.raises(StorageError):
        journal.keep([answer(1)])


def test_many_threads_write_at_once(journal: Journal) -> None:
    def work(at: int) -> None:
        for k in range(5):
            journal.keep([answer(at * 100 + k)])
            journal.say(Said(f"a-{at * 100 + k}", True, None, "news"))

    threads = [threading.Thread(target=work, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.counts()["news"] == {"answers": 40, "judged": 40, "waiting": 40}


def test_a_lesson_moves_on(journal: Journal) -> None:
    lessons = Lessons(journal)
    assert lessons.next_id() == 1
    assert lessons.all() == []
    first = lessons.begin(Lesson("news", "update", served_before="news@v1", share=0.1, id=1, detail={"rows": 3}), [])
    assert first is not None
    assert first.state == GATHERED
    assert lessons.next_id() == 2
    moved = lessons.move(first, CANARY, "why", ref="news@v2", detail={"gain": 1})
    assert lessons.all("news", opened=True) == [moved]
    assert moved.detail == {"rows": 3, "gain": 1}
    ended = lessons.move(moved, PROMOTED, "good")
    assert lessons.all(opened=True) == []
    assert lessons.all() == [ended]
    assert ended.ref == "news@v2"
