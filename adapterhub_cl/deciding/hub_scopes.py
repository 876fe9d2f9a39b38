"""The scopes of a hub's tasks of facts, read from the replay samples of the versions that serve them.

Nothing of them is stored, so what is dropped or forgotten is out of them too. Does not import torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence

from adapterhub_cl.adapters.serving import ServingTable
from adapterhub_cl.deciding.proper_names import words_of
from adapterhub_cl.deciding.scope import Bounds, FactScope, Phrase, Scopes, question_of
from adapterhub_cl.errors import IntegrityError
from adapterhub_cl.registry import samples
from adapterhub_cl.samples.kept import facts_learned
from adapterhub_cl.types import AdapterRecord, Example


def examples_kept(record: AdapterRecord) -> list[Example]:
    """The replay samples of a version.

    Raises:
        IntegrityError: the file is missing or has changed since it was recorded.
    """
    return [Example.from_json(json.loads(line)) for line in samples.read(record)]


def scope_of(record: AdapterRecord) -> FactScope | None:
    """The subjects of a version that learned facts; None for any other, or one without samples.

    Raises:
        IntegrityError: its samples have changed since they were recorded.
    """
    facts = facts_learned(record)
    if not facts or not (kept := examples_kept(record)):
        return None
    return FactScope(kept, facts)


class HubScopes:
    """The scopes, kept in step with the hub.

    Args:
        kept: the samples that a router learns of a task.
        is_word: whether a word (case-folded) is in the base's vocabulary.

    Attributes:
        unread: task → why its subjects cannot be read. Only the router decides about such a task.
    """

    def __init__(self, kept: Callable[[str, AdapterRecord], Sequence[Example]], is_word: Callable[[str], bool]) -> None:
        self._kept, self._is_word = kept, is_word
        self._scopes = Scopes({}, self._mentions, is_word)
        self._sources: dict[str, str] = {}  # task → hash of the samples that its scope was read from
        self._keepers: Mapping[str, AdapterRecord] = {}
        self._words: dict[str, str] = {}  # task → the words of its samples, as scopes compare them
        self.unread: dict[str, str] = {}

    def refresh(self, table: ServingTable, tasks: Collection[str], keepers: Mapping[str, AdapterRecord]) -> None:
        """Read the subjects of what serves each task; where a version made of others does, of the task's newest one.

        Args:
            tasks: those that a router can choose.
            keepers: task → its newest version that has samples.
        """
        readers: dict[str, AdapterRecord] = {}
        for task in tasks:
            server = table.record(table.server(task))
            reader = server if server.task == task and _has_samples(server) else keepers.get(task)
            if reader is not None and facts_learned(reader) and _has_samples(reader):
                readers[task] = reader
        sources = {task: str(one.manifest["files"][samples.FILE_NAME]["sha256"]) for task, one in readers.items()}
        self._keepers = keepers
        self._words.clear()
        if sources == self._sources:
            return
        read: dict[str, FactScope] = {}
        self.unread = {}
        for task, one in readers.items():
            same = self._sources.get(task) == sources[task]
            try:
                scope = self._scopes.tasks.get(task) if same else scope_of(one)
            except IntegrityError as error:
                self.unread[task] = error.message
                del sources[task]  # it is looked at again
                continue
            if scope is not None:
                read[task] = scope
        self._scopes, self._sources = Scopes(read, self._mentions, self._is_word), sources

    def bounds(self, example: Example, among: Collection[str] | None = None) -> Bounds:
        """See `Scopes.bounds`."""
        return self._scopes.bounds(example, among)

    def _mentions(self, task: str, phrase: Phrase) -> bool:
        """Whether a task's samples have a phrase."""
        if task not in self._words:
            try:
                kept = self._kept(task, self._keepers[task]) if task in self._keepers else ()
            except IntegrityError:  # damaged samples rule nothing out
                kept = ()
            texts = (question_of(example) or example.answer or "" for example in kept)
            self._words[task] = "".join(f" {' '.join(word.key for word in words_of(text))} \n" for text in texts)
        return f" {' '.join(phrase)} " in self._words[task]


def _has_samples(record: AdapterRecord) -> bool:
    return bool((record.manifest.get("files", {}).get(samples.FILE_NAME) or {}).get("bytes", 0))
