"""What a notebook draws: records, lists, matrices, nothing of them taken for HTML; pictures on matplotlib's axes."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub_cl import showing
from adapterhub_cl.deciding.drift import Cluster, Drift
from adapterhub_cl.errors import DataError, IntegrityError
from adapterhub_cl.evaluation.matrix import AccuracyMatrix
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import AdapterRecord, BaseInfo, Evaluation, Prediction, Route, Task, Versions

EVIL = "<script>alert('$x$')</script>\"'&\x1b[31m\u202e"
HISTORY = [
    {"epoch": 1, "loss": 2.0, "dev_loss": 1.5, "dev_accuracy": 0.5, "seconds": 1.0},
    {"epoch": 2, "loss": 1.0, "dev_loss": 1.25, "dev_accuracy": 0.75, "seconds": 1.0},
    {"epoch": 3, "loss": 0.5, "dev_loss": 1.75, "dev_accuracy": 0.625, "seconds": 1.0},
]


class Read(HTMLParser):
    """The cells of what was drawn, by row; raises where tags do not balance."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert {name for name, _ in attrs} <= {"style", "class"}
        self.open.append(tag)
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def drawn(shown: Any) -> Read:
    return Read(shown._repr_html_())


@pytest.fixture
def hub(tmp_path: Path) -> AdapterHub:
    """mood@v1 serves, mood@v2 was refused; their scores and training curves."""
    registry = Registry.create(tmp_path / "hub", BaseInfo("tiny", "f" * 64, quantization="none"))
    for status in ("active", "rejected"):
        with registry.new_draft("mood") as draft:
            (draft.path / "adapter_model.safetensors").write_bytes(b"w" * 1234)
            (draft.path / "training.json").write_text(json.dumps({"history": HISTORY}))
            registry.publish(
                draft,
                {"kind": "trained", "rank": 8, "status": status, "training": {"best_epoch": 2}},
                evaluations=[Evaluation("mood", "accuracy", 0.875, 40, "t.jsonl", {"interval": [0.739, 0.945]})],
                task=Task("mood", "choice", labels=("bad", EVIL), metric="accuracy"),
                verb="add-task",
            )
    return AdapterHub.open(registry.path)


def test_lists_of_versions_say_what_each_does(hub: AdapterHub) -> None:
    found = hub.list(all_versions=True)
    assert isinstance(found, list)
    assert found == hub.registry.adapters(all_versions=True), "in all else a plain list"
    head, *rows = drawn(found).rows
    told = [dict(zip(head, row, strict=True)) for row in rows]
    assert [(row["ref"], row["state"], row["value"]) for row in told] == [
        ("mood@v1", "serves", "0.8750"),
        ("mood@v2", "rejected", "0.8750"),
    ]
    assert told[0]["size"].endswith("kB")
    assert "mood@v1" in drawn(hub).text
    assert "mood@v2" not in drawn(hub).text, "as `list` shows it"


def test_a_version_its_scores_and_the_log(hub: AdapterHub) -> None:
    card = drawn(hub.get("mood"))
    assert {"status", "labels", "accuracy"} <= {row[0] for row in card.rows}
    assert "script" not in card.tags
    (head, first, *_) = drawn(hub.evaluations()).rows
    told = dict(zip(head, first, strict=True))
    assert (told["adapter"], told["value"], told["95 %"], told["n"]) == ("mood@v1", "0.8750", "0.739 to 0.945", "40")
    assert "add-task" in drawn(hub.log()).text
    pairs = showing.Listing([("mood@v1", Evaluation("mood", "accuracy", 0.5, 4))])
    assert drawn(pairs).rows[1][:3] == ["mood@v1", "mood", "accuracy"]


