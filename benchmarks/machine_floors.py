"""What the machine does at best: matrix products, moving bytes, first touches of memory."""

from __future__ import annotations

import mmap
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_ravlm.export.yardsticks import Product

SHAPES = ((512, 512, 512), (1024, 512, 512), (1024, 1024, 1024))
"""Rows, inner side and columns of the products that are timed: so large that starting threads costs nothing."""

KINDS: dict[str, type[np.float32 | np.int8]] = {"int8": np.int8, "fp32": np.float32}

Bytes = NDArray[np.uint8]


def seconds(run: Callable[[], object]) -> float:
    """What one run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def fastest_product(kind: str, threads: int, repeats: int, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> Product:
    """The product, of those of the shapes, with the highest rate."""
    products = [Product(KINDS[kind], shape, threads) for shape in shapes]
    return max(products, key=lambda product: rate(product, repeats))


def rate(product: Product, repeats: int) -> float:
    """Operations per second, best of so many runs after one that warms up."""
    product.run()
    return product.operations / min(seconds(product.run) for _ in range(repeats))


def bandwidth_gb_s(size_bytes: int, threads: int, repeats: int) -> dict[str, float]:
    """1e9 bytes per second over a buffer: ``read`` finds its largest byte, ``copy`` counts what it reads and writes.

    Args:
        size_bytes: of the buffer; caches help where they hold it.
        threads: at work at once, each on a part of its own.
        repeats: the best of so many.
    """
    source, target = np.ones(size_bytes, np.uint8), np.ones(size_bytes, np.uint8)
    parts, copies = (np.array_split(buffer, threads) for buffer in (source, target))
    with ThreadPoolExecutor(threads) as pool:
        read = min(seconds(lambda: list(pool.map(np.max, parts))) for _ in range(repeats))
        copied = min(seconds(lambda: list(pool.map(np.copyto, copies, parts))) for _ in range(repeats))
    return {"read": size_bytes / read / 1e9, "copy": 2 * size_bytes / copied / 1e9}


@dataclass(frozen=True)
class Touched:
    """One byte of every page of a mapping was touched.

    Attributes:
        pages: how many there are.
        faults: minor page faults of this process meanwhile.
        seconds: what it took.
    """

    pages: int
    faults: int
    seconds: float


def touch(pages: Bytes, *, write: bool) -> Touched:
    """Touch every page of a buffer, read or written."""
    ones = pages[:: mmap.PAGESIZE]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    spent = seconds((lambda: ones.fill(1)) if write else ones.max)
    return Touched(len(ones), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, spent)


def page_faults(pages: int, folder: Path) -> dict[str, dict[str, float]]:
    """What the first touch costs more than the second.

    ``file``: pages of a mapped file that is in the page cache, read; the kernel may map many at one fault.
    ``anonymous``: the process's own pages, written; huge ones are refused.

    Args:
        pages: how many of each.
        folder: where the file may lie for a moment.
    """
    path = folder / "pages"
    path.write_bytes(np.random.default_rng(0).bytes(pages * mmap.PAGESIZE))
    with path.open("rb") as file:
        warm = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    own = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    own.madvise(mmap.MADV_NOHUGEPAGE)
    path.unlink()
    return {"file": _first_touch(warm, write=False), "anonymous": _first_touch(own, write=True)}


def _first_touch(mapping: mmap.mmap, *, write: bool) -> dict[str, float]:
    pages = np.frombuffer(mapping, np.uint8)
    first, again = touch(pages, write=write), touch(pages, write=write)
    extra_us = max(0.0, first.seconds - again.seconds) * 1e6
    return {
        "pages": first.pages,
        "faults": first.faults,
        "us_per_page": round(extra_us / first.pages, 4),
        "us_per_fault": round(extra_us / max(1, first.faults), 3),
    }
