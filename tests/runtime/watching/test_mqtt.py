"""Sinks of kind mqtt at a real Mosquitto, which is stopped, killed, stalled, and started anew."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import DataError, MissingExtra
from edge_ravlm.runtime.watching import app as app_module
from edge_ravlm.runtime.watching import mqtt
from edge_ravlm.runtime.watching.app import App
from edge_ravlm.runtime.watching.mqtt import MqttSink
from edge_ravlm.runtime.watching.settings import SinkSettings, WatchSettings
from tests.runtime.watching import test_app
from tests.runtime.watching.test_app import CLOSED, OPEN, free_port, lines, running, written

paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")

Until = Callable[[Callable[[], bool]], None]

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/sbin")
needs_broker = pytest.mark.skipif(not MOSQUITTO, reason="no Mosquitto here: needs apt's mosquitto")
needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no OpenSSL here: needs apt's openssl")

GATE = WatchSettings(name="gate", camera="yard", question="is the gate open?")

home = test_app.home


@dataclass
class Message:
    topic: str
    payload: bytes
    qos: int
    retained: bool

    @property
    def row(self) -> Any:
        return json.loads(self.payload)


class Broker:
    """A Mosquitto in a process of its own, always on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.log = folder / "mosquitto.log"
        self._config = folder / "mosquitto.conf"
        self._process: subprocess.Popen[bytes] | None = None
        # Started as root, it would become another user, who may not look into the test's folder.
        self.lines = [f"listener {self.port} 127.0.0.1", "user root", "allow_anonymous true"]

    def start(self) -> None:
        """Returns once it listens."""
        self._config.write_text("\n".join([*self.lines, ""]), encoding="utf-8")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([str(MOSQUITTO), "-v", "-c", str(self._config)], stdout=log, stderr=log)
        while True:
            assert self._process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=20):
                return

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self.send(number)
            self._process.wait()
        self._process = None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def settings(self, **more: Any) -> SinkSettings:
        return SinkSettings(kind="mqtt", host="127.0.0.1", port=self.port, **more)

    def retained(self) -> dict[str, bytes]:
        """What a dashboard that connects now is told, by topic."""
        with Listener(self) as listener:
            return {message.topic: message.payload for message in listener.messages if message.retained}


class Listener:
    """Hears everything; with a name also what comes while it or the broker is away. Ready once it is entered."""

    def __init__(self, broker: Broker, name: str = "") -> None:
        self.messages: list[Message] = []
        self._ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, clean_session=not name)
        self._client.reconnect_delay_set(0.05, 0.05)
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda client, *_: client.publish("ready")  # comes after what is retained
        self._client.on_message = self._heard
        self._client.connect_async("127.0.0.1", broker.port)

    def _heard(self, _client: object, _data: object, message: Any) -> None:
        if message.topic == "ready":
            self._ready.set()
        else:
            self.messages.append(Message(message.topic, message.payload, message.qos, message.retain))

    def __enter__(self) -> Listener:
        self._client.loop_start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def of(self, topic: str) -> list[Message]:
        return [message for message in list(self.messages) if message.topic == topic]

    def numbers(self) -> list[int]:
        """Of events, as they first came: a broker that was stopped may tell once more what it has told."""
        return list(dict.fromkeys(one.row["frame"] for one in self.of("edge-ravlm/yard/gate/event")))


@pytest.fixture
def broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    monkeypatch.setattr(mqtt, "RETRY_S", (0.05, 0.05))
    monkeypatch.setattr(mqtt, "CLOSE_S", 30.0)
    broker = Broker(tmp_path)
    yield broker
    broker.stop(signal.SIGKILL)


@contextlib.contextmanager
def opened(settings: SinkSettings, base: Path = Path()) -> Iterator[MqttSink]:
    sink = MqttSink(settings, base)
    try:
        sink.watches([GATE])
        yield sink
    finally:
        sink.close()


def row(frame: int = 0, text: str = OPEN) -> dict[str, Any]:
    return {"question": GATE.question, "camera": "yard", "watch": "gate", "frame": frame, "text": text} | {
        "confidence": 0.9,
        "level": "retrieved",
        "reason": "",
        "evidence": [{"id": 1, "text": text, "score": 0.8}],
    }


def section(broker: Broker, more: str = "") -> str:
    return f'[[sinks]]\nkind = "mqtt"\nhost = "127.0.0.1"\nport = {broker.port}\n{more}\n'


# -- what is published ------------------------------------------------------------------------------------------------


