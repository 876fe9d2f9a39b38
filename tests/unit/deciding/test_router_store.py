"""Routers on disk: loaded where nothing changed, refreshed where little did, fitted anew where a file is no good."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from routing_support import TASKS, Cloud, cloud, update
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapterhub_cl.deciding.router_files import KnownTask, OpenedRouter, Source, _seal, open_router
from adapterhub_cl.errors import UnknownNameError
from adapterhub_cl.registry import files

SMALL = {"features": 32, "ridge": 1.0}
PROBE = Cloud(torch.cat([cloud(task, 4, spread=0.9, seed=7) for task in TASKS]))


class Hub:
    """A folder of routers, and a base that knows a text's hidden state from the text alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        self.forgotten: set[str] = set()
        self.tasks = {task: self.known(task) for task in TASKS}

    @staticmethod
    def known(task: str, count: int = 20, edition: int = 1) -> KnownTask:
        texts = [(f"{task}/{edition}/{k}", f"whole {task}/{edition}/{k}") for k in range(count)]
        return KnownTask(f"content of {task} {edition} {count}", texts, lambda: update(task))

    def embed(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        rows = []
        for text in texts:
            task, edition, number = text.removeprefix("whole ").split("/")
            rows.append(
                cloud(task, 1, spread=0.9, seed=1000 * int(edition) + 2 * int(number) + text.startswith("whole"))
            )
        return torch.cat(rows)

    def open(
        self,
        name: str = "analytic",
        tasks: Sequence[str] | None = None,
        tell: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> OpenedRouter:
        self.asked = []
        known = {task: self.tasks[task] for task in tasks or self.tasks}
        about = {"base": "abc", "quantization": "nf4", "layer": 3, "texts": "both"}
        source = Source(self.folder, about, self.embed, self.storing)
        return open_router(source, name, options or (SMALL if name == "analytic" else {}), known, tell=tell)

    def storing(self, contents: Mapping[str, str]) -> AbstractContextManager[bool]:
        """Whether these tasks are still what there is."""
        return nullcontext(all(task not in self.forgotten for task in contents))

    def place(self, name: str = "analytic") -> Path:
        (found,) = self.folder.glob(f"{name}-*")
        return found

    def embeddings(self) -> list[Path]:
        return sorted((self.folder / "embeddings").iterdir())


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path / "hub" / "routers")


def answers(opened: OpenedRouter) -> list[Any]:
    return [(dict(r.weights), r.familiarity, r.threshold) for r in opened.calibrated.route(PROBE, top_k=4)]


def same(one: OpenedRouter, other: OpenedRouter) -> bool:
    """Whether both decide alike, to rounding."""
    pairs = zip(answers(one), answers(other), strict=True)
    return all(
        a[0] == pytest.approx(b[0], abs=1e-5) and a[1:] == pytest.approx(b[1:], rel=1e-5, abs=1e-4) for a, b in pairs
    )


@pytest.mark.parametrize("name", ["analytic", "mahalanobis", "centroid", "learned", "arrow", "perplexity"])
def test_what_has_not_changed_is_loaded(hub: Hub, name: str) -> None:
    first = hub.open(name)
    assert first.how == "fitted"
    assert first.note == ""
    again = hub.open(name)
    assert (again.how, again.changed, again.embedded, hub.asked) == ("loaded", [], 0, [])
    assert answers(again) == answers(first)


def test_all_texts_are_computed_once(hub: Hub) -> None:
    first = hub.open()
    assert first.embedded == len(hub.asked) == 4 * 20 * 2
    assert hub.open("mahalanobis").embedded == 0
    assert len(hub.embeddings()) == 4


def test_no_states_are_computed_for_routers_that_read_none(hub: Hub) -> None:
    assert hub.open("arrow").embedded == 0
    assert hub.open("perplexity").embedded == 0
    assert not (hub.folder / "embeddings").exists()


@pytest.mark.parametrize("name", ["analytic", "mahalanobis", "centroid", "learned", "arrow"])
@pytest.mark.parametrize("change", ["came", "gone", "other samples"])
def test_only_what_changed_is_learned(hub: Hub, name: str, change: str, tmp_path: Path) -> None:
    full = dict(hub.tasks)
    if change == "came":
        del hub.tasks["sums"]
    hub.open(name)
    hub.tasks = dict(full)
    if change == "gone":
        del hub.tasks["sums"]
    elif change == "other samples":
        hub.tasks["sums"] = hub.known("sums", 30, 2)
    refreshed = hub.open(name)
    assert (refreshed.how, refreshed.changed) == ("refreshed", ["sums"])
    expected = {"came": 40, "gone": 0, "other samples": 60}[change] if name != "arrow" else 0
    assert refreshed.embedded == expected
    fresh = Hub(tmp_path / "fresh")
    fresh.tasks = hub.tasks
    assert same(refreshed, fresh.open(name))
    loaded = hub.open(name)
    assert loaded.how == "loaded"
    assert same(loaded, refreshed)


def test_what_held_out_samples_were_taken_for_is_stored(hub: Hub) -> None:
    first = hub.open()
    assert {sum(row.values()) for row in first.calibrated.confusion.values()} == {8}  # four samples in two forms
    assert hub.open().calibrated.confusion == first.calibrated.confusion
    about = json.loads((hub.place() / "router.json").read_text())
    assert {task: entry["held_out"] for task, entry in about["tasks"].items()} == first.calibrated.confusion


def test_states_nobody_refers_to_are_removed(hub: Hub) -> None:
    hub.open()
    hub.open("centroid")
    old = set(hub.embeddings())
    hub.tasks["sums"] = hub.known("sums", 30, 2)
    hub.open()
    assert len(hub.embeddings()) == 5, "the centroid router still stands on the old samples"
    hub.open("centroid")
    assert len(hub.embeddings()) == 4
    assert len(old & set(hub.embeddings())) == 3


def test_other_options_are_another_router(hub: Hub) -> None:
    hub.open()
    other = hub.open(features=16)
    assert other.how == "fitted"
    assert other.embedded == 0
    assert len(list(hub.folder.glob("analytic-*"))) == 2
    assert hub.open().how == "loaded"


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def newer(path: Path) -> None:
    about = json.loads(path.read_text())
    path.write_text(json.dumps(about | {"format": 99}))


def foreign(path: Path) -> None:
    path.write_text("[1, 2]")


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("state.safetensors", truncate),
        ("state.safetensors", flip),
        ("state.safetensors", empty),
        ("state.safetensors", Path.unlink),
        ("router.json", truncate),
        ("router.json", empty),
        ("router.json", newer),
        ("router.json", foreign),
        ("router.json", Path.unlink),
    ],
)
def test_a_damaged_router_is_fitted_anew(hub: Hub, file: str, spoil: Callable[[Path], None]) -> None:
    first = hub.open()
    spoil(hub.place() / file)
    again = hub.open()
    assert (again.how, again.note, again.embedded) == ("fitted", "", 0)
    assert same(again, first)
    assert hub.open().how == "loaded"


