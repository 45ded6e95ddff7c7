"""One fresh process: load the starter and a memory, answer once, say when that was and what memory it took.

`main_job.py` starts it: python benchmarks/first_answer.py STARTED MEMORY IMAGE QUESTION THREADS, where STARTED is the
caller's `time.monotonic()` just before.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import edge_ravlm
from edge_ravlm.console import say_json

MORE = 20
"""Questions asked after the first one before memory is read: what only comes up in use is counted too."""


def main(started: str, memory: str, image: str, question: str, threads: str) -> None:
    """Answer, and print ``seconds`` and ``rss_mb`` as one JSON object."""
    with edge_ravlm.load("starter", memory=memory, threads=int(threads)) as ravlm:
        picture = edge_ravlm.read_image(image)
        answer = ravlm.ask(picture, question)
        seconds = time.monotonic() - float(started)
        ravlm.settle()  # memory is that of all models
        for shift in range(MORE):
            ravlm.ask(picture.pixels[:, :: -1 if shift % 2 else 1], question)
    say_json({"seconds": seconds, "rss_mb": peak_rss_mb(), "answer": answer.text})


def peak_rss_mb() -> float:
    """The most memory this process ever held, in millions of bytes.

    From /proc: ``getrusage`` would count the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
