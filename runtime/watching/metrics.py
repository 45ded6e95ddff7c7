"""A Prometheus endpoint: what is late, what is held, how old it is, and which cameras are there."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from edge_ravlm.errors import StorageError, needs_extra
from edge_ravlm.runtime.answer import Latency
from edge_ravlm.runtime.watching.lanes import Told

if TYPE_CHECKING:
    from edge_ravlm.runtime.watching.feeds import Feed

_BUCKETS_MS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100, 150, 250, 500, 1000)
_AGES = (0, 1, 2, 3, 5, 10, 30, 100)
STATES = ("opening", "running", "lost", "frozen", "ended", "closed")

WAITING = "waiting"
"""The stage between capture and the first of the others."""


class Metrics:
    """Counts what is told, and serves it over HTTP; port 0 counts nothing.

    Args:
        port: of ``/metrics``.
        host: the address that listens.

    Raises:
        MissingExtra: prometheus-client is not installed.
        StorageError: the port is taken, or the address is none of this machine.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self._server: Any = None
        if not port:
            return
        with needs_extra("apps"):
            import prometheus_client as prometheus  # noqa: PLC0415  # an optional package
        self.registry = prometheus.CollectorRegistry()
        given: dict[str, Any] = {"namespace": "edge_ravlm", "registry": self.registry}
        by_watch = ("camera", "watch")
        self._latency = prometheus.Histogram(
            "answer_milliseconds", "From capture to answer.", by_watch, buckets=_BUCKETS_MS, **given
        )
        self._stage = prometheus.Histogram(
            "stage_milliseconds", "Stages of answers.", ("stage",), buckets=_BUCKETS_MS, **given
        )
        self._age = prometheus.Histogram(
            "age_frames", "Frames since the one that an answer rests on.", by_watch, buckets=_AGES, **given
        )
        self._levels = prometheus.Counter("answers", "Answers by level.", (*by_watch, "level"), **given)
        self._misses = prometheus.Counter("misses", "Late answers by what took longest.", (*by_watch, "stage"), **given)
        self._state = prometheus.Gauge("camera_state", "1 for the state a camera is in.", ("camera", "state"), **given)
        self._frames = prometheus.Gauge("camera_frames", "Frames that were handed on.", ("camera",), **given)
        self._reconnects = prometheus.Gauge("camera_reconnects", "Times that it came back.", ("camera",), **given)
        try:
            self._server, self._thread = prometheus.start_http_server(port, host, self.registry)
        except (OSError, UnicodeError) as error:  # UnicodeError: a host that no name can be
            raise StorageError(
                f"metrics_port {port} of {host}",
                expected="a free port of this machine",
                got=getattr(error, "strerror", None) or str(error),
                do="choose another port or host",
            ) from None

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            thread: threading.Thread = self._thread
            thread.join()

    def told(self, told: Told) -> None:
        """An answer was given."""
        if self._server is None:
            return
        latency, names = told.answer.latency, (told.camera, told.watch)
        self._latency.labels(*names).observe(latency.total_ms)
        self._age.labels(*names).observe(told.age_frames)
        self._levels.labels(*names, told.answer.level.value).inc()
        for stage, spent_ms in latency.stages_ms.items():
            self._stage.labels(stage).observe(spent_ms)
        if told.is_late:
            self._misses.labels(*names, longest(latency)).inc()

    def camera(self, feed: Feed) -> None:
        """A camera's state changed."""
        if self._server is None:
            return
        name = feed.settings.name
        for state in STATES:
            self._state.labels(name, state).set(state == feed.state)
        self._frames.labels(name).set_function(lambda: feed.frames)
        self._reconnects.labels(name).set_function(lambda: feed.reconnects)


def longest(latency: Latency) -> str:
    """The stage that took most of an answer's time; ``waiting`` where that was before all of them."""
    stages = {**latency.stages_ms, WAITING: latency.total_ms - sum(latency.stages_ms.values())}
    return max(stages, key=lambda stage: stages[stage])
