"""``APP.toml``: cameras, what is asked about them, and where the answers go; one validated file.

::

    memory = "home.memory"

    [[cameras]]
    name = "drive"
    source = "rtsp://camera.local/stream"

    [[watches]]
    name = "garage"
    camera = "drive"
    question = "is the garage door open?"
    region = "40,60,200,180"
    answers = ["the garage door is open"]
    agree = [2, 3]
    cool_down_s = 60

    [[sinks]]
    kind = "file"
    path = "events.jsonl"
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints

import msgspec
from msgspec import Meta

from edge_ravlm.errors import DataError, EdgeRavlmError, UsageError
from edge_ravlm.frames import MAX_PIXELS, Region
from edge_ravlm.runtime.encoders import check_question
from edge_ravlm.runtime.generation import check_hops
from edge_ravlm.runtime.memory import Where
from edge_ravlm.runtime.watching.lanes import Watch
from edge_ravlm.runtime.watching.process import NICE

Name = Annotated[str, Meta(pattern=r"^[\w.-]{1,64}\Z")]
Positive = Annotated[float, Meta(gt=0, le=1e9)]  # not infinite
Least0 = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1, le=64)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A misspelt key is an error, not a default."""


class CameraSettings(_Strict, frozen=True):
    """A camera.

    Attributes:
        name: what answers call it.
        source: see ``open_camera``; a path is relative to the file.
        fps: frames a second that are looked at, at most; 0 takes all.
        frames: that are looked at, at most; 0 goes on until the source ends.
        loop: start a recording again at its end.
        frozen_s: seconds of identical pictures after which a live source counts as frozen; 0 never. A video encoder
            that controls its rate makes something different of the same picture each time, which is not noticed.
    """

    name: Name
    source: str
    fps: Least0 = 0.0
    frames: Annotated[int, Meta(ge=0)] = 0
    loop: bool = False
    frozen_s: Least0 = 10.0


class WatchSettings(_Strict, frozen=True):
    """A question that is asked again and again.

    Attributes:
        name: what answers call it.
        camera: by its name.
        question: a sentence.
        region: ``x0,y0,x1,y1`` or ``NAME=…``, as in ``Region.parse``; the whole picture without it.
        tags: only memories with these are used.
        every_ms: least time between two frames that it is asked about; 0 asks about every frame.
        on_motion: ask only where something moved since it was last asked, then until the answer holds: until it was
            found in time, ``agree`` do, and it has cooled down.
        budget_ms: from a frame's capture to its answer; the app's without it.
        priority: share of the machine, relative to others', where there is too little for all.
        generate, hops: see ``Ravlm.ask``.
        answers: that are events; all are, without any.
        agree: of the last m answers n have to be the same before it is an event.
        cool_down_s: least time between two events with the same answer; one that still holds then is an event then.
    """

    name: Name
    camera: Name
    question: str
    region: str | None = None
    tags: dict[str, str | int | float | bool] = {}
    every_ms: Least0 = 0.0
    on_motion: bool = False
    budget_ms: Positive | None = None
    priority: Positive = 1.0
    generate: bool = False
    hops: int = 1
    answers: tuple[str, ...] = ()
    agree: tuple[Count, Count] = (1, 1)
    cool_down_s: Least0 = 0.0

    @property
    def looked_at(self) -> Region | None:
        """The region."""
        return None if self.region is None else Region.parse(self.region)


class SinkSettings(_Strict, frozen=True):
    """Where answers go: a JSON object a line, or messages to an MQTT broker, which the keys from ``host`` on are for.

    Attributes:
        kind: ``stdout``, ``file`` or ``mqtt``.
        path: of the file, which is appended to; relative to the app's.
        what: ``events`` (changes that hold), or all ``answers``; over MQTT these come beside the events.
        host: of the broker.
        port: where it listens; 0 is 1883, or 8883 with ``tls``.
        topic: what all topics begin with; an app's own.
        username: that the broker knows, if it asks for one.
        password_file: a file with the password alone; relative to the app's.
        tls: talk to the broker encrypted, and check who it is.
        ca_file: certificates of those who may vouch for it; relative to the app's; the system's without it.
        discovery: what Home Assistant's discovery topics begin with, usually ``homeassistant``; without it, there are
            none.
    """

    kind: Literal["stdout", "file", "mqtt"] = "stdout"
    path: str = ""
    what: Literal["events", "answers"] = "events"
    host: str = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    topic: str = "edge-ravlm"
    username: str = ""
    password_file: str = ""
    tls: bool = False
    ca_file: str = ""
    discovery: str = ""


