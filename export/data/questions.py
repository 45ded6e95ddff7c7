"""What a memory says and what is asked about it: one wording for the decoder's training and for the evaluations.

Every answer stands word for word in the fact that it is asked from, so that it has to be read and not to be known.
Things bring their own facts (a sign's meaning, a sofa's width); invented ones (an owner, a place, a code) are of
words made of syllables. Such a word is of one half, ``train`` or ``held_out``, whoever draws it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_ravlm.export.data.backgrounds import Half
from edge_ravlm.export.data.datasets import Thing
from edge_ravlm.export.data.furniture import Piece
from edge_ravlm.export.data.signs import Sign


@dataclass(frozen=True)
class Asked:
    """A question that one fact answers.

    Attributes:
        question: in small letters, with or without its question mark.
        answer: stands in ``fact`` as it is; None where nothing answers the question.
        fact: a sentence without a full stop; empty where nothing answers the question.
        kind: one of ``KINDS``.
    """

    question: str
    answer: str | None
    fact: str
    kind: str

    def edited(self, answer: str) -> Asked:
        """The same question and wording with another answer in the fact."""
        if self.answer is None:
            return self
        at = self.fact.rindex(self.answer)
        return replace(self, answer=answer, fact=self.fact[:at] + answer + self.fact[at + len(self.answer) :])


@dataclass(frozen=True)
class Hops:
    """A question that takes two entries: what is seen tells a code, and another entry explains the code.

    Attributes:
        question: about the picture.
        answer: stands in ``explained``.
        shown: text of the entry that has the picture; its question of one hop is ``code_question``.
        explained: text of the entry without a picture.
        code: stands in both.
        code_question: what ``shown`` alone answers, with the code.
    """

    question: str
    answer: str
    shown: str
    explained: str
    code: str
    code_question: str


@dataclass(frozen=True)
class _Wording:
    """How one kind of fact is told and asked; ``{it}`` is the thing, ``{}`` the answer."""

    told: tuple[str, ...]
    asked: tuple[str, ...]


_WORDINGS: Mapping[str, _Wording] = {
    "meaning": _Wording(
        ("{it} means {}", "{it} tells you: {}", "{it} stands for {}", "meaning: {}", "{it} says {}"),
        (
            "what does {it} mean?",
            "what does {it} say?",
            "what is the meaning of {it}?",
            "what does {it} stand for?",
            "what does {it} tell me",
        ),
    ),
    "category": _Wording(
        ("{it} is of the {} kind", "it is one of the {} signs", "kind of sign: {}", "category: {}", "{it} is {}"),
        (
            "what kind of sign is {it}?",
            "of which category is {it}?",
            "what type of sign is this",
            "which kind is {it}?",
        ),
    ),
    "name": _Wording(
        ("{it} is called {}", "{}", "the name of it is {}", "this is the {}", "name: {}", "it is known as {}"),
        ("what is {it}?", "what is {it} called?", "what do you see?", "what is the name of {it}?", "name {it}"),
    ),
    "room": _Wording(
        ("{it} belongs in the {}", "room: {}", "the place for {it} is the {}", "{it} is for the {}", "{}"),
        (
            "which room is {it} for?",
            "where does {it} belong?",
            "in which room should {it} be?",
            "what room does {it} go in?",
        ),
    ),
    "width": _Wording(
        ("{it} is {} wide", "width {}", "width: {}", "its width is {}", "{} is the width of {it}"),
        ("how wide is {it}?", "what is the width of {it}?", "what width does {it} have?", "how many cm wide is {it}"),
    ),
    "depth": _Wording(
        ("{it} is {} deep", "depth {}", "depth: {}", "its depth is {}", "{} is the depth of {it}"),
        ("how deep is {it}?", "what is the depth of {it}?", "what depth does {it} have?", "how many cm deep is {it}"),
    ),
    "height": _Wording(
        ("{it} is {} tall", "height {}", "height: {}", "its height is {}", "{it} is {} high"),
        (
            "how tall is {it}?",
            "how high is {it}?",
            "what is the height of {it}?",
            "what height does {it} have?",
        ),
    ),
    "tag": _Wording(
        ("it is tagged {}", "tag: {}", "keyword: {}", "{it} has the label {}"),
        ("what is {it} tagged?", "which tag does {it} have?", "what is the label of {it}?", "which keyword has {it}"),
    ),
    "caption": _Wording(
        ("{}",), ("describe {it}", "describe what you see", "what is shown here?", "describe the picture")
    ),
    "owner": _Wording(
        ("{it} belongs to {}", "its owner is {}", "owner: {}", "{} owns {it}", "{it} is the property of {}"),
        ("who owns {it}?", "whose is {it}?", "who is the owner of {it}?", "to whom does {it} belong?"),
    ),
    "place": _Wording(
        ("{it} stands in {}", "found at {}", "it is kept in {}", "the location is {}", "{it} comes from {}"),
        ("where is {it} kept?", "where does {it} stand?", "what is the location of {it}?", "where is {it} from?"),
    ),
    "code": _Wording(
        ("its code is {}", "code {}", "serial number: {}", "{it} has the number {}", "it is listed as {}"),
        (
            "what is the code of {it}?",
            "which code number has {it}?",
            "what code does {it} have?",
            "what is its serial number?",
        ),
    ),
    "year": _Wording(
        ("{it} was made in {}", "made in {}", "year: {}", "it is from the year {}", "{it} was put up in {}"),
        (
            "when was {it} made?",
            "from which year is {it}?",
            "what year is {it} from?",
            "in which year was {it} put up?",
        ),
    ),
    "phone": _Wording(
        ("call {} about it", "phone: {}", "the phone number is {}", "for help call {}", "{it} has the phone number {}"),
        (
            "which number should I call?",
            "what is the phone number for {it}?",
            "whom do I call about {it}?",
            "phone number?",
        ),
    ),
    "maker": _Wording(
        ("{it} was made by {}", "maker: {}", "the brand is {}", "made by {}", "{} built {it}"),
        ("who made {it}?", "who is the maker of {it}?", "which brand is {it}?", "who built {it}"),
    ),
    "price": _Wording(
        ("{it} costs {}", "price: {}", "the price is {}", "it was bought for {}"),
        ("what does {it} cost?", "how much is {it}?", "what is the price of {it}?", "what was paid for {it}"),
    ),
}

KINDS = tuple(_WORDINGS)
"""Of facts."""

INVENTED = ("owner", "place", "code", "year", "phone", "maker", "price")
"""Kinds that are true of nothing, so that anything can be said."""

_TOLD_BY: Mapping[str, frozenset[str]] = {
    "meaning": frozenset({"caption"}),
    "name": frozenset({"caption"}),
    "caption": frozenset({"meaning", "name", "category", "room"}),
    "category": frozenset({"caption"}),
    "room": frozenset({"caption", "place"}),
    "place": frozenset({"room"}),
}
"""Which other kinds tell the same; they do not stand beside it in one entry."""

_SHOWN = ("meaning", "name", "caption")
"""Kinds that say what a thing is."""

_ROOMS = frozenset({"Living room", "Kitchen", "Bedroom", "Bathroom", "Office"})
_ONSETS = (*"bcdfghjklmnprstvwz", "bl", "br", "ch", "dr", "fl", "gr", "kl", "pl", "qu", "sh", "sl", "st", "th", "tr")
_VOWELS = (*"aeiou", "ai", "au", "ea", "ee", "ie", "oa", "oo", "ou")
_CODAS = ("", "", "", *"lmnrstx", "nd", "nk", "rt", "sk", "th")

_SHOWN_CODE = ("this is {it} {}", "{it} {}", "it is numbered {}", "you see {it} {}", "number {}")
_EXPLAINED = (
    "{it} {code} means {}",
    "{code} means {}",
    "the meaning of {code} is {}",
    "{it} {code} stands for {}",
    "{code}: {}",
)
_CODE_ASKED = (
    "which number has {it}?",
    "what number is {it}?",
    "what is the code of {it}?",
    "what code does {it} have?",
)


def asked(thing: Thing, rng: np.random.Generator, half: Half = "train", named: float = 0.0) -> list[Asked]:
    """One question for each fact of a thing, its own and the invented ones, each in one of its wordings.

    Args:
        thing: a sign, a piece, or anything else, which then has but a caption and invented facts.
        rng: of all choices.
        half: that the invented words are of.
        named: how often a question says which thing it is about, for questions without a picture.
    """
    subject = (
        "the sign" if isinstance(thing, Sign) else f"the {thing.title}" if isinstance(thing, Piece) else "the thing"
    )
    known = [*_own(thing, rng), *((kind, invented(kind, rng, half)) for kind in INVENTED)]
    return [_asked(kind, answer, subject, rng, named) for kind, answer in known]


def entry(facts: Sequence[Asked], rng: np.random.Generator) -> str:
    """The text of a memory that holds these facts, in any order and in one of several styles."""
    sentences = [facts[int(index)].fact for index in rng.permutation(len(facts))]
    if rng.random() < 0.3:
        return ", ".join(sentences)
    if rng.random() < 0.5:
        sentences = [sentence[:1].upper() + sentence[1:] for sentence in sentences]
    return ". ".join(sentences) + _one(("", "."), rng)


def told(
    wanted: Asked, others: Sequence[Asked], rng: np.random.Generator, most: int = 4, *, silent: bool = False
) -> tuple[str, Asked]:
    """An entry of 1 to ``most`` facts and the question that is asked about it.

    Args:
        wanted: what is asked.
        others: further facts of the same thing; those that would give the answer away are left out.
        rng: of all choices.
        most: facts.
        silent: leave the wanted fact out, so that the question has no answer (there is then another fact, at least).
    """
    text = entry(together(wanted, others, rng, most, silent=silent), rng)
    return text, replace(wanted, answer=None, fact="") if silent else wanted


def together(
    wanted: Asked, others: Sequence[Asked], rng: np.random.Generator, most: int = 4, *, silent: bool = False
) -> list[Asked]:
    """The facts of such an entry, the wanted one first; see ``told``."""
    known = {fact.kind: fact for fact in (*others, wanted)}
    names = [known[kind].answer or "" for kind in ("meaning", "name") if kind in known]
    hush = silent and wanted.kind in _SHOWN  # nor may another fact name the thing then
    chosen: list[Asked] = [] if silent else [wanted]
    apart = {wanted.kind, *_TOLD_BY.get(wanted.kind, ())}
    many = int(rng.integers(1, most + 1))
    for index in rng.permutation(len(others)):
        fact = others[int(index)]
        if len(chosen) < many and fact.kind not in apart and not (hush and any(name in fact.fact for name in names)):
            chosen.append(fact)
            apart |= {fact.kind, *_TOLD_BY.get(fact.kind, ())}
    return chosen


def hops(answer: str, rng: np.random.Generator, half: Half = "train", it: str = "sign") -> Hops:
    """Two entries and the question that needs both: a picture's code, and what the code means."""
    code = invented("code", rng, half)
    shown, explained = _one(_SHOWN_CODE, rng), _one(_EXPLAINED, rng)
    return Hops(
        question=_one(_WORDINGS["meaning"].asked, rng).replace("{it}", f"this {it}"),
        answer=answer,
        shown=shown.replace("{it}", it).replace("{}", code),
        explained=explained.replace("{it}", it).replace("{code}", code).replace("{}", answer),
        code=code,
        code_question=_one(_CODE_ASKED, rng).replace("{it}", f"this {it}"),
    )


