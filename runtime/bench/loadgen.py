"""MLPerf's LoadGen asks, the runtime answers: scenarios single-stream, multi-stream and offline.

LoadGen (github.com/mlcommons/inference) draws the samples, keeps the clock and judges whether the run is valid. A
sample is a question about a frame; the answer is its words. Nothing of an earlier answer is reused, as its rules
demand, but what belongs to the question (its embedding, the memories that talk about it) is: questions stand, frames
come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_ravlm.errors import needs_extra
from edge_ravlm.files import storing
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.bench.outcome import Record, record
from edge_ravlm.runtime.bench.workload import Sample
from edge_ravlm.runtime.bench.yardstick import Yardstick
from edge_ravlm.runtime.looking import TOGETHER

Scenario = Literal["single-stream", "multi-stream", "offline"]

EXTRA = "bench"
DETAIL = "mlperf_log_detail.txt"

RULES_S = 600
"""Seconds that a run lasts at least, by the rules of MLPerf Inference; so long are runs that may be quoted."""

_QUERIES = {"single-stream": 1024, "multi-stream": 662, "offline": 1}
"""Fewest queries: by the rules, and 662 are what LoadGen itself needs to vouch for a 99th percentile. Offline it is
one, of ``_OFFLINE`` samples or more."""

_OFFLINE = 24_576
_FEWEST = 64
_MARK = ":::MLLOG "

Ask = Callable[[Sequence[Sample]], Iterator[Answer]]
"""Answers samples that came together, in their order."""


@dataclass(frozen=True)
class Rules:
    """How long LoadGen asks.

    Attributes:
        seconds: at least.
        streams: frames that come together in multi-stream.
        workers: threads that answer what came together.
        quick: whether LoadGen's fewest queries are waived.
    """

    seconds: float = RULES_S
    streams: int = 4
    workers: int = 1
    quick: bool = False

    @property
    def shortfall(self) -> str:
        """Why a run by these rules is none that MLPerf would take; empty if it is."""
        return f"{self.seconds:g} s of at least {RULES_S} s" if self.quick or self.seconds < RULES_S else ""


@dataclass
class Played:
    """What LoadGen saw, and what was answered.

    Attributes:
        figures: LoadGen's own results, by their names in its log.
        records: of every answer, in the order of the answers.
        valid: LoadGen's verdict.
    """

    figures: dict[str, Any]
    records: list[Record]
    valid: bool


def play(
    scenario: Scenario,
    samples: Sequence[Sample],
    ask: Ask,
    rules: Rules,
    folder: Path,
    fastest_ms: float,
    advance: Callable[..., None] = lambda: None,
) -> Played:
    """Let LoadGen ask.

    Args:
        scenario: whose rules.
        samples: to draw from.
        ask: answers; called from several threads if ``rules.workers`` says so, else with as many samples of a query as
            may be looked at together.
        rules: how long.
        folder: for LoadGen's files.
        fastest_ms: that an answer took so far; by it LoadGen plans how much to ask, and too little would be invalid.
        advance: called after every answer.

    Raises:
        MissingExtra: LoadGen is not installed.
        StorageError: the folder cannot be written.
        EdgeRavlmError: whatever answering raised first.
    """
    with needs_extra(EXTRA):
        import mlperf_loadgen as lg  # noqa: PLC0415  # an extra
    _prepare(folder)
    settings = _settings(lg, scenario, rules, fastest_ms)
    with _Answering(lg, samples, ask, rules.workers, advance) as answering:
        library = lg.ConstructQSL(len(samples), len(samples), lambda _: None, lambda _: None)
        system = lg.ConstructSUT(answering.issue, lambda: None)
        try:
            lg.StartTestWithLogSettings(system, library, settings, _logging(lg, folder), str(folder / "audit.config"))
        finally:
            lg.DestroySUT(system)
            lg.DestroyQSL(library)
    if answering.fault is not None:
        raise answering.fault
    figures = results(folder / DETAIL)
    return Played(figures, answering.records, figures.get("validity") == "VALID")


def results(path: Path) -> dict[str, Any]:
    """LoadGen's results: what its detailed log calls ``result_…``, without that.

    Raises:
        StorageError: there is no such log.
    """
    with _storing(path.parent):
        lines = path.read_text(encoding="utf-8").splitlines()
    rows = [msgspec.json.decode(line.partition(_MARK)[2]) for line in lines if line.startswith(_MARK)]
    return {row["key"].removeprefix("result_"): row["value"] for row in rows if row["key"].startswith("result_")}


@dataclass
class _Answering:
    """The system under test."""

    lg: Any
    samples: Sequence[Sample]
    ask: Ask
    workers: int
    advance: Callable[..., None]
    records: list[Record] = field(default_factory=list)
    fault: BaseException | None = None

    def __enter__(self) -> _Answering:
        self._yardstick, self._lock = Yardstick(), threading.Lock()
        self._pool = ThreadPoolExecutor(self.workers, "answering") if self.workers > 1 else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def issue(self, queries: Sequence[Any]) -> None:
        """Called by LoadGen with all samples of a query; an exception in here would end the process."""
        if self._pool is None:
            for start in range(0, len(queries), TOGETHER[0]):
                self._answer(queries[start : start + TOGETHER[0]])
            return
        waiting: list[Future[None]] = [self._pool.submit(self._answer, [query]) for query in queries]
        for one in waiting:
            one.result()

    def _answer(self, queries: Sequence[Any]) -> None:
        samples, left = [self.samples[query.index] for query in queries], deque(queries)
        answers = list[Answer]()
        try:
            for answer in self.ask(samples) if self.fault is None else ():
                answers.append(answer)
                self._complete(left.popleft())
        except BaseException as error:  # it is raised again once LoadGen has ended
            self.fault = error
        for query in left:
            self._complete(query)
        for sample, answer in zip(samples, answers, strict=False):
            self._keep(sample, answer)

    def _complete(self, query: Any) -> None:
        self.lg.QuerySamplesComplete([self.lg.QuerySampleResponse(query.id, 0, 0)])

    def _keep(self, sample: Sample, answer: Answer) -> None:
        with self._lock:  # the yardstick after the answer was given: it is not part of its time
            self.records.append(record(sample.name, answer, sample.is_right(answer), self._yardstick.look()))
            self.advance()


def _settings(lg: Any, scenario: Scenario, rules: Rules, fastest_ms: float) -> Any:
    settings = lg.TestSettings()
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(rules.seconds * 1e3)
    settings.min_query_count = _FEWEST if rules.quick and scenario != "offline" else _QUERIES[scenario]
    expected_ms = fastest_ms / 2  # what is planned beyond the least duration is not asked in streams
    if scenario == "single-stream":
        settings.scenario = lg.TestScenario.SingleStream
        settings.single_stream_expected_latency_ns = int(expected_ms * 1e6)
        settings.single_stream_target_latency_percentile = 0.9
    elif scenario == "multi-stream":
        settings.scenario = lg.TestScenario.MultiStream
        settings.multi_stream_samples_per_query = rules.streams
        settings.multi_stream_expected_latency_ns = int(expected_ms * rules.streams * 1e6)
        settings.multi_stream_target_latency_percentile = 0.99
    else:
        settings.scenario = lg.TestScenario.Offline
        enough = max(rules.workers * rules.seconds * 1e3 / fastest_ms, 0 if rules.shortfall else _OFFLINE)
        settings.offline_expected_qps = enough / rules.seconds / 1.1  # LoadGen asks for a tenth more
    return settings


def _logging(lg: Any, folder: Path) -> Any:
    output, settings = lg.LogOutputSettings(), lg.LogSettings()
    output.outdir, output.copy_summary_to_stdout = str(folder), False
    settings.log_output, settings.enable_trace = output, False
    return settings


def _prepare(folder: Path) -> None:
    with _storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DETAIL).unlink(missing_ok=True)  # an earlier run's must not be taken for this one's


def _storing(folder: Path) -> AbstractContextManager[None]:
    return storing(f"folder '{folder}'", expected="a place for LoadGen's files", do="choose another with --report")
