"""What goes along with a version to the hub on the new base: its aliases, and what `tune` chose for its name."""

from __future__ import annotations

from collections.abc import Collection

from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.learning.chosen_settings import carry_choice, settings_of
from adapterhub_cl.progress import Reporter
from adapterhub_cl.registry import Registry
from adapterhub_cl.types import CANARY, LATEST, AdapterRecord


def take_tuned(old: Registry, new: Registry, ref: str, made: str, without: Collection[str], reporter: Reporter) -> None:
    """Keep in the new hub what `tune` chose for an adapter of the old one.

    Args:
        made: the version in the new hub; empty where there is none.
        without: settings that were chosen for the old base.
    """
    if not made:
        return
    name = old.get(ref).name
    try:
        chosen = {key: value for key, value in settings_of(old, name).items() if key not in without}
    except IntegrityError as error:
        reporter.note(f"warning: what tune chose for {name} is not taken along: {error.message}")
        return
    if told := carry_choice(new, new.get(made).name, chosen, f"as it was in the hub {old.path.resolve().name}"):
        reporter.note(told)


def copy_aliases(old: Registry, new: Registry, record: AdapterRecord, copy: AdapterRecord) -> None:
    """Aliases that the adapter has in the new hub already stay where they are."""
    there = new.aliases().get(copy.name, {})
    for alias in record.aliases:
        if alias not in (LATEST, CANARY) and alias not in there:
            new.set_alias(copy.ref, alias)
