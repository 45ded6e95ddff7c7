"""A served app, over real HTTP: what it sees and says, teaching and asking, and who may come in."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from edge_ravlm.cli import run as command
from edge_ravlm.errors import DataError, StorageError, UsageError
from edge_ravlm.runtime.memory import Memory
from edge_ravlm.runtime.serving import server as server_module
from edge_ravlm.runtime.serving.board import Board
from edge_ravlm.runtime.serving.desk import Desk
from edge_ravlm.runtime.serving.guard import MOST_BYTES
from edge_ravlm.runtime.serving.server import Server, read_token
from tests.runtime.serving.conftest import served

CLOSED, OPEN = "the gate is closed", "the gate is open"
TOKEN = "0123456789abcdef"
Until = Callable[[Callable[[], bool]], None]


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def call(
    url: str,
    path: str,
    body: Any = None,
    *,
    raw: str | None = None,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        given = {"Content-Type": "application/json", **(headers or {})}
        sent = raw if body is None else json.dumps(body)
        connection.request(method or ("GET" if sent is None else "POST"), path, sent, given)
        reply = connection.getresponse()
        return Reply(reply.status, dict(reply.getheaders()), reply.read())
    finally:
        connection.close()


def picture_of(body: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)


def base64_of(picture: Any) -> str:
    return base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()


def test_state_tells_cameras_watches_and_memory(house: Any) -> None:
    state = call(house.url, "/api/state").json
    assert state["memory"]["entries"] == 1
    assert [camera["name"] for camera in state["cameras"]] == ["yard", "wide", "gone"]
    yard, _, gone = state["cameras"]
    assert (yard["width"], yard["height"], yard["state"]) == (640, 360, "ended")
    assert 1 <= yard["frames"] <= 3
    assert gone["state"] == "ended"
    assert "gone.mp4" in gone["reason"]
    (gate,) = state["watches"]
    assert gate["region"] == house.gate
    assert gate["answer"]["text"] == CLOSED
    assert [one["text"] for one in gate["answer"]["evidence"]] == [CLOSED]


def test_what_a_browser_wants_does_not_go_before_the_cameras_answers(house: Any) -> None:
    for _ in range(4):
        assert call(house.url, "/api/state").status == 200
    threads = [one for one in threading.enumerate() if one.name == "server" or one.name.startswith("AnyIO")]
    assert len(threads) > 1
    own = os.getpriority(os.PRIO_PROCESS, os.getpid())  # below 0 while the app watches, where that is allowed
    assert {os.getpriority(os.PRIO_PROCESS, one.native_id or 0) for one in threads} == {max(1, own)}


def test_cameras_that_have_ended_are_still_asked_about(house: Any) -> None:
    asked = call(house.url, "/api/ask", {"camera": "yard", "question": "is the gate open?", "region": house.gate})
    assert (asked.status, asked.json["text"]) == (200, CLOSED)
    assert asked.json["latency"]["total_ms"] < 60_000  # since the question, not since the frame


def test_a_picture_is_the_newest_frame_and_no_wider_than_a_screen(house: Any, yard: Any) -> None:
    reply = call(house.url, "/api/cameras/yard/frame.jpg")
    assert reply.headers["content-type"] == "image/jpeg"
    shown = picture_of(reply.body).astype(int)
    assert shown.shape == (360, 640, 3)
    assert abs(shown - yard.closed_later).mean() < 6
    assert picture_of(call(house.url, "/api/cameras/wide/frame.jpg").body).shape == (720, 1280, 3)


def test_an_image_of_the_callers_is_asked_about(house: Any, yard: Any) -> None:
    given = {"image": base64_of(yard.closed_later), "question": "is the gate open?", "region": house.gate}
    assert call(house.url, "/api/ask", given).json["text"] == CLOSED


def test_what_is_taught_is_answered_from_and_on_disk_and_what_is_forgotten_is_gone(house: Any, yard: Any) -> None:
    lesson = {
        "image": base64_of(yard.open),
        "text": OPEN,
        "answer": "open",
        "region": house.gate,
        "tags": {"by": "hand", "count": 2, "sure": True},
    }
    made = call(house.url, "/api/memories", lesson)
    assert made.status == 201
    question = {"image": base64_of(yard.open_later), "question": "is the gate open?", "region": house.gate}
    answer = call(house.url, "/api/ask", question).json
    assert answer["text"] == "open"
    assert answer["evidence"][0] | {"score": 0} == {"id": made.json["id"], "text": OPEN, "score": 0}
    with Memory.open(house.folder / "yard.memory", create=False, read_only=True) as memory:
        (entry,) = memory.get([made.json["id"]])
        assert (entry.text, entry.answer) == (OPEN, "open")
        assert dict(entry.tags) == {"by": "hand", "count": 2, "sure": True, "region": "gate"}
    assert call(house.url, f"/api/memories/{made.json['id']}", method="DELETE").json == {"removed": 1}
    assert call(house.url, "/api/ask", question).json["text"] != "open"
    gone = call(house.url, f"/api/memories/{made.json['id']}", method="DELETE")
    assert gone.status == 404
    assert f"entry {made.json['id']}" in gone.json["error"]


def test_what_a_camera_shows_is_taught_and_a_watch_says_it_from_the_next_frame_on(
    house: Any, until: Until, home: Path
) -> None:
    assert call(house.url, "/api/memories/1", method="DELETE").status == 200
    made = call(house.url, "/api/memories", {"camera": "yard", "text": "the gate is shut", "region": house.gate})
    assert made.status == 201
    home.write_text(home.read_text().replace('source = "stills"', 'source = "stills"\nloop = true'))  # more frames
    until(lambda: house.board.answer_of("gate")["text"] == "the gate is shut")


def test_an_answer_to_what_was_asked_before_is_not_shown_for_another_question(
    house: Any, until: Until, home: Path
) -> None:
    home.write_text(home.read_text().replace("is the gate open?", "is the door open?"))  # its camera has ended
    until(lambda: call(house.url, "/api/state").json["watches"][0]["question"] == "is the door open?")
    assert call(house.url, "/api/state").json["watches"][0]["answer"] is None


def test_memories_are_listed_newest_first_and_searched(house: Any, yard: Any) -> None:
    first = house.app.ravlm.memory.add([house.app.ravlm.entry(None, "the key hangs in the cellar")])[0]
    second = call(house.url, "/api/memories", {"image": base64_of(yard.open), "text": OPEN}).json["id"]
    listed = call(house.url, "/api/memories").json
    assert listed["entries"] == 3
    assert [entry["id"] for entry in listed["shown"]] == [second, first, 1]
    assert [entry["pictured"] for entry in listed["shown"]] == [True, False, True]
    assert [entry["id"] for entry in call(house.url, "/api/memories?limit=1").json["shown"]] == [second]
    found = call(house.url, "/api/memories?text=where+is+the+key&limit=2").json["shown"]
    assert found[0]["id"] == first
    assert found[0]["score"] > found[1]["score"]
    assert call(house.url, "/api/memories?limit=0").status == 400
    thumbnail = call(house.url, f"/api/memories/{second}/thumbnail.jpg")
    assert picture_of(thumbnail.body).shape == (224, 224, 3)
    assert call(house.url, f"/api/memories/{first}/thumbnail.jpg").status == 404


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"camera": "yard", "question": ""}, 400, "question"),
        ({"camera": "garden", "question": "is it open?"}, 400, "yard, wide, gone"),
        ({"camera": "gone", "question": "is it open?"}, 503, "gone.mp4"),
        ({"question": "is it open?"}, 400, "neither"),
        ({"camera": "yard", "image": "AAAA", "question": "is it open?"}, 400, "both"),
        ({"image": "***", "question": "is it open?"}, 400, "base64"),
        ({"image": "AAAA", "question": "is it open?"}, 400, "JPEG, PNG"),
        ({"camera": "yard", "question": "is it open?", "region": "1,2"}, 400, "region"),
        ({"camera": "yard", "question": "is it open?", "region": "0,0,9999,9999"}, 400, "640x360"),
        ({"camera": "yard", "question": "is it open?", "budget_ms": -1}, 400, "budget"),
        ({"camera": "yard", "question": "is it open?", "hop": 2}, 400, "hop"),
        ({"camera": "yard", "question": 7}, 400, "question"),
        ({"camera": "yard"}, 400, "question"),
        ([], 400, "JSON object"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_in_a_sentence(
    house: Any, body: Any, status: int, says: str
) -> None:
    reply = call(house.url, "/api/ask", body)
    assert reply.status == status
    assert says in reply.json["error"]
    assert reply.json["error"].endswith(".")


def test_what_is_no_request_of_this_servers_is_refused_in_a_sentence_too(house: Any) -> None:
    half = "\ud800"  # of a surrogate pair: JSON can hold it, UTF-8 cannot
    for body in ({"camera": half}, {"camera": "yard", "region": f"{half}=1"}):
        reply = call(house.url, "/api/ask", {"question": "is it open?", **body})
        assert (reply.status, "'?" in reply.json["error"]) == (400, True)
    plain = {"Content-Type": "text/plain"}
    for body, headers in (("{", None), ("9" * 5000, None), ("{}", plain), ("camera=yard", plain), ("", None)):
        reply = call(house.url, "/api/ask", raw=body, headers=headers)
        assert (reply.status, "JSON object" in reply.json["error"]) == (400, True)
    unknown = call(house.url, "/api/nothing")
    assert (unknown.status, "/api/nothing" in unknown.json["error"]) == (404, True)
    other = call(house.url, "/api/state", method="DELETE")
    assert (other.status, "DELETE /api/state" in other.json["error"], other.headers["allow"]) == (405, True, "GET")


def test_events_of_before_and_of_later_are_told(house: Any) -> None:
    connection = http.client.HTTPConnection(urlsplit(house.url).netloc, timeout=60)
    connection.request("GET", "/api/events")
    stream = connection.getresponse()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.headers["x-accel-buffering"] == "no"  # else a proxy would keep them for itself
    before = json.loads(stream.readline().removeprefix(b"data: "))
    assert (before["text"], before["before"], before["question"]) == (CLOSED, None, "is the gate open?")
    house.board.event({**before, "text": OPEN, "before": CLOSED})
    assert stream.readline() == b"\n"
    assert json.loads(stream.readline().removeprefix(b"data: "))["text"] == OPEN
    stream.close()
    connection.close()


def test_the_page_comes_with_all_that_it_needs_and_from_nowhere_else(house: Any) -> None:
    page = call(house.url, "/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    parts = re.findall(r'(?:src|href)="([^":]+)"', page.body.decode())
    assert sorted(parts) == ["page.css", "page.js"]
    assert [call(house.url, f"/{part}").status for part in parts] == [200, 200]
    assert call(house.url, "/docs").status == 404  # it would load scripts from elsewhere
    assert "/api/ask" in call(house.url, "/api/openapi.json").json["paths"]


@pytest.mark.parametrize(
    ("headers", "method", "status"),
    [
        ({"Host": "127.0.0.1:1"}, "DELETE", 404),
        ({"Host": "localhost"}, "GET", 405),
        ({"Host": "evil.example"}, "GET", 403),
        ({"Host": "127.0.0.1.evil.example"}, "GET", 403),
        ({"Origin": "http://evil.example"}, "DELETE", 403),
        ({"Origin": "null"}, "DELETE", 403),
        ({"Sec-Fetch-Site": "cross-site"}, "DELETE", 403),
        ({"Sec-Fetch-Site": "same-site"}, "DELETE", 403),
        ({"Sec-Fetch-Site": "same-origin"}, "DELETE", 404),
        ({"Origin": "http://["}, "DELETE", 403),
        ({"Origin": "https://home.example", "Sec-Fetch-Site": "cross-site"}, "DELETE", 403),
        ({"Origin": "https://home.example", "Sec-Fetch-Site": "same-origin"}, "DELETE", 404),  # a proxy's other name
    ],
)
def test_pages_of_others_cannot_use_the_browser_to_come_in(
    house: Any, headers: dict[str, str], method: str, status: int
) -> None:
    assert call(house.url, "/api/memories/77", method=method, headers=headers).status == status
    assert call(house.url, "/api/state").json["memory"]["entries"] == 1


def test_bodies_are_limited_whatever_they_say_of_their_length(house: Any) -> None:
    lesson = {"image": "A" * (MOST_BYTES + 1), "text": "too large"}
    assert call(house.url, "/api/memories", lesson).status == 413
    pieces = (b" " * 1_000_000 for _ in range(MOST_BYTES // 1_000_000 + 2))
    with pytest.raises((http.client.HTTPException, OSError)):
        _in_pieces(house.url, pieces)
    assert call(house.url, "/api/state").json["memory"]["entries"] == 1


def _in_pieces(url: str, pieces: Iterator[bytes]) -> None:
    """A body that does not say how long it is; raises where that is cut off or refused."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/api/memories", pieces, headers, encode_chunked=True)
        if (status := connection.getresponse().status) >= 400:
            raise http.client.HTTPException(status)
    finally:
        connection.close()


