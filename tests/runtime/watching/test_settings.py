"""An app's file: what it may say, and the sentence for what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_ravlm.errors import DataError
from edge_ravlm.frames import Region
from edge_ravlm.runtime.watching.lanes import Watch
from edge_ravlm.runtime.watching.settings import SinkSettings, read_app

GOOD = """
memory = "home.memory"
budget_ms = 40

[[cameras]]
name = "drive"
source = "rtsp://camera.local/stream"

[[watches]]
name = "garage"
camera = "drive"
question = "is the garage door open?"
region = "door=40,60,200,180"
every_ms = 500
agree = [2, 3]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "app.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_short_file_says_the_rest_by_default(tmp_path: Path) -> None:
    app = read_app(written(tmp_path, GOOD))
    (watch,) = app.watches
    assert watch.looked_at == Region.box(40, 60, 200, 180, "door")
    assert app.watch(watch) == Watch("garage", "drive", 40.0, every_ms=500.0, asked=watch)
    assert app.sinks == (SinkSettings(kind="stdout", what="events"),)


def test_a_watch_may_have_a_budget_of_its_own(tmp_path: Path) -> None:
    app = read_app(written(tmp_path, GOOD + "budget_ms = 70\npriority = 3\non_motion = true\n"))
    (watch,) = app.watches
    assert app.watch(watch) == Watch("garage", "drive", 70.0, 500.0, 3.0, on_motion=True, asked=watch)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('camera = "drive"', 'camera = "drove"', "watch 'garage' of camera 'drove', which is none of drive"),
        ("agree = [2, 3]", "agree = [4, 3]", "agree = [4, 3], more than there are"),
        ("agree = [2, 3]", "agrees = [2, 3]", "unknown field `agrees`"),
        ("agree = [2, 3]", "agrees = [2, 3]", "use one of name, camera, question, region, tags"),
        ("budget_ms = 40", "budget = 40", "use one of memory, cameras, watches"),
        ('name = "drive"', 'name = "drive"\nfsp = 5', "use one of name, source, fps, frames, loop, frozen_s"),
        ("[[cameras]]", '[[sinks]]\nkind = "mail"\n[[cameras]]', "use stdout or file or mqtt"),
        ("[[cameras]]", '[[sinks]]\nwhat = "all"\n[[cameras]]', "use events or answers"),
        (
            'source = "rtsp://camera.local/stream"',
            "source = 0",
            "Expected `str`, got `int` - at `$.cameras[0].source`; correct it",
        ),
        ("every_ms = 500", "every_ms = -1", ">= 0.0"),
        ("budget_ms = 40", "budget_ms = 0", "> 0.0"),
        ("budget_ms = 40", "budget_ms = inf", "<= 1000000000.0"),
        ('region = "door=40,60,200,180"', 'region = "door=40,60"', "region 'door'"),
        (
            'region = "door=40,60,200,180"',
            'region = "-4,60,200,180"',
            "a region of a picture of at most 100 megapixels",
        ),
        ('region = "door=40,60,200,180"', 'region = "0,0,99000,99000"', "got '0,0,99000,99000'; give the corners"),
        ('question = "is the garage door open?"', 'question = " "', "question: expected a sentence"),
        ("every_ms = 500", "hops = 9", "hops: expected 1 to 2"),
        ("every_ms = 500", "tags = {floor = nan}", "tag 'floor'"),
        ('name = "garage"', 'name = "the garage"', "matching regex"),
        ('name = "garage"', 'name = "garage\\n"', "matching regex"),
        ("[[cameras]]", '[[cameras]]\nname = "drive"\nsource = "0"\n[[cameras]]', "two cameras named 'drive'"),
        ('memory = "home.memory"', "", "missing required field `memory`"),
        ("budget_ms = 40", "budget_ms = = 40", "Invalid"),
        ("[[cameras]]", '[[sinks]]\nkind = "file"\n[[cameras]]', "a sink of kind file without a path"),
        ("[[cameras]]", '[[sinks]]\npath = "x"\n[[cameras]]', "a sink of kind stdout with a path"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError) as caught:
        read_app(written(tmp_path, GOOD.replace(old, new, 1)))
    assert sentence in str(caught.value)
    assert "app.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ("", "a sink of kind mqtt without a host"),
        ('host = "mqtt://broker:1883"', "a sink of kind mqtt whose host is 'mqtt://broker:1883', no name or address"),
        ('host = "a..b"', "a sink of kind mqtt whose host is 'a..b', no name or address"),
        ('host = "broker"\npath = "x"', "a sink of kind mqtt with a path"),
        ('host = "broker"\nport = 70000', "<= 65535"),
        ('host = "broker"\ntopic = "house/+"', "whose topic is 'house/+', not levels with single slashes"),
        ('host = "broker"\ntopic = "house/#"', "and control characters"),
        ('host = "broker"\ntopic = "house\\u0000"', "and control characters"),
        ('host = "broker"\ntopic = ""', "whose topic is ''"),
        ('host = "broker"\ntopic = "house/"', "whose topic is 'house/'"),
        ('host = "broker"\ntopic = "$SYS"', "no $ in front"),
        (f'host = "broker"\ntopic = "{"x" * 201}"', "200 characters at most"),
        ('host = "broker"\ndiscovery = "#"', "whose discovery is '#'"),
        ('host = "broker"\npassword_file = "p"', "a password_file, but without username"),
        ('host = "broker"\nca_file = "p"', "a ca_file, but without tls"),
        ('host = "broker"\npassword = "s3cret"', "unknown field `password`"),
    ],
)
def test_what_is_wrong_with_a_broker_is_named(tmp_path: Path, keys: str, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        read_app(written(tmp_path, f'{GOOD}\n[[sinks]]\nkind = "mqtt"\n{keys}\n'))
    assert sentence in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_broker_may_be_all_that_is_said(tmp_path: Path) -> None:
    (sink,) = read_app(written(tmp_path, f'{GOOD}\n[[sinks]]\nkind = "mqtt"\nhost = "::1"\n')).sinks
    assert (sink.topic, sink.port, sink.tls, sink.discovery) == ("edge-ravlm", 0, False, "")
    with pytest.raises(DataError, match="a sink of kind file with a host"):
        read_app(written(tmp_path, f'{GOOD}\n[[sinks]]\nkind = "file"\npath = "x"\nhost = "broker"\n'))
    with pytest.raises(DataError, match="a sink of kind stdout with keys that are for mqtt"):
        read_app(written(tmp_path, f'{GOOD}\n[[sinks]]\ntopic = "house"\n'))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file or directory; check the path, or give a camera with --source"):
        read_app(tmp_path / "none.toml")


def test_a_recording_is_no_app(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(bytes(range(256)))
    with pytest.raises(
        DataError, match="expected a TOML file, got no text; give a camera or a recording with --source"
    ):
        read_app(tmp_path / "clip.mp4")