def replacement(kind: str, rng: np.random.Generator, half: Half = "train") -> str:
    """An answer that a fact of that kind may be given instead of its own, of invented words and numbers."""
    if kind in ("width", "depth", "height"):
        return f"{_of(half, lambda: str(rng.integers(2, 999)))} cm"
    if kind in INVENTED:
        return invented(kind, rng, half)
    return " ".join(word(rng, half) for _ in range(int(rng.integers(1, 4))))


def invented(kind: str, rng: np.random.Generator, half: Half = "train") -> str:
    """An answer of one of the kinds in ``INVENTED``, of that half's words and numbers."""
    makers: Mapping[str, Callable[[], str]] = {
        "owner": lambda: " ".join(word(rng, half) for _ in range(int(rng.integers(1, 3)))),
        "place": lambda: word(rng, half) + _one(("", " street", " hall", " town", " room", " park"), rng),
        "code": lambda: _of(half, lambda: f"{_letters(rng)}{_one(('-', '', ' '), rng)}{rng.integers(10, 9999)}"),
        "year": lambda: _of(half, lambda: str(rng.integers(1700, 2100))),
        "phone": lambda: _of(half, lambda: _phone(rng)),
        "maker": lambda: word(rng, half),
        "price": lambda: _of(half, lambda: f"{rng.integers(1, 2000)}") + _one((" euros", " dollars"), rng),
    }
    return makers[kind]()