def test_with_a_token_nobody_comes_in_without(locked: Any) -> None:
    for path in ("/", "/page.js", "/api/state", "/api/cameras/yard/frame.jpg", "/api/openapi.json"):
        reply = call(locked.url, path)
        assert (reply.status, "token" in reply.json["error"]) == (401, True)
    for wrong in (TOKEN[:-1], TOKEN + "0", "", "é"):
        assert call(locked.url, "/api/state", headers={"Authorization": f"Bearer {wrong}"}).status == 401
        assert call(locked.url, "/api/state", headers={"Cookie": f"edge-ravlm={wrong}"}).status == 401
    assert call(locked.url, "/?token=another").status == 401
    assert (
        call(locked.url, "/api/state", headers={"Authorization": f"Bearer {TOKEN}", "Host": "any.name"}).status == 200
    )


def test_a_browser_shows_the_token_once(locked: Any) -> None:
    greeted = call(locked.url, f"/?token={TOKEN}")
    assert (greeted.status, greeted.headers["location"]) == (303, "/")
    cookie = greeted.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    kept = {"Cookie": f"other=1; {cookie.partition(';')[0]}"}
    assert call(locked.url, "/", headers=kept).status == 200
    assert call(locked.url, "/api/state", headers=kept).status == 200
    beside = {"Cookie": f'of-another-port={{"a": [1, 2]}}; {cookie.partition(";")[0]}'}
    assert call(locked.url, "/api/state", headers=beside).status == 200


