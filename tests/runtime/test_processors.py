"""Processors dealt out to the threads of a run: disjoint, all of them, and what runs there keeps to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from edge_ravlm.bundle import Bundle
from edge_ravlm.frames import Frame, Pixels
from edge_ravlm.runtime import processors
from edge_ravlm.runtime.answer import UNKNOWN, Answer, Latency, Level
from edge_ravlm.runtime.backends.onnxruntime import OnnxRuntimeSession, session_options
from edge_ravlm.runtime.processors import dealt, kept_to
from edge_ravlm.runtime.watching.lanes import Watch
from edge_ravlm.runtime.watching.watcher import Watcher

AFFINITIES = "session.intra_op_thread_affinities"
HERE = sorted(os.sched_getaffinity(0))


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> set[int]:
    """A machine with these processors."""
    numbers = set(request.param)
    monkeypatch.setattr(processors.os, "sched_getaffinity", lambda _: numbers)
    return numbers


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("starter")


@pytest.mark.parametrize("there", [range(2), range(8), (3, 5, 6, 11, 12)], indirect=True)
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_no_processor_is_shared_and_none_is_left_out(there: set[int], threads: int) -> None:
    hands = dealt(threads)
    if threads > len(there):
        assert hands == []
        return
    assert len(hands) == threads
    assert sorted(number for hand in hands for number in hand) == sorted(there)
    assert max(map(len, hands)) - min(map(len, hands)) <= 1


@pytest.mark.parametrize("threads", [0, 1])
def test_one_thread_runs_where_it_likes(threads: int) -> None:
    assert dealt(threads) == []


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(processors.os, "sched_getaffinity")
    assert dealt(2) == []


@pytest.mark.parametrize("there", [range(4)], indirect=True)
def test_onnx_runtime_is_told_of_all_but_the_callers(there: set[int], bundle: Bundle) -> None:
    del there
    spec = bundle.manifest.flavor("cpu-u8").image
    assert session_options(spec, 2).get_session_config_entry(AFFINITIES) == "2,4"
    assert session_options(spec, 3).get_session_config_entry(AFFINITIES) == "2;3"


@pytest.mark.skipif(len(HERE) < 2, reason="needs two processors")
def test_a_sessions_threads_are_where_they_were_dealt_to(bundle: Bundle) -> None:
    spec = bundle.manifest.flavor("cpu-u8").image
    before = set(_tasks())
    session = OnnxRuntimeSession.open(bundle.read(spec.file), spec, 2)
    (worker,) = set(_tasks()) - before
    assert sorted(os.sched_getaffinity(worker)) == dealt(2)[1]
    assert list(session.processors) == dealt(2)[0]
    session.close()


@pytest.mark.skipif(len(HERE) < 2, reason="needs two processors")
def test_whoever_calls_is_kept_to_the_first_hand_while_the_model_runs(bundle: Bundle) -> None:
    spec = bundle.manifest.flavor("cpu-u8").image
    session = OnnxRuntimeSession.open(bundle.read(spec.file), spec, 2)
    picture = np.zeros((1, 160, 160, 3), np.uint8)
    calling, seen, done = threading.get_native_id(), set[frozenset[int]](), threading.Event()

    def look_on() -> None:
        while not done.is_set():
            seen.add(frozenset(os.sched_getaffinity(calling)))

    looking_on = threading.Thread(target=look_on)
    looking_on.start()
    until = time.monotonic() + 30
    while frozenset(dealt(2)[0]) not in seen and time.monotonic() < until:
        session.run({"image": picture}, ("embedding",))
    done.set()
    looking_on.join()
    session.close()
    assert frozenset(dealt(2)[0]) in seen
    assert os.sched_getaffinity(0) == set(HERE), "afterwards it runs where it likes"


@pytest.mark.skipif(len(HERE) < 2, reason="needs two processors")
@pytest.mark.parametrize("hand", [[HERE[0]], [HERE[0], 4000], [4000], [], HERE])
def test_a_thread_keeps_to_what_it_may_use(hand: list[int]) -> None:
    with kept_to(hand):
        assert os.sched_getaffinity(0) == (set(hand) & set(HERE) or set(HERE))
    with pytest.raises(ZeroDivisionError), kept_to(hand):
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == set(HERE)


def test_a_system_that_forbids_to_move_threads_costs_no_answer(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    spec = bundle.manifest.flavor("cpu-u8").image
    session = OnnxRuntimeSession.open(bundle.read(spec.file), spec, 2)
    monkeypatch.setattr(processors.os, "sched_setaffinity", forbidden)
    (embedding,) = session.run({"image": np.zeros((1, 160, 160, 3), np.uint8)}, ("embedding",))
    session.close()
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("there", [range(4)], indirect=True)
def test_threads_wait_awake_only_where_each_has_processors_of_its_own(there: set[int], bundle: Bundle) -> None:
    del there
    spec = bundle.manifest.flavor("cpu-u8").image
    options = {threads: session_options(spec, threads) for threads in (0, 1, 2, 8)}
    spins = {n: one.get_session_config_entry("session.intra_op.allow_spinning") for n, one in options.items()}
    assert spins == {0: "0", 1: "0", 2: "1", 8: "0"}
    assert options[2].get_session_config_entry("session.force_spinning_stop") == "1", "and never between runs"


@pytest.mark.parametrize("stay", [HERE[:1], ()])
def test_a_watchers_looking_threads_stay_where_they_are_told_to(stay: Iterable[int]) -> None:
    seen = list[set[int]]()
    told = threading.Event()

    def ask(frame: Frame, _: Watch) -> Answer:
        seen.append(os.sched_getaffinity(0))
        return Answer(UNKNOWN, 0.0, Level.RETRIEVED, (), Latency({}, 1.0, 1e5), frame.captured_at)

    with Watcher(ask, [Watch("gate", "yard", 1e5)], lambda _: told.set(), processors=tuple(stay)) as watcher:
        watcher.offer("yard", Frame(_black(), index=0))
        assert told.wait(10)
    assert seen == [set(stay) or set(HERE)]


def _tasks() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _black() -> Pixels:
    return np.zeros((4, 4, 3), np.uint8)
