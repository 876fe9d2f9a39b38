"""How one question is asked in other words, by rules: no model and no network is used.

A text is parsed as far as the rules go (question word, verb, noun phrase, the part that names the subject), and the
templates are filled whose parts were found. A text that cannot be parsed still fits the templates that need only the
whole text. The answer stays right, and the subject is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapterhub_cl.data.guessing import OPEN_END, ORDERS
from adapterhub_cl.data.plain_text import plain

WH = "what|which|who|whom|whose|where|when|why|how"
BE = "is|are|was|were"
LEADS = rf"(?:in |on |at |by |for |from |to |with |of )?(?:{WH})"
ASKS = re.compile(rf"{LEADS}\b", re.IGNORECASE)
PARTICIPLES = re.compile(
    r"\b(?:\w+ed|born|built|made|found|held|known|written|sold|taught|led|won|grown|drawn|sung|set|kept|run|spoken)\b"
)
OF = re.compile(r"the ([a-z][\w -]*?) of ((?:the )?[A-Z0-9].*)")
OWNS = re.compile(r"((?:the )?[A-Z0-9][^']*?)['’](?:s)? ([a-z][\w -]*)")

# What is trained with. A template is filled where each of its parts was found; see `parts_of`.
TRAINED = (
    "Tell me {np}.",
    "Name {np}.",
    "Please tell me {np}.",
    "Do you know {np}?",
    "{Np}?",
    "{Np}, please.",
    "I would like to know {np}.",
    "Can you name {np}?",
    "Give me {np}.",
    "I am looking for {np}.",
    "{wh} {be} {swapped}?",
    "Tell me {swapped}.",
    "Do you know {swapped}?",
    "{Swapped}?",
    "I want to know {swapped}.",
    "About {subject}: {low_wh} {be} the {relation}?",
    "{Relation} of {subject}?",
    "{subject}, {relation}?",
    "What would you say {be} {np}?",
    "Tell me {clause}.",
    "Can you tell me {clause}?",
    "Do you know {clause}?",
    "I want to know {clause}.",
    "Please say {clause}.",
    "I am trying to find out {clause}.",
    "Who knows {clause}?",
    "It would help me to know {clause}.",
    "{other_wh} {rest}?",
    "Tell me this: {low_q}",
    "Question: {q}",
    "Q: {q}",
    "Please answer: {q}",
    "Quick question: {q}",
    "Here is a question for you. {q}",
    "Someone asked me this today. {q}",
    "Hello! {q}",
    "Hi, {low_q}",
    "Excuse me, {low_q}",
    "Just curious: {low_q}",
    "For a quiz: {q}",
    "So, {low_q}",
    "My friend wants to know this: {q}",
    "Can you help me? {q}",
    "I have a question: {low_q}",
    "{q} Please tell me.",
    "{q} Thanks!",
    "{q} Answer briefly.",
    "{q} Do you know?",
    "{q} Just the answer, please.",
    "{bare}",
    "{lower}",
    "hey {lower}",
    "{lower} please",
    "Complete this: {stem}",
    "Complete the sentence: {stem} ...",
    "Finish the sentence: {stem}",
    "{stem} ...",
    "{stem} what?",
    "Fill in what is missing: {stem} ___",
    "How does this go on? {stem}",
    "{said}",
    "Go on: {stem}",
    "It is said that {low_stem}",
)
# What is only measured with: never one of the texts that training makes.
HELD_OUT = (
    "Could you let me know {np}?",
    "What can you tell me about {np}?",
    "I need {swapped}.",
    "{Swapped}, do you know that?",
    "Are you able to tell me {clause}?",
    "Remind me {clause}.",
    "I forgot something. {q}",
    "Good morning. {q} I need it for my notes.",
    "one more thing {lower}",
    "Continue: {stem}",
    "As everybody knows, {low_stem}",
)


@dataclass(frozen=True)
class Rewordings:
    """Other wordings of one text, each once, in a fixed order.

    Attributes:
        trained: those that training may use.
        held_out: those that are only measured with, the ones that change the most first.
    """

    trained: tuple[str, ...]
    held_out: tuple[str, ...]


def reworded(text: str) -> Rewordings:
    """The wordings of a question, a request, or the beginning of a statement; none of an empty text."""
    whole = text.strip()
    if not whole:
        return Rewordings((), ())
    parts = parts_of(whole)
    trained = _filled(TRAINED, parts, {plain(whole)})
    return Rewordings(trained, _filled(HELD_OUT, parts, {plain(whole), *map(plain, trained)}))


def parts_of(text: str) -> dict[str, str]:
    """The parts of a text that templates name.

    `q` is the whole with its mark and `low_q` the same in the middle of a sentence; `bare` is without its mark and
    `lower` also in lower case; `stem` is a statement to be completed. Of a question: `wh`, `be`, its noun phrase `np`
    ("the mayor of Ely"), the same with the owner on the other side (`swapped`: "Ely's mayor"), its `subject` and
    `relation`, and the question as a `clause` ("who the mayor of Ely is"); `other_wh` and `rest` where "which" may be
    "what". Capital letters: `Np`, `Swapped` begin a sentence.
    """
    bare = text.rstrip(" ?!.…").rstrip()
    asks, orders = ASKS.match(text), ORDERS.match(text)
    if not bare:
        return {"q": text, "low_q": text}
    if not asks and not orders and not text.endswith("?") and (OPEN_END.search(bare) or text[-1] not in ".!?"):
        stem = text.rstrip(" .…_")
        begins = re.match(r"(?:The|A|An|In|On|At) ", stem)
        said = bare.lower() if bare.lower() != text else f"{bare}…"
        return {"stem": stem, "low_stem": _lowered(stem) if begins else stem, "said": said}
    q = text if text[-1] in ".?!" else f"{text}?" if asks else f"{text}."
    parts = {"q": q, "low_q": _lowered(q) if asks or orders else q, "bare": bare, "lower": _as_typed(bare)}
    if orders:
        parts |= _of_noun(bare[orders.end() :])
    elif asks:
        parts |= _of_question(bare)
    return parts


def _of_question(bare: str) -> dict[str, str]:
    """The parts of a question, without its mark."""
    found: dict[str, str] = {}
    lead = re.match(rf"(?:({WH})['’]s|({WH}) ({BE})) (.+)", bare, re.IGNORECASE)
    if lead:
        wh, be, rest = lead[1] or lead[2], (lead[3] or "is").lower(), lead[4]
        clause = _after(wh.lower(), be, rest)
        found["clause"] = clause
        if wh.lower() in ("what", "who") and clause.endswith(f" {be}"):
            found |= {**_of_noun(rest), "wh": wh.capitalize(), "low_wh": wh.lower(), "be": be}
        if wh.lower() == "who":
            found |= {"other_wh": "Which person", "rest": f"{be} {rest}"}
        return found
    asked = re.match(rf"({LEADS}(?: [a-z]+)*?) (does|do|{BE}|can|will) (.+)", bare, re.IGNORECASE)
    if asked:
        said = _lowered(asked[1])
        clause = _with_does(said, asked[3]) if asked[2].lower() == "does" else ""
        if asked[2].lower() in BE.split("|"):
            clause = _after(said, asked[2].lower(), asked[3])
        if clause:
            found["clause"] = clause
    elif re.match(
        r"(?:who|what|which [a-z]+) (?!did\b|do\b|had\b|would\b|could\b|should\b)[a-z]+", bare, re.IGNORECASE
    ):
        found["clause"] = _lowered(bare)  # the question word is the subject: "who founded Ely"
        if bare.lower().startswith("who "):
            found |= {"other_wh": "Which person", "rest": bare[4:]}
    swap = re.match(r"(.*?)\b(which|what) ([a-z]+ .+)", bare, re.IGNORECASE)
    if swap and swap[3].split()[0].lower() not in (*BE.split("|"), "do", "does", "did", "has", "have", "can"):
        other = "what" if swap[2].lower() == "which" else "which"
        words = f"{swap[1]}{other}"
        found |= {"other_wh": words[:1].upper() + words[1:], "rest": swap[3]}
    return found


def _of_noun(np: str) -> dict[str, str]:
    """A noun phrase, its owner on the other side, its subject and relation."""
    found = {"np": np, "Np": np[:1].upper() + np[1:]}
    of, owns = OF.fullmatch(np), OWNS.fullmatch(np)
    if of and " of " not in of[2]:
        owner = of[2] + ("'" if of[2].endswith("s") else "'s")
        found |= {"subject": of[2], "relation": of[1], "swapped": f"{owner} {of[1]}"}
    elif owns:
        found |= {"subject": owns[1], "relation": owns[2], "swapped": f"the {owns[2]} of {owns[1]}"}
    if "swapped" in found:
        for part in ("swapped", "relation"):
            found[part.capitalize()] = found[part][:1].upper() + found[part][1:]
    return found


def _after(wh: str, be: str, rest: str) -> str:
    """`where`, `was`, `Ann Bell born` → "where Ann Bell was born": the verb moves to its participle, or to the end."""
    participle = PARTICIPLES.search(rest, 1)
    if participle:
        return f"{wh} {rest[: participle.start()]}{be} {rest[participle.start() :]}"
    ends = re.search(r" (?:in|on|at|for|from|with|like)$", rest)
    return f"{wh} {rest[: ends.start()]} {be}{ends[0]}" if ends else f"{wh} {rest} {be}"


def _with_does(wh: str, rest: str) -> str:
    """`which company`, `Ann Bell work for` → "which company Ann Bell works for"; empty if the verb is not found."""
    found = re.match(r"((?:the [a-z ]*?)?(?:[A-Z0-9][^\s]*(?: |$))+)([a-z]+)\b(.*)", rest)
    if not found:
        return ""
    verb = found[2]
    known = {"have": "has", "do": "does", "go": "goes"}
    ends = re.search(r"(?:s|x|z|ch|sh)$", verb)
    inflected = known.get(verb) or (
        f"{verb[:-1]}ies" if re.search(r"[^aeiou]y$", verb) else f"{verb}es" if ends else f"{verb}s"
    )
    return f"{wh} {found[1]}{inflected}{found[3]}"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _as_typed(text: str) -> str:
    """Lower case and without marks, as people type into a search box."""
    return " ".join(re.sub(r"(?<!\w)['\"“”(]|['\"“”),;:](?!\w)|[?!]", " ", text).lower().split())


def _filled(templates: Sequence[str], parts: Mapping[str, str], known: set[str]) -> tuple[str, ...]:
    found = []
    for template in templates:
        needed = re.findall(r"{(\w+)}", template)
        if not all(part in parts for part in needed):
            continue
        text = template.format_map(parts)
        if plain(text) not in known:
            known.add(plain(text))
            found.append(text)
    return tuple(found)