def test_other_machines_are_served_with_a_token_alone(house: Any) -> None:
    with pytest.raises(UsageError, match="--token-file"):
        Server(Desk(house.app, house.board), "0.0.0.0", 0, None)
    with pytest.raises(StorageError, match="choose another --port"):
        Server(Desk(house.app, house.board), "127.0.0.1", urlsplit(house.url).port or 0, None)
    with pytest.raises(StorageError, match="choose another --port"):
        Server(Desk(house.app, house.board), "203.0.113.1", 0, TOKEN)
    with Server(Desk(house.app, house.board), "0.0.0.0", 0, TOKEN) as server:
        port = urlsplit(server.url).port
        assert call(f"http://127.0.0.1:{port}/", "/api/state").status == 401


def test_a_token_is_the_first_line_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\nfor the kitchen\n")
    assert read_token(path) == TOKEN
    for bad in ("short", "with spaces in the token", "", "semicolon;0123456789"):
        path.write_text(bad)
        with pytest.raises(DataError, match="openssl rand"):
            read_token(path)
    with pytest.raises(DataError, match="No such file"):
        read_token(tmp_path / "none")


def test_whoever_begins_to_listen_when_it_ends_is_told_so() -> None:
    board, heard = Board(), list[Any]()
    with board.heard(heard.append):
        board.close()
        with board.heard(heard.append):
            assert heard == [None, None]


