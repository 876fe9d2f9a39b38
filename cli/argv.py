"""Global flags may stand before or after the verb: this moves them to the front, where the parser wants them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from adapterhub_cl.errors import UsageError

SWITCHES = ("--json", "--quiet", "--debug")
WITH_VALUE = ("--hub", "--device", "--dtype", "--base-path")
ROOT_ONLY = ("--version", "--help", "-h")


@dataclass(frozen=True)
class Line:
    """A command line taken apart.

    Attributes:
        flags: the global flags, from wherever they stood, values joined by `=`.
        verb: the first word that is neither a flag nor a flag's value; None where there is none.
        rest: what belongs to the verb.
    """

    flags: tuple[str, ...]
    verb: str | None
    rest: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        return [*self.flags, *([self.verb] if self.verb is not None else []), *self.rest]

    def has(self, switch: str) -> bool:
        return switch in self.flags

    def value(self, flag: str) -> str:
        """The value given to a global flag; empty if it was not given."""
        given = [word.partition("=")[2] for word in self.flags if word.startswith(f"{flag}=")]
        return given[-1] if given else ""


def hoist(argv: Sequence[str], valued: Callable[[str], Collection[str]]) -> Line:
    """Take a command line apart. What follows `--`, and what is the value of a verb's option, is never a global flag.

    Args:
        argv: the words after the program's name.
        valued: verb → its options that take a value; nothing for a verb that does not exist.

    Raises:
        UsageError: a global flag without its value.
    """
    flags: list[str] = []
    rest: list[str] = []
    verb: str | None = None
    own: Collection[str] = ()
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, _ = word.partition("=")
        if word == "--":
            rest += [word, *words]
            break
        if word in SWITCHES or (name in WITH_VALUE and equals):
            flags.append(word)
        elif word in WITH_VALUE:
            if not words or words[0].partition("=")[0] in (*SWITCHES, *WITH_VALUE):
                raise UsageError(f"{word} needs a value", f"for example {word} {_EXAMPLES[word]}")
            flags.append(f"{word}={words.pop(0)}")
        elif verb is not None:
            rest.append(word)
            if word in own and words:
                rest.append(words.pop(0))
        elif word.startswith("-") and word != "-":
            flags.append(word)
            if name not in ROOT_ONLY:  # the parser says what is wrong with it
                return Line((*flags, *words), None, ())
        else:
            verb, own = word, valued(word)
    return Line(tuple(flags), verb, tuple(rest))


_EXAMPLES = {"--hub": "my-hub", "--device": "cpu", "--dtype": "bf16", "--base-path": "./model"}