def test_nothing_that_users_write_is_taken_for_html() -> None:
    answer = Prediction(EVIL, "mood@v1", EVIL, 0.5, {EVIL: 0.5, "b": 0.5}, EVIL, truncated=True)
    route = Route(EVIL, {EVIL: 1.0}, {EVIL: 1.0}, 0.5, True)
    cluster = Cluster((0, 1), 2, 0.5, (EVIL, "b"), 0.1, EVIL, 0.5, True)
    drift = Drift(4, 2, (0.15, 0.85), 0.05, 0.01, {EVIL: 2}, (cluster,))
    matrix = AccuracyMatrix((EVIL, "b"), ((0.5, None), (0.25, 1.0)), name=EVIL)
    for shown in (
        answer,
        showing.Listing([answer]),
        route,
        showing.Listing([route]),
        drift,
        matrix,
        showing.Listing([matrix]),
    ):
        read = drawn(shown)
        assert read.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "td", "th"}
        assert "<script>" in read.text
        assert not {"\x1b", "\u202e"} & set(read.text)
    assert "cut" in drawn(answer).text
    assert "out of distribution" in drawn(route).text


@given(st.lists(st.lists(st.text() | st.none() | st.integers() | st.floats(), min_size=2, max_size=2), max_size=4))
def test_any_table_is_sound_html(rows: list[list[Any]]) -> None:
    read = Read(showing.table(("a", "<b>"), rows))
    assert len(read.rows) == (len(rows) + 1 if rows else 0)
    assert read.tags <= {"div", "table", "thead", "tbody", "tr", "td", "th", "em"}


def test_long_tables_and_texts_are_cut() -> None:
    many = showing.Listing(Prediction("x" * 5000, "base", "y", 1.0) for _ in range(1000))
    read = drawn(many)
    assert len(read.rows) == 1 + showing.MOST_ROWS
    assert "800 more" in read.text
    assert max(len(cell) for row in read.rows for cell in row) == showing.LONGEST
    assert "empty" in drawn(showing.Listing()).text


def test_a_matrix_is_drawn_with_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matrix = AccuracyMatrix(("one", "two"), ((0.75, None), (0.5, 1.0)), name="replay")
    read = drawn(matrix)
    assert read.rows == [["", "one", "two"], ["after one", "0.7500", ""], ["after two", "0.5000", "1.0000"]]
    assert "AP 0.75" in read.text
    assert "BWT -0.250" in read.text
    panel = matrix.plot()
    assert [text.get_text() for text in panel.texts] == ["0.75", "0.50", "1.00"]
    assert panel.get_title() == "replay\nAP 0.75  BWT -0.250"
    other = matrix.plot(panel.figure.add_subplot())
    assert other.figure is panel.figure
    from matplotlib import pyplot

    pyplot.close(panel.figure)


def test_a_training_curve(hub: AdapterHub, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    record = hub.get("mood@v1")
    assert record.history == HISTORY
    panel = record.plot(Figure().add_subplot())
    lines = {line.get_label(): list(line.get_ydata()) for line in panel.lines}
    assert lines["loss, training"] == [2.0, 1.0, 0.5]
    assert lines["loss, held out"] == [1.5, 1.25, 1.75]
    (side,) = [axes for axes in panel.figure.axes if axes is not panel]
    assert list(side.lines[0].get_ydata()) == [0.5, 0.75, 0.625]
    assert [line.get_xdata()[0] for line in panel.lines if not len(set(line.get_xdata())) > 1] == [2], "the epoch kept"
    panel.figure.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_what_was_not_trained_has_no_curve(hub: AdapterHub) -> None:
    record = hub.get("mood@v1")
    path = record.path / "training.json"
    path.write_text("{")
    with pytest.raises(IntegrityError, match="cannot be read"):
        _ = record.history
    path.unlink()
    assert record.history == []
    with pytest.raises(DataError, match="no training curve: it is trained"):
        record.plot()


def test_the_state_of_a_version() -> None:
    def record(status: str = "active", *takes_over: str) -> AdapterRecord:
        return AdapterRecord("a", 1, "trained", "a", 8, 1, "", status, Path(), (), {"takes_over": takes_over})

    assert record().state(1) == "serves"
    assert record().state(0) == "ready"
    assert record("active", "b", "c").state(2) == "serves 2 of 3"
    assert record("rejected", "b").state(1) == "rejected"
    assert "serves" in drawn(Versions([record()], {"a": "a@v1"})).text
