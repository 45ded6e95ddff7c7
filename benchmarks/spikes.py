"""What makes an answer late although the machine is fast enough, and what the runtime does against it.

    python benchmarks/spikes.py --json              [--quick]

- ``pause``: a question after a tenth of a second in which nothing happened, as at ten frames a second: with an
  encoder whose threads sleep while they wait and may share a processor, as Linux then likes (``plain``), and as the
  runtime opens it (``ours``), in turns of blocks. ``busy_p50_ms`` is the latter without a pause.
- ``together``: questions about regions of one frame, looked at one by one and in one run (`Ravlm.look_ahead`), in
  turns; ``ratio`` is of a question's times, above 1 is quicker together. ``learnt`` is what the runtime goes by: the
  time of a picture in a run of so many, as a share of its time alone.
- ``answers``: page faults of an answer in the middle of a run; 0 means that nothing is asked of the system.
- ``first_searches``: of a memory whose files were taken out of main memory, each in a process of its own: as it is, and
  with `lock_memory`. ``faults`` are pages that were read from the disk; ``warm`` are later searches.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from common import Bystanders, percentiles, setting, setting_line, warn_of_company
from memory import data, ours

import edge_ravlm
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame, Region
from edge_ravlm.runtime.backends import FALLBACK
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession
from edge_ravlm.runtime.bench.report import figure_rows
from edge_ravlm.runtime.bench.workload import CAMERA, Workload, yard
from edge_ravlm.runtime.looking import TOGETHER
from edge_ravlm.runtime.memory import Memory
from edge_ravlm.runtime.pipeline import Asked, Ravlm

FLAVOR, THREADS = "cpu-u8", 2
PAUSE_S = 0.1
ENTRIES, QUICK_ENTRIES = 50_000, 2_000
SEARCHES = 400

_BLOCKS, _ASKED, _ROUNDS = 6, 30, 60
_LOCK_ALL = 1 | 2
"""``mlockall``'s flags for what is mapped now and what will be."""


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="some seconds, not to be quoted")
    arguments = parser.parse_args()
    bystanders = Bystanders()
    try:
        found = measured(arguments.quick)
    except EdgeRavlmError as error:
        complain(str(error))
        return 1
    found["others_share"] = bystanders.share()
    if arguments.json:
        say_json(found)
    else:
        for part in ("pause", "together", "answers", "first_searches"):
            table(part.replace("_", " "), ("", ""), list(figure_rows(found[part])))
        say(setting_line(found))
    warn_of_company(found["others_share"])
    return 0


def measured(quick: bool) -> dict[str, Any]:
    """All four."""
    workload = yard()
    with edge_ravlm.load("starter", budget_ms=1e6, threads=THREADS, backend=FALLBACK) as ravlm:
        ravlm.settle()
        workload.instruct(ravlm)
        return {
            "pause": pauses(ravlm, workload, 2 if quick else _BLOCKS, 5 if quick else _ASKED),
            "together": together(ravlm, workload, 5 if quick else _ROUNDS),
            "answers": faults(ravlm, workload),
            "first_searches": first_searches(QUICK_ENTRIES if quick else ENTRIES),
            "quick": quick,
            **setting(ravlm.bundle, FLAVOR, THREADS),
        }


def pauses(ravlm: Ravlm, workload: Workload, blocks: int, asked: int) -> dict[str, Any]:
    """Blocks of questions, every second one to the plain encoder; one without pauses at each end."""
    frames = itertools.cycle(workload.pictures)
    busy = [_asked_ms(ravlm, workload, next(frames)) for _ in range(asked)]
    spent: dict[str, list[float]] = {"ours": [], "plain": []}
    sessions = {"ours": ravlm._image._session, "plain": _plain(ravlm)}
    with progress("asking after pauses", 2 * blocks) as advance:
        for block in range(2 * blocks):
            name = "plain" if block % 2 else "ours"
            ravlm._image._session = sessions[name]
            for _ in range(asked):
                time.sleep(PAUSE_S)
                spent[name].append(_asked_ms(ravlm, workload, next(frames)))
            advance()
    ravlm._image._session = sessions["ours"]
    sessions["plain"].close()
    busy += [_asked_ms(ravlm, workload, next(frames)) for _ in range(asked)]
    return {
        "pause_ms": PAUSE_S * 1e3,
        "plain_ms": percentiles(spent["plain"]),
        "ours_ms": percentiles(spent["ours"]),
        "busy_p50_ms": round(statistics.median(busy), 3),
        "ratio": round(statistics.median(spent["plain"]) / statistics.median(spent["ours"]), 3),
    }


