"""What is exported answers by itself as the hub does; what is imported keeps its task, and is of this very base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from loras import SHAPES, write_lora
from safetensors.torch import load_file, save_file

from adapterhub_cl import AdapterHub
from adapterhub_cl.adapters.lora_config import CONFIG, WEIGHTS
from adapterhub_cl.errors import AdapterError, UsageError
from adapterhub_cl.types import Layout, Task

DESCRIBED: dict[str, Any] = {
    "labels": ("red", "red wine", "blue"),
    "instruction": "Which colour? {input} is no placeholder.",
    "prompt_format": "alpaca",
    "metric": "macro_f1",
}
TEXTS = ["the apple {instruction}", "a stone \\ \n and more"]


@pytest.fixture(scope="module")
def hub(pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> AdapterHub:
    folder = tmp_path_factory.mktemp("export")
    made = AdapterHub.init(folder / "hub", str(pico_path("llama")), quantization="none", dtype="fp32")
    made.import_adapter(write_lora(folder / "one", size=0.1), "one", **DESCRIBED)
    made.import_adapter(write_lora(folder / "free", 1, size=0.1), "free", prompt_format="chat")
    return made


@pytest.fixture
def other(hub: AdapterHub, tmp_path: Path) -> AdapterHub:
    """A hub on the same base with a hundredth of noise on its weights."""
    base = Path(shutil.copytree(hub.base.source, tmp_path / "base"))
    generator = torch.Generator().manual_seed(0)
    weights = {
        key: value * (1 + 0.01 * torch.randn(value.shape, generator=generator))
        for key, value in load_file(base / "model.safetensors").items()
    }
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return AdapterHub.init(tmp_path / "other", str(base), quantization="none", dtype="fp32")


def answers(folder: Path, hub: AdapterHub, *argv: str) -> list[dict[str, Any]]:
    said = subprocess.run(
        [sys.executable, folder / "predict.py", "--base", hub.base.source, *argv],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return [json.loads(line) for line in said.stdout.splitlines()]


@pytest.mark.slow  # each starts a Python that imports torch
def test_the_script_answers_as_the_hub_does(hub: AdapterHub, tmp_path: Path) -> None:
    hub.export("one", tmp_path / "one")
    hub.export("free", tmp_path / "free")
    right = hub.predict(TEXTS, adapter="one")
    for found, wanted in zip(answers(tmp_path / "one", hub, *TEXTS), right, strict=True):
        assert found["prediction"] == wanted.prediction
        assert found["confidence"] == pytest.approx(wanted.confidence, abs=1e-4)
    text = TEXTS[0]
    for argv, most in ((("--max-new-tokens", "5"), 5), ((), None)):
        [written] = answers(tmp_path / "free", hub, *argv, text)
        wanted = hub.predict([text], adapter="free", max_new_tokens=most)[0]
        assert (written["prediction"], written["finished"]) == (wanted.prediction, wanted.finished)


def test_how_it_is_asked_is_exported(hub: AdapterHub, tmp_path: Path) -> None:
    folder = hub.export("one", tmp_path / "out")
    about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    task = about["tasks"]["one"]
    assert about["base"]["fingerprint"] == hub.base.fingerprint
    assert "### Instruction:\n{instruction}\n\n### Input:\n{input}" in task["prompt"]["instructed"]
    assert "### Instruction" not in task["prompt"]["bare"]
    assert DESCRIBED["instruction"] in task["example"]["prompt"]
    assert list(task["label_ids"]) == list(DESCRIBED["labels"])
    assert {"tokenizer.json", "chat_template.jinja", "predict.py", "README.md"} <= {p.name for p in folder.iterdir()}
    told = json.loads((hub.export("free", tmp_path / "free") / "task.json").read_text(encoding="utf-8"))
    assert told["tasks"]["free"]["prompt"]["bare"] == "<s>user: {input}\nassistant:"
    assert told["tasks"]["free"]["most_tokens"] == 64  # nothing says how long its answers are
    assert told["tasks"]["free"]["answer_suffix"] == ""


def test_no_file_names_a_folder_of_this_machine(hub: AdapterHub, tmp_path: Path) -> None:
    folder = hub.export("one", tmp_path / "out")
    for file in folder.iterdir():
        for secret in (hub.base.source, str(Path(hub.base.source).parent), str(hub.folder), "/tmp"):
            assert secret.encode() not in file.read_bytes(), file.name
    assert json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"] == "pico"
    assert "# set this to the folder of the base" in (folder / "README.md").read_text(encoding="utf-8")


def test_without_its_base_the_adapter_alone_is_exported(hub: AdapterHub, tmp_path: Path) -> None:
    from dataclasses import replace

    from adapterhub_cl.exporting import ExportOrder, export
    from adapterhub_cl.exporting.peft import Format

    gone = replace(hub.base, source=str(tmp_path / "gone"))
    folder = export(ExportOrder(hub.get("one"), tmp_path / "out", gone, [Task("one")], hub.context()), Format())
    assert {p.name for p in folder.iterdir()} == {CONFIG, WEIGHTS, "README.md", "task.json"}


@pytest.mark.parametrize("what", ["export", "version"])
def test_what_is_imported_again_keeps_its_task(hub: AdapterHub, tmp_path: Path, what: str) -> None:
    folder = hub.export("one", tmp_path / "out") if what == "export" else hub.path("one")
    name = f"again-{what}"
    record = hub.import_adapter(folder, name)
    assert Task.from_json(record.manifest["task_spec"]) == Task(name, "choice", **DESCRIBED)
    assert hub.predict(TEXTS, adapter=name)[0].scores == hub.predict(TEXTS, adapter="one")[0].scores
    told = hub.import_adapter(folder, f"{name}-otherwise", instruction="Say it.", metric="accuracy")
    assert Task.from_json(told.manifest["task_spec"]).instruction == "Say it."
    assert Task.from_json(told.manifest["task_spec"]).labels == DESCRIBED["labels"]


def test_a_task_that_is_there_is_not_described_anew(hub: AdapterHub, tmp_path: Path) -> None:
    folder = hub.export("free", tmp_path / "out")
    hub.import_adapter(hub.path("one"), "taken")
    before = hub.registry.task("taken")
    with pytest.raises(UsageError, match="describes the task taken otherwise") as told:
        hub.import_adapter(folder, "taken")
    assert "--task taken" in told.value.hint
    assert hub.registry.task("taken") == before
    assert [record.ref for record in hub.registry.versions("taken")] == ["taken@v1"]


@pytest.mark.parametrize("what", ["export", "version"])
def test_what_the_user_says_of_the_task_changes_nothing_else(hub: AdapterHub, tmp_path: Path, what: str) -> None:
    folder = hub.export("one", tmp_path / "out") if what == "export" else hub.path("one")
    same = hub.import_adapter(folder, f"same-{what}", kind="choice")
    assert Task.from_json(same.manifest["task_spec"]) == Task(f"same-{what}", "choice", **DESCRIBED)
    other = Task.from_json(hub.import_adapter(folder, f"other-{what}", kind="generation").manifest["task_spec"])
    assert (other.kind, other.labels, other.metric) == ("generation", (), "exact_match")
    assert (other.prompt_format, other.instruction) == (DESCRIBED["prompt_format"], DESCRIBED["instruction"])
    free = hub.export("free", tmp_path / "free") if what == "export" else hub.path("free")
    before = Task.from_json(hub.get("free").manifest["task_spec"])
    again = Task.from_json(hub.import_adapter(free, f"free-{what}", kind="generation").manifest["task_spec"])
    assert again == replace(before, name=f"free-{what}")


@pytest.mark.parametrize("what", ["export", "version"])
def test_another_base_is_refused(hub: AdapterHub, other: AdapterHub, tmp_path: Path, what: str) -> None:
    folder = hub.export("one", tmp_path / "out") if what == "export" else hub.path("one")
    with pytest.raises(AdapterError, match="was made for another base") as caught:
        other.import_adapter(folder, "one")
    assert "--any-base" in caught.value.hint
    assert other.list() == []
    record = other.import_adapter(folder, "one", any_base=True)
    assert Task.from_json(record.manifest["task_spec"]).labels == DESCRIBED["labels"]


@pytest.mark.parametrize(
    "spec",
    [
        {"kind": "choice", "labels": [1, 2]},
        {"kind": "choice", "labels": "ab"},
        {"kind": ["choice"], "labels": ["a", "b"]},
        {"kind": "choice", "labels": ["a", "b"], "prompt_format": 7},
        {"kind": "choice", "labels": ["a", "a"]},
        {"kind": "nothing"},
    ],
)
def test_a_spoilt_description_is_refused(hub: AdapterHub, tmp_path: Path, spec: dict[str, Any]) -> None:
    folder = write_lora(tmp_path / "x")
    about = {"base": {"fingerprint": hub.base.fingerprint}, "tasks": {"x": {"spec": {"name": "x", **spec}}}}
    (folder / "task.json").write_text(json.dumps(about))
    with pytest.raises(UsageError):
        hub.import_adapter(folder, "spoilt")


def test_an_adapter_of_several_tasks_needs_to_be_told_which(hub: AdapterHub, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "x", size=0.1)
    tasks = {name: {"spec": Task(name).to_json()} for name in ("a", "b")}
    (folder / "task.json").write_text(json.dumps({"tasks": tasks}))
    with pytest.raises(UsageError, match="several tasks: a, b"):
        hub.import_adapter(folder, "several")
    assert hub.import_adapter(folder, "several", task="one").task == "one"


@pytest.mark.parametrize(
    "renamed",
    [
        lambda key: key.replace("model.layers", "model._orig_mod.layers"),
        lambda key: "_orig_mod." + key,
        lambda key: "module." + key,
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace(".weight", ".my_adapter.weight"),
        lambda key: key.replace("model.layers", "model.language_model.layers"),
        lambda key: key.replace("base_model.model.model.", "base_model.model.language_model.model."),
        lambda key: key.removeprefix("base_model.model."),
    ],
)
def test_names_that_other_tools_leave(hub: AdapterHub, tmp_path: Path, renamed: Any) -> None:
    folder = write_lora(tmp_path / "x", size=0.1)
    right = hub.import_adapter(folder, f"right-{tmp_path.name}").path
    tensors = load_file(folder / WEIGHTS)
    save_file({renamed(key): value for key, value in tensors.items()}, folder / WEIGHTS)
    found = hub.import_adapter(folder, f"found-{tmp_path.name}").path
    assert load_file(found / WEIGHTS).keys() == load_file(right / WEIGHTS).keys()
    assert all(torch.equal(value, load_file(found / WEIGHTS)[key]) for key, value in tensors.items())


def test_layers_that_the_base_does_not_have_are_named(hub: AdapterHub, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "x")
    tensors = {key.replace("q_proj", "qkv_proj"): value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(
        AdapterError,
        match=r"2 of 6 layers of .* do not exist in this base, such as model\.layers\.0\.self_attn\.qkv_proj",
    ):
        hub.import_adapter(folder, "x")


@pytest.mark.parametrize(
    "asked",
    [
        {"target_modules": r".*\.(q|v|down)_proj"},
        {"target_modules": None},
        {"exclude_modules": "lm_head"},
        {"layers_pattern": "layers", "layers_to_transform": [0, 1]},
        {"init_lora_weights": "eva"},
        {"ensure_weight_tying": True},
    ],
)
def test_an_adapter_is_stored_with_a_list_of_its_layers(hub: AdapterHub, tmp_path: Path, asked: dict[str, Any]) -> None:
    folder = write_lora(tmp_path / "x", size=0.1)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    (folder / CONFIG).write_text(json.dumps({**config, **asked}))
    record = hub.import_adapter(folder, f"asked-{tmp_path.name}")
    names = sorted(name for name in SHAPES if name.rpartition(".")[2] in ("q_proj", "v_proj", "down_proj"))
    assert record.manifest["target_modules"] == names
    hub.predict(TEXTS, adapter=record.ref)
    merged = hub.merge([record.ref, "free"], name=f"merged-{tmp_path.name}", evaluate=False)
    assert merged.rank == 8


def test_an_adapter_of_the_embeddings_is_refused(hub: AdapterHub, tmp_path: Path) -> None:
    folder = write_lora(tmp_path / "x", size=0.1)
    tensors = load_file(folder / WEIGHTS)
    for which, shape in (("A", (4, 300)), ("B", (32, 4))):
        tensors[f"base_model.model.model.embed_tokens.lora_embedding_{which}"] = torch.ones(shape)
    save_file(tensors, folder / WEIGHTS)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = [*config["target_modules"], "embed_tokens"]
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="not a plain LoRA adapter") as caught:
        hub.import_adapter(folder, "x")
    assert "embeddings" in caught.value.hint


def test_a_task_of_conversations_keeps_its_columns_and_its_limits(hub: AdapterHub, tmp_path: Path) -> None:
    layout = Layout("messages", chat="messages", system="system")
    talk = Task("talk", prompt_format="chat", instruction="Be kind.", layout=layout, max_length=64, answer_tokens=5)
    hub.registry.put_task(talk)
    hub.import_adapter(write_lora(tmp_path / "lora", 2, size=0.1), "talk", task="talk")
    folder = hub.export("talk", tmp_path / "out")
    about = json.loads((folder / "task.json").read_text())["tasks"]["talk"]
    assert "<s>system: {instruction}\n<s>user: {input}" in about["prompt"]["instructed"]
    assert (about["max_length"], about["longest_answer"]) == (64, 5)
    again = AdapterHub.init(tmp_path / "again", hub.base.source, quantization="none", dtype="fp32")
    again.import_adapter(folder, "talk")
    assert again.registry.task("talk") == talk
    about = json.loads((folder / "task.json").read_text())
    about["tasks"]["talk"]["spec"]["layout"] = {"name": "messages", "chat": ["no", "text"]}
    (folder / "task.json").write_text(json.dumps(about))
    again.import_adapter(folder, "other")
    assert again.registry.task("other").layout is None


@pytest.mark.parametrize("text", ["[]", "{}", '{"tasks": {"one": null}}', '{"tasks": -7, "base": null}'])
def test_a_description_that_describes_nothing_is_refused(hub: AdapterHub, tmp_path: Path, text: str) -> None:
    folder = hub.export("one", tmp_path / "out")
    (folder / "task.json").write_text(text)
    if text == "{}":  # as good as none
        assert hub.import_adapter(folder, f"bare{len(text)}", labels=["a", "b"]).ref
        return
    with pytest.raises(AdapterError, match=r"task\.json (describes no task|is not a JSON object)"):
        hub.import_adapter(folder, "again")


def test_an_absurd_scaling_is_refused(hub: AdapterHub, tmp_path: Path) -> None:
    folder = hub.export("one", tmp_path / "out")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "lora_alpha": 1e308}))
    with pytest.raises(AdapterError, match=r"rank .* and alpha 1e\+308"):
        hub.import_adapter(folder, "again")


def test_samples_with_unusual_line_ends_are_exported(hub: AdapterHub, tmp_path: Path) -> None:
    """JSON may hold U+2028 and U+0085 as they are: they end no line."""
    row = json.dumps({"instruction": "Say it.", "input": "a\u2028b\x85c", "output": "x"}, ensure_ascii=False)
    with hub.registry.new_draft("lines") as draft:
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(hub.path("free") / name, draft.path / name)
        (draft.path / "replay.jsonl").write_text(row + "\n", encoding="utf-8")
        hub.registry.publish(draft, {"kind": "trained", "rank": 4}, task=Task("lines"))
    told = json.loads((hub.export("lines", tmp_path / "out") / "task.json").read_text(encoding="utf-8"))
    assert told["tasks"]["lines"]["instruction"] == "Say it."
