"""Every block of every page is run by a test or says why not; and whatever can be told without running it is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docs_blocks import CODE, PLAIN, ROOT, SHELL, Block, blocks, pages
from docs_checks import check_code, check_command, check_python, provided, simple_commands, told
from docs_shell import Failed, Shell, check_shown, same_line

from adapterhub_cl.errors import UnknownNameError

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
_LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_of_a_kind_that_tests_know(block: Block) -> None:
    assert block.language in (*SHELL, *CODE, *PLAIN, "indented"), f"{block}: what is {block.language!r}?"
    if block.language in PLAIN and block.has_commands:
        raise AssertionError(f"{block}: commands stand in a block that no test runs: fence it as ```console")
    if block.language in SHELL:
        assert block.commands(), f"{block}: no command"
    if block.reason is not None:
        assert len(block.reason.split()) >= 3, f"{block}: say in a few words why it is not run"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_code_name_only_what_exists(page: str) -> None:
    problems = []
    written = [block.file for block in blocks(page) if block.file]
    own = provided(blocks(page))
    for block in blocks(page):
        try:
            check_code(block)
        except Exception as error:
            problems.append(f"{block}: {told(error)}")
        hidden = block.marks.get("first", "").splitlines()
        shown = block.commands() if block.is_shell and block.file is None else []
        for text in [*hidden, *(command.text for command in shown)]:
            for words in simple_commands(text.removeprefix("$ ")):
                try:
                    check_command(words, written)
                except Exception as error:
                    if isinstance(error, UnknownNameError) and error.name in own:
                        continue
                    problems.append(f"{block}: {' '.join(words)}: {told(error)}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    broken = []
    for target, anchor in _LINK.findall((ROOT / page).read_text(encoding="utf-8")):
        place = (ROOT / page).parent / target if target else ROOT / page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in _anchors(place)):
            broken.append(f"{target}#{anchor}")
    assert not broken


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_of_docs_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    missing = [
        page
        for page in PAGES
        if page.startswith("docs/") and page != "docs/README.md" and f"]({page.removeprefix('docs/')})" not in contents
    ]
    tables = (ROOT / "docs/benchmarks/README.md").read_text(encoding="utf-8")
    assert not [page for page in missing if f"]({page.removeprefix('docs/benchmarks/')})" not in tables]


# -- the harness itself ------------------------------------------------------------------------------

PAGE = """\
# A page

<!-- first: echo prepared > there -->
<!-- exits: 0 3 -->
```console
$ cat there
prepared
$ false ||
> (exit 3)
```

    cl-adapter list   # indented

<!-- not run: it needs a GPU -->
```bash
export A=1
for x in a b; do
  echo $x
done
```

- an item

    of a list, no block

