"""Reads YAML that people write, without its traps: no keys that come twice, no aliases, and `yes` is a text."""

from __future__ import annotations

import re
from typing import Any

TOO_DEEP = "nested too deeply"


def load_yaml(text: str) -> Any:
    """What a YAML text holds.

    Only `true` and `false` are truth values, as in YAML 1.2: a label `yes` or `no` stays a text.

    Raises:
        yaml.YAMLError: not YAML, a key that comes twice in one mapping, an alias, a date that is none, or nested too
            deeply.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()  # type: ignore[no-untyped-call]
                raise yaml.composer.ComposerError(None, None, "aliases are not read", event.start_mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[Any] = set()
            for key, _ in node.value:
                if isinstance(key.value, str) and (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} comes twice", key.start_mark
                    )
                if isinstance(key.value, str):
                    seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver(  # type: ignore[no-untyped-call]
        "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
    )
    try:
        return yaml.load(text, Loader)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error).partition("\n")[0] if isinstance(error, ValueError) else TOO_DEEP) from error


def what_is_wrong(error: Exception) -> str:
    """` line 2: not valid YAML (the key 'a' comes twice)`, to be put after the name of the file."""
    mark = getattr(error, "problem_mark", None)
    line = f" line {mark.line + 1}" if mark is not None else ""
    return f"{line}: not valid YAML ({getattr(error, 'problem', None) or error})"
