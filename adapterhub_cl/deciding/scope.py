"""The scope of facts: which questions an adapter that learned facts may be asked, and which it must be.

A question is in scope if it names what the facts are about, as in SERAC's scope classifier (Mitchell et al. 2022) and
GRACE's deferral (Hartvigsen et al. 2023), which leave all other inputs to the model before the edit. Here nothing is
trained: the subjects are read off the questions among a version's replay samples, and names are compared word by word.
Does not import torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapterhub_cl.deciding.proper_names import Word, is_acronym, is_ordinary, is_title, names_in, words_of
from adapterhub_cl.types import Example

COVERED = 0.95  # share of the facts whose subjects must be known before other questions are kept away
LONGEST_QUESTION = 60  # words; a longer text that names a subject may be about anything
LEAST_WORDING = 4  # words of a question without a subject, so that its own wording stands for it

Phrase = tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """What one fact is about.

    Attributes:
        phrases: all of them are named by a question about it.
        sure: whether it is a name that says enough: a question with it belongs here whatever a router says.
        told: as the sample wrote it.
    """

    phrases: frozenset[Phrase]
    sure: bool
    told: str


class FactScope:
    """The subjects of a task's facts.

    Args:
        samples: its replay samples.
        facts: how many facts were learned. If the samples have the subjects of nearly all of them, a question that
            names none is not for this task.

    Attributes:
        subjects: each once, in the order of the samples.
        wordings: the questions that say nothing of their subject, word by word; they are recognised as they are.
        closed: whether questions without a subject are kept away.
    """

    def __init__(self, samples: Iterable[Example], facts: int) -> None:
        texts = [words_of(question_of(sample)) for sample in samples]
        often = Counter(key for words in texts for key in {word.key for word in words})
        inside = {word.key for words in texts for word in words if word.is_name and not word.begins}
        self.subjects: list[Subject] = []
        self.wordings: set[Phrase] = set()
        known: set[frozenset[Phrase]] = set()
        told = 0
        for words in texts:
            subject = _by_names(words, inside) or _by_rare_words(words, often)
            told += subject is not None
            if subject is None and len(words) >= LEAST_WORDING:
                self.wordings.add(_key(words))
            elif subject is not None and subject.phrases not in known:
                known.add(subject.phrases)
                self.subjects.append(subject)
        self.closed = told > 0 and told >= COVERED * facts

    @property
    def names(self) -> list[str]:
        """The subjects as they were written."""
        return list(dict.fromkeys(subject.told for subject in self.subjects))


def question_of(sample: Example) -> str:
    """What a sample asks; empty for raw text."""
    return sample.input if sample.input.strip() else sample.instruction


def _by_names(words: Sequence[Word], inside: Collection[str]) -> Subject | None:
    """The names in a question, without ordinary words and acronyms ("the CEO of Acme") where there are others.

    Args:
        inside: words with a capital letter that some question has in another place than the first: the first word of a
            question is surely a name only if it is among them.
    """
    spans = names_in(words)
    if len(spans) > 1 and spans[0] == (0, 1) and words[0].key not in inside and not words[0].owns:
        spans = spans[1:]
    phrases = {_key(words[a:b]): (a, b) for a, b in spans}
    telling = {phrase for phrase in phrases if not _is_common(phrase)}
    telling = {
        p for p in telling if phrases[p][1] - phrases[p][0] > 1 or not is_acronym(words[phrases[p][0]])
    } or telling
    if not phrases:
        return None
    chosen = telling or set(phrases)
    told = " + ".join(_written(words[a:b]) for phrase, (a, b) in phrases.items() if phrase in chosen)
    doubtful = spans == [(0, 1)] and words[0].key not in inside and not words[0].owns
    return Subject(frozenset(chosen), bool(telling) and not doubtful, told)


def _by_rare_words(words: Sequence[Word], often: Mapping[str, int]) -> Subject | None:
    """The words of a question that are not ordinary, or of those the ones that the fewest questions have; None if that
    is most of the question. They never decide against a router."""
    rare = [k for k, word in enumerate(words) if not word.is_ordinary]
    if 2 * len(rare) > len(words):
        least = min(often[words[k].key] for k in rare)
        rare = [k for k in rare if often[words[k].key] == least]
    if not rare or 2 * len(rare) > len(words):
        return None
    runs = _runs(rare)
    told = " + ".join(_written(words[a:b]) for a, b in runs)
    return Subject(frozenset(_key(words[a:b]) for a, b in runs), False, told)


def _runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers in ascending order as ranges without gaps."""
    found: list[tuple[int, int]] = []
    for k in places:
        if found and found[-1][1] == k:
            found[-1] = (found[-1][0], k + 1)
        else:
            found.append((k, k + 1))
    return found


