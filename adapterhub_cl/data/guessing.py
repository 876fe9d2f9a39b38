"""Which kind of task rows belong to, and why: a choice among labels, free answers, or raw text.

Free answers that are taken for labels are lost, because a choice can give no other answer. Labels that are taken for
free answers are learned all the same. So rows count as a choice only where something speaks for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from adapterhub_cl.errors import DataError
from adapterhub_cl.types import Example

MAX_LABELS = 100
MAX_LABEL_WORDS = 12
MIN_EXAMPLES_PER_LABEL = 3  # on average; with fewer, answers count as free answers
UNIQUE_LABELS = 12  # so many values of a column of labels that are all different are no labels
MANY_LABELS = 20  # more labels than this must repeat more often
FEW_LABELS, ROWS_PER_LABEL = 10, 20  # limits for treating answers to differing questions as labels
ROWS_PER_FACT = 100  # the same where the inputs are bare questions: a fact may be asked for in several ways
LABELLED = ("text/label", "text pair/label")  # layouts whose answers are labels
FREE = ("question/answer", "prompt/completion", "prompt/input/completion", "messages", "input/output")
# answers that are labels even with few rows, unless the inputs are bare questions
CLOSED = {
    *("yes", "no", "maybe", "true", "false", "positive", "negative", "neutral", "entailment", "contradiction"),
    *("not_entailment", "not entailment", "good", "bad", "spam", "ham", "0", "1"),
    *(chr(ord("a") + k) for k in range(26)),
}
# words with which an instruction asks for a label
SORTING = re.compile(
    r"\b(classif\w*|categori\w*|labell?(?:s|ed|ing)?|sentiments?|intents?|topics?|emotions?|genres?|choose|select|"
    r"yes or no|true or false|rate|rating|detect|sort|one of|"
    r"(?:which|what) (?:kind|type|category|class|label) of|(?:type|category|class) of)\b",
    re.I,
)

# how a question begins that asks as a request does
ORDERS = re.compile(r"(?:please )?(name|tell me|give me|give|state|say|identify|list)\s+(?=\S)", re.I)
# how a statement ends that the answer completes
OPEN_END = re.compile(
    r"(?:\b(?:is|are|was|were|has|have|had|of|in|at|by|to|for|from|with|on|the|an|called|named|as|after|and)"
    r"|[:…_]|\.\.\.)$",
    re.I,
)


def kind_of(name: str, rows: Sequence[Example], counts: Mapping[str, int], layout: str, common: str) -> tuple[str, str]:
    """The kind of task that rows belong to, and why.

    Args:
        name: of the task, for messages.
        counts: answer → how often it occurs.
        layout: of the columns; empty if it is not known.
        common: the instruction that all rows share.

    Raises:
        DataError: there is one label only.
    """
    if all(not example.input and not example.instruction for example in rows):
        return "text", "the rows are texts without a question"
    total = sum(counts.values())
    if any(example.references for example in rows):
        return "generation", "some questions have several right answers"
    if not counts or len(counts) > MAX_LABELS:
        return "generation", f"there are {len(counts)} different answers, and a choice has {MAX_LABELS} at most"
    if not all(could_be_label(answer) for answer in counts):
        return "generation", f"some answers are longer than {MAX_LABEL_WORDS} words"
    if layout in LABELLED and len(counts) == total >= UNIQUE_LABELS:
        return "generation", f"none of the {total} answers occurs twice; --kind choice makes them labels"
    often = MIN_EXAMPLES_PER_LABEL if len(counts) <= MANY_LABELS else ROWS_PER_LABEL // 2
    if layout not in LABELLED and total < often * len(counts):
        return "generation", f"{'1 row has' if total == 1 else f'{total} rows have'} {_answers(counts, 'different ')}"
    short = f"{len(counts)} short answers repeat in {total} rows"
    listed = common and all(_stands_in(answer, common) for answer in counts)
    if len(counts) == 1 and layout in FREE and not listed:
        return "generation", "all rows have the same answer"
    if listed:
        short = f"the instruction lists the {len(counts)} answers"
    elif layout not in LABELLED and (reason := _why_free(rows, counts, layout, common)):
        return "generation", f"{reason}; --kind choice makes the {_answers(counts)} labels"
    if len(counts) == 1:
        raise single_label(name, list(counts))
    if layout in LABELLED:
        short = f"a column of labels holds {len(counts)} different answers"
    return "choice", f"{short}; --kind generation makes them free answers"


def single_label(name: str, labels: Sequence[str]) -> DataError:
    """The error for a choice among fewer than two labels."""
    only = f"a single label, {labels[0]!r}" if labels else "no label"
    return DataError(
        f"task {name}: {only}; a choice needs at least two",
        f"list all: --labels {labels[0] if labels else 'a'},OTHER; or use free answers: --kind generation",
    )


def named_kind(kind: str, source: str, layout: str) -> str:
    """The kind that the user named.

    Raises:
        DataError: it is raw text, and the rows have questions, which would be left out.
    """
    if kind == "text" and layout != "raw text":
        raise DataError(
            f"{source}: the rows have a question and an answer ({layout}), and --kind text learns no questions",
            "to learn one column as raw text: --columns output=COLUMN; or leave out --kind",
        )
    return kind


def could_be_label(answer: str) -> bool:
    """Whether an answer is short enough for a label."""
    return 1 <= len(answer.split()) <= MAX_LABEL_WORDS


def _why_free(rows: Sequence[Example], counts: Mapping[str, int], layout: str, common: str) -> str:
    """Why answers that repeat are free answers all the same; empty if they are labels.

    Args:
        common: the instruction that all rows share; it does not list the answers.
    """
    if common and SORTING.search(common):
        return ""
    least, total = min(counts.values()), sum(counts.values())
    closed = {answer.casefold() for answer in counts} <= CLOSED
    if _are_questions(rows):
        if least >= ROWS_PER_FACT and len(counts) <= FEW_LABELS:
            return ""
        return f"{total} questions share {_answers(counts)}, as questions about facts do (--facts is for those)"
    if closed or (len(counts) <= FEW_LABELS and least >= ROWS_PER_LABEL):
        return ""
    if layout in (*FREE, "instruction/input/output"):
        what = "conversations" if layout == "messages" else "questions"
        are = "is treated as a free answer" if len(counts) == 1 else "are treated as free answers"
        return f"{_answers(counts, 'different ')} to {total} {what} {are}"
    return ""


def _answers(counts: Mapping[str, int], kind: str = "") -> str:
    return "1 answer" if len(counts) == 1 else f"{len(counts)} {kind}answers"


def _are_questions(rows: Sequence[Example]) -> bool:
    """Whether most inputs are bare questions: one line that ends with a question mark or begins as questions and
    requests do, or that the answer completes, without a passage, options or earlier turns."""
    asked = [example for example in rows if example.answer is not None]
    bare = sum(
        example.passage == 0 and len(example.turns) < 3 and _is_question(example.input.strip()) for example in asked
    )
    return bool(asked) and 2 * bare > len(asked)


def _is_question(text: str) -> bool:
    if "\n" in text:
        return False
    forms = (_ASKS.match(text), ORDERS.match(text), OPEN_END.search(text), _NAMES.fullmatch(text))
    return text.endswith(("?", "？", "؟")) or any(forms)


_ASKS = re.compile(r"(who|whom|whose|what|when|where|which|how (many|much|old|long|far)|in (which|what))\b", re.I)
_NAMES = re.compile(r"(the )?[\w-]+( [\w-]+)? of [^.!,;:]{1,60}", re.I)  # "Birthplace of Ann Bell"


def _stands_in(answer: str, instruction: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", instruction) is not None
