"""`tune`: the search, its confirmation, what it keeps, and where later trainings begin."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cl_adapter.__main__ import main
from encoder_hubs import COLOURS, QUICK, Notes, data, new_hub
from sqlalchemy import Engine, event

from adapterhub_cl import AdapterHub
from adapterhub_cl.errors import DataError, IntegrityError, StorageError, TrainingError, TrainingInterrupted, UsageError
from adapterhub_cl.learning.chosen_settings import place_of, write_choice
from adapterhub_cl.tuning import tune_search
from adapterhub_cl.tuning.tune_search import SURE, value_of

pytest.importorskip("optuna")
ALL_GIVEN = {"rank": 4, "epochs": 1, "target_modules": "query", "learning_rate": 0.1}
FIXED: dict[str, Any] = {"batch_size": 8, "max_length": 32}


class Killed(BaseException):
    """Stands for kill -9: nothing after it may tidy up."""


class Fake:
    """Trainings whose accuracy is what `score` says of their settings; each epoch is noted in `asked`."""

    def __init__(self, score: Callable[[Mapping[str, Any]], float]) -> None:
        self.score = score
        self.asked: list[dict[str, Any]] = []
        self.kill_at = -1
        self.error: BaseException = Killed()

    @contextmanager
    def trained(
        self, hub: Any, order: Any, material: Any, settings: Mapping[str, Any], on_epoch: Any = None
    ) -> Iterator[Any]:
        self.asked.append(dict(settings))
        if len(self.asked) == self.kill_at:
            raise self.error
        for epoch in range(settings["epochs"] if on_epoch else 0):
            on_epoch({"accuracy": self.score(settings) * (epoch + 1) / settings["epochs"], "loss": 1.0})
        yield settings

    def row_scores(self, hub: Any, found: Mapping[str, Any], rows: Any) -> list[float]:
        right = round(self.score(found) * len(rows))
        return [float(k < right) for k in range(len(rows))]


@pytest.fixture
def hub(pico_path: Callable[[str], Path], tmp_path: Path) -> AdapterHub:
    return new_hub(tmp_path / "hub", pico_path("bert"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Mapping[str, Any]], float]], Fake]:
    def install(score: Callable[[Mapping[str, Any]], float]) -> Fake:
        made = Fake(score)
        monkeypatch.setattr(tune_search, "trained", made.trained)
        monkeypatch.setattr(tune_search, "row_scores", made.row_scores)
        return made

    return install


def by_rank(settings: Mapping[str, Any]) -> float:
    return 0.9 if settings.get("rank") == 4 else 0.4


def test_the_best_settings_are_confirmed_and_later_trainings_begin_with_them(
    hub: AdapterHub, fake: Any, tmp_path: Path
) -> None:
    made = fake(by_rank)
    found = hub.tune("colours", data(tmp_path, COLOURS, 200), trials=12, confirm=1, **FIXED)
    assert found["trials"][0]["settings"] == found["default"], "the defaults come first"
    assert found["default"]["rank"] == 16
    assert found["settings"]["rank"] == 4
    assert found["kept"] == "tuned"
    check = found["confirmed"]
    assert (check["rows"], check["default"], check["best"]) == (40, 0.4, 0.9)
    assert check["lead"] > SURE * check["error"] > 0
    assert [s["seed"] for s in made.asked if "seed" in s] == [1, 1], "other seeds than the trials'"
    assert any(trial["state"] == "pruned" for trial in found["trials"])
    assert hub.tuned("colours") is not None
    assert not list((hub.folder / "runs").iterdir())
    record = hub.add_task("colours", data(tmp_path, COLOURS), **{**QUICK, "rank": 2})
    assert record.rank == 2, "a flag wins"
    kept = {**FIXED, "dev_share": 0.0, "learning_rate": 0.01, "epochs": 1}
    record = hub.add_task("colours", data(tmp_path, COLOURS), max_forgetting=1.0, **kept)
    assert record.rank == 4
    again = hub.update("colours", data(tmp_path, COLOURS, 12, 4), max_forgetting=1.0, **kept)
    assert again.rank == 4
    assert "Settings tried for colours" in hub.report(tmp_path / "report.html").read_text()
    assert hub.drop_tuned("colours")
    assert hub.tuned("colours") is None


def test_what_was_kept_before_is_tried_again(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    rows, notes = data(tmp_path, COLOURS, 200), Notes()
    fake(by_rank)
    first = hub.tune("colours", rows, trials=12, confirm=1, **FIXED)["settings"]
    assert first["rank"] == 4
    found = hub.tune("colours", rows, trials=2, confirm=1, reporter=notes, **FIXED)
    assert [trial["settings"] for trial in found["trials"]] == [found["default"], first]
    assert found["settings"] == first
    assert not any("is replaced" in note for note in notes.said)
    fake(lambda settings: 0.5)
    assert hub.tune("colours", rows, trials=2, confirm=1, reporter=notes, **FIXED)["settings"] == {}
    assert notes.said[-1].startswith("what tune kept before is replaced: rank 4")


def test_a_resumed_search_keeps_the_options_that_are_not_given_again(
    hub: AdapterHub, fake: Any, tmp_path: Path
) -> None:
    made = fake(by_rank)
    made.kill_at = 2
    with pytest.raises(Killed):
        hub.tune("colours", data(tmp_path, COLOURS, 200), trials=3, confirm=1, **FIXED)
    found = hub.tune("colours", resume=True, minutes=10)
    assert len(found["trials"]) == 3
    assert found["confirmed"].get("seeds", 1) == 1


def test_a_lead_that_may_be_chance_keeps_the_defaults(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    fake(lambda settings: 0.45 if settings.get("rank") == 4 and "seed" not in settings else 0.4)
    found = hub.tune("colours", data(tmp_path, COLOURS, 200), trials=12, confirm=2, **FIXED)
    assert found["settings"] == {}
    assert found["confirmed"]["lead"] == 0
    assert "were not better there" in found["kept"]
    fake(lambda settings: 0.425 if settings.get("rank") == 4 else 0.4)
    found = hub.tune("colours", data(tmp_path, COLOURS, 200), trials=12, confirm=2, **FIXED)
    assert found["confirmed"]["lead"] > 0
    assert "may be chance" in found["kept"]
    fake(lambda settings: 0.5)
    found = hub.tune("colours", data(tmp_path, COLOURS, 200), trials=3, confirm=2, **FIXED)
    assert (found["settings"], found["confirmed"]) == ({}, {})
    assert "no trial was better" in found["kept"]


@pytest.mark.parametrize("at", [1, 9])
def test_a_killed_search_goes_on(hub: AdapterHub, fake: Any, tmp_path: Path, at: int) -> None:
    """Killed in the first trial, and while the best is confirmed."""
    made = fake(by_rank)
    made.kill_at = at
    with pytest.raises(Killed):
        hub.tune("colours", data(tmp_path, COLOURS, 200), trials=8, confirm=1, **FIXED)
    made.kill_at = -1
    before = len(made.asked)
    found = hub.tune("colours", resume=True)
    assert [trial["number"] for trial in found["trials"]][-1] >= 7
    assert len(found["trials"]) == 8
    assert found["trials"][0]["settings"] == found["default"]
    assert made.asked[before]["rank"] == made.asked[at - 1]["rank"], "what was killed is tried again"
    with pytest.raises(UsageError, match="no unfinished tune"):
        hub.tune("colours", resume=True)


def test_defaults_that_fail_end_a_search_that_was_stopped_before(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    """The first trial was stopped, so the second one has the defaults."""
    made = fake(by_rank)
    made.kill_at, made.error = 1, TrainingInterrupted("stopped")
    with pytest.raises(TrainingInterrupted):
        hub.tune("colours", data(tmp_path, COLOURS, 200), trials=3, confirm=1, **FIXED)
    made.kill_at, made.error = 2, TrainingError("the loss became nan")
    with pytest.raises(TrainingError, match="the loss became nan"):
        hub.tune("colours", resume=True)
    assert made.asked[0] == made.asked[1]
    assert not list((hub.folder / "runs").iterdir()), "it would fail again"


def test_a_search_that_runs_out_of_time_has_tried_the_defaults(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    """What was kept before comes first here, because the trial with the defaults was stopped."""
    made = fake(by_rank)
    write_choice(hub.registry, "colours", {"settings": {"rank": 4}, "trials": []})
    made.kill_at, made.error = 1, TrainingInterrupted("stopped")
    with pytest.raises(TrainingInterrupted):
        hub.tune("colours", data(tmp_path, COLOURS, 200), trials=3, confirm=1, **FIXED)
    made.kill_at = -1
    found = hub.tune("colours", resume=True, minutes=1e-9)
    assert [trial["settings"]["rank"] for trial in found["trials"]] == [4, 16]


OF_A_TRIAL = {
    "no settings": "DELETE FROM trial_user_attributes WHERE key = 'settings'",
    "a list": "UPDATE trial_user_attributes SET value_json = '[1, 2]' WHERE key = 'settings'",
    "a rank below 0": "UPDATE trial_user_attributes SET value_json = '{\"rank\": -8}' WHERE key = 'settings'",
    "a text": """UPDATE trial_user_attributes SET value_json = '{"accuracy": "x", "loss": 1}' WHERE key = 'figures'""",
    "above 1": """UPDATE trial_user_attributes SET value_json = '{"accuracy": 1e9, "loss": 1}' WHERE key = 'figures'""",
    "row": "UPDATE trial_params SET distribution_json = '{'",
}


def test_a_link_in_place_of_a_study_is_not_followed(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    made = fake(by_rank)
    made.kill_at = 3
    with pytest.raises(Killed):
        hub.tune("colours", data(tmp_path, COLOURS, 200), trials=4, confirm=1, **FIXED)
    (file,) = hub.registry.runs_dir.glob("*/study.db")
    elsewhere = tmp_path / "elsewhere.db"
    file.rename(elsewhere)
    before = elsewhere.read_bytes()
    file.symlink_to(elsewhere)
    with pytest.raises(IntegrityError, match="a link") as refused:
        hub.tune("colours", resume=True)
    assert "rm" not in refused.value.hint.split()
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("damage", ["noise", "cut", *OF_A_TRIAL])
def test_a_damaged_study_is_told_in_one_line(hub: AdapterHub, fake: Any, tmp_path: Path, damage: str) -> None:
    made = fake(by_rank)
    made.kill_at = 3
    rows = data(tmp_path, COLOURS, 200)
    with pytest.raises(Killed):
        hub.tune("colours", rows, trials=4, confirm=1, **FIXED)
    made.kill_at = -1
    (file,) = hub.registry.runs_dir.glob("*/study.db")
    if damage in OF_A_TRIAL:
        with closing(sqlite3.connect(file)) as database:
            database.execute(OF_A_TRIAL[damage])
            database.commit()
    else:
        file.write_bytes(b"noise" * 1000 if damage == "noise" else file.read_bytes()[:5000])
    with pytest.raises(IntegrityError, match=r"study\.db is damaged") as refused:
        hub.tune("colours", resume=True)
    assert "cl-adapter tune colours DATA" in refused.value.hint
    assert hub.tune("colours", rows, trials=2, confirm=1, **FIXED)["trials"]


@pytest.mark.parametrize("trials", [0, 2])
def test_a_full_disk_keeps_what_was_tried(hub: AdapterHub, fake: Any, tmp_path: Path, trials: int) -> None:
    """SQLite may have no further page, and says what it says on a full disk."""
    made, full = fake(by_rank), True

    def began(connection: Any) -> None:
        if len(made.asked) >= trials:  # 1: the pages that the file has already stay allowed
            most = 1 if full else 1_000_000
            connection.connection.driver_connection.execute(f"PRAGMA max_page_count = {most}")

    event.listen(Engine, "begin", began)
    try:
        with pytest.raises(StorageError, match="no space left on") as refused:
            hub.tune("colours", data(tmp_path, COLOURS, 200), trials=40, confirm=1, **FIXED)
        assert "cl-adapter tune colours --resume" in refused.value.hint
        full, before = False, len(made.asked)
        assert before >= trials
        assert len(hub.tune("colours", resume=True, trials=before + 2)["trials"]) == before + 2
    finally:
        event.remove(Engine, "begin", began)


@pytest.mark.parametrize("damage", ["{", "[1]", '{"settings": {}}', "\x00"])
def test_verify_finds_a_damaged_choice_and_damaged_signers(hub: AdapterHub, damage: str) -> None:
    write_choice(hub.registry, "colours", {"settings": {"rank": 4}})
    assert hub.verify() == []
    place_of(hub.registry, "colours").write_text(damage)
    (hub.folder / "signers.json").write_text(damage)
    chosen, signers = hub.verify()
    assert (chosen.path, signers.path) == ("tuned/colours.json", "signers.json")
    assert "tune colours --drop" in chosen.fix
    assert "restore it" in signers.fix
    assert hub.drop_tuned("colours")
    (hub.folder / "signers.json").unlink()
    assert hub.verify() == []


def test_bad_input_is_refused(hub: AdapterHub, fake: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = fake(by_rank)
    rows = data(tmp_path, COLOURS, 200)
    with pytest.raises(DataError, match="48 rows are too few"):
        hub.tune("colours", data(tmp_path, COLOURS, 48))
    for options, said in (
        ({"trials": 1}, "--trials must be at least 2"),
        ({"minutes": 0}, "--minutes must be above 0"),
        ({"confirm": 0}, "--confirm must be at least 1"),
        ({"eval": str(rows)}, "does not use --eval"),
        ({"strategy": "sequential"}, "sequential makes another"),
        ({"strategy": "kin"}, "kin makes another"),
        ({"rank": 0}, "--rank must be at least 1"),
        (ALL_GIVEN, "every setting that is searched was given"),
    ):
        with pytest.raises(UsageError, match=said):
            hub.tune("colours", rows, **options)
        assert not list((hub.folder / "runs").iterdir()), "nothing is left behind"
    made.kill_at, made.error = len(made.asked) + 2, TrainingInterrupted("stopped")
    with pytest.raises(TrainingInterrupted) as stopped:
        hub.tune("colours", rows, trials=3, **FIXED)
    assert "tune colours --resume" in stopped.value.hint
    with pytest.raises(UsageError, match="keeps its data and settings"):
        hub.tune("colours", rows, resume=True)
    rows.write_text(rows.read_text() + rows.read_text().splitlines()[0].replace("red", "blue") + "\n")
    with pytest.raises(DataError, match="has changed since the search began"):
        hub.tune("colours", resume=True)
    write_choice(hub.registry, "colours", {"settings": {"rank": 4}, "trials": []})
    path = place_of(hub.registry, "colours")
    path.write_text(path.read_text().replace("4", "8"))
    with pytest.raises(IntegrityError, match="not what was written"):
        hub.add_task("colours", rows)
    assert main(["--hub", str(hub.folder), "tune", "colours", "--drop"]) == 0
    assert "has the defaults again" in capsys.readouterr().out


def test_a_folder_in_place_of_a_choice_is_told_at_once(hub: AdapterHub, fake: Any, tmp_path: Path) -> None:
    made, rows, place = fake(by_rank), data(tmp_path, COLOURS, 200), place_of(hub.registry, "colours")
    place.mkdir(parents=True)
    for attempt in (
        lambda: hub.tune("colours", rows, trials=2, confirm=1, **FIXED),
        lambda: hub.add_task("colours", rows, **QUICK),
        lambda: hub.tuned("colours"),
        lambda: hub.drop_tuned("colours"),
    ):
        with pytest.raises(IntegrityError, match="is a folder") as caught:
            attempt()
        assert "remove or rename it" in caught.value.hint
    assert made.asked == []
    assert [problem.path for problem in hub.verify()] == ["tuned/colours.json"]
    place.rmdir()
    assert hub.verify() == []


def test_a_dry_run_writes_nothing(hub: AdapterHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = str(data(tmp_path, COLOURS, 200))
    assert main(["--hub", str(hub.folder), "--json", "tune", "colours", rows, "--dry-run", "--rank", "4"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["rows"], planned["judged"], planned["confirmed"]) == (120, 40, 40)
    assert set(planned["searched"]) == {"epochs", "target_modules", "learning_rate"}
    assert main(["--hub", str(hub.folder), "tune", "colours", rows, "--dry-run", "--target-modules", "nosuch"]) == 2
    assert "'nosuch' matches no layer of this base" in capsys.readouterr().err
    assert planned["searched"]["target_modules"] == ["all-linear", "key,query,value"]
    assert not list((hub.folder / "runs").iterdir())


@pytest.mark.parametrize(("repeated", "parts"), [(0, (120, 40, 40)), (800, (120, 40, 200))])
def test_rows_that_repeat_each_other_leave_enough_to_train_on(
    hub: AdapterHub, tmp_path: Path, repeated: int, parts: tuple[int, int, int]
) -> None:
    rows = data(tmp_path, COLOURS, 200)
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines + lines[:1] * repeated))
    plan = hub.tune("colours", rows, dry_run=True, **FIXED)
    found = (plan.rows, plan.judged, plan.confirmed)
    assert found == pytest.approx(parts, abs=12)
    assert found[2] == parts[2]


def test_a_search_on_a_real_base(pico_path: Callable[[str], Path], tmp_path: Path) -> None:
    """A pico Llama: every trial is a training, and the figures are of rows that it did not learn."""
    hub = new_hub(tmp_path / "hub", pico_path("llama"))
    found = hub.tune("colours", data(tmp_path, COLOURS, 110), trials=2, confirm=1, epochs=1, rank=2, **FIXED)
    assert [trial["number"] for trial in found["trials"]] == [0, 1]
    assert all(0 <= trial["figures"]["accuracy"] <= 1 for trial in found["trials"] if trial["figures"])
    assert found["kept"]
    assert hub.list() == []


def test_what_is_maximised() -> None:
    assert value_of({"accuracy": 0.5, "loss": 1.0}) > value_of({"accuracy": 0.5, "loss": 2.0})
    assert value_of({"accuracy": 0.51, "loss": 90.0}) > value_of({"accuracy": 0.5, "loss": 0.1})
    assert value_of({"loss": 1.5}) == -1.5


def test_facts_keep_their_own_passes(hub: AdapterHub, tmp_path: Path) -> None:
    """A search cannot be made for facts, so what was chosen without them says nothing of their passes."""
    from adapterhub_cl.learning.request import build
    from adapterhub_cl.learning.train_options import FACT_SETTINGS

    write_choice(hub.registry, "colours", {"settings": {"rank": 4, "epochs": 9}, "trials": []})
    asked = {"facts": True, "replay": "none"}
    request, _ = build(hub.registry, "add-task", "colours", data(tmp_path, COLOURS), False, asked)
    assert request.training().epochs == FACT_SETTINGS["epochs"]
    assert request.training().rank == 4
    plain, _ = build(hub.registry, "add-task", "colours", data(tmp_path, COLOURS), False, {})
    assert plain.training().epochs == 9
    own, _ = build(hub.registry, "add-task", "colours", data(tmp_path, COLOURS), False, {**asked, "epochs": 5})
    assert own.training().epochs == 5


def test_help_lists_nothing_that_is_refused(hub: AdapterHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--learning-rate" in shown
    for flag in ("--eval", "--replay <", "--forecast", "--facts", "--strategy", "--on-top-of", "--max-forgetting"):
        assert flag not in shown
    assert main(["--hub", str(hub.folder), "tune", "colours", "rows.jsonl", "--forecast"]) == 2
    assert "tune does not use --forecast" in capsys.readouterr().err


def test_what_was_chosen_goes_to_other_hubs_with_a_version(
    hub: AdapterHub, pico_path: Callable[[str], Path], tmp_path: Path
) -> None:
    chosen = {"rank": 4, "epochs": 2, "learning_rate": 0.01}
    write_choice(hub.registry, "colours", {"settings": chosen, "trials": []})
    held = data(tmp_path, COLOURS, 24, 1)
    made = hub.add_task("colours", data(tmp_path, COLOURS), eval=held, **FIXED, replay="balanced:12")
    assert made.manifest["tuned"] == chosen
    hub.push(str(tmp_path / "store"), every=True)
    there = new_hub(tmp_path / "there", pico_path("bert"))
    there.pull(str(tmp_path / "store"))
    assert there.tuned("colours")["settings"] == chosen  # type: ignore[index]
    assert "came with colours@v1" in there.tuned("colours")["kept"]  # type: ignore[index]
    assert "rank 4" in there.report(tmp_path / "there.html").read_text()
    assert there.add_task("colours", data(tmp_path, COLOURS, 24, 2), **FIXED, max_forgetting=1.0).rank == 4
    assert there.drop_tuned("colours")
    there.pull(str(tmp_path / "store"))
    assert there.tuned("colours") is None, "nothing new came"
    hub.rebase(str(pico_path("roberta")), to=str(tmp_path / "moved"), min_retention=0)
    moved = AdapterHub.open(tmp_path / "moved")
    assert moved.tuned("colours")["settings"] == {"rank": 4, "epochs": 2}, "the rate was the old base's"  # type: ignore[index]


def test_settings_that_came_with_a_version_are_checked(hub: AdapterHub) -> None:
    from adapterhub_cl.learning.chosen_settings import carry_choice

    for strange in (None, [], "rank", {"rank": -1}, {"rank": "x"}, {"memory": "1TB"}, {"epochs": [3]}, {}):
        assert carry_choice(hub.registry, "colours", strange, "from afar") == ""
        assert hub.tuned("colours") is None
    assert "rank 2" in carry_choice(hub.registry, "colours", {"rank": 2, "seed": 7}, "from afar")
    assert carry_choice(hub.registry, "colours", {"rank": 3}, "from afar") == "", "what is here stays"
    assert hub.tuned("colours")["settings"] == {"rank": 2}  # type: ignore[index]
