"""An app at work: its cameras, watches and sinks, from a file that may change while it runs."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from edge_ravlm.bundle import STARTER
from edge_ravlm.errors import DataError
from edge_ravlm.frames import Frame
from edge_ravlm.runtime.answer import Answer
from edge_ravlm.runtime.apps.account import Account
from edge_ravlm.runtime.looking import TOGETHER
from edge_ravlm.runtime.opening import load
from edge_ravlm.runtime.pipeline import Ravlm
from edge_ravlm.runtime.watching.admission import admission, ask, asked_of, unsaid
from edge_ravlm.runtime.watching.events import Steady, as_dict
from edge_ravlm.runtime.watching.feeds import Feed
from edge_ravlm.runtime.watching.lanes import Told, Watch
from edge_ravlm.runtime.watching.metrics import Metrics, longest
from edge_ravlm.runtime.watching.mqtt import MqttSink
from edge_ravlm.runtime.watching.process import give_back, on_time, settled
from edge_ravlm.runtime.watching.settings import AppSettings, CameraSettings, SinkSettings, WatchSettings, read_app
from edge_ravlm.runtime.watching.sinks import Sink
from edge_ravlm.runtime.watching.trace import Trace
from edge_ravlm.runtime.watching.watcher import Watcher

log = logging.getLogger(__name__)

Put = Callable[[dict[str, Any]], object]
"""Takes an event or an answer as plain values; must not dawdle."""

RELOAD_S = 1.0
"""How often the file is looked at."""

_AT_START = (
    *("bundle", "memory", "threads", "looking", "sinks", "metrics_port", "metrics_host"),
    *("pin", "nice", "lock_memory"),
)
"""Settings that a change of the file cannot change."""

_POLL_S, _TIDY_S = 0.05, 30.0


class App:
    """An app, opened: models, memory and sinks are ready, no camera is read yet.

    Args:
        app: its file, which may change while it runs; or what would stand in one, with paths from the working folder.
        on_event, on_answer: take events and answers as plain values, beside the file's sinks.
        trace: file for a trace of every answer's life; None keeps none.

    Attributes:
        settings: as the file says, or said last without a mistake.
        ravlm: what answers.
        account: of all answers.
        feeds: by camera.
        newest: by camera, the frame that it handed on last.

    Raises:
        DataError: a file that is no valid app.
        EdgeRavlmError: a bundle, memory or sink that cannot be opened.
    """

    def __init__(
        self,
        app: Path | AppSettings,
        *,
        on_event: Put | None = None,
        on_answer: Put | None = None,
        trace: Path | None = None,
    ) -> None:
        self.path = app if isinstance(app, Path) else None
        self.settings = read_app(app) if isinstance(app, Path) else app
        self.account, self.feeds, self.newest = Account(), dict[str, Feed](), dict[str, Frame]()
        self._base = Path.cwd() if self.path is None else self.path.absolute().parent
        self._modified = _modified(self.path)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._late: Counter[str] = Counter()
        self._faults: deque[str] = deque()
        self._replaced, self._thinned = dict[str, int](), dict[str, int]()
        self._asked: dict[str, WatchSettings] = {}
        self._steady: dict[str, Steady] = {}
        self._check_apart(trace)
        with ExitStack() as stack:
            stack.enter_context(settled(self.settings.pin, lock_memory=self.settings.lock_memory))
            self.ravlm = stack.enter_context(_loaded(self.settings, self._base))
            self._metrics = stack.enter_context(Metrics(self.settings.metrics_port, self.settings.metrics_host))
            self._trace = stack.enter_context(Trace(trace))
            self._events, self._answers = list[Put](), list[Put]()
            self._sinks = [self._opened(sink, stack) for sink in self.settings.sinks]
            self._brokers = [sink for sink in self._sinks if isinstance(sink, MqttSink)]
            self._events += [on_event] if on_event is not None else []
            self._answers += [on_answer] if on_answer is not None else []
            self._stack = stack.pop_all()

    def _opened(self, settings: SinkSettings, stack: ExitStack) -> Sink | MqttSink:
        """A sink that is put what it asks for, and closed with the stack."""
        sink: Sink | MqttSink
        if settings.kind == "mqtt":
            sink = MqttSink(settings, self._base)
            self._events.append(sink.put)
            self._answers += [sink.answer] if settings.what == "answers" else []
        else:
            alone = self.stop if len(self.settings.sinks) == 1 else None
            sink = Sink(self._base / settings.path if settings.path else None, alone)
            (self._events if settings.what == "events" else self._answers).append(sink.put)
        stack.callback(sink.close)
        return sink

    def __enter__(self) -> App:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stop(self) -> None:
        """End ``run`` soon, from any thread; what is due is still answered."""
        self._stop.set()

    def run(self, *, stay: bool = False) -> None:
        """Watch until ``stop``, SIGTERM or Ctrl-C; unless it is to ``stay``, until all cameras have ended."""
        with (
            _ended_by(signal.SIGTERM, self._stop),
            _ended_by(signal.SIGINT, self._stop),
            on_time(self.settings.nice),
            self._watching() as self._watcher,
        ):
            self._faults = self._watcher.faults
            try:
                self._apply(self.settings)
                look_at = time.monotonic() + RELOAD_S
                tidy_at = time.monotonic() + _TIDY_S
                while not self._stop.is_set() and (stay or not all(feed.has_ended for feed in self.feeds.values())):
                    self._stop.wait(_POLL_S)
                    if time.monotonic() >= look_at:
                        self._reload()
                        look_at = time.monotonic() + RELOAD_S
                    if time.monotonic() >= tidy_at:
                        give_back()
                        tidy_at = time.monotonic() + _TIDY_S
            finally:
                for feed in self.feeds.values():
                    feed.stop()
                for feed in self.feeds.values():
                    feed.close()
                self._replaced, self._thinned = dict(self._watcher.replaced), dict(self._watcher.thinned)

    def _watching(self) -> Watcher:
        """With several pictures looked at in one run where several are watched, and that was found to be quicker."""
        several = len({(watch.camera, watch.region) for watch in self.settings.watches}) > 1
        if several:
            self.ravlm.learn_together()
        prepare = self._prepare if several else None
        alone = self.settings.looking == 1  # several would have to share what is one thread's
        return Watcher(
            self._ask,
            [],
            self._tell,
            self.settings.looking,
            prepare=prepare,
            together=TOGETHER[0],
            processors=self.ravlm.processors if alone else (),
        )

    def _check_apart(self, trace: Path | None) -> None:
        """What is written lies neither in the memory nor in the app's file; raises DataError."""
        memory = (self._base / self.settings.memory).resolve()
        sinks = (self._base / sink.path for sink in self.settings.sinks if sink.path)
        for path in (*sinks, *([] if trace is None else [trace])):
            if path.resolve().is_relative_to(memory) or (self.path and path.resolve() == self.path.resolve()):
                raise DataError(
                    f"output '{path}'",
                    expected="a file beside the memory and the app's file",
                    got="one of theirs",
                    do="choose another name",
                )

    @property
    def failed(self) -> bool:
        """Whether a camera could not be read to its end, or there was no answer because of errors."""
        never_came = any(feed.reason and not feed.frames for feed in self.feeds.values())
        silent = not self.account.answers and (never_came or bool(self._faults))
        return silent or any(feed.failed for feed in self.feeds.values())

    @property
    def is_unread(self) -> bool:
        """Once closed: whether stdout still waits for a reader, so that another line would wait for ever."""
        return any(sink.stuck and sink.path is None for sink in self._sinks)

    # -- settings ----------------------------------------------------------------------------------------------

    def admission(self) -> list[str]:
        """What cannot be kept up with or never be an event, in a sentence each; see ``admission`` and ``unsaid``."""
        return [*admission(self.settings, self.ravlm), *unsaid(self.settings, self.ravlm)]

    def _reload(self) -> None:
        modified = _modified(self.path)
        if self.path is None or modified == self._modified:
            return
        self._modified = modified
        try:
            settings = read_app(self.path)
        except DataError as error:
            log.warning("%s; the app goes on as it was", str(error).rstrip("."))
            return
        for name in _AT_START:
            if getattr(settings, name) != getattr(self.settings, name):
                log.warning("app '%s': `%s` changes with the next start", self.path, name)
        self.settings = settings
        self._apply(settings)
        for sentence in unsaid(settings, self.ravlm):
            log.warning("%s", sentence)
        log.info("app '%s': read again", self.path)

    def _apply(self, settings: AppSettings) -> None:
        with self._lock:
            asked = {watch.name: watch for watch in settings.watches}
            self._steady = {
                name: self._steady[name]
                if name in self._steady and self._asked.get(name) == watch
                else Steady(watch.answers, watch.agree, watch.cool_down_s)
                for name, watch in asked.items()
            }
            self._asked = asked
        for broker in self._brokers:
            broker.watches(settings.watches)
        self._watcher.watch([settings.watch(watch) for watch in settings.watches])
        wanted = {camera.name: camera for camera in settings.cameras}
        for name, feed in list(self.feeds.items()):
            if wanted.get(name) != feed.settings:
                feed.close()
                del self.feeds[name]
                self.newest.pop(name, None)
                self._watcher.forget(name)
        for name, camera in wanted.items():
            motions = {w.name: w.looked_at for w in settings.watches if w.camera == name and w.on_motion}
            if name in self.feeds:
                self.feeds[name].motions = motions
            else:
                self._open(camera, motions)

    def _open(self, camera: CameraSettings, motions: Mapping[str, Any]) -> None:
        feed = Feed(camera, self._base, motions, self._offer, self._metrics.camera)
        self.feeds[camera.name] = feed
        feed.start()

    # -- frames and answers ------------------------------------------------------------------------------------

    def _offer(self, camera: str, frame: Frame, moved: frozenset[str]) -> None:
        self.newest[camera] = frame
        self._watcher.offer(camera, frame, moved)

    def _ask(self, frame: Frame, watch: Watch) -> Answer:
        with self._lock:
            asked = self._asked.get(watch.name)
        if asked is None:
            raise DataError(f"watch '{watch.name}'", expected="one in the app's file", got="none", do="add it again")
        with self._trace.looking(watch, frame) as looked:
            answer = ask(self.ravlm, asked, frame, watch.budget_ms)
            looked(answer)
        return answer

    def _prepare(self, due: Sequence[tuple[Frame, Watch]]) -> int:
        with self._lock:
            asked = dict(self._asked)
        if any(watch.name not in asked for _, watch in due):  # the file has just changed
            return 0
        return self.ravlm.look_ahead([asked_of(asked[watch.name], frame, watch.budget_ms) for frame, watch in due])

    def _tell(self, told: Told) -> None:
        self.account.add(told.answer)
        if told.is_late:
            self._late[longest(told.answer.latency)] += 1
        self._metrics.told(told)
        self._trace.told(told)
        with self._lock:
            steady, asked = self._steady.get(told.watch), self._asked.get(told.watch)
        question = {"question": asked.question if asked is not None else ""}
        event = None if steady is None else steady.add(told)
        for broker in self._brokers if steady is not None and steady.turned else ():
            broker.state(question | as_dict(told))
        if steady is not None and not steady.settled:
            self._watcher.again(told.camera, told.watch)
        rows = [(put, as_dict(told)) for put in self._answers]
        rows += [(put, event.as_dict()) for put in self._events] if event is not None else []
        with ExitStack() as all_of_them:  # where one fails, the others get it nevertheless
            for put, row in reversed(rows):
                all_of_them.callback(put, question | row)

    def summary(self) -> dict[str, Any]:
        """Of the whole run, as plain values; ``late_by`` counts late answers by the stage that took most.

        A camera's ``dropped`` frames were never handed on, the ``replaced`` ones were answered from a newer one;
        ``thinned`` is what a watch was not asked about since too much was due, ``lines_lost`` what a sink could not
        write.
        """
        cameras = {
            name: {
                "state": feed.state,
                "reason": feed.reason,
                "frames": feed.frames,
                "dropped": feed.dropped,
                "replaced": self._replaced.get(name, 0),
                "reconnects": feed.reconnects,
            }
            for name, feed in self.feeds.items()
        }
        account = self.account.as_dict(self.settings.budget_ms)
        lost = {"thinned": self._thinned, "lines_lost": sum(sink.dropped for sink in self._sinks)}
        return {"answers": self.account.answers, **account, "late_by": dict(self._late), **lost, "cameras": cameras}


def _loaded(settings: AppSettings, base: Path) -> Ravlm:
    bundle = settings.bundle if settings.bundle == STARTER else base / settings.bundle
    memory = base / settings.memory
    read_only = not os.access(memory, os.W_OK)  # watching never writes, so read-only media serve as well
    return load(
        bundle, memory, budget_ms=settings.budget_ms, threads=settings.threads, create=False, read_only=read_only
    )


def _modified(path: Path | None) -> int:
    """Nanoseconds; 0 while there is no file, as in the middle of a replacement."""
    with suppress(OSError):
        return 0 if path is None else path.stat().st_mtime_ns
    return 0


@contextmanager
def _ended_by(number: signal.Signals, stop: threading.Event) -> Iterator[None]:
    """Take a signal as the wish to stop; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
