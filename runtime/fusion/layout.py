"""How a question, the retrieved entries and a picture are laid out for the fusion decoder.

Training and runtime lay out with this one module. Each retrieved entry becomes a block of tokens of its own, the
question in front of it (fusion in the decoder, Izacard & Grave 2021, arXiv:2007.01282); the first block is the question
alone, for what the picture answers without any memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

PAD, START, END, NONE, SEPARATOR, UNKNOWN = range(6)
"""Ids of the special tokens; the decoder's first word is NONE where nothing answers the question."""

SPECIAL = ("[PAD]", "[START]", "[END]", "[NONE]", "[SEP]", "[UNK]")
"""Their names, by id."""

EMPTY, ASKED, ASKED_FOUND, TOLD, TOLD_ASKED = range(5)
"""Roles of tokens: padding; of the question, without and with its word in the entry; of the entry, without and with
its word in the question. What is spelt alike is seen at once and need not be learnt, so it works for any word."""

ROLES = 5

FEATURES = (
    "pictured",
    "image_cosine",
    "image_lead",
    "nearest_image",
    "text_cosine",
    "nearest_text",
    "second_hop",
    "overlap",
    "most_overlap",
)
"""What is known of a block beside its tokens. ``image_lead`` is the cosine minus the best other entry's."""

LONGEST_QUESTION, LONGEST_BLOCK = 32, 96
"""In tokens; what is longer is cut, an entry between two words: "1299" of "12995" would be read as a number."""

_WORD = re.compile(r"\w+")

_WHOLE = re.compile(
    r"(?:\w|(?<=\d)[.,:/-](?=\d)"
    r"|(?:(?<=\b(?:Mr|Ms|Dr|St))|(?<=\bMrs)|(?<=\bProf))\. (?=[A-Z])|(?<=\bN[or])\. (?=\d)"
    r"|(?<=\b[ap])\.(?=m\b)|(?<=\b[ap]\.m)\.)+"
)
"""What is copied whole or not at all: a word, a number with its signs (200.5, 1,299.00, 12.3.2001, 10:30), a name with
its title (Dr. Smith, St. Mary), a number that is called one (No. 5), and a.m. and p.m."""


@dataclass(frozen=True)
class Passage:
    """A retrieved entry.

    Attributes:
        text: what it says.
        image_cosine: of its picture to the one that is asked about; None where it has no picture.
        product: float32 [dim], its image embedding times the picture's, number by number; None without a picture.
        text_cosine: of its text to the question, or to the finding that the second hop asked with.
        shared: how much rare words of the question it repeats (``memory.Hit``), where those brought it; None where the
            picture or the second hop did.
        second_hop: whether it was found by what the first hop had found.
        overlap: share of that finding's words that it repeats, rare ones counting more (``memory.words.overlaps``).
    """

    text: str
    image_cosine: float | None = None
    product: NDArray[np.float32] | None = None
    text_cosine: float = 0.0
    shared: float | None = None
    second_hop: bool = False
    overlap: float = 0.0


@dataclass(frozen=True)
class Prompt:
    """What the decoder reads; b blocks of t tokens, the question alone first.

    Attributes:
        tokens: int64 [b, t], PAD where nothing is.
        roles: int64 [b, t].
        features: float32 [b, len(FEATURES)].
        products: float32 [b, dim], zero where a block has no picture.
        within: bool [b, t], whether a token goes on with the word, number or sign of the one before it.
        unlikeness: float32 [b], of an entry that the picture brought how much less its cosine is than the nearest's; of
            one that words brought how much fewer rare ones it repeats than the best of them, at most 1; else zero.
        passages: how many entries there are; without any, the block after the question is an empty one.
    """

    tokens: NDArray[np.int64]
    roles: NDArray[np.int64]
    features: NDArray[np.float32]
    products: NDArray[np.float32]
    within: NDArray[np.bool_]
    unlikeness: NDArray[np.float32]
    passages: int

    @property
    def source(self) -> NDArray[np.int64]:
        """What can be copied, int64 [b * t]: the tokens in one row; PAD cannot."""
        return self.tokens.reshape(-1)

    @property
    def told(self) -> NDArray[np.bool_]:
        """Which of ``source`` stand in an entry, bool [b * t]; the others are the question's."""
        return (self.roles >= TOLD).reshape(-1)