def _plain(ravlm: Ravlm) -> OnnxRuntimeSession:
    """The bundle's encoder, its threads asleep while they wait, on whatever processors the system gives them."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = ravlm.bundle.read(ravlm.bundle.manifest.flavor(FLAVOR).image.file)
    return OnnxRuntimeSession(ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]))


def together(ravlm: Ravlm, workload: Workload, rounds: int) -> dict[str, Any]:
    """For each number of pictures that one run may have, what a picture takes alone over what it takes in that run."""
    learnt = {f"of_{number}": round(share, 3) for number, share in sorted(ravlm.learn_together().items())}
    found: dict[str, Any] = {"learnt": learnt}
    for number in sorted(TOGETHER):
        regions = [Region.box(8 * n, 8 * n, 8 * n + 200, 8 * n + 200) for n in range(number)]
        alone, shared = list[float](), list[float]()
        for _ in range(rounds):
            alone.append(_looked_ms(ravlm, workload, [[region] for region in regions]))
            shared.append(_looked_ms(ravlm, workload, [regions]))
        found[f"of_{number}"] = {
            "alone_ms": round(statistics.median(alone) / number, 3),
            "together_ms": round(statistics.median(shared) / number, 3),
            "ratio": round(statistics.median(one / other for one, other in zip(alone, shared, strict=True)), 3),
        }
    return found


def faults(ravlm: Ravlm, workload: Workload) -> dict[str, float]:
    """Page faults while frames come that are there already, as a camera's driver fills its own buffers."""
    for picture in workload.pictures[:100]:
        _asked_ms(ravlm, workload, picture)
    before = resource.getrusage(resource.RUSAGE_SELF)
    asked = workload.pictures[100:400]
    for picture in asked:
        _asked_ms(ravlm, workload, picture)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "minor_faults_each": round((after.ru_minflt - before.ru_minflt) / len(asked), 3),
        "major_faults_each": round((after.ru_majflt - before.ru_majflt) / len(asked), 3),
    }


def first_searches(entries: int) -> dict[str, Any]:
    """A memory's first searches from the disk, with and without ``mlockall``."""
    with tempfile.TemporaryDirectory(prefix="edge-ravlm-spikes-") as folder, progress("building a memory", 1):
        place = Path(folder)
        vectors, queries = data.clustered(entries, SEARCHES, seed=1)
        (place / "memory").mkdir()
        ours.Ours().build(vectors, place / "memory")
        np.save(place / "queries.npy", queries)
        processes = multiprocessing.get_context("spawn")
        with processes.Pool(1, maxtasksperchild=1) as pool:
            found = {name: pool.apply(searched, (place, lock)) for name, lock in (("plain", False), ("locked", True))}
    return {"entries": entries, **found}


def searched(place: Path, lock: bool) -> dict[str, Any]:
    """In a process of its own: open the memory from the disk and search it."""
    queries = np.load(place / "queries.npy")
    for file in (place / "memory").rglob("*"):
        if file.is_file():
            _drop(file)
    locked = not lock or ctypes.CDLL(None).mlockall(_LOCK_ALL) == 0
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with Memory.open(place / "memory", ours.SPACES, read_only=True) as memory:
        open_ms = (time.perf_counter() - began) * 1e3
        spent = [_timed_ms(lambda query=query: memory.search("image", query, 10)) for query in queries]  # type: ignore[misc]  # a lambda's default
        after = resource.getrusage(resource.RUSAGE_SELF)
    half = len(spent) // 2
    return {
        "locked": lock and locked,
        "open_ms": round(open_ms, 3),
        "first_ms": round(spent[0], 3),
        "next_ms": percentiles(spent[1:half]),
        "warm_ms": percentiles(spent[half:]),
        "faults": after.ru_majflt - before.ru_majflt,
    }


def _drop(file: Path) -> None:
    """Take its pages out of main memory; what is still to be written would stay."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _asked_ms(ravlm: Ravlm, workload: Workload, picture: Any) -> float:
    thing = workload.things[0]
    return _timed_ms(
        lambda: ravlm.ask(Frame(picture, index=0, source=CAMERA), thing.question, region=thing.box(), fresh=True)
    )


def _looked_ms(ravlm: Ravlm, workload: Workload, groups: list[list[Region]]) -> float:
    """Look at groups of regions of a frame that nobody has seen, and ask about each."""
    frame, question = Frame(workload.pictures[0]), workload.things[0].question

    def look() -> None:
        for regions in groups:
            ravlm.look_ahead([Asked(frame, question, region) for region in regions])
            for region in regions:
                ravlm.ask(frame, question, region=region, fresh=True)

    return _timed_ms(look)


def _timed_ms(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


if __name__ == "__main__":
    sys.exit(main())
