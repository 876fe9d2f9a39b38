"""Shell completion: of verbs and options by the parser, of versions, tasks and methods by what the hub has."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Annotated, Any

import typer
from cl_adapter.argv import WITH_VALUE, hoist
from cl_adapter.failures import DONE
from cl_adapter.session import Session

from adapterhub_cl.errors import AdapterHubError

_SAFE = re.compile(r"[\w.@-]+", re.ASCII)
VARIABLE = "_CL_ADAPTER_COMPLETE"
SHELLS = ("bash", "zsh", "fish", "powershell")


# typer's own for bash takes the words as bash cuts them, before each @ and after each = and :, of which references are
# made; what is told to bash must begin where its own word does.
_BASH = """_cl_adapter_completion() {
    local line="${COMP_LINE:0:$COMP_POINT}" current words
    current="${line##*[[:space:]]}"
    IFS=$' \\t\\n' read -ra words <<< "$line"
    [[ -n "$current" ]] || words+=("")
    mapfile -t COMPREPLY < <(COMP_WORDS="$line" COMP_CWORD=$((${#words[@]} - 1)) %s=complete_bash "$1")
    [[ "$current" == -*=* ]] && current="${current#*=}"
    if [[ "$current" == *@* ]]; then COMPREPLY=("${COMPREPLY[@]#"${current%%%%@*}"}")
    elif [[ "$current" == *[=:]* ]]; then COMPREPLY=("${COMPREPLY[@]#"${current%%"${current##*[=:]}"}"}"); fi
    [[ ${#COMPREPLY[@]} -gt 0 && -n "${COMPREPLY[0]}" ]] || COMPREPLY=()
}

complete -o default -F _cl_adapter_completion cl-adapter"""


def script(shell: str) -> str:
    """What a shell's start-up file has to evaluate."""
    if shell == "bash":
        return _BASH % VARIABLE
    from typer.completion import get_completion_script

    return get_completion_script(prog_name="cl-adapter", complete_var=VARIABLE, shell=shell)


def answer(group: Any, instruction: str) -> int:
    """Tell the shell what may stand next, nothing where that cannot be told; the exit code."""
    from typer.completion import completion_init, shell_complete

    completion_init()
    with suppress(Exception):  # whatever is wrong with the hub or the call: nothing is said between a user's keys
        shell_complete(group, {}, "cl-adapter", VARIABLE, instruction)
    return DONE


def own_words(verb: str, words: list[str], parent: typer.Context | None) -> list[str]:
    """A verb's words without the global flags among them, which are told to the parser of those instead."""
    if parent is None:
        return words
    try:
        line = hoist([verb, *words], lambda _: ())
    except AdapterHubError:  # a flag whose value is not yet there
        return words
    for flag in line.flags:
        name, _, value = flag.partition("=")
        if name in WITH_VALUE:
            parent.params[name.removeprefix("--")] = value
    return list(line.rest)


def _hub(ctx: typer.Context) -> Any:
    given = ctx.find_root().params
    return Session(given.get("hub")).hub()


def versions(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """The adapters by name, and where an `@` was begun their versions and aliases."""
    found = _hub(ctx).list(all_versions=True)
    about = {record.name: record.kind for record in found}
    if "@" in incomplete:
        about = {record.ref: record.kind for record in found}
        about |= {f"{record.name}@{alias}": record.ref for record in found for alias in record.aliases}
    # What stands in an index may be forged, and shells evaluate what they are offered.
    return [(name, kind) for name, kind in about.items() if _SAFE.fullmatch(name)]


def tasks(ctx: typer.Context) -> list[tuple[str, str]]:
    """The tasks of the hub."""
    return [row for row in sorted(_hub(ctx).registry.serving().items()) if _SAFE.fullmatch(row[0] + row[1])]


def strategies(incomplete: str) -> list[str]:
    """Every strategy, the last of those with + between."""
    from adapterhub_cl.strategies import ROOM

    before = incomplete[: incomplete.rfind("+") + 1]
    return [before + name for name in ROOM.names()]


def policies() -> list[str]:
    """Every selection policy, with the size that is usual."""
    from adapterhub_cl.replay import DEFAULT, ROOM

    return [*(f"{name}:{DEFAULT.partition(':')[2]}" for name in ROOM.names()), "none"]


def augmentations(incomplete: str) -> list[str]:
    """Every augmentation with one copy, the last of those with commas between."""
    from adapterhub_cl.augmentation import ROOM

    before = incomplete[: incomplete.rfind(",") + 1]
    return [f"{before}{name}:1" for name in ROOM.names()]


def methods(incomplete: str) -> list[str]:
    """Every merge method."""
    from adapterhub_cl.merging import ROOM

    return ROOM.names()


def routers(incomplete: str) -> list[str]:
    """Every router."""
    from adapterhub_cl.routing import ROOM

    return ROOM.names()


def formats() -> list[str]:
    """Every export format."""
    from adapterhub_cl.exporting import ROOM

    return ROOM.names()


Ref = Annotated[str, typer.Argument(help="news, news@v2 or news@production", autocompletion=versions)]
OneRef = Annotated[str | None, typer.Argument(help="news, news@v2 or news@production", autocompletion=versions)]