def word(rng: np.random.Generator, half: Half = "train") -> str:
    """A pronounceable word of two or three syllables that most likely does not exist."""
    return _of(half, lambda: "".join(_syllable(rng) for _ in range(int(rng.integers(2, 4)))))


def half_of(invention: str) -> Half:
    """The half that an invented word or number is of: one in four is held out, whatever its seed."""
    return "train" if zlib.crc32(invention.encode()) % 4 else "held_out"


def _of(half: Half, draw: Callable[[], str]) -> str:
    while half_of(drawn := draw()) != half:
        pass
    return drawn


def _own(thing: Thing, rng: np.random.Generator) -> list[tuple[str, str]]:
    if isinstance(thing, Sign):
        caption = f"{_article(thing.category)} {thing.category} sign that means {thing.meaning}"
        return [("meaning", thing.meaning), ("category", thing.category), ("caption", caption)]
    if not isinstance(thing, Piece):
        return [("caption", thing.sentence)]
    sizes = {"width": thing.width_cm, "depth": thing.depth_cm, "height": thing.height_cm}
    room = thing.category.lower() if thing.category in _ROOMS else ""
    caption = f"{thing.sentence} for the {room}" if room else f"{thing.sentence} in the home"
    return [
        ("name", thing.title),
        *((kind, f"{_number(size)} cm") for kind, size in sizes.items()),
        *([("room", room)] if room else []),
        *([("tag", _one(thing.tags, rng))] if thing.tags else []),
        ("caption", caption),
    ]


