"""Events and states for an MQTT broker, where Home Assistant and others find them."""

from __future__ import annotations

import hashlib
import logging
import re
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_ravlm.errors import DataError, needs_extra
from edge_ravlm.machine import version
from edge_ravlm.runtime.watching.settings import SinkSettings, WatchSettings
from edge_ravlm.runtime.watching.sinks import CLOSE_S, MOST_WAITING

log = logging.getLogger(__name__)

RETRY_S = (1, 60)
"""How long a broker that is away is left alone: at first, doubled each time, and at most."""

_ATTRIBUTES = ("question", "confidence", "level", "reason", "evidence")
_NOT_LET_IN = (134, 135)
"""Bad user name or password; not authorized."""

_SHOWN = 255
"""Characters that a state of Home Assistant may have."""


class MqttSink:
    """Publishes below a topic of its own, and goes on doing so whenever the broker is there.

    ``CAMERA/WATCH/event`` has the events, each delivered at least once and in order, ``CAMERA/WATCH/answer`` answers
    that nobody waits for. ``CAMERA/WATCH/state`` and ``…/attributes`` are what holds now, and ``status`` is
    ``online`` or ``offline``; these are retained, and told again to a broker that is back, for it may have forgotten.

    Args:
        settings: of a sink of kind ``mqtt``.
        base: the folder that relative paths start from.

    Attributes:
        path: address and topic, for messages.
        dropped: events that did not fit any more or were not taken before closing; answers while the broker was away.
        stuck: whether events still waited when closing had to go on.

    Raises:
        MissingExtra: paho-mqtt is not installed.
        DataError: no usable ``password_file`` or ``ca_file``.
    """

    def __init__(self, settings: SinkSettings, base: Path) -> None:
        with needs_extra("apps"):
            from paho.mqtt import client, enums  # noqa: PLC0415  # an optional package
        port = settings.port or (8883 if settings.tls else 1883)
        self.path = f"mqtt://{settings.host}:{port}/{settings.topic}"
        self.dropped, self.stuck = 0, False
        self._topic, self._discovery = settings.topic, settings.discovery
        self._status = f"{settings.topic}/status"
        # Nothing is published with the lock held: the client calls back with a lock of its own.
        self._turn = threading.Condition()
        self._greeted = self._online = self._sending = self._ended = self._lossy = False
        self._complaints = set[str]()
        self._watches = dict[str, WatchSettings]()
        self._waiting = deque[tuple[str, bytes]]()
        self._retained, self._unsent = dict[str, bytes](), dict[str, bytes]()
        self._arrived = set[int]()

        self._client = client.Client(enums.CallbackAPIVersion.VERSION2)
        if settings.username:
            password = _password(base / settings.password_file) if settings.password_file else None
            self._client.username_pw_set(settings.username, password)
        if settings.tls:
            _trust(self._client, base / settings.ca_file if settings.ca_file else None)
        self._client.will_set(self._status, "offline", qos=1, retain=True)
        self._client.reconnect_delay_set(*RETRY_S)
        self._client.on_connect = self._on_connect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.connect_async(settings.host, port)
        self._client.loop_start()
        threading.Thread(target=self._deliver, name=f"sink {self.path}", daemon=True).start()

    # -- what is published -------------------------------------------------------------------------------------

    def put(self, row: dict[str, Any]) -> None:
        """Publish an event soon; returns at once."""
        message = (self._of(row, "event"), _json(row))
        with self._turn:
            if len(self._waiting) >= MOST_WAITING:
                self._lost(1, f"{MOST_WAITING} events wait for the broker")
                return
            self._waiting.append(message)
            self._turn.notify_all()

    def answer(self, row: dict[str, Any]) -> None:
        """Publish an answer, if the broker is there; returns at once."""
        with self._turn:
            if not self._online:
                self._lost(1, "no answers are kept while the broker is away")
                return
        self._client.publish(self._of(row, "answer"), _json(row))

    def state(self, row: dict[str, Any]) -> None:
        """An answer holds from now on; returns at once."""
        attributes = {key: row[key] for key in _ATTRIBUTES if key in row}
        with self._turn:
            watch = self._watches.get(row["watch"])
            if watch is not None and watch.camera == row["camera"]:  # otherwise it was removed a moment ago
                self._retain(self._of(row, "attributes"), _json(attributes))
                self._retain(self._of(row, "state"), str(row["text"]).encode())

    def watches(self, watches: Sequence[WatchSettings]) -> None:
        """These there are now: what is retained of others, and of what was asked otherwise or before, is taken back."""
        now = {watch.name: watch for watch in watches}
        with self._turn:
            for watch in self._watches.values():
                new = now.get(watch.name)
                if self._discovery and (new is None or new.camera != watch.camera):
                    self._retain(*self._sensor(watch, exists=False))
                if new != watch:
                    self._take_back(watch)
            for watch in watches:
                if watch.name not in self._watches:  # what an earlier run left would pass for what holds now
                    self._take_back(watch)
            for watch in watches if self._discovery else ():
                self._retain(*self._sensor(watch, exists=True))
            self._watches = now

    def _take_back(self, watch: WatchSettings) -> None:
        for what in ("attributes", "state"):
            self._retain(self._of({"camera": watch.camera, "watch": watch.name}, what), b"")

    def close(self) -> None:
        """Publish all that waits, then say that nothing more comes; a broker is waited for ``CLOSE_S`` at most."""
        until = time.monotonic() + CLOSE_S
        with self._turn:
            # What holds is of no use to a broker that is away: with the app it ends.
            self._turn.wait_for(
                lambda: not (self._waiting or self._sending or (self._online and self._unsent)), CLOSE_S
            )
            self._ended, self.stuck = True, bool(self._waiting)
            if self._waiting:
                self._lost(len(self._waiting), "the broker does not take them")
                self._waiting.clear()
            self._turn.notify_all()
        self._client.publish(self._status, "offline", retain=True)  # who takes leave leaves no last will
        self._client.disconnect()
        # It may be in the middle of connecting, which takes its time.
        stopping = threading.Thread(target=self._client.loop_stop, daemon=True)
        stopping.start()
        stopping.join(max(0.0, until - time.monotonic()))

    def _of(self, row: dict[str, Any], what: str) -> str:
        return f"{self._topic}/{row['camera']}/{row['watch']}/{what}"

    def _sensor(self, watch: WatchSettings, *, exists: bool) -> tuple[str, bytes]:
        """Topic and message with which Home Assistant adds a watch as a sensor, or removes it.

        The fields are those of https://www.home-assistant.io/integrations/sensor.mqtt/.
        """
        at = f"{self._topic}/{watch.camera}/{watch.name}"
        # Ids have letters without accents, digits, - and _ alone, so what tells two apart may be lost.
        readable = re.sub(r"[^a-zA-Z0-9_-]", "_", at)
        unique = f"{readable}_{hashlib.sha256(at.encode()).hexdigest()[:8]}"
        config = {
            "name": watch.name,
            "unique_id": unique,
            "state_topic": f"{at}/state",
            "value_template": f"{{{{ value[:{_SHOWN}] }}}}",
            "json_attributes_topic": f"{at}/attributes",
            "availability_topic": self._status,
            "qos": 1,
            "device": {
                "identifiers": [f"{self._topic}/{watch.camera}"],
                "name": watch.camera,
                "manufacturer": "EdgeRAVLM",
            },
            "origin": {"name": "EdgeRAVLM", "sw_version": version("edge-ravlm") or ""},
        }
        return f"{self._discovery}/sensor/{unique}/config", _json(config) if exists else b""

    # -- how it gets there -------------------------------------------------------------------------------------

    def _retain(self, topic: str, message: bytes) -> None:
        if self._retained.get(topic) != message:
            self._retained[topic] = self._unsent[topic] = message
            self._turn.notify_all()

    def _deliver(self) -> None:
        """One message after the other, the next when the one before arrived: so they stay in order.

        The client publishes what it has not heard of again when it is back. Retained messages come first, in their
        newest form.
        """
        while (message := self._next()) is not None:
            topic, payload, retain = message
            self._await(self._client.publish(topic, payload, qos=1, retain=retain).mid, is_event=not retain)

    def _next(self) -> tuple[str, bytes, bool] | None:
        """Topic, message and whether it is retained, once there is one and a broker; None at the end."""
        with self._turn:
            self._turn.wait_for(lambda: self._ended or (self._online and bool(self._unsent or self._waiting)))
            if self._ended:
                return None
            self._sending = True
            self._arrived.clear()
            if not self._unsent:
                return (*self._waiting[0], False)
            topic = next(iter(self._unsent))
            return topic, self._unsent.pop(topic), True

    def _await(self, number: int, *, is_event: bool) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._ended or number in self._arrived)
            self._sending = False
            if is_event and not self._ended:
                self._waiting.popleft()
            if self._complaints and not (self._ended or self._waiting or self._unsent):
                self._complaints.clear()
                self._lossy = False
                log.warning("sink '%s': the broker is back", self.path)
            self._turn.notify_all()

    def _lost(self, count: int, why: str) -> None:
        """Count what is not published, and say so once until the broker is back and has taken all."""
        self.dropped += count
        if not self._lossy:
            log.warning("sink '%s': lines are lost: %s", self.path, why)
        self._lossy = True

    # -- what the client tells, in its own thread --------------------------------------------------------------

    def _on_connect(self, _client: object, _data: object, _flags: object, reason: Any, _properties: object) -> None:
        self._greeted = True
        if reason.is_failure:
            check = "; check username and password_file" if reason.value in _NOT_LET_IN else ""
            self._complain(f"the broker refuses: {reason}{check}")
            return
        with self._turn:
            self._online = True
            self._unsent = {**self._retained, self._status: b"online"}
            self._turn.notify_all()

    def _on_connect_fail(self, *_: object) -> None:
        error = sys.exc_info()[1]  # it is called where that is handled
        check = "tls and ca_file" if isinstance(error, ssl.SSLError) else "host and port"
        self._complain(f"no broker: {getattr(error, 'strerror', None) or error}; check {check}")

    def _on_disconnect(self, *_: object) -> None:
        with self._turn:
            was_online, self._online = self._online, False
        if was_online:
            self._complain("the broker is gone")
        elif not self._greeted:
            self._complain("no broker: it hung up, or said nothing; check port and tls")
        self._greeted = False

    def _on_publish(self, _client: object, _data: object, number: int, _reason: object, _properties: object) -> None:
        with self._turn:
            if self._sending:
                self._arrived.add(number)
                self._turn.notify_all()

    def _complain(self, why: str) -> None:
        """Say it once until the broker has taken all: one that hangs up on something does so each time."""
        with self._turn:
            if why not in self._complaints and not self._ended:
                self._complaints.add(why)
                log.warning("sink '%s': %s; it is tried again, and events wait", self.path, why)


def _json(row: dict[str, Any]) -> bytes:
    return msgspec.json.encode(row, enc_hook=str)


def _password(path: Path) -> str:
    fault = ""
    try:
        password = path.read_text(encoding="utf-8").rstrip("\r\n")
    except UnicodeDecodeError:  # which would tell a part of it
        fault = "no text"
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        fault = getattr(error, "strerror", None) or str(error)
    else:
        if not 0 < len(password.encode()) <= 65_535:
            fault = f"one of {len(password.encode())} bytes"
    if fault:
        raise DataError(
            f"password_file '{path}'", expected="a readable file with a password", got=fault, do="check the path"
        )
    return password


def _trust(client: Any, authorities: Path | None) -> None:
    try:
        client.tls_set(None if authorities is None else str(authorities))
    except (OSError, ValueError) as error:  # also what OpenSSL finds wrong; ValueError: a name that no file can have
        raise DataError(
            f"ca_file '{authorities}'",
            expected="a readable file with certificates (PEM)",
            got=getattr(error, "strerror", None) or str(error),
            do="check the path",
        ) from None
