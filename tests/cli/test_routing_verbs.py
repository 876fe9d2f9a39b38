"""`predict`, `generate`, `chat`, `route` and `drift` on a hub with several tasks: what they print, and bad input."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import Cl, Said, write_rows
from routed_hubs import UNLIKE, new_hub, on_base, publish_facts, texts

from adapterhub_cl.registry import Registry
from adapterhub_cl.routing import ROOM

NAMES = ("sums", "shouts", "greek", "tales")
SUM, GREEK, TALE = texts("sums", 1, 50)[0], texts("greek", 1, 50)[0], texts("tales", 1, 50)[0]
VERBS = ("predict", "generate", "chat", "route", "drift")
CAUTIOUS = ("--set", "router.false_fallbacks=0.1")


@pytest.fixture(scope="module")
def made(load_pico: Any, pico_path: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = new_hub(tmp_path_factory.mktemp("routed") / "hub", pico_path("llama"), load_pico(), NAMES)
    hub.route([SUM])  # fits the router
    return hub.folder


@pytest.fixture
def run(cl: Cl, made: Path, tmp_path: Path) -> Callable[..., Said]:
    """`run("predict", "text")` on a copy of the hub, in fp32."""
    hub = shutil.copytree(made, tmp_path / "hub")
    return lambda verb, *argv, **more: cl(verb, "--hub", hub, "--dtype", "fp32", *argv, **more)


def wrong(said: Said, code: int, *words: str) -> None:
    """One line of error, one of hint, nothing on stdout."""
    assert said.code == code
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], said.err
    for word in words:
        assert word in said.err
    assert said.out == ""


# -- predict -----------------------------------------------------------------------------------------


def test_predict_finds_each_texts_task(run: Callable[..., Said]) -> None:
    said = run("predict", SUM, GREEK)
    assert said.code == 0, said.err
    head, first, second = said.out.splitlines()
    assert head.split() == ["prediction", "confidence", "task", "routing", "adapter", "text"]
    assert first.split()[2] == "sums"
    assert first.split()[4] == "sums@v1"
    assert first.endswith(SUM)
    assert second.split()[4] == "greek@v1"
    assert said.err == ""
    rows = run("predict", SUM, GREEK, "--json").json
    assert [list(row) for row in rows] == [list(rows[0])] * 2
    assert rows[0].keys() >= {"text", "adapter", "prediction", "confidence", "task", "adapters", "routing", "scores"}
    assert [row["adapter"] for row in rows] == ["sums@v1", "greek@v1"]
    assert rows[0]["adapters"] == [{"ref": "sums@v1", "weight": 1.0}]
    assert first.split()[:2] == [rows[0]["prediction"], f"{rows[0]['confidence']:.3f}"]
    assert 0.5 < rows[0]["routing"] <= 1


def test_predict_mixes_names_and_falls_back(run: Callable[..., Said]) -> None:
    mixed = run("predict", f"{SUM} {GREEK}", "--top-k", 2, "--json").json[0]
    weights = {one["ref"]: one["weight"] for one in mixed["adapters"]}
    assert len(weights) == 2
    assert sum(weights.values()) == pytest.approx(1)
    assert " + " in run("predict", f"{SUM} {GREEK}", "--top-k", 2).out
    named = run("predict", SUM, "--task", "greek", "--json").json[0]
    assert (named["adapter"], named["routing"]) == ("greek@v1", None)
    assert named["prediction"] in ("alpha", "beta")
    far = run("predict", UNLIKE, *CAUTIOUS, "--max-new-tokens", 3, "--json").json[0]
    assert (far["adapter"], far["out_of_distribution"], far["adapters"]) == ("base", True, [])
    assert "base (out of distribution)" in run("predict", UNLIKE, *CAUTIOUS, "--max-new-tokens", 3).out
    kept = run("predict", UNLIKE, *CAUTIOUS, "--max-new-tokens", 3, "--no-fallback", "--json").json[0]
    assert (kept["adapter"], kept["out_of_distribution"]) == (f"{kept['task']}@v1", False)


def test_predict_from_a_file_with_another_router_says_what_was_cut(run: Callable[..., Said], tmp_path: Path) -> None:
    file = write_rows(tmp_path / "in.jsonl", [{"text": GREEK}, {"text": f"{SUM} " * 60}])
    said = run("predict", "--file", file, "--router", "centroid")
    assert said.code == 0, said.err
    assert len(said.out.splitlines()) == 3
    fitting, cut = said.err.splitlines()
    assert re.fullmatch(r"fitting the router centroid on \d+ samples of 4 tasks; it is stored for next time", fitting)
    assert cut == "note: 1 input was longer than the task's limit and cut"
    quiet = run("predict", "--file", file, "--router", "centroid", "--quiet")
    assert (quiet.out, quiet.err) == (said.out, "")
    rows = run("predict", "--file", file, "--router", "centroid", "--json").json
    assert [row["truncated"] for row in rows] == [False, True]


def test_an_index_that_counts_what_was_asked(run: Callable[..., Said], tmp_path: Path) -> None:
    run("predict", SUM, SUM, GREEK)
    run("predict", SUM, "--task", "sums")
    run("generate", TALE, "--max-new-tokens", 2)
    usage = Registry.open(tmp_path / "hub").usage()
    assert [(one.ref, one.requests, one.routed) for one in usage] == [
        ("greek@v1", 1, 1),
        ("sums@v1", 3, 2),
        ("tales@v1", 1, 1),
    ]


# -- route and drift ---------------------------------------------------------------------------------


def test_route_says_where_texts_would_go(run: Callable[..., Said]) -> None:
    said = run("route", SUM, GREEK)
    assert said.code == 0, said.err
    head, first, second = said.out.splitlines()
    assert head.split() == ["task", "weight", "confidence", "adapter", "text"]
    assert first.split()[0] == "sums"
    assert first.split()[3] == "sums@v1"
    assert second.split()[0] == "greek"
    rows = run("route", SUM, GREEK, "--json").json
    assert rows[0].keys() >= {"text", "adapters", "out_of_distribution", "tasks", "confidence"}
    assert rows[0]["text"] == SUM
    assert rows[0]["adapters"] == [{"ref": "sums@v1", "weight": 1.0}]
    assert rows[0]["out_of_distribution"] is False
    two = run("route", SUM, "--top-k", 2, "--json").json[0]
    assert sum(one["weight"] for one in two["adapters"]) == pytest.approx(1)
    far = run("route", UNLIKE, *CAUTIOUS, "--json").json[0]
    assert (far["adapters"], far["out_of_distribution"]) == ([], True)
    assert "base (out of distribution; nearest task: " in run("route", UNLIKE, *CAUTIOUS).out
    assert run("route", stdin=f"{SUM}\n\n{GREEK}\n").out == said.out


def test_route_explains(run: Callable[..., Said], tmp_path: Path) -> None:
    lines = (tmp_path / "hub/adapters/greek/v1/replay.jsonl").read_text(encoding="utf-8").splitlines()
    sample = json.loads(lines[2])["input"]
    said = run("route", sample, "--explain")
    assert said.code == 0, said.err
    for part in (
        "goes to",
        "greek@v1, task greek",
        "like what it knows  yes",
        "at or above the threshold",
        "nearest sample",
    ):
        assert part in said.out
    assert all(name in said.out for name in NAMES)
    row = run("route", sample, "--explain", "--json").json[0]
    assert set(row["scores"]) == set(NAMES)
    assert len(row["nearest"]) == 3
    assert (row["nearest"][0]["task"], row["nearest"][0]["text"]) == ("greek", sample)
    assert row["nearest"][0]["cosine"] == pytest.approx(1, abs=1e-3)


def test_every_router_answers(run: Callable[..., Said]) -> None:
    for name in ROOM.names():
        router = ROOM.get(name)
        more = [f"--set={name}.{option}={value}" for option, value in router.trial_options(["greek"]).items()]
        said = run("route", GREEK, "--router", name, *more, "--json")
        assert said.code == 0, said.err
        if router.reads == "samples" or not router.input_matters:
            assert said.json[0]["tasks"][0]["task"] == "greek"


def test_drift_compares_a_file_with_what_is_known(run: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("\n".join([*texts("sums", 5, 50), *texts("greek", 4, 50), *"qzwuyv"]), "utf-8")
    said = run("drift", "in.txt", *CAUTIOUS)
    assert said.code == 0, said.err
    assert "out of distribution" in said.out
    assert "expected of known tasks" in said.out
    found = run("drift", "in.txt", *CAUTIOUS, "--json").json
    assert found["n"] == 15
    assert found["out_of_distribution"] >= 4
    assert found["tasks"]["sums"] >= 4
    assert f"{found['out_of_distribution']} ({found['share']:.1%}" in said.out
    assert found["proposals"]


# -- generate and chat -------------------------------------------------------------------------------


def test_generate_writes_with_the_adapter_that_the_router_chose(run: Callable[..., Said]) -> None:
    said = run("generate", TALE, "--max-new-tokens", 6)
    row = run("generate", TALE, "--max-new-tokens", 6, "--json").json
    assert said.code == 0, said.err
    known = ["text", "adapter", "task", "generated", "adapters", "routing", "out_of_distribution"]
    assert list(row) == [*known, "truncated", "finished"]
    assert (row["adapter"], row["task"], row["text"]) == ("tales@v1", "tales", TALE)
    assert said.out == row["generated"] + "\n"
    limit = "note: the answer was ended by the limit of new tokens; --max-new-tokens N allows a longer one\n"
    assert said.err == f"{limit}answered by tales@v1: task tales, routing confidence {row['routing']:.3f}\n"
    quiet = run("generate", TALE, "--max-new-tokens", 6, "--quiet")
    assert (quiet.out, quiet.err) == (said.out, "")
    named = run("generate", TALE, "--adapter", "tales", "--max-new-tokens", 6, "--json")
    assert named.json["generated"] == row["generated"]
    assert named.json["routing"] is None
    assert row["finished"] is False
    drawn = ("generate", TALE, "--temperature", 1.5, "--top-p", 0.9, "--max-new-tokens", 8, "--json")
    assert run(*drawn, "--seed", 1).json == run(*drawn, "--seed", 1).json
    assert run(*drawn, "--seed", 1).json["generated"] != run(*drawn, "--seed", 2).json["generated"]
    letter = next(c for c in row["generated"] if c.isprintable() and c not in " �")
    cut = run("generate", TALE, "--stop", letter, "--max-new-tokens", 6, "--json").json["generated"]
    assert cut == row["generated"].partition(letter)[0]
    from_stdin = run("generate", "--max-new-tokens", 6, "--json", stdin=f"{TALE}\n")
    assert from_stdin.json == row
    lines = "  two words\n\n    more\n"
    kept = run("generate", "--adapter", "base", "--max-new-tokens", 1, "--json", stdin=lines)
    assert kept.json["text"] == lines.strip("\n")  # a text is not a list of lines: indents and empty lines stay


def test_rows_on_standard_input_are_told_from_texts(run: Callable[..., Said]) -> None:
    row = json.dumps({"input": SUM, "output": "7"})
    said = run("route", stdin=f"{row}\n{row}\n")
    assert said.code == 0
    assert said.err.splitlines()[-1].endswith("if these are rows: cl-adapter route --file -")
    assert "--file -" not in run("route", stdin=f"{row}\n{SUM}\n").err
    assert "--file -" not in run("route", row).err


def test_chat_answers_each_line(run: Callable[..., Said]) -> None:
    lines = f"{GREEK}\n\n{SUM}\n/new\n{GREEK}\n/quit\n{SUM}\n"
    said = run("chat", "--max-new-tokens", 3, "--json", stdin=lines)
    assert said.code == 0, said.err
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [(row["text"], row["task"]) for row in rows] == [(GREEK, "greek"), (SUM, "sums"), (GREEK, "greek")]
    assert rows[0]["generated"] == rows[2]["generated"]
    plain = run("chat", "--max-new-tokens", 3, "--adapter", "base", "--system", "Be kind.", "--quiet", stdin="hello\n")
    assert (plain.code, plain.err) == (0, "")
    assert plain.out.endswith("\n")
    other = run("chat", "--max-new-tokens", 3, "--adapter", "base", "--quiet", stdin="hello\n")
    assert other.out != plain.out
    terminal = run("chat", "--max-new-tokens", 2, "--task", "tales", stdin="once\n" + "y" * 400 + "\n", terminal=True)
    assert terminal.code == 0
    assert "/new starts a new conversation" in terminal.err
    assert "note: the answer was ended by the limit" in terminal.err
    long = run("chat", "--task", "tales", "--max-new-tokens", 2, "--json", stdin="y" * 400 + "\n")
    assert json.loads(long.out)["truncated"]
    wrong(run("chat", "--adapter", "base", "--max-new-tokens", 300, stdin="y\n"), 1, "over the base's 256")


# -- help and bad input ------------------------------------------------------------------------------


def test_help_shows_the_routers_and_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from cl_adapter.__main__ import main\n"
        "for verb in sys.argv[1:]: assert main([verb, '--help']) == 0\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules], file=sys.stderr)"
    )
    argv = [sys.executable, "-c", code, *VERBS]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
    for page in done.stdout.split("Usage: ")[1:]:
        for name in ROOM.names():
            assert name in page, page


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["predict", "x", "--router", "analitic"], "unknown router 'analitic' did you mean analytic or"),
        (["route", "x", "--router", "perplexty"], "did you mean perplexity?"),
        (["predict", "x", "--task", "sums", "--router", "arrow"], "both a task and a router"),
        (["generate", "x", "--task", "sums", "--router", "arrow"], "both a task and a router"),
        (["chat", "--task", "sums", "--router", "arrow"], "both a task and a router"),
        (["predict", "x", "--adapter", "sums@v1", "--router", "arrow"], "both an adapter and a router"),
        (["predict", "x", "--adapter", "sums@v1", "--top-k", "2"], "both an adapter and a mixture of several"),
        (["generate", "x", "--task", "sums", "--top-k", "2"], "both a task and a mixture of several"),
        (["generate", "x", "--adapter", "base", "--set", "analytic.ridge=1"], "both an adapter and a router's options"),
        (["chat", "--adapter", "sums@v1", "--router", "arrow"], "both an adapter and a router"),
        (["chat", "--task", "sums", "--set", "analytic.ridge=1"], "both a task and a router's options"),
        (["predict", "x", "--top-k", "0"], "--top-k"),
        (["route", "x", "--top-k", "0"], "--top-k"),
        (["generate", "x", "--top-k", "-1"], "--top-k"),
        (["predict", "x", "--set", "analytic.rigde=1"], "did you mean ridge?"),
        (["predict", "x", "--set", "ridge=1"], "--set 'ridge=1' is not NAME.OPTION=VALUE"),
        (["route", "x", "--set", "analytic.ridge=lots"], "analytic.ridge"),
        (["route", "x", "--set", "router.text=half"], "router.text must be one of bare, whole, both"),
        (["route", "x", "--set", "router.layer=9"], "this base has 2 layers"),
        (["route", "x", "--set", "centroid.temperature=1"], "centroid.temperature"),
        (["route", "x", "--router", "static", "--set", "static.tasks=nowhere"], "nowhere"),
        (["predict", "x", "--task", "sum"], "did you mean sums?"),
        (["predict", "x", "--adapter", "sum"], "did you mean sums?"),
        (["generate", "x", "--temperature", "-1"], "--temperature"),
        (["generate", "x", "--top-p", "0"], "--top-p"),
        (["generate", "x", "--stop", ""], "--stop"),
        (["drift", "nowhere.txt"], "nowhere.txt"),
        (["route", "x", "--file", "y"], "both texts and --file"),
        (["drift"], "missing argument"),
        (["drift", "in.txt", "--router", "static", "--set", "static.tasks=sums"], "cannot detect unknown inputs"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    run: Callable[..., Said], tmp_path: Path, line: list[str], words: str
) -> None:
    (tmp_path / "in.txt").write_text("a\nb\n")
    said = run(*line, stdin="hello\n")
    assert said.code == (1 if "nowhere.txt" in line else 2), said.err
    assert words in " ".join(said.err.replace("\nhint:", "").split()), said.err
    wrong(said, said.code)
    again = run(*line, "--json", stdin="hello\n")
    assert again.code == said.code
    assert again.json.keys() == {"error", "hint", "code"}


@pytest.mark.parametrize("verb", ["predict", "route", "drift"])
def test_files_without_inputs(run: Callable[..., Said], tmp_path: Path, verb: str) -> None:
    flag = [] if verb == "drift" else ["--file"]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.jsonl").write_text("\n\n")
    (tmp_path / "other.jsonl").write_text('{"number": 3}\n')
    for name in ("empty.txt", "blank.jsonl", "other.jsonl"):
        wrong(run(verb, *flag, name), 1, name)


def test_no_hub_no_adapters_no_samples(cl: Cl, pico_path: Any, load_pico: Any, tmp_path: Path, made: Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    lines = (["predict", "x"], ["generate", "x"], ["chat"], ["route", "x"], ["drift", "in.txt"])
    for line in lines:
        wrong(cl(*line, stdin="x\n"), 1, "no hub", "cl-adapter init")
    assert cl("init", "empty", "--base", pico_path("llama"), "--quantization", "none").code == 0
    for line in lines:
        said = cl(*line, "--hub", "empty", stdin="x\n")
        wrong(said, 2, "this hub has no adapters yet", "add-task")
    bare = shutil.copytree(made, tmp_path / "bare")
    for record in Registry.open(bare).adapters():
        Registry.open(bare).replace_samples(record.ref, "")
    said = cl("predict", SUM, "--hub", bare)
    wrong(said, 1, "there are none for greek, shouts, sums, tales", "--router arrow")
    assert cl("predict", SUM, "--router", "arrow", "--max-new-tokens", 2, "--hub", bare).code == 0


# -- facts -------------------------------------------------------------------------------------------


def test_show_lists_subjects_and_route_says_that_one_was_named(
    cl: Cl, made: Path, load_pico: Any, tmp_path: Path
) -> None:
    hub = on_base(Registry.open(shutil.copytree(made, tmp_path / "hub")), load_pico())
    publish_facts(hub, "town", ["Quillhaven", "Kirk Hill"], 7)
    asked = ("--hub", hub.folder, "--dtype", "fp32")
    assert "knows facts about Quillhaven, Kirk Hill" in cl("show", "--hub", hub.folder, "town").out
    assert json.loads(cl("show", "--hub", hub.folder, "--json", "town").out)["subjects"] == ["Quillhaven", "Kirk Hill"]
    assert "subjects" not in json.loads(cl("show", "--hub", hub.folder, "--json", "sums").out)
    assert "not kept away" not in cl("show", "--hub", hub.folder, "town").out
    said = cl("route", *asked, "quillhaven's mayor?", "Who is the mayor of Paris?", "--explain").out
    assert re.search(r"why +names Quillhaven\n", said)
    assert re.search(r"why +names nothing that town knows\n", said)
    assert json.loads(cl("route", *asked, "kirk hill?", "--json").out)[0]["why"] == "names Kirk Hill"
    village = publish_facts(hub, "village", ["Pelliton"], 8, facts=100)
    assert "questions that name none of them are not kept away" in cl("show", "--hub", hub.folder, "village").out
    with (village.path / "replay.jsonl").open("a") as file:
        file.write("{}\n")
    damaged = cl("show", "--hub", hub.folder, "village")
    assert (damaged.code, "village@v1" in damaged.out, "SHA-256 differs" in damaged.err) == (0, True, True)