def lay_out(tokenizer: Tokenizer, question: str, passages: Sequence[Passage], dim: int) -> Prompt:
    """Lay out one question.

    Args:
        tokenizer: the decoder's.
        question: a sentence; what is longer than LONGEST_QUESTION tokens is cut.
        passages: the retrieved entries, best first; where there are none, an empty one is laid out.
        dim: length of an image embedding.
    """
    given, passages = len(passages), passages or (Passage(""),)
    asked = _pieces(tokenizer, question)[:LONGEST_QUESTION]
    words = {piece.word for piece in asked if piece.word}
    blocks = [(asked, [ASKED] * len(asked))]
    for passage in passages:
        told = _cut(_pieces(tokenizer, passage.text), LONGEST_BLOCK - len(asked) - 1)
        known = {piece.word for piece in told if piece.word}
        parts = [ASKED_FOUND if piece.word in known else ASKED for piece in asked] + [ASKED]
        parts += [TOLD_ASKED if piece.word in words else TOLD for piece in told]
        blocks.append(([*asked, _Piece(SEPARATOR), *told], parts))
    longest = max(len(block) for block, _ in blocks)
    tokens = np.full((len(blocks), longest), PAD, np.int64)
    roles = np.full((len(blocks), longest), EMPTY, np.int64)
    within = np.zeros((len(blocks), longest), np.bool_)
    for row, (pieces, parts) in enumerate(blocks):
        tokens[row, : len(pieces)], roles[row, : len(pieces)] = [piece.token for piece in pieces], parts
        within[row, : len(pieces)] = [piece.within for piece in pieces]
    products = np.zeros((len(blocks), dim), np.float32)
    for row, passage in enumerate(passages, 1):
        if passage.product is not None:
            products[row] = passage.product
    return Prompt(tokens, roles, _features(passages), products, within, _unlikeness(passages), given)


def continues(source: NDArray[np.int64], last: NDArray[np.int64]) -> NDArray[np.float32]:
    """Where copying would go on, float32 [n, m, 2].

    The first number is 1 where the token before a place in the source is the last one written, the second where the
    last two agree: the pointer then needs to learn only where a copy starts and ends.

    Args:
        source: int64 [m], ``Prompt.source``.
        last: int64 [n, 2], the last two tokens of each of n answers so far.
    """
    before = np.concatenate([[PAD], source[:-1]])
    earlier = np.concatenate([[PAD, PAD], source[:-2]])[: len(source)]
    one = (before[None] == last[:, 1:]) & (before != PAD)[None]
    two = one & (earlier[None] == last[:, :1])
    return np.stack([one, two], axis=2).astype(np.float32)


def _features(passages: Sequence[Passage]) -> NDArray[np.float32]:
    rows = np.zeros((len(passages) + 1, len(FEATURES)), np.float32)
    pictured = np.array([passage.image_cosine is not None for passage in passages])
    image = np.array([passage.image_cosine or 0.0 for passage in passages], np.float32)
    text = np.array([passage.text_cosine for passage in passages], np.float32)
    if pictured.any():
        best = np.sort(image[pictured])[::-1]
        others = np.where(image == best[0], best[1] if len(best) > 1 else 0.0, best[0])
        rows[1:, 2] = np.where(pictured, image - others, 0)
        rows[1:, 3] = pictured & (image == best[0])
    rows[1:, 0], rows[1:, 1], rows[1:, 4] = pictured, image, text
    rows[1:, 5] = text == text.max()
    overlap = np.array([passage.overlap for passage in passages], np.float32)
    rows[1:, 6] = [passage.second_hop for passage in passages]
    rows[1:, 7], rows[1:, 8] = overlap, (overlap == overlap.max()) & (overlap > 0)
    return rows


def _unlikeness(passages: Sequence[Passage]) -> NDArray[np.float32]:
    seen = [None if one.second_hop or one.shared is not None else one.image_cosine for one in passages]
    said = [one.shared for one in passages]
    found = np.zeros(len(passages) + 1, np.float32)
    for scores in (seen, said):
        best = max((score for score in scores if score is not None), default=0.0)
        found[1:] += [0.0 if score is None else min(1.0, best - score) for score in scores]
    return found


@dataclass(frozen=True)
class _Piece:
    """A token.

    Attributes:
        token: its id.
        word: the word that it is of, in small letters; empty for signs.
        within: whether the token before it is of the same word, number or sign (one that the tokenizer has no token
            for is several bytes).
    """

    token: int
    word: str = ""
    within: bool = False


def _pieces(tokenizer: Tokenizer, text: str) -> list[_Piece]:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = [(found.end(), found.start(), found[0].casefold()) for found in _WORD.finditer(text)]
    inner = {at for found in _WHOLE.finditer(text) for at in range(found.start() + 1, found.end())}
    pieces, at, reached = list[_Piece](), 0, 0
    for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        while at < len(spans) and spans[at][0] < end:
            at += 1
        word = spans[at][2] if at < len(spans) and spans[at][1] < end else ""
        pieces.append(_Piece(token, word, start in inner or start < reached))
        reached = end
    return pieces


def _cut(pieces: list[_Piece], most: int) -> list[_Piece]:
    """The first so many at most, without a piece of a word; of a single word that is longer all the same."""
    end = min(most, len(pieces))
    while 0 < end < len(pieces) and pieces[end].within:
        end -= 1
    return pieces[: end or most]
