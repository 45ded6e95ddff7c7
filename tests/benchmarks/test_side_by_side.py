"""Peers side by side: fair turns, honest ratios, one process each, and one sentence where a peer dies."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peers import environments, side_by_side
from peers.catalogue import OURS, PEERS, PeerSpec
from peers.environments import interpreter, requirements, wanted
from peers.inputs import IMAGENET, centre_crop, filled, word_ids
from peers.processes import PeerProcess
from peers.protocol import Answered, Job
from peers.side_by_side import SHOWN, Size, compared, take_turns
from synthetic import QUESTION, TEXTS, pictures

from edge_ravlm.errors import EdgeRavlmError

STUB = """
import time
from peers.protocol import Reply

class Stub:
    def __init__(self, job):
        print("libraries say what they like")
        self.texts, self.taught, self.job = job.texts, job.stored("taught"), job

    def ask(self, frame, question):
        if question == "die":
            raise RuntimeError("out of luck")
        print("and again")
        while time.process_time() < 0.01:
            pass
        nearest = abs(self.taught.astype(int) - frame).mean((1, 2, 3)).argmin()
        return Reply(self.texts[nearest], {"search": 0.25})

    def close(self):
        open(self.job.graphs["closed"], "w").close()

def broken(job):
    raise ImportError("no module of that kind.")
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Two taught pictures and two shown; a module with peers that need no model."""
    (tmp_path / "stub_peers.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    shown = np.stack(pictures(4, seed=1))[:, ::8, ::8]
    np.savez(tmp_path / "pictures.npz", taught=shown[:2], shown=shown[2:])
    return Job(str(tmp_path / "pictures.npz"), TEXTS, 10, 1, {"closed": str(tmp_path / "closed")})


def process(job: Job, opener: str = "stub_peers:Stub") -> PeerProcess:
    return PeerProcess("stub", opener, Path(sys.executable), job, ("numpy", "no-such-package"))


def test_a_peer_answers_from_its_own_process(job: Job, tmp_path: Path) -> None:
    with process(job) as peer:
        assert peer.ready().environment == {
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "no-such-package": None,
        }
        answers = [peer.ask(frame, QUESTION) for frame in (0, 1, 0)]
        assert not (tmp_path / "closed").exists()
    assert [answer.text for answer in answers] == [TEXTS[0], TEXTS[1], TEXTS[0]]
    assert answers[0].stages_ms == {"search": 0.25}
    assert all(answer.ms > 0 and answer.idle_cpu_ms >= 0 for answer in answers)
    assert (tmp_path / "closed").exists()


def test_a_peer_that_dies_is_named_with_its_last_words(job: Job) -> None:
    with process(job, "stub_peers:broken") as peer, pytest.raises(EdgeRavlmError) as died:
        peer.ready()
    assert str(died.value).startswith("peer 'stub': expected an answer, got ImportError: no module of that kind; ")
    with process(job) as peer:
        peer.ready()
        with pytest.raises(EdgeRavlmError, match=r"peer 'stub'.* got RuntimeError: out of luck; "):
            peer.ask(0, "die")
        with pytest.raises(EdgeRavlmError, match="peer 'stub'"):
            peer.ask(0, QUESTION)


class Recorder:
    """Stands for a process; notes who was asked about which frame."""

    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name, self.log = name, log

    def ask(self, frame: int, _: str) -> Answered:
        self.log.append((self.name, frame))
        return Answered(float(frame), 0.0, "", {})


def test_everyone_answers_every_frame_and_goes_first_in_turn() -> None:
    log: list[tuple[str, int]] = []
    answers = take_turns({name: Recorder(name, log) for name in "abc"}, Size(rounds=6, warm_up=3), lambda: None)
    assert {name: [answer.ms for answer in given] for name, given in answers.items()} == {
        name: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] for name in "abc"
    }
    rounds = [[name for name, _ in log[start : start + 6 : 2]] for start in range(18, len(log), 6)]
    assert ["".join(names) for names in rounds] == ["abc", "bca", "cab"] * 2
    for name in "abc":  # a frame seen before, or of the same scene, might be answered without looking
        frames = [frame for asked, frame in log if asked == name]
        assert all(before != after and 0 <= after < SHOWN for before, after in pairwise(frames))
        assert all((settling - timed) % 2 for settling, timed in zip(frames[::2], frames[1::2], strict=True))


def answered(*ms: float, text: str = "a", **stages: float) -> list[Answered]:
    return [Answered(one, 0.5, text, stages) for one in ms]


def test_ratios_are_to_the_one_that_is_named() -> None:
    specs = [*OURS, *[spec for spec in PEERS if spec.name in ("textbook", "smallcap", "openvino_int8")]]
    answers = {
        "retrieved": answered(10, 10, vote=1.0),
        "retrieved_region": answered(5, 5),
        "generated": answered(20, 20),
        "textbook": answered(100, 100, question=40.0),
        "smallcap": answered(400, 400, decode=300.0),
        "openvino_int8": answered(8, 8, text="b"),
    }
    found = compared(specs, answers, {spec.name: {"python": "3"} for spec in specs})
    assert found["ratio_vs_textbook_p50"] == 10.0
    assert "ratio_vs_clip_ort_p50" not in found
    assert set(found["ours"]) == {"retrieved", "retrieved_region", "generated"}
    assert found["ours"]["retrieved"]["stages_p50_ms"] == {"vote": 1.0}
    wanted = {"textbook": (10, 20, 6), "smallcap": (20, None, 5), "openvino_int8": (0.8, 1.6, 0.8)}
    for name, ratios in wanted.items():
        figures = found["peers"][name]
        names = ("ratio_p50", "ratio_region_p50", "ratio_undisputed_p50")
        assert tuple(figures.get(name) for name in names) == ratios
    assert found["peers"]["smallcap"]["against"] == "generated"
    assert found["peers"]["smallcap"]["weights"] == "random (speed only)"
    assert found["peers"]["openvino_int8"]["says"] == "b"


def test_one_run_tells_everything(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tuple(PeerSpec(name, "stub_peers:Stub", "INT8") for name in ("retrieved", "retrieved_region"))
    peers = (PeerSpec("textbook", "stub_peers:Stub", "FP32"), PeerSpec("other", "stub_peers:broken", "FP32"))
    monkeypatch.setattr(side_by_side, "OURS", ours)
    monkeypatch.setattr(side_by_side, "PEERS", peers)
    monkeypatch.setattr(side_by_side, "QUICK", Size(rounds=2, warm_up=1, entries=10))
    monkeypatch.setattr(side_by_side, "SHOWN", 2)
    monkeypatch.setattr(side_by_side, "job_in", lambda *_: job)
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--quick", "--json", "--only", "textbook"])
    assert side_by_side.main() == 0
    figures: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert figures["ratio_vs_textbook_p50"] == figures["peers"]["textbook"]["ratio_p50"] > 0
    assert figures["peers"]["textbook"]["environment"]["numpy"] == np.__version__
    assert set(figures["peers"]) == {"textbook"}
    assert 0 <= figures["others_cpu_share"] <= 1
    assert {"machine", "libraries", "threads", "precision", "bundle_sha256", "quality"} <= set(figures)
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--quick", "--only", "textbook"])
    assert side_by_side.main() == 0
    said = capsys.readouterr().out
    assert "│ textbook " in said
    assert "Random weights, for their speed alone: textbook." in said
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--quick", "--only", "other"])
    assert side_by_side.main() == 1
    assert "peer 'other'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["side_by_side.py", "--only", "nobody"])
    assert side_by_side.main() == 2
    assert "expected names among textbook, other, got nobody" in capsys.readouterr().err


def test_every_peer_can_be_found_and_its_environment_is_pinned() -> None:
    assert len({spec.name for spec in (*OURS, *PEERS)}) == len(OURS) + len(PEERS)
    for spec in (*OURS, *PEERS):
        module = find_spec(spec.opener.partition(":")[0])
        assert module is not None
        assert spec.against in {one.name for one in OURS}
        if spec.environment:
            needed = {one.name: str(one.specifier) for one in wanted(requirements(spec.environment))}
            assert {"numpy", "msgspec", "opencv-python-headless"} <= set(needed), "the worker itself needs them"
            assert all(needed.values())


def wheel(folder: Path) -> None:
    """A package of one module, ``tiny_thing`` 1.5."""
    about = "tiny_thing-1.5.dist-info"
    with zipfile.ZipFile(folder / "tiny_thing-1.5-py3-none-any.whl", "w") as archive:
        archive.writestr("tiny_thing.py", "")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-thing\nVersion: 1.5\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def test_an_environment_is_made_once_and_only_where_it_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "here.txt"
    file.write_text(f"# what there is\nnumpy=={np.__version__}\n")
    assert interpreter(file, tmp_path) == Path(sys.executable)
    wheel(tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(f"--no-index\n--find-links {tmp_path}\ntiny-thing==1.5\n")
    python = interpreter(other, tmp_path)
    assert python != Path(sys.executable)
    assert list(python.parents[1].glob("lib/*/site-packages/tiny_thing.py"))
    assert "installing tiny-thing; this happens once" in capsys.readouterr().err
    assert interpreter(other, tmp_path) == python
    assert capsys.readouterr().err == ""


def test_an_environment_that_cannot_be_installed_is_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "strange.txt"
    file.write_text("--no-index\nno-such-thing==1.0\n")
    for _ in range(2):  # and what was begun is not taken for whole
        with pytest.raises(EdgeRavlmError, match=r"environment 'strange': .*no-such-thing.*--only"):
            interpreter(file, tmp_path)


def test_a_local_build_of_the_pinned_version_will_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environments, "version", lambda name: "2.13.0+cpu")
    (tmp_path / "torch.txt").write_text("torch==2.13.0\n")
    assert interpreter(tmp_path / "torch.txt", tmp_path) == Path(sys.executable)


def test_idle_threads_are_left_to_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    variables = environments.variables(2)
    assert "OMP_WAIT_POLICY" not in variables
    assert variables["OMP_NUM_THREADS"] == "2"


def test_the_middle_is_cut_out_and_normalised() -> None:
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, 35:125] = (0, 0, 255)  # red, in BGR, in the middle
    cut = centre_crop(frame, 45, 40, 1, IMAGENET)
    assert (cut.shape, cut.dtype) == ((1, 3, 40, 40), np.float32)
    np.testing.assert_allclose(cut[0, :, 20, 20], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)


def test_memories_are_filled_up_alike_and_words_are_numbered() -> None:
    taught = [np.array([1, 0, 0], np.float32)]
    vectors = filled(taught, 5)
    np.testing.assert_array_equal(vectors[0], taught[0])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(vectors, filled(taught, 5))
    assert word_ids("Is the gate open?", 100) == word_ids("is the gate open", 100)
    assert len(set(word_ids("is the gate open", 10_000))) == 4