def test_the_command_serves_until_it_is_told_to_stop(home: Path) -> None:
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", main, "serve", str(home), "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127.0.0.1:\d+/", line)))
        assert call(url, "/api/state").json["memory"]["entries"] == 1

        bomb = base64.b64encode(_black_png(20_000)).decode()
        assert len(bomb) < 1_000_000
        refused = call(url, "/api/ask", {"image": bomb, "question": "what is this?"})
        assert (refused.status, "at most 100 megapixels" in refused.json["error"]) == (400, True)
        if (status := Path(f"/proc/{process.pid}/status")).exists():  # Linux
            most_kb = int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])  # type: ignore[index]
            assert most_kb < 1_000_000  # its pixels would take more

        listener = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        listener.request("GET", "/api/events")
        stream = listener.getresponse()
        half = socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0))
        half.sendall(b"POST /api/ask HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        told, complaints = process.communicate(timeout=60)
        with suppress(http.client.IncompleteRead):  # a busy machine may not come to its end in the second that it has
            stream.read()
        half.close()
        listener.close()
    assert process.returncode == 1, complaints  # as one of its cameras is not there
    assert "Traceback" not in complaints
    assert "task" not in complaints
    assert json.loads(told)["summary"]["cameras"]["yard"]["frames"] >= 0


def test_the_command_ends_as_it_should_in_the_middle_of_requests(home: Path) -> None:
    main = "import sys; from edge_ravlm.cli import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", main, "serve", str(home), "--port", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        url = next(found[0] for line in process.stderr if (found := re.search(r"http://127.0.0.1:\d+/", line)))
        asked = {"image": base64.b64encode(_black_png(8_000)).decode(), "question": "what is this?"}
        answered = threading.Event()

        def ask() -> None:
            with suppress(http.client.HTTPException, OSError):
                while call(url, "/api/ask", asked).status == 200:
                    answered.set()

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert answered.wait(60)
        process.send_signal(signal.SIGTERM)
        complaints = process.communicate(timeout=60)[1]
        for thread in threads:
            thread.join()
    assert process.returncode == 1, complaints  # as one of its cameras is not there
    assert "Traceback" not in complaints


def _black_png(side: int) -> bytes:
    """A square of a bit a pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 + side // 8) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_whoever_connects_without_end_leaves_the_app_its_files(
    home: Path, yard: Any, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_MOST_CONNECTIONS", 20)
    monkeypatch.setattr(server_module, "_SILENT_S", 1.0)
    with served(home, "") as opened:
        at = urlsplit(opened.url)
        silent = [socket.create_connection((at.hostname or "", at.port or 0), timeout=30) for _ in range(40)]
        for one in silent:  # those beyond 20 at once, the others soon, as they ask nothing
            with suppress(ConnectionResetError):
                assert one.recv(1) == b""
            one.close()
        assert call(opened.url, "/api/state").status == 200


def test_a_memory_that_cannot_be_written_is_not_taught(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for another user, who may be root here
    with served(home, "") as opened:
        lesson = {"image": base64_of(np.zeros((32, 32, 3), np.uint8)), "text": OPEN}
        for reply in (
            call(opened.url, "/api/memories", lesson),
            call(opened.url, "/api/memories/1", method="DELETE"),
        ):
            assert (reply.status, "let its user write there" in reply.json["error"]) == (500, True)


def test_a_command_without_its_packages_says_what_to_install(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "edge_ravlm.runtime.serving.server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert command(["serve", str(home)]) == 1
    assert "[apps]" in capsys.readouterr().err


def test_a_taken_port_and_a_missing_token_are_said_before_a_camera_is_read(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command(["serve", str(home), "--port", str(taken.getsockname()[1])]) == 1
    assert "choose another --port" in capsys.readouterr().err
    assert command(["serve", str(home), "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err
    assert not (home.parent / "events.jsonl").read_text()
