"""What does the main job cost: frame in, answer from memory out?

    python benchmarks/main_job.py --json            [--quick]

- `retrieved_ms`: from a 1280x720 frame to its answer at level `retrieved`, on two threads, and `p99_over_p50` of it;
  `peers/side_by_side.py` has what others take for the same.
- `start_to_first_answer_s`, `rss_mb`, `import_s`: medians over fresh processes with warm file caches; `rss_mb` is the
  most a process ever held, in millions of bytes.
- `others_cpu_share`: what other programs took of the processors meanwhile.

The pictures are synthetic, two scenes that differ from frame to frame, so no frame can be answered from the last one.
`second_looks` is the share of them that took one: what they show decides it, and p99 is theirs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
from common import Bystanders, percentiles, setting, setting_line, warn_of_company
from synthetic import HEIGHT, QUESTION, WIDTH, pictures, teach

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer, Level
from edge_ravlm.runtime.bench.report import figure_rows
from edge_ravlm.runtime.opening import open_memory
from edge_ravlm.runtime.pipeline import Ravlm

FLAVOR, THREADS = "cpu-u8", 2

BUDGET_MS = 10_000.0
"""Beyond any answer, so that none is held back for want of time."""

REST_S = 0.01
"""Between answers, as with a camera; and worker threads that still spin for the one do not slow the next."""

WARM_UP_ROUNDS = 5

AIMS = {
    "start_to_first_answer_s": "below 0.8",
    "rss_mb": "below 300",
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
        rounds: frames that are answered.
        starts: fresh processes, after one that warms the file cache.
    """

    rounds: int = 300
    starts: int = 7


QUICK = Size(rounds=40, starts=3)


def answers_to(ravlm: Ravlm, rounds: int, advance: Advance) -> list[Answer]:
    """The answer to every frame, after a few that warm it up."""
    shown = pictures(16, seed=2)
    answers = []
    for n in range(-WARM_UP_ROUNDS, rounds):
        time.sleep(REST_S)
        answers.append(at_level(ravlm.ask(Frame(shown[n % len(shown)], index=n), QUESTION), Level.RETRIEVED))
        advance()
    return answers[WARM_UP_ROUNDS:]


def at_level(answer: Answer, level: Level) -> Answer:
    """The answer; raises EdgeRavlmError when it was reached in another way, which costs something else."""
    if answer.level is not level:
        raise EdgeRavlmError(
            "answer", expected=f"one at level {level}", got=f"level {answer.level}", do="report this benchmark"
        )
    return answer


def answering(bundle: Bundle, folder: Path, rounds: int) -> dict[str, Any]:
    """Frame to answer; leaves the taught memory in ``folder``."""
    with Ravlm(bundle, open_memory(bundle, folder), flavor=FLAVOR, budget_ms=BUDGET_MS, threads=THREADS) as ravlm:
        ravlm.settle()
        teach(ravlm)
        with progress("frames", WARM_UP_ROUNDS + rounds) as advance:
            return spent(answers_to(ravlm, rounds, advance))


def spent(answers: Sequence[Answer]) -> dict[str, Any]:
    """Percentiles of the whole and medians of the stages."""
    stages = {stage for answer in answers for stage in answer.latency.stages_ms}
    retrieved_ms = percentiles([answer.latency.total_ms for answer in answers])
    return {
        "retrieved_ms": retrieved_ms,
        "p99_over_p50": round(retrieved_ms["p99"] / retrieved_ms["p50"], 3),
        "second_looks": second_looks([answer.latency.stages_ms for answer in answers]),
        "stages_p50_ms": {
            stage: round(statistics.median(answer.latency.stages_ms.get(stage, 0.0) for answer in answers), 3)
            for stage in sorted(stages)
        },
    }


def second_looks(stages: Sequence[Mapping[str, float]]) -> float:
    """Share of answers, by their stages, that took a second look."""
    return round(sum("second_look" in one for one in stages) / len(stages), 4)


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
    warn_of_company(figures["others_cpu_share"])
    if arguments.json:
        say_json({"quick": arguments.quick, **figures, **about})
    else:
        rows = [(name, value, AIMS.get(name, "")) for name, value in figure_rows(figures)]
        table("Main job", ("figure", "value", "aim"), rows)
        say(setting_line(about))
    return 0


if __name__ == "__main__":
    sys.exit(main())