def test_a_state_of_other_tensors_is_fitted_anew(hub: Hub) -> None:
    """A file that is whole, but not what this router writes."""
    first = hub.open()
    state = hub.place() / "state.safetensors"
    save_file({"something": torch.zeros(3)}, state)
    about = json.loads((hub.place() / "router.json").read_text())
    about["sha256"] = _seal(state.read_bytes(), about["order"], about["tasks"])
    (hub.place() / "router.json").write_text(json.dumps(about))
    again = hub.open()
    assert again.how == "fitted"
    assert same(again, first)


@pytest.mark.parametrize("spoil", [truncate, empty, Path.unlink, a_folder])
def test_without_the_old_states_it_is_fitted_to_what_there_is(
    hub: Hub, spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    hub.open()
    for path in hub.embeddings():
        spoil(path)
    assert hub.open().how == "loaded", "they are not needed while nothing changes"
    del hub.tasks["news"]
    again = hub.open()
    assert again.how == "fitted"
    assert again.embedded == 3 * 40
    fresh = Hub(tmp_path / "fresh")
    fresh.tasks = hub.tasks
    assert same(again, fresh.open())


def test_states_of_another_content_are_not_taken(hub: Hub) -> None:
    first = hub.open()
    one, other, *_ = hub.embeddings()
    shutil.copyfile(one, other)
    shutil.rmtree(hub.place())
    again = hub.open()
    assert again.embedded == 40
    assert same(again, first)


def test_a_router_json_that_was_tampered_with_is_fitted_anew(hub: Hub) -> None:
    """Two tasks' entries, or the order of the columns, exchanged: the state would be read as another's."""
    first = hub.open()
    path = hub.place() / "router.json"
    about = json.loads(path.read_text())
    one, other = list(about["tasks"])[:2]
    tasks = {**about["tasks"], one: about["tasks"][other], other: about["tasks"][one]}
    for change in ({"tasks": tasks}, {"order": about["order"][::-1]}):
        path.write_text(json.dumps(about | change))
        again = hub.open()
        assert again.how == "fitted"
        assert same(again, first)


def test_states_that_were_tampered_with_are_computed_anew(hub: Hub) -> None:
    """Another task's numbers under a header that names this one's content."""
    first = hub.open()
    one, other, *_ = hub.embeddings()
    with safe_open(other, "pt") as file:
        about = file.metadata()
    save_file(load_file(one), other, about)
    shutil.rmtree(hub.place())
    again = hub.open()
    assert again.embedded == 40
    assert same(again, first)


def test_what_was_forgotten_meanwhile_is_not_stored(hub: Hub) -> None:
    """A task goes while its samples are read: the router works, and leaves nothing of it behind."""
    hub.forgotten = {"news"}
    opened = hub.open()
    assert (opened.how, opened.calibrated.tasks) == ("fitted", sorted(TASKS))
    assert not list(hub.folder.glob("analytic-*"))
    assert len(hub.embeddings()) == len(TASKS) - 1
    assert b"content of news" not in b"".join(path.read_bytes() for path in hub.embeddings())


@pytest.mark.parametrize("inner", ["", "embeddings"])
def test_nothing_is_stored_through_a_link(hub: Hub, tmp_path: Path, inner: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    place = hub.folder / inner if inner else hub.folder
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere)
    opened = hub.open()
    assert opened.how == "fitted"
    assert "link" in opened.note
    assert not list(elsewhere.iterdir())


def test_a_router_in_memory_is_brought_up_to_date(hub: Hub, tmp_path: Path) -> None:
    """What an engine has is changed in the place of what is stored, and is as one that was fitted."""
    first = hub.open(tasks=["news", "reviews", "sums"])
    known = {task: hub.tasks[task] for task in ("news", "sums", "trivia")}
    source = Source(hub.folder, {"base": "other"}, hub.embed, hub.storing)
    again = open_router(source, "analytic", SMALL, known, before=first)
    assert (again.how, again.changed) == ("refreshed", ["reviews", "trivia"])
    assert again.calibrated is first.calibrated
    assert same(again, Hub(tmp_path / "fresh").open(tasks=list(known)))


def test_states_are_kept_in_sixteen_bits(hub: Hub) -> None:
    hub.open()
    rows = load_file(hub.embeddings()[0])["hidden"]
    assert (rows.dtype, rows.shape[:2]) == (torch.float16, (20, 2))


def refuse(number: int) -> Callable[..., None]:
    def write(*_: Any) -> None:
        raise OSError(number, "simulated")

    return write


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "no space left"), (errno.EROFS, "read-only")])
def test_where_the_disk_refuses_it_works_from_memory(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, number: int, words: str, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", refuse(number))
        opened = hub.open()
    assert words in opened.note
    assert same(opened, Hub(tmp_path / "fresh").open())
    assert [path for path in hub.folder.rglob("*") if path.is_file()] == []
    assert hub.open().note == ""


def test_a_disk_that_fills_up_at_a_refresh_leaves_the_old_router(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hub.open()
    full = dict(hub.tasks)
    del hub.tasks["news"]
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", refuse(errno.ENOSPC))
        opened = hub.open()
    assert opened.how == "refreshed"
    assert "not stored" in opened.note
    hub.tasks = full
    again = hub.open()
    assert again.how == "loaded"
    assert answers(again) == answers(before)


def test_a_folder_that_cannot_be_made(hub: Hub) -> None:
    hub.folder.parent.mkdir(parents=True)
    hub.folder.write_text("a file stands in the way")
    opened = hub.open()
    assert opened.how == "fitted"
    assert "not stored" in opened.note


def test_two_writers_whose_files_got_mixed(hub: Hub, tmp_path: Path) -> None:
    """The state of one and the router.json of the other: never taken for a router."""
    hub.open()
    mixed = tmp_path / "state"
    shutil.copyfile(hub.place() / "state.safetensors", mixed)
    del hub.tasks["news"]
    straight = hub.open()
    shutil.copyfile(mixed, hub.place() / "state.safetensors")
    again = hub.open()
    assert again.how == "fitted"
    assert same(again, straight)


def test_another_writer_in_the_middle(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one writes its state, another one, with other tasks, writes everything."""
    rival = Hub(hub.folder)
    del rival.tasks["news"]
    inner, begun = files.atomic_write_bytes, []

    def write(path: Path, data: bytes, **more: Any) -> None:
        inner(path, data, **more)
        if path.name == "state.safetensors" and not begun:
            begun.append(path)
            rival.open()

    monkeypatch.setattr(files, "atomic_write_bytes", write)
    first = hub.open()
    assert begun
    monkeypatch.undo()
    again = hub.open()
    assert same(again, first)
    assert hub.open().how == "loaded"


def test_an_unknown_router_is_named(hub: Hub) -> None:
    with pytest.raises(UnknownNameError, match="analytik") as error:
        hub.open("analytik")
    assert "analytic" in error.value.hint


def test_only_fitting_anew_is_told(tmp_path: Path) -> None:
    hub, said = Hub(tmp_path), list[str]()
    hub.open(tell=said.append)
    hub.open(tell=said.append)
    hub.tasks[TASKS[0]] = hub.known(TASKS[0], edition=2)
    assert hub.open(tell=said.append).how == "refreshed"
    count = 20 * len(TASKS)
    assert said == [f"fitting the router analytic on {count} samples of {len(TASKS)} tasks; it is stored for next time"]
