"""What does the main job cost: frame in, answer from memory out?

    python benchmarks/main_job.py --json            [--quick]

- `retrieved_ms`: from a 1280x720 frame to its answer at level `retrieved`, on two threads. Beside it the same
  pipeline (same preprocessing, same entries in memory, same vote) with the image encoder in full precision, in
  PyTorch eager and in ONNX Runtime. One run, interleaved frame by frame, who goes first taking turns.
  `ratio_vs_...` is the other's p50 divided by ours: above 1, ours is faster.
- `start_to_first_answer_s`, `rss_mb`, `import_s`: medians over fresh processes with warm file caches; `rss_mb` is the
  most a process ever held, in millions of bytes.
- `memory_100k`: a memory of 100,000 entries, see `memory/scale.py`.
- `others_cpu_share`: what other programs took of the processors meanwhile. PyTorch's threads wait for each other
  actively, so on busy cores it loses far more than the others do: then the ratios flatter us and must not be quoted.

The pictures are synthetic, two scenes that differ from frame to frame, so no frame can be answered from the last one.
Speed does not depend on what they show.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import fp32_peers
import msgspec
import numpy as np
from common import Bystanders, figure_rows, percentiles, setting, setting_line
from memory import scale

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.runtime.answer import Answer, Level
from edge_ravlm.runtime.pipeline import Ravlm, open_memory

FLAVOR, THREADS = "cpu-u8", 2
WIDTH, HEIGHT = 1280, 720
QUESTION = "is the gate open?"
TEXTS = ("the gate is open", "the gate is closed")
TAUGHT_EACH = 10

BUDGET_MS = 10_000.0
"""Beyond any answer, so that none is held back for want of time."""

REST_S = 0.01
"""Between answers, as with a camera; and worker threads that still spin for the one do not slow the next."""

WARM_UP_ROUNDS = 5

QUIET = 0.05
"""Largest share of the processors that others may take in figures worth quoting."""

AIMS = {
    "start_to_first_answer_s": "below 1",
    "rss_mb": "below 300",
    "memory_100k.open_ms": "below 50",
    "memory_100k.recall10": "0.99 or more",
    "others_cpu_share": "below 0.05",
}

_IMPORT = """
import time
start = time.perf_counter()
import edge_ravlm.runtime.pipeline, edge_ravlm.runtime.backends.onnxruntime
print(time.perf_counter() - start)
"""

Advance = Callable[..., None]


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        rounds: frames that each pipeline answers.
        starts: fresh processes, after one that warms the file cache.
        entries: in the large memory.
        queries: searches in it.
        opens: how often it is opened.
    """

    rounds: int = 300
    starts: int = 7
    entries: int = 100_000
    queries: int = 1_000
    opens: int = 9


QUICK = Size(rounds=40, starts=3, entries=20_000, queries=300, opens=5)


def pictures(count: int, seed: int) -> list[Pixels]:
    """uint8 [720, 1280, 3] each: even ones show the first scene, odd ones the second, no two of them alike."""
    scenes = np.random.default_rng(0).uniform(40, 215, (2, 9, 16, 3))
    random = np.random.default_rng(seed)
    coarse = [np.clip(scenes[i % 2] + random.normal(0, 20, (9, 16, 3)), 0, 255) for i in range(count)]
    return [_enlarged(picture.astype(np.uint8)) for picture in coarse]


def _enlarged(coarse: Pixels) -> Pixels:
    return np.asarray(cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC), np.uint8)


def teach(ravlm: Ravlm) -> None:
    """Both scenes, TAUGHT_EACH times."""
    shown = pictures(2 * TAUGHT_EACH, seed=1)
    ravlm.memory.add([ravlm.entry(picture, TEXTS[i % 2]) for i, picture in enumerate(shown)])


def take_turns(pipelines: Mapping[str, Ravlm], rounds: int, advance: Advance) -> dict[str, list[Answer]]:
    """Each pipeline's answer to every frame; in every round another one goes first."""
    shown = pictures(16, seed=2)
    names = list(pipelines)
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    for n in range(-WARM_UP_ROUNDS, rounds):
        for name in names[n % len(names) :] + names[: n % len(names)]:
            time.sleep(REST_S)
            answer = _retrieved(pipelines[name].ask(Frame(shown[n % len(shown)], index=n), QUESTION))
            if n >= 0:
                answers[name].append(answer)
        advance()
    return answers


def _retrieved(answer: Answer) -> Answer:
    if answer.level is not Level.RETRIEVED:
        raise EdgeRavlmError(
            "answer", expected="one at level retrieved", got=f"level {answer.level}", do="report this benchmark"
        )
    return answer