def _asked(kind: str, answer: str, thing: str, rng: np.random.Generator, named: float) -> Asked:
    wording = _WORDINGS[kind]
    sign = thing == "the sign"
    # What is asked for cannot be what the question names.
    if rng.random() < named and kind not in _SHOWN and not sign:
        it = thing
    else:
        it = _one(("this", "this sign", "the sign") if sign else ("this", "it", "this thing", "that"), rng)
    # A fact about the name or the caption does not say it twice.
    subject = _one(("it", "this", *((thing,) if sign or kind not in _SHOWN else ())), rng)
    fact = _one(wording.told, rng).replace("{it}", subject).replace("{}", answer)
    return Asked(_one(wording.asked, rng).replace("{it}", it), answer, fact, kind)


def _one(wordings: Sequence[str], rng: np.random.Generator) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _syllable(rng: np.random.Generator) -> str:
    return _one(_ONSETS, rng) + _one(_VOWELS, rng) + _one(_CODAS, rng)


def _letters(rng: np.random.Generator) -> str:
    return "".join(_one("ABCDEFGHJKLMNPRSTUVWXYZ", rng) for _ in range(int(rng.integers(1, 3))))


def _phone(rng: np.random.Generator) -> str:
    digits = "".join(str(digit) for digit in rng.integers(0, 10, int(rng.integers(6, 10))))
    return f"0{digits[:3]} {digits[3:]}"


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def _number(size: float) -> str:
    return f"{size:.0f}" if size >= 10 else re.sub(r"\.0$", "", f"{size:.1f}")