@needs_broker
def test_events_answers_and_what_holds_arrive(home: Path, yard: Any, broker: Broker, until: Until) -> None:
    broker.start()
    more = section(broker, 'what = "answers"\ntopic = "house/edge"')
    with Listener(broker) as listener:
        with App(written(home, "mqtt.toml", yard, watch="agree = [2, 3]", more=more)) as app:
            until(lambda: bool(listener.of("house/edge/status")))  # before it is there, answers are not kept
            app.run()
        retained = broker.retained()
    events, answers = listener.of("house/edge/yard/gate/event"), listener.of("house/edge/yard/gate/answer")
    assert [one.row for one in events] == lines(home / "mqtt.toml.events.jsonl")
    assert [(one.row["text"], one.row["before"]) for one in events][:2] == [(CLOSED, None), (OPEN, CLOSED)]
    assert {(one.qos, one.retained) for one in events} == {(1, False)}
    assert [one.row for one in answers] == lines(home / "mqtt.toml.answers.jsonl")
    assert {(one.qos, one.retained) for one in answers} == {(0, False)}
    assert retained["house/edge/yard/gate/state"].decode() == OPEN
    attributes = json.loads(retained["house/edge/yard/gate/attributes"])
    assert (attributes["question"], attributes["level"]) == ("is the gate open?", events[-1].row["level"])
    assert attributes["evidence"] == events[-1].row["evidence"]
    assert [one.payload for one in listener.of("house/edge/status")] == [b"online", b"offline"]
    assert set(retained) == {f"house/edge/{one}" for one in ("yard/gate/state", "yard/gate/attributes", "status")}
    assert app.summary()["lines_lost"] == 0


@needs_broker
def test_what_holds_is_told_also_where_it_is_no_event(home: Path, yard: Any, broker: Broker) -> None:
    broker.start()
    more = section(broker)
    with Listener(broker) as listener:
        path = written(home, "no.toml", yard, camera="frames = 3", watch=f'answers = ["{OPEN}"]', more=more)
        with App(path) as app:
            app.run()
        assert broker.retained()["edge-ravlm/yard/gate/state"].decode() == CLOSED
    assert not listener.of("edge-ravlm/yard/gate/event")
    assert not listener.of("edge-ravlm/yard/gate/answer")


@needs_broker
def test_whoever_dies_is_offline(home: Path, yard: Any, broker: Broker, until: Until) -> None:
    broker.start()
    path = written(home, "dies.toml", yard, camera="loop = true", more=section(broker))
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with Listener(broker) as listener, subprocess.Popen([sys.executable, "-c", main, "run", str(path)], **pipes) as one:
        until(lambda: one.poll() is not None or len(listener.of("edge-ravlm/yard/gate/event")) > 1)
        assert [message.payload for message in listener.of("edge-ravlm/status")] == [b"online"]
        one.kill()
        said, _ = one.communicate()
        until(lambda: len(listener.of("edge-ravlm/status")) > 1)
    assert broker.retained()["edge-ravlm/status"] == b"offline", said