def answering(bundle: Bundle, folder: Path, rounds: int) -> dict[str, Any]:
    """Frame to answer, beside the peers; leaves the taught memory in ``folder``."""
    shared: dict[str, Any] = {"flavor": FLAVOR, "budget_ms": BUDGET_MS, "threads": THREADS}
    with ExitStack() as opened:
        ours = opened.enter_context(Ravlm(bundle, open_memory(bundle, folder), **shared))
        pipelines = {"retrieved": ours}
        for name, embed in fp32_peers.peers(bundle, THREADS).items():
            peer = fp32_peers.Peer(bundle, folder.with_name(name), embed=embed, **shared)
            pipelines[name] = opened.enter_context(peer)
        for pipeline in pipelines.values():
            teach(pipeline)
        with progress("frames", WARM_UP_ROUNDS + rounds) as advance:
            return compared(take_turns(pipelines, rounds, advance))


def compared(answers: Mapping[str, Sequence[Answer]]) -> dict[str, Any]:
    """Percentiles of each pipeline and ratios of their medians; the first pipeline is ours."""
    ours, *others = answers
    spent = {name: percentiles([answer.latency.total_ms for answer in given]) for name, given in answers.items()}
    alike = [len({answer.text for answer in frame}) == 1 for frame in zip(*answers.values(), strict=True)]
    stages = {stage for answer in answers[ours] for stage in answer.latency.stages_ms}
    return {
        **{f"{name}_ms": figures for name, figures in spent.items()},
        **{f"ratio_vs_{name}": round(spent[name]["p50"] / spent[ours]["p50"], 3) for name in others},
        "answered_alike": sum(alike) / len(alike),
        "stages_p50_ms": {
            stage: round(statistics.median(a.latency.stages_ms.get(stage, 0.0) for a in answers[ours]), 3)
            for stage in sorted(stages)
        },
    }


def starting(memory: Path, image: Path, times: int) -> dict[str, float]:
    """What a fresh process takes to its first answer, to import the runtime, and of memory."""
    script = str(Path(__file__).with_name("first_answer.py"))
    rest = [str(memory), str(image), QUESTION, str(THREADS)]
    firsts: list[dict[str, Any]] = []
    imports: list[float] = []
    with progress("starts", times + 1) as advance:
        for _ in range(times + 1):
            firsts.append(msgspec.json.decode(_python(script, str(time.monotonic()), *rest)))
            imports.append(float(_python("-c", _IMPORT)))
            advance()
    return {
        "start_to_first_answer_s": round(statistics.median(first["seconds"] for first in firsts[1:]), 3),
        "rss_mb": round(max(first["rss_mb"] for first in firsts[1:]), 1),
        "import_s": round(statistics.median(imports[1:]), 3),
    }


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EdgeRavlmError("fresh process", expected="an answer", got=last, do="run `edge-ravlm doctor`")
    return done.stdout


def measure(size: Size) -> tuple[dict[str, Any], dict[str, Any]]:
    """The figures, and the setting they were taken in."""
    cv2.setNumThreads(THREADS)
    bundle = Bundle.open(STARTER)
    about, others = setting(bundle, FLAVOR, THREADS), Bystanders()
    with tempfile.TemporaryDirectory(prefix="edge-ravlm-benchmark-") as scratch:
        folder = Path(scratch)
        figures: dict[str, Any] = {"frame": f"{WIDTH}x{HEIGHT}", "rounds": size.rounds}
        figures |= answering(bundle, folder / "taught.memory", size.rounds)
        image = folder / "frame.png"
        cv2.imwrite(str(image), pictures(1, seed=3)[0])
        figures |= starting(folder / "taught.memory", image, size.starts)
        with progress("large memory") as advance:
            figures["memory_100k"] = scale.measure(
                size.entries, size.queries, size.opens, folder / "large.memory", advance
            )
    return {**figures, "others_cpu_share": others.share()}, about


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="a short form, to see that it runs; not to be quoted")
    arguments = parser.parse_args()
    try:
        figures, about = measure(QUICK if arguments.quick else Size())
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    if figures["others_cpu_share"] > QUIET:
        complain(
            f"other programs took {figures['others_cpu_share']:.0%} of the processors: do not quote these figures."
        )
    if arguments.json:
        say_json({"quick": arguments.quick, **figures, **about})
    else:
        rows = [(name, value, AIMS.get(name, "")) for name, value in figure_rows(figures)]
        table("Main job (ratios: the other's p50 / ours)", ("figure", "value", "aim"), rows)
        say(setting_line(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