```yaml
# some.yaml
a: 1
```
"""


def test_a_page_is_taken_apart() -> None:
    console, indented, bash, file = blocks("x.md", PAGE)
    assert [(c.text, c.shown) for c in console.commands()] == [("cat there", ("prepared",)), ("false ||\n(exit 3)", ())]
    assert console.exits(2) == [{0}, {3}]
    assert console.marks["first"] == "echo prepared > there"
    assert indented.language == "indented"
    assert indented.is_shell
    assert bash.reason == "it needs a GPU"
    assert not bash.runs
    assert [c.text for c in bash.commands()] == ["export A=1", "for x in a b; do\n  echo $x\ndone"]
    assert file.file == "some.yaml"
    assert file.runs


def test_a_mark_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is no mark"):
        blocks("x.md", "<!-- not-run: why -->\n```bash\nls\n```\n")
    with pytest.raises(ValueError, match="not closed"):
        blocks("x.md", "```bash\nls\n")


def test_steps_share_a_shell_and_exit_codes_count(shell: Shell) -> None:
    console, *_, file = blocks("x.md", PAGE)
    shell.do(console)
    shell.do(file)
    assert (shell.folder / "some.yaml").read_text() == "# some.yaml\na: 1\n"
    (there,) = blocks("x.md", "```bash\nexport A=7\ncd adapterhub_cl\ncd ..\n```\n")
    shell.do(there)
    assert shell.run("echo $A") == (0, "7\n")
    (wrong,) = blocks("x.md", "```console\n$ (exit 4)\n```\n")
    with pytest.raises(Failed, match="exit code 4, not 0"):
        shell.do(wrong)
    (other,) = blocks("x.md", "```console\n$ echo one\ntwo\n```\n")
    with pytest.raises(Failed, match="the page shows 'two'"):
        shell.do(other)


def test_a_page_changes_nothing_of_the_project(shell: Shell) -> None:
    (block,) = blocks("x.md", "```python\n# adapterhub_cl/strategies/mine.py\n```\n")
    with pytest.raises(Failed, match="outside"):
        shell.do(block)


def test_what_would_change_the_checkout_is_refused(shell: Shell) -> None:
    assert shell.run("make demo")[0] == shell.run("source .venv/bin/activate && git status")[0] == 1
    assert "mark the block" in shell.run("make test")[1]
    assert shell.run("pip install ./nothing-here")[0] != 0
    assert "pip is a function" in shell.run("source .venv/bin/activate && type pip")[1]


def test_nothing_leaves_the_machine(shell: Shell) -> None:
    code, printed = shell.run("python -c \"import socket; socket.create_connection(('192.0.2.1', 80), 1)\"")
    assert code == 1
    assert "wants the network" in printed


def test_what_may_differ_in_shown_output() -> None:
    assert same_line("accuracy 0.7885 (95 % 0.770–0.806, n 2000)", "  accuracy   0.81 (95 % 0.790–0.826, n 2000)")
    assert not same_line("accuracy 0.7885 (n 2000)", "accuracy 0.78 (n 2001)")
    assert not same_line("accuracy 0.7885", "accuracy 0.4")
    assert same_line("tickets@v1 … took … s", "tickets@v1  active, took 12 s")
    assert not same_line("version 0.1.0", "version 0.1.1")
    check_shown(("one", "…", "three"), "note\none\ntwo\nthree\n")
    with pytest.raises(Failed):
        check_shown(("three", "one"), "one\nthree\n")


def test_what_is_not_there_is_found_without_running() -> None:
    for line, why in (
        ("cl-adapter lst", "unknown verb"),
        ("cl-adapter list | cl-adapter show tickets --nonsense", "--nonsense"),
        ("cl-adapter add-task a b.jsonl --strategy ewcc", "ewcc"),
        ("cl-adapter add-task a b.jsonl --strategy ewc --set ewc.strong=1", "strong"),
        ("cl-adapter add-task a b.jsonl --epochs 0", "--epochs"),
        ("cl-adapter merge a b --as c --method tis", "tis"),
        ("cl-adapter predict x --router analytc", "analytc"),
        ("accelerate launch --num_proceses 2 -m cl_adapter list", "num_proceses"),
        ("python examples/benchmarks/nothing.py", "not there"),
        ("python examples/benchmarks/nothing --ablate", "not there"),
        ("make nothing", "nothing"),
        ("frobnicate", "frobnicate"),
    ):
        assert why in problem_of(line) or problem_of(line) == "SystemExit: 2", line  # accelerate's parser ends so
    for good in (
        "A=1 cl-adapter --hub x list --json > out.txt  # why",
        "tail -f f | cl-adapter update a - --online",
    ):
        assert problem_of(good) == ""
    with pytest.raises(AssertionError, match="nothing"):
        check_python("from adapterhub_cl import AdapterHub\nhub = AdapterHub.open('x')\nhub.merge(['a'], nothing=1)")
    with pytest.raises(AttributeError):
        check_python("hub.nothing()")


def problem_of(line: str) -> str:
    """What the checks say of a line of bash; nothing where all is well."""
    for words in simple_commands(line):
        try:
            check_command(words)
        except (Exception, SystemExit) as error:
            return told(error)
    return ""