@needs_broker
def test_home_assistant_finds_watches_until_they_are_removed(
    home: Path, yard: Any, broker: Broker, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "RELOAD_S", 0.05)
    broker.start()
    sink = section(broker, 'discovery = "homeassistant"')
    other = '[[watches]]\nname = "gate.2"\ncamera = "yard"\nquestion = "is the gate open?"\n'
    same = '[[watches]]\nname = "gate_2"\ncamera = "yard"\nquestion = "is the gate open?"\n'
    path = written(home, "found.toml", yard, camera="loop = true", more=sink + other + same)
    with Listener(broker) as listener, App(path) as app, running(app):
        topics = [f"edge-ravlm/yard/{name}/state" for name in ("gate", "gate.2", "gate_2")]
        until(lambda: all(any(message.payload for message in listener.of(topic)) for topic in topics))
        retained = broker.retained()
        configs = {topic: json.loads(retained[topic]) for topic in retained if topic.startswith("homeassistant/")}
        assert sorted(one["name"] for one in configs.values()) == ["gate", "gate.2", "gate_2"]
        for topic, config in configs.items():
            assert topic == f"homeassistant/sensor/{config['unique_id']}/config"
            assert set(config["unique_id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
            assert {config[f"{one}_topic"] for one in ("state", "json_attributes", "availability")} <= set(retained)
            assert (config["device"]["name"], config["device"]["identifiers"]) == ("yard", ["edge-ravlm/yard"])
        written(home, "found.toml", yard, camera="loop = true", more=sink + same)
        (gone,) = [topic for topic, config in configs.items() if config["name"] == "gate.2"]
        last = {gone, "edge-ravlm/yard/gate.2/state", "edge-ravlm/yard/gate.2/attributes"}
        until(lambda: all(listener.of(topic)[-1].payload == b"" for topic in last))
        assert set(broker.retained()) == set(retained) - last


@needs_broker
def test_what_a_changed_watch_said_before_holds_no_more(broker: Broker, until: Until) -> None:
    broker.start()
    with opened(broker.settings(discovery="ha")) as sink:
        sink.state(row())
        until(lambda: "edge-ravlm/yard/gate/state" in broker.retained())
        changed = WatchSettings(name="gate", camera="yard", question="is the door open?")
        sink.watches([changed])
        until(lambda: "edge-ravlm/yard/gate/state" not in broker.retained())
        sink.watches([WatchSettings(name="gate", camera="street", question="is the door open?")])
        sink.state(row())  # of the camera before
    retained = broker.retained()
    (config,) = [json.loads(text) for topic, text in retained.items() if topic.startswith("ha/")]
    assert config["state_topic"] == "edge-ravlm/street/gate/state"
    assert "edge-ravlm/yard/gate/state" not in retained


@needs_broker
def test_what_held_when_the_app_ended_does_not_pass_for_what_holds_now(broker: Broker, until: Until) -> None:
    broker.start()
    with opened(broker.settings()) as sink:
        sink.state(row(text=OPEN))
        until(lambda: broker.retained().get("edge-ravlm/yard/gate/state") == OPEN.encode())
    assert broker.retained()["edge-ravlm/yard/gate/state"] == OPEN.encode()
    with opened(broker.settings()) as sink:
        until(lambda: broker.retained().get("edge-ravlm/status") == b"online")
        assert broker.retained().keys() == {"edge-ravlm/status"}
        sink.state(row(text=CLOSED))
        until(lambda: broker.retained().get("edge-ravlm/yard/gate/state") == CLOSED.encode())


# -- brokers that come and go -----------------------------------------------------------------------------------------


@needs_broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_lost_and_all_in_order_while_the_broker_is_away(
    broker: Broker, until: Until, tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    broker.lines += ["persistence true", f"persistence_location {tmp_path}/", "autosave_on_changes true"]
    broker.lines += ["autosave_interval 1"]  # so that it knows its listener also after it was killed
    broker.start()
    with Listener(broker, "dashboard") as listener, opened(broker.settings()) as sink:
        for frame in range(5):
            sink.put(row(frame))
        until(lambda: listener.numbers() == list(range(5)))
        broker.stop(number)
        until(lambda: "the broker is gone" in caplog.text)
        for frame in range(5, 25):
            sink.put(row(frame))
        broker.start()
        for frame in range(25, 30):
            sink.put(row(frame))
        until(lambda: listener.numbers() == list(range(30)))
    assert (sink.dropped, sink.stuck) == (0, False)
    assert caplog.text.count("the broker is back") == 1


@needs_broker
def test_a_broker_that_forgot_everything_is_told_again(broker: Broker, until: Until) -> None:
    broker.start()
    with opened(broker.settings(discovery="homeassistant")) as sink:
        sink.state(row())
        until(lambda: len(broker.retained()) == 4)
        before = broker.retained()
        broker.stop()
        sink.state(row(text=CLOSED))
        broker.start()
        until(lambda: len(broker.retained()) == 4)
        assert set(broker.retained()) == set(before)
        assert broker.retained()["edge-ravlm/yard/gate/state"].decode() == CLOSED
        assert broker.retained()["edge-ravlm/status"] == b"online"


@needs_broker
def test_what_does_not_fit_while_it_is_away_is_counted_and_said_once(
    broker: Broker, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt, "MOST_WAITING", 5)
    broker.lines += ["persistence true", f"persistence_location {broker.log.parent}/"]
    broker.start()
    with Listener(broker, "dashboard"):
        pass  # from now on its messages are kept
    broker.stop()
    with opened(broker.settings()) as sink:
        until(lambda: "no broker: Connection refused; check host and port" in caplog.text)
        for frame in range(8):
            sink.put(row(frame))
        sink.answer(row())
        assert sink.dropped == 4
        broker.start()
        with Listener(broker, "dashboard") as listener:
            until(lambda: listener.numbers() == list(range(5)))
            sink.put(row(9))
            until(lambda: listener.numbers() == [*range(5), 9])
    assert caplog.text.count("lines are lost: 5 events wait for the broker") == 1
    assert caplog.text.count("lines are lost") == 1
    assert caplog.text.count("Connection refused") == 1


@needs_broker
def test_a_broker_that_hangs_up_on_each_event_is_complained_of_once(
    broker: Broker, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt, "CLOSE_S", 0.1)
    broker.lines += ["max_packet_size 100"]  # enough for its status
    broker.start()
    with opened(broker.settings()) as sink:
        sink.put(row())
        until(lambda: broker.log.read_text().count("New client connected") > 3)
    assert caplog.text.count("the broker is gone") == 1
    assert (sink.dropped, sink.stuck) == (1, True)


@needs_broker
def test_closing_waits_for_a_broker_that_stalls_but_not_for_ever(
    broker: Broker, until: Until, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt, "CLOSE_S", 0.1)
    broker.start()
    with Listener(broker) as listener, opened(broker.settings()) as sink:
        until(lambda: bool(listener.of("edge-ravlm/status")))
        broker.send(signal.SIGSTOP)
        for frame in range(3):
            sink.put(row(frame))
        sink.close()
        assert (sink.dropped, sink.stuck) == (3, True)
        assert caplog.text.count("lines are lost: the broker does not take them") == 1
        broker.send(signal.SIGCONT)
        until(lambda: listener.of("edge-ravlm/status")[-1].payload == b"offline")


# -- who is let in ----------------------------------------------------------------------------------------------------


@needs_broker
def test_a_wrong_password_is_said_once_and_a_right_one_opens(
    broker: Broker, until: Until, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    subprocess.run(["mosquitto_passwd", "-b", "-c", tmp_path / "users", "cam", "s3cret"], check=True)
    broker.lines += [f"password_file {tmp_path}/users"]
    broker.lines.remove("allow_anonymous true")
    broker.start()
    (tmp_path / "wrong").write_text("gu3ss\n")
    (tmp_path / "right").write_text("s3cret\n")
    with opened(broker.settings(username="cam", password_file="wrong"), tmp_path):
        until(lambda: broker.log.read_text().count("not authorised") > 2)
    refused = "the broker refuses: Not authorized; check username and password_file; it is tried again"
    assert caplog.text.count(refused) == 1
    with opened(broker.settings(username="cam", password_file="right"), tmp_path) as sink:
        sink.put(row())
    assert (sink.dropped, sink.stuck) == (0, False)
    assert "s3cret" not in caplog.text
    assert "gu3ss" not in caplog.text
    assert caplog.text.count("the broker") == 1, "no other complaint"


def test_a_password_that_cannot_be_read_is_named(home: Path, yard: Any, capsys: pytest.CaptureFixture[str]) -> None:
    more = '[[sinks]]\nkind = "mqtt"\nhost = "127.0.0.1"\nusername = "cam"\npassword_file = "broker.password"\n'
    path = written(home, "secret.toml", yard, more=more)
    assert command(["run", str(path)]) == 1
    said = f"password_file '{home}/broker.password': expected a readable file with a password, got No such file"
    assert said in " ".join(capsys.readouterr().err.split())
    settings = SinkSettings(kind="mqtt", host="127.0.0.1", username="cam", password_file="broker.password")
    for content, got in ((b"\n", "one of 0 bytes"), (b"\xff\xfe", "no text"), (b"x" * 70_000, "one of 70000 bytes")):
        (home / "broker.password").write_bytes(content)
        with pytest.raises(DataError, match=got):
            MqttSink(settings, home)
    for key, more in (("password_file", {"username": "cam"}), ("ca_file", {"tls": True})):
        with pytest.raises(DataError, match=f"{key} '.*embedded null"):
            MqttSink(SinkSettings(kind="mqtt", host="127.0.0.1", **more, **{key: "a\0b"}), home)  # type: ignore[arg-type]


def test_without_the_extra_it_is_named(home: Path, yard: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho", None)
    monkeypatch.delitem(sys.modules, "paho.mqtt", raising=False)
    path = written(home, "extra.toml", yard, more='[[sinks]]\nkind = "mqtt"\nhost = "127.0.0.1"\n')
    with pytest.raises(MissingExtra, match=r'package paho\S*: expected it to be installed.*pip install "\.\[apps\]"'):
        App(path)


@needs_broker
@needs_openssl
@pytest.mark.filterwarnings("ignore:Exception ignored in. <ssl.SSLSocket")  # the client leaves it to the collector
def test_encrypted_where_the_broker_is_who_it_says(
    broker: Broker, until: Until, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(made, cwd=tmp_path, check=True, capture_output=True)
    broker.lines += [f"certfile {tmp_path}/cert.pem", f"keyfile {tmp_path}/key.pem"]
    broker.start()
    with opened(broker.settings(tls=True, ca_file="cert.pem"), tmp_path) as sink:
        sink.put(row())
    assert (sink.dropped, sink.stuck, caplog.text) == (0, False, "")
    with opened(broker.settings(tls=True)):
        until(lambda: "certificate verify failed" in caplog.text)
    assert "check tls and ca_file" in caplog.text
    with opened(broker.settings()):
        until(lambda: "it hung up, or said nothing; check port and tls" in caplog.text)
    (tmp_path / "none.pem").write_text("no certificate")
    for name in ("none.pem", "away.pem"):
        with pytest.raises(DataError, match=rf"ca_file '.*{name}': expected a readable file with certificates \(PEM\)"):
            MqttSink(broker.settings(tls=True, ca_file=name), tmp_path)
