"""Scoring float16 rows exactly and picking the best."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.runtime.memory.entries import Ids, Rows, Vector

_BLOCK_ELEMENTS = 1 << 18
"""Elements widened at a time: 1 MB of float32, which stays in a second-level cache."""

# A float16's bits, moved to float32's places, are the number times 2**-112 (the exponents' biases differ by
# 112). The query carries the inverse factor. Powers of two are exact, so this is the plain product. It is ten
# times as fast as numpy's astype, and unlike matrix @ vector it starts no BLAS threads, which on busy cores
# cost 100x.
_REBIAS = np.float32(2.0**112)
_SIGN_AND_MAGNITUDE = np.int32(-0x70000001)

_PARTS, _TOGETHER = 16, 64
"""Parts that rows are dealt into at each level, and rows that may stand together in any order."""

_BLOCK_ROWS = 4096


def cosines(rows: Rows, query: Vector) -> NDArray[np.float32]:
    """Dot products of float16 [n, D] rows with a float32 [D] query, both of unit length; float32 [n].

    Rounding to float16 leaves rows a little longer or shorter than one, so a score may pass 1 by about 1e-4.
    A row's score depends on that row and the query alone, so equal rows tie wherever they are stored.
    """
    scores = np.empty(len(rows), np.float32)
    scaled = query * _REBIAS
    block = max(1, _BLOCK_ELEMENTS // max(1, rows.shape[1]))
    wide = np.empty((min(block, len(rows)), rows.shape[1]), np.int32)
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        bits = wide[: len(part)]
        bits[...] = part.view(np.int16)
        bits <<= 13
        bits &= _SIGN_AND_MAGNITUDE
        np.vecdot(bits.view(np.float32), scaled, out=scores[start : start + block])
    return scores


def best(ids: Ids, scores: NDArray[np.float32], k: int) -> tuple[Ids, NDArray[np.float32]]:
    """The k highest scores and their ids, highest first, equal scores by ascending id."""
    if len(scores) > k:
        at_least = np.partition(scores, len(scores) - k)[len(scores) - k]
        contenders = scores >= at_least
        ids, scores = ids[contenders], scores[contenders]
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def found_in(sorted_ids: Ids, ids: Ids) -> tuple[Ids, NDArray[np.bool_]]:
    """Where each of ids stands in sorted_ids (int64 [n], none twice) and whether it is there at all (bool [n])."""
    count = len(sorted_ids)
    if not count:
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
    # Without gaps, as where nothing was ever removed, there is nothing to look for.
    gapless = sorted_ids[-1] - sorted_ids[0] == count - 1
    places = (ids - sorted_ids[0]).clip(0, count) if gapless else np.searchsorted(sorted_ids, ids)
    present = sorted_ids[np.minimum(places, count - 1)] == ids
    return places, np.asarray(present, np.bool_)


def near_each_other(rows: Rows, places: Ids) -> Ids:
    """The same places of rows (float16 [n, D], unit length), ordered so that similar rows mostly stand together.

    A graph built and stored in this order keeps what one search touches on few pages of memory. Each level deals
    the places out among a few of them, every one to the most similar; equal input gives equal order.
    """
    levels = math.ceil(math.log(max(1.0, len(places) / _TOGETHER), _PARTS))
    return _dealt(rows, places, levels)


def _dealt(rows: Rows, places: Ids, levels: int) -> Ids:
    if not levels or len(places) <= _TOGETHER:
        return places
    leaders = rows[places[:: math.ceil(len(places) / _PARTS)]].astype(np.float32)
    nearest = np.empty(len(places), np.intp)
    for start in range(0, len(places), _BLOCK_ROWS):
        block = rows[places[start : start + _BLOCK_ROWS]]
        nearest[start : start + len(block)] = np.argmax([cosines(block, leader) for leader in leaders], axis=0)
    parts = [places[nearest == leader] for leader in range(len(leaders))]
    return np.concatenate([_dealt(rows, part, levels - 1) for part in parts])