class AppSettings(_Strict, frozen=True):
    """A whole app.

    Attributes:
        memory: folder of the memory; relative to the file.
        bundle: a folder, a ``.zip``, or ``starter``.
        threads: CPU threads of the models; None takes up to four.
        looking: frames that are looked at at once; more than one pays where answers are written in words.
        budget_ms: of watches that name none.
        pin: CPUs to stay on; all without any.
        nice: how much this process goes before others (-20 to 19, less is more), where that is allowed; 0 leaves it.
        lock_memory: keep what is mapped in main memory, where that is allowed.
        metrics_port: of a Prometheus endpoint; 0 opens none.
        metrics_host: the address where it listens; this machine alone hears it unless that is another one, such as
            ``0.0.0.0`` for all networks.
    """

    memory: str
    cameras: Annotated[tuple[CameraSettings, ...], Meta(min_length=1)]
    watches: Annotated[tuple[WatchSettings, ...], Meta(min_length=1)]
    bundle: str = "starter"
    threads: Count | None = None
    looking: Count = 1
    budget_ms: Positive = 100.0
    pin: tuple[Annotated[int, Meta(ge=0)], ...] = ()
    nice: Annotated[int, Meta(ge=-20, le=19)] = NICE
    lock_memory: bool = False
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    metrics_host: str = "127.0.0.1"
    sinks: tuple[SinkSettings, ...] = (SinkSettings(),)

    def watch(self, of: WatchSettings) -> Watch:
        """What of a watch concerns its deadlines."""
        budget_ms = self.budget_ms if of.budget_ms is None else of.budget_ms
        return Watch(of.name, of.camera, budget_ms, of.every_ms, of.priority, of.on_motion, of)


def read_app(path: Path) -> AppSettings:
    """An app's file, checked as a whole.

    Raises:
        DataError: no such file, no TOML, an unknown key, a value out of range, or names that do not fit together.
    """
    try:
        app = msgspec.toml.decode(path.read_text(encoding="utf-8"), type=AppSettings)
        check_app(app)
    except OSError as error:
        raise DataError(
            f"app '{path}'",
            expected="a readable TOML file",
            got=error.strerror or str(error),
            do="check the path, or give a camera with --source",
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"app '{path}'", expected="a TOML file", got="no text", do="give a camera or a recording with --source"
        ) from None
    except (msgspec.DecodeError, EdgeRavlmError, ValueError, RecursionError) as error:
        fault = str(error).rstrip(".")
        raise DataError(f"app '{path}'", expected="a valid app", got=fault, do=_remedy(fault)) from None
    return app


_PARTS = {"cameras": CameraSettings, "watches": WatchSettings, "sinks": SinkSettings}


def _remedy(fault: str) -> str:
    """What to do about a fault that msgspec found, with the names that may stand there."""
    at = re.search(r"`\$\.(\w+)\[\d+\](?:\.(\w+))?`$", fault)
    part = AppSettings if at is None else _PARTS[at[1]]
    if "unknown field" in fault:
        return f"use one of {', '.join(part.__struct_fields__)}"
    if "Invalid enum value" in fault and at is not None:
        return f"use {' or '.join(get_args(get_type_hints(part)[at[2]]))}"
    return "correct it"


def check_app(app: AppSettings) -> None:
    """Raises ValueError, or the error of the part at fault, for what the types alone do not tell."""
    cameras, watches = ([one.name for one in part] for part in (app.cameras, app.watches))
    for what, names in (("cameras", cameras), ("watches", watches)):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two {what} named '{twice[0]}'")
    for watch in app.watches:
        if watch.camera not in cameras:
            raise ValueError(f"watch '{watch.name}' of camera '{watch.camera}', which is none of {', '.join(cameras)}")
        if watch.agree[0] > watch.agree[1]:
            raise ValueError(f"watch '{watch.name}' with agree = {list(watch.agree)}, more than there are")
        check_question(watch.question)
        check_hops(watch.hops)
        _ = Where(tags=watch.tags)
        x, y = zip(*(watch.looked_at.points if watch.looked_at else ((0, 0),)), strict=True)
        if min(*x, *y, 0) < 0 or max(x) * max(y) > MAX_PIXELS:
            raise UsageError(
                f"watch '{watch.name}'",
                expected=f"a region of a picture of at most {MAX_PIXELS // 1_000_000} megapixels",
                got=f"'{watch.region}'",
                do="give the corners in pixels of the camera's frames",
            )
    for sink in app.sinks:
        _check_sink(sink)


_TOPIC = re.compile(r"(?!\$)[^/+#\x00-\x1f\x7f]+(/[^/+#\x00-\x1f\x7f]+)*")
_HOST = re.compile(r"[^\s/\x00-\x1f\x7f]+")


def _check_sink(sink: SinkSettings) -> None:
    for key, kind in (("path", "file"), ("host", "mqtt")):
        if (sink.kind == kind) != bool(getattr(sink, key)):
            raise ValueError(f"a sink of kind {sink.kind} {'without' if sink.kind == kind else 'with'} a {key}")
    if sink.kind != "mqtt":
        if sink != SinkSettings(kind=sink.kind, path=sink.path, what=sink.what):
            raise ValueError(f"a sink of kind {sink.kind} with keys that are for mqtt")
        return
    for key, topic in (("topic", sink.topic), ("discovery", sink.discovery or "none")):
        if not _TOPIC.fullmatch(topic) or len(topic) > _LONGEST_TOPIC:
            raise ValueError(
                f"a sink of kind mqtt whose {key} is {topic!r}, not levels with single slashes between, without +, # "
                f"and control characters, no $ in front, {_LONGEST_TOPIC} characters at most"
            )
    if not _HOST.fullmatch(sink.host) or not _is_name(sink.host):
        raise ValueError(f"a sink of kind mqtt whose host is {sink.host!r}, no name or address of a machine")
    for key, needed in (("password_file", "username"), ("ca_file", "tls")):
        if getattr(sink, key) and not getattr(sink, needed):
            raise ValueError(f"a sink of kind mqtt with a {key}, but without {needed}")


_LONGEST_TOPIC = 200


def _is_name(host: str) -> bool:
    """Whether its parts are as long as those of a name may be."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
