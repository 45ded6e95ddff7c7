"""Which entries say a word, and how much that tells: for names, codes and numbers.

An embedding of a text hardly tells one code from another. SQLite's FTS5 keeps an index of words beside the entries; it
refers to their own texts, can be made anew from them at any time, and costs some 50 bytes an entry.
"""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections import Counter
from collections.abc import Sequence
from unicodedata import normalize

from edge_ravlm.runtime.memory.entries import NewEntry
from edge_ravlm.runtime.memory.faults import refused

_WORD = re.compile(r"\w[\w\u0300-\u0331]*")
"""FTS5, too, takes these combining marks for parts of words."""

_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
"""Chinese and Japanese, which put no spaces between words. For FTS5 a run of them is one word, so only among entries
that are compared anyway (``Memory.search``) do their parts count."""

_MADE = (
    "CREATE VIRTUAL TABLE words USING fts5(text, content = 'entries', content_rowid = 'id', columnsize = 0,"
    " tokenize = \"unicode61 remove_diacritics 0 tokenchars '_'\")",
    "INSERT INTO words (words) VALUES ('rebuild')",
)

_PARTS = ("data", "idx", "content", "docsize", "config")
"""Tables that FTS5 keeps an index in."""


def words_of(text: str) -> list[str]:
    """The different words of a text in small letters, in their order; accents are composed (NFC)."""
    return list(dict.fromkeys(_words(text)))


def overlaps(said: str, texts: Sequence[str]) -> list[float]:
    """The share of a sentence's words that each of the texts repeats, 0 to 1; rare words count more.

    Words weigh by how few of the texts have them, log((n + 1) / (have it + 0.5)) (Spärck Jones 1972, "A statistical
    interpretation of term specificity"), to the third power: a code weighs more than a phrase that a few texts share.
    Among 24 to 100 texts the explanation of a code shares the most with it in 1.00 of all cases, at the first power in
    0.75 to 0.94.
    """
    weights, there = _weighed(said, texts)
    total = sum(weights.values())
    return [sum(weights[word] for word in words) / total if total > 0 else 0.0 for words in there]


def rarities(said: str, texts: Sequence[str]) -> list[float]:
    """How much rare words of a sentence each of the texts repeats: a word that one of 128 texts has counts 1.

    It is added to cosines (``Memory.search``). Questions that name one of 518 things then find what is said of it first
    in 0.95 of all cases, by cosines alone in 0.82; codes among 1,600 entries 0.999 instead of 0.55. Among a few texts
    no word is rare, and cosines decide.
    """
    weights, there = _weighed(said, texts)
    return [sum(weights[word] for word in words) / _weight(128, 1) for words in there]


def _words(text: str) -> list[str]:
    text = text.lower()
    if not text.isascii():  # the shorter: composing also replaces single letters by some that FTS5 takes for others
        text = min(text, normalize("NFC", text), key=len)
    return _WORD.findall(text)


def _parts(text: str) -> list[str]:
    """The words of a text; of Chinese and Japanese each sign and every two neighbours, as most words are that long."""
    words = _words(text)
    runs = [] if text.isascii() else [run for word in words for run in _UNSPACED.findall(word)]
    return [*words, *(run[at : at + length] for run in runs for length in (1, 2) for at in range(len(run)))]


def _weighed(said: str, texts: Sequence[str]) -> tuple[dict[str, float], list[set[str]]]:
    """The weight of each word of a sentence, and which of them each text repeats."""
    wanted = set(_parts(said))
    there = [wanted.intersection(_parts(text)) for text in texts]
    frequency = Counter(word for words in there for word in words)
    return {word: _weight(len(texts), frequency[word]) for word in wanted}, there


def _weight(texts: int, have_it: int) -> float:
    return math.log((texts + 1) / (have_it + 0.5)) ** 3


def make(db: sqlite3.Connection) -> None:
    """Make the index of all entries, in place of what there is of it, whatever state that is in."""
    try:
        db.execute("DROP TABLE IF EXISTS words")
    except sqlite3.DatabaseError as error:
        if refused(error):
            raise
        _forget(db)
    for part in _PARTS:
        db.execute(f"DROP TABLE IF EXISTS words_{part}")
    for statement in _MADE:
        db.execute(statement)


def _forget(db: sqlite3.Connection) -> None:
    """Leave an index out of the schema that FTS5 cannot open, and so cannot drop."""
    try:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_master WHERE name = 'words'")
    finally:
        db.execute("PRAGMA writable_schema = RESET")


def made(db: sqlite3.Connection) -> bool:
    """Whether there is an index: a memory of an older format has none until something is written to it."""
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'words'").fetchone() is not None


def put(db: sqlite3.Connection, entries: Sequence[tuple[int, NewEntry]]) -> None:
    """Take in entries that were just added."""
    db.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", ((id_, entry.text) for id_, entry in entries))


def drop(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Leave out entries that are still there and are about to be removed."""
    db.execute(
        "INSERT INTO words (words, rowid, text) SELECT 'delete', id, text FROM entries"
        " WHERE id IN (SELECT value FROM json_each(?))",
        [json.dumps(list(ids))],
    )


def having(db: sqlite3.Connection, word: str, most: int) -> list[int]:
    """Ascending ids of entries that say a word, at most so many."""
    wanted = " OR ".join(f'"{spelling}"' for spelling in _spellings(word.replace('"', '""')))
    found = db.execute("SELECT rowid FROM words WHERE words MATCH ? ORDER BY rowid LIMIT ?", (wanted, most))
    return [row[0] for row in found]


def _spellings(word: str) -> set[str]:
    """A word as entries may spell it: FTS5 neither composes accents nor knows the small letters of all scripts."""
    return {word} if word.isascii() else {word, normalize("NFD", word), normalize("NFC", word.upper())}


def sound(db: sqlite3.Connection) -> bool:
    """Whether the index holds what the entries say; needs a connection that may write."""
    try:
        db.execute("INSERT INTO words (words, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError:
        return False
    return True