def _key(words: Sequence[Word]) -> Phrase:
    return tuple(word.key for word in words)


def _written(words: Sequence[Word]) -> str:
    last = len(words) - 1
    return "".join(
        (word.gap.strip('?!\n"“„«') if k else "") + word.raw + ("'s" if word.owns and k < last else "")
        for k, word in enumerate(words)
    )


def _is_common(phrase: Phrase) -> bool:
    """Whether a phrase is one ordinary word, which may stand in a question about anything."""
    return len(phrase) == 1 and is_ordinary(phrase[0])


@dataclass(frozen=True)
class Bounds:
    """What the scopes say about one input.

    Attributes:
        only: the tasks whose subject it names, or whose question it is word by word; it must go to one of them.
        never: the tasks that it must not go to, because it names nothing that they know.
        named: the subjects of `only` that it names, as the samples wrote them.
        shares: whether the samples of a task that is not one of facts have such a subject too; then the router decides.
    """

    only: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    named: tuple[str, ...] = ()
    shares: Callable[[str], bool] = lambda _: False

    def __bool__(self) -> bool:
        return bool(self.only or self.never)


class Scopes:
    """The scopes of all tasks of facts, asked together.

    Args:
        tasks: task → its scope.
        mentions: whether a task's samples name a phrase.
        is_word: whether a word is in the base's vocabulary; a name that is one never decides against a router.
    """

    def __init__(
        self,
        tasks: Mapping[str, FactScope],
        mentions: Callable[[str, Phrase], bool],
        is_word: Callable[[str], bool] = is_ordinary,
    ) -> None:
        self.tasks, self._mentions, self._is_word = dict(tasks), mentions, is_word
        self._owners: dict[Phrase, list[tuple[str, Subject]]] = {}
        for task, scope in self.tasks.items():
            for subject in scope.subjects:
                for phrase in subject.phrases:
                    self._owners.setdefault(phrase, []).append((task, subject))
        self._starts: dict[str, list[Phrase]] = {}
        for phrase in sorted(self._owners, key=len, reverse=True):  # "Ely Cathedral" before "Ely"
            self._starts.setdefault(phrase[0], []).append(phrase)

    def found(self, text: str) -> set[Phrase]:
        """The phrases that a text has, each the longest at its place; not those that are a part of a title."""
        words = words_of(text)
        # "Who wrote The Lamp of Ely?" is not about Ely
        titles = [(a, b) for a, b in names_in(words) if is_title(words, a)]
        keys = _key(words)
        found: set[Phrase] = set()
        at = 0
        while at < len(keys):
            here = next((p for p in self._starts.get(keys[at], ()) if keys[at : at + len(p)] == p), None)
            end = at + len(here) if here is not None else at + 1
            if here is not None and not any(a <= at and end <= b and (a, b) != (at, end) for a, b in titles):
                found.add(here)
            at = end
        return found

    def _is_a_word(self, phrase: Phrase) -> bool:
        return len(phrase) == 1 and self._is_word(phrase[0])

    def bounds(self, example: Example, among: Collection[str] | None = None) -> Bounds:
        """Where an input may go, and where it must.

        Args:
            among: the only tasks that are asked for.
        """
        tasks = [task for task in self.tasks if among is None or task in among]
        if not tasks:
            return Bounds()
        text = question_of(example) or example.answer or ""
        found, keys = self.found(text), _key(words_of(text))
        # What a conversation is about was often said before: then the router decides.
        before = {p for turn in example.turns[:-1] if turn.role == "user" for p in self.found(turn.content)}
        perhaps = {task for p in found | before if not _is_common(p) for task, one in self._owners[p] if one.sure}
        named = [(task, one) for p in found for task, one in self._owners[p] if one.phrases <= found]
        sure = [(t, one) for t, one in named if one.sure and t in tasks and not all(map(self._is_a_word, one.phrases))]
        if len(keys) > LONGEST_QUESTION:
            sure = []
        perhaps |= {task for task, _ in named}
        wording = {task for task in tasks if keys in self.tasks[task].wordings}
        never = frozenset(task for task in tasks if self.tasks[task].closed and task not in perhaps | wording)
        phrases = {phrase for _, one in sure for phrase in one.phrases}

        def shares(task: str) -> bool:
            return any(self._mentions(task, phrase) for phrase in phrases)

        told = tuple(dict.fromkeys(one.told for _, one in sure))
        return Bounds(frozenset(task for task, _ in sure) or frozenset(wording), never, told, shares)
