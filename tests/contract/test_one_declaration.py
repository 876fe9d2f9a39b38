"""An option of `add-task` is one line in one file: with that line, the flag, the Python argument, the keys of
`--config` and of a stream file, and the reference page are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapterhub_cl.consolidation.asked import DistillRequest, MergeRequest, PruneRequest
from adapterhub_cl.distillation.distill_settings import DistillationSettings
from adapterhub_cl.errors import AdapterHubError, UnknownNameError, UsageError
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.learning.train_options import AddTaskOptions, OnlineOptions, UpdateOptions
from adapterhub_cl.options import declared
from adapterhub_cl.settings import TrainingSettings

ROOT = Path(__file__).parents[2]
LINE = '    shine: int = option(7, "how much it shines, in lumens")\n'
LOOK = """
import inspect, pathlib, sys
sys.path.insert(0, "docs")
import make_reference
from cl_adapter.flags import read_config
from adapterhub_cl.hub import AdapterHub
from adapterhub_cl.learning.request import TrainRequest
from adapterhub_cl.learning.train_options import AddTaskOptions
from adapterhub_cl.learning.stream_file import read_stream
from adapterhub_cl.options import declared

assert inspect.signature(AdapterHub.add_task).parameters["shine"].default == 7
assert "shine: how much it shines, in lumens." in AdapterHub.add_task.__doc__
assert "shine" not in inspect.signature(AdapterHub.update).parameters
pathlib.Path("c.yaml").write_text("shine: 8\\n")
assert read_config("c.yaml", declared(AddTaskOptions)) == {"shine": 8}
pathlib.Path("rows.jsonl").write_text('{"text": "a", "label": "b"}\\n')
pathlib.Path("s.yaml").write_text("tasks: [{name: a, data: rows.jsonl, shine: 8}]\\n")
assert read_stream("s.yaml").tasks[0].options == {"shine": 8}
assert TrainRequest("add-task", "a", "rows.jsonl", shine=8).to_json()["shine"] == 8
assert "| `--shine` N | how much it shines, in lumens [7] |" in make_reference.cli()
assert "shine: int = 7," in make_reference.api()
from cl_adapter.__main__ import main
sys.exit(main(["add-task", "--help"]))
"""


def test_a_new_option_is_one_line(tmp_path: Path) -> None:
    for folder in ("adapterhub_cl", "cli", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "cl_adapter").symlink_to("cli")
    declaration = tmp_path / "adapterhub_cl" / "learning" / "train_options.py"
    text = declaration.read_text(encoding="utf-8")
    declaration.write_text(f"{text.rstrip()}\n{LINE}", encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-c", LOOK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "--shine <int>" in found.stdout
    assert "how much it shines, in lumens [7]" in found.stdout


@pytest.mark.parametrize(
    ("method", "classes"),
    [
        (AdapterHub.add_task, (AddTaskOptions, TrainingSettings)),
        (AdapterHub.update, (UpdateOptions, TrainingSettings)),
        (AdapterHub.update_online, (OnlineOptions, TrainingSettings)),
        (AdapterHub.merge, (MergeRequest,)),
        (AdapterHub.distill, (DistillRequest, DistillationSettings, TrainingSettings)),
        (AdapterHub.prune, (PruneRequest,)),
    ],
)
def test_a_method_shows_and_explains_every_option(method: object, classes: tuple[type, ...]) -> None:
    import inspect

    shown = inspect.signature(method).parameters  # type: ignore[arg-type]
    for name, one in declared(*classes).items():
        assert name in shown
        assert f"    {name}: {one.help}." in (method.__doc__ or "")


def test_a_method_refuses_what_it_does_not_declare(tmp_path: Path) -> None:
    hub = AdapterHub.init(tmp_path / "hub", "tiny", quantization="none")
    with pytest.raises(UnknownNameError, match="epoch"):
        hub.add_task("mood", "rows.jsonl", epoch=2)
    with pytest.raises(UnknownNameError, match="on_top_of"):
        hub.update("mood", "rows.jsonl", on_top_of="news")
    with pytest.raises(UsageError, match="--epochs must be a whole number, not 'many'; --rank must be"):
        hub.add_task("mood", "rows.jsonl", epochs="many", rank="high")


@pytest.mark.parametrize("value", [5, 1.5, True, [1], {"a": {"b": 1}}, [["a"]], ""], ids=repr)
@pytest.mark.parametrize("name", sorted(declared(AddTaskOptions)))
def test_a_value_of_the_wrong_type_is_one_error(name: str, value: object) -> None:
    """Whatever a value is, it is taken or refused in words; nothing else comes out of reading it."""
    said = ""
    try:
        declared(AddTaskOptions)[name].read(value)
    except AdapterHubError as error:
        said = error.message
    assert "\n" not in said
