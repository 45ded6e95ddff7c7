"""From a recipe to a verified bundle for a named target.

Stages that take minutes leave their result in a work folder beside the output, so that an export that was interrupted
goes on where it was; the bundle itself appears whole, and only after the gate.
"""

from __future__ import annotations

import ctypes
import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from edge_ravlm.bundle import Bundle, write_bundle
from edge_ravlm.errors import BundleError, needs_extra
from edge_ravlm.export import answering, parity
from edge_ravlm.export.align import classes
from edge_ravlm.export.align.fit import fit, looking, observe
from edge_ravlm.export.align.head import Meaning, with_meaning
from edge_ravlm.export.data import captioned, corpus
from edge_ravlm.export.data.scenes import material
from edge_ravlm.export.distil import distil, whitened
from edge_ravlm.export.fusion import making
from edge_ravlm.export.images import SCENE_PACKAGES, Gathered, fingerprint, gather
from edge_ravlm.export.judging import prepared
from edge_ravlm.export.onnx_graph import image_graph, picture_graph, teacher_graph
from edge_ravlm.export.quantize import quantizer
from edge_ravlm.export.quantize.candidates import calibrations
from edge_ravlm.export.quantize.sensitivity import layer_gains
from edge_ravlm.export.recipe import AUTO, Recipe
from edge_ravlm.export.report import report_files
from edge_ravlm.export.students import STUDENTS, StudentKind, static_text
from edge_ravlm.export.students.choose import choose_student
from edge_ravlm.export.students.image import ImageStudent, batched
from edge_ravlm.export.students.static_text import StaticText
from edge_ravlm.export.teachers import ImageTeacher, image_teacher, text_teacher
from edge_ravlm.export.teachers.weights import package_source
from edge_ravlm.frames import Pixels
from edge_ravlm.machine import libraries, machine
from edge_ravlm.manifest import (
    SCHEMA_VERSION,
    Answering,
    Engine,
    Flavor,
    Fusion,
    Manifest,
    Model,
    Parity,
    Source,
    Space,
    space_id,
)
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.targets import Target

Bar = Callable[[str, int | None], AbstractContextManager[Callable[..., None]]]
"""Opens a progress bar: ``with bar("what", total) as advance``."""

BASE = "cpu-u8"
"""The flavour that every bundle holds: where a device's own flavour cannot run, this one answers."""

SESSIONS: Mapping[str, dict[str, Any]] = {
    "cpu-u8": {"backend": "onnxruntime", "graph_optimization": "all"},
    # ONNX Runtime's optimizer ruins strongly typed INT8 + FP16 graphs: its stand-in session must not optimize.
    "trt-s8": {"backend": "tensorrt", "graph_optimization": "disable"},
}
EVERYDAY = "everyday"

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's ``malloc.h``."""

Vectors = NDArray[np.float32]

GOLDEN = "parity/golden.npz"
GOLDEN_FRAMES, GOLDEN_STRIDE = 3, 200


def export(
    recipe: Recipe,
    recipe_bytes: bytes,
    target: Target,
    out: Path,
    *,
    base: Path,
    bar: Bar,
    allow_below_gate: bool = False,
) -> Bundle:
    """Make the bundle.

    Args:
        recipe: what to make.
        recipe_bytes: the recipe's file, which goes into the bundle.
        target: for which device.
        out: the bundle's folder; must be new or empty.
        base: the folder that the recipe's paths are relative to.
        bar: opens progress bars.
        allow_below_gate: ship a bundle that misses a limit of the gate; the manifest says so.

    Raises:
        GateError: a quantized model does not behave like its original.
        DataError: pictures, weights or texts that cannot be used.
        BundleError: ``out`` holds something already.
        StorageError: the disk refused.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BundleError(
            f"output '{out}'",
            expected="a folder that is new or empty",
            got="one with files in it" if out.is_dir() else "a file",
            do="choose another folder or empty this one",
        )
    for flavor in (BASE, target.flavor):
        calibrations(flavor, recipe.quantize.calibration)  # refuse now what would fail after the training
    _keep_freed_memory()
    work = _work_folder(out, recipe_bytes)
    torch.manual_seed(recipe.seed)
    with bar("composing and reading pictures", None):
        gathered = gather(recipe, base)
    job = _Job(recipe, target, gathered, work, base, bar)
    contents, manifest = job.contents(recipe_bytes, allow_below_gate)
    bundle = write_bundle(out, manifest, contents)
    shutil.rmtree(work)
    return bundle


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed, as far as there is a glibc.

    Torch's tensors would otherwise be mapped anew and faulted in page by page at every step: a third of the time that
    a distillation takes on two cores.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def _work_folder(out: Path, recipe_bytes: bytes) -> Path:
    """Where stages leave their results; emptied when it belongs to another recipe."""
    work = out.absolute().with_name(f".{out.name}.work")
    mark = work / "recipe.toml"
    if not mark.is_file() or mark.read_bytes() != recipe_bytes:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        mark.write_bytes(recipe_bytes)
    return work


@dataclass
class _Job:
    """One export; every part is made when it is first asked for."""

    recipe: Recipe
    target: Target
    gathered: Gathered
    work: Path
    base: Path
    bar: Bar

    # -- encoders ----------------------------------------------------------------------------------------------

    @cached_property
    def kind(self) -> StudentKind:
        """Of the image student: the recipe's, or what the target's measured latency allows.

        A choice is kept in the work folder: an export that goes on must not measure itself into another student.
        """
        wanted, mark = self.recipe.student, self.work / "student.txt"
        if wanted.kind != AUTO:
            return STUDENTS[wanted.kind]
        if not mark.is_file():
            with self.bar("measuring which student fits the budget", None):
                choice = choose_student(self.target, wanted.budget_ms)
            mark.write_text(f"{choice.kind.name}\n{choice.reason}", encoding="utf-8")
        return STUDENTS[mark.read_text(encoding="utf-8").partition("\n")[0]]

    @property
    def reason(self) -> str:
        """Why it is that student."""
        kind, mark = self.kind, self.work / "student.txt"
        return mark.read_text(encoding="utf-8").partition("\n")[2] if mark.is_file() else f"{kind.name}: the recipe's"

    @cached_property
    def preprocess(self) -> Preprocess:
        """Of the student."""
        return _square(self.recipe.student.side or self.kind.side)

    @cached_property
    def teacher(self) -> ImageTeacher | None:
        """None where the student ships with weights of its own."""
        wanted = self.recipe.teacher
        return image_teacher(wanted.image, wanted.side or None) if wanted.image else None

    @cached_property
    def student(self) -> ImageStudent:
        """The image student in deploy form."""
        learner = self.kind.build(self.recipe.student.dim, self.preprocess.width)
        if self.teacher is None:
            pictures = self.gathered.training.batch(0, 0, self.recipe.distil.fit_pictures).pictures
            learner.fit_whitening(batched(prepared(pictures, self.preprocess)))
            return learner.eval().fused()
        texts = self.text_student.embed if self.recipe.images.captions else None
        with self.bar("distilling the image student", self.recipe.distil.steps) as advance:
            learnt = distil(
                learner,
                self.teacher,
                self.gathered.training,
                self.recipe.distil,
                self.work / "distil",
                texts=texts,
                progress=lambda done, total: advance(completed=done, total=total),
            )
        return learnt.eval().fused()

    @cached_property
    def text_student(self) -> StaticText:
        """Kept in the work folder, since the teacher takes minutes to read the corpus."""
        table, tokenizer = self.work / "text.safetensors", self.work / "tokenizer.json"
        if table.is_file():  # written last
            return StaticText(load_file(table)["table"], tokenizer.read_bytes())
        wanted = self.recipe.text
        with self.bar("distilling the text student", None) as advance:
            found = static_text.distil(
                text_teacher(self.recipe.teacher.text),
                corpus.sentences(self.recipe.seed) if wanted.corpus == EVERYDAY else self._own_sentences(),
                dim=wanted.dim,
                vocab=wanted.vocab,
                speech=corpus.spoken_words() if wanted.corpus == EVERYDAY else {},
                seed=self.recipe.seed,
                progress=lambda _, done, total: advance(completed=done, total=total),
            )
        tokenizer.write_bytes(found.tokenizer_json)
        _save(table, {"table": found.table})
        return found

    def _own_sentences(self) -> list[str]:
        return corpus.read_sentences(self.base / self.recipe.text.corpus)

    @cached_property
    def meaning(self) -> Meaning | None:
        """The head that puts pictures among texts; None where the recipe has no sources for it."""
        wanted = self.recipe.align
        if not wanted.sources:
            return None
        things, query = captioned.captioned(wanted.sources), self.student.query.detach()
        shape = _square(classes.SIDE)
        with (
            self.bar("aligning pictures with texts", len(things)) as advance,
            looking(self.encoder, self.preprocess, "tokens") as tokens,
            looking(picture_graph(classes.Classifier(), classes.SIDE, ("logits",)), shape, "logits") as logits,
        ):
            observed = observe(
                things,
                material()[0].backgrounds,
                query=query,
                tokens=tokens,
                logits=logits,
                embed=self.text_student.embed,
                views=wanted.views,
                seed=self.recipe.seed,
                advance=advance,
            )
        return fit(observed, query, wanted, self.recipe.seed)

    # -- what ships --------------------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> onnx.ModelProto:
        """The image student in full precision."""
        return image_graph(self.student, self.preprocess)

    @cached_property
    def original(self) -> onnx.ModelProto:
        """It with its meaning head, if it has one."""
        return self.encoder if self.meaning is None else with_meaning(self.encoder, self.meaning, int8=False)

    @cached_property
    def flavors(self) -> dict[str, Flavor]:
        """The flavours to ship: the base, and the target's own."""
        text = Model(file=f"models/text.{BASE}.onnx")
        # The decoder's 8-bit weights run in ONNX Runtime on every device.
        graphs = (Model(file=f"models/fusion-{part}.{BASE}.onnx") for part in ("prefill", "step"))
        fusion = Fusion(**dict(zip(("prefill", "step"), graphs, strict=True))) if self.recipe.fusion.steps else None
        return {
            name: Flavor(image=Model(file=f"models/image.{name}.onnx", **SESSIONS[name]), text=text, fusion=fusion)
            for name in dict.fromkeys((BASE, self.target.flavor))
        }

    @cached_property
    def models(self) -> dict[str, bytes]:
        """ONNX files by path."""
        # The text student first: what is wrong with its teacher or corpus then shows within minutes.
        found = {f"models/text.{BASE}.onnx": static_text.to_onnx_int8(self.text_student)}
        inputs = prepared(self.gathered.calibration, self.preprocess)
        for name, flavor in self.flavors.items():
            with self.bar(f"quantizing for {name}", 2 * len(inputs)) as advance:
                quantized = quantizer(name)(
                    self.encoder,
                    inputs,
                    advance=advance,
                    keep_float=self.recipe.quantize.keep_float.get(name, ()),
                    calibrations=calibrations(name, self.recipe.quantize.calibration),
                )
            if self.meaning is not None:
                # Bytes as weights of a floating-point product are ONNX Runtime's to unpack, not every engine's.
                quantized = with_meaning(quantized, self.meaning, int8=name == BASE)
            found[flavor.image.file] = quantized.SerializeToString()
        return found

    def embedder(self, flavor: str) -> parity.Embedder:
        """A shipped image model; ONNX Runtime stands in for a device's backend, with the options of its fallback."""
        spec = msgspec.structs.replace(self.flavors[flavor].image, backend="onnxruntime")
        return parity.Embedder(self.models[spec.file], spec, self.preprocess)

    @cached_property
    def full(self) -> parity.Embedder:
        """The image student in full precision, as ONNX Runtime runs it best."""
        return parity.Embedder(self.original.SerializeToString(), Model(file="original"), self.preprocess)

    @cached_property
    def decoder(self) -> making.Made | None:
        """The fusion decoder, trained on what the base flavour sees; None where the recipe wants none."""
        if not self.recipe.fusion.steps:
            return None
        session = self.embedder(BASE).session()

        def look(pictures: Sequence[Pixels]) -> tuple[Vectors, Vectors]:
            seen = [session.run({"image": p}, ("embedding", "tokens")) for p in prepared(pictures, self.preprocess)]
            return np.concatenate([one[0] for one in seen]), np.concatenate([one[1] for one in seen])

        try:
            return making.make(
                self.recipe.fusion, look, self.embed_texts, self.recipe.seed, self.work / "fusion", self.bar
            )
        finally:
            session.close()

    # -- judgement ---------------------------------------------------------------------------------------------

    @cached_property
    def topics(self) -> tuple[list[corpus.Topic], list[corpus.Topic]]:
        """Two halves: to fit on, to judge on."""
        every = corpus.topics()
        order = np.random.default_rng(self.recipe.seed).permutation(len(every))
        return [every[int(i)] for i in order[::2]], [every[int(i)] for i in order[1::2]]

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """With the text model that ships."""
        return embed_texts(self.models[f"models/text.{BASE}.onnx"], self.text_student.tokenizer_json, texts)

    @cached_property
    def rules(self) -> Answering:
        """Fitted on the base flavour, whose embeddings are in most memories."""
        with self.bar("fitting the answering rules", None):
            seen = answering.see(self.gathered.fitting, self.embedder(BASE))
            return answering.fit(seen, answering.text_pairs(self.topics[0], self.embed_texts))

    @cached_property
    def teacher_view(self) -> parity.Teacher | None:
        """The teacher over the judged pictures, in the space that the student learnt."""
        if self.teacher is None:
            return None
        with self.bar("the image teacher looks at the held-out pictures", None):
            view = whitened(self.teacher, self.gathered.training, self.recipe.student.dim, self.recipe.distil)
            shape = _square(self.teacher.side)
            judged = parity.look(lambda pictures: view(prepared(pictures, shape)), self.gathered.judging)
        return parity.Teacher(judged, teacher_graph(self.teacher, shape), shape)

    def figures(self, flavor: str) -> parity.Figures:
        """The gate's figures of one flavour, with its failures."""
        judging, shipped = self.gathered.judging, self.embedder(flavor)
        said = [text for topic in self.topics[1] for text in (*topic.questions, *(s for t in topic.states for s in t))]
        found = parity.judge(
            judging,
            original=self.full,
            shipped=shipped,
            reference=shipped if flavor == BASE else self.embedder(BASE),
            texts=(self.text_student.embed(said), self.embed_texts(said)),
            rules=self.rules,
            teacher=self.teacher_view,
            timed=self.flavors[flavor].image.backend == "onnxruntime",
            meaning=self.meaning is not None,
        )
        quality = answering.judge(
            answering.see(judging.tasks, shipped), answering.text_pairs(self.topics[1], self.embed_texts), self.rules
        )
        missed = parity.failures(found, self.recipe.gate, self.models)
        worst = self.sensitivity(flavor) if missed else {}
        return msgspec.structs.replace(found, answering=quality, failures=missed, sensitivity=worst)

    def contents(self, recipe_bytes: bytes, allow_below_gate: bool) -> tuple[dict[str, bytes], Manifest]:
        """Every file of the bundle, and its manifest; raises GateError first."""
        files, proven = dict(self.models), {}
        setting = {**machine(), **libraries(), "threads": 1, "target": self.target.name}
        setting["student"] = self.reason
        for flavor in self.flavors:
            with self.bar(f"judging {flavor}", None):
                figures = self.figures(flavor)
            if not allow_below_gate:
                parity.pass_or_raise(figures, flavor)
            files |= report_files(flavor, figures, self.recipe.gate, setting)
            proven[flavor] = _summary(figures, f"parity/{flavor}.json", bool(figures.failures))
        decoder = self.decoder
        fusion = self.flavors[BASE].fusion
        if decoder is not None and fusion is not None:
            files |= {fusion.prefill.file: decoder.prefill, fusion.step.file: decoder.step}
            files |= {making.TOKENIZER: decoder.tokenizer, "parity/fusion.json": _indented(decoder.figures)}
        engines = self.engines()
        files |= {engine.file: data for engine, data in engines}
        files |= {"tokenizer.json": self.text_student.tokenizer_json, "recipe.toml": recipe_bytes}
        files |= {GOLDEN: self.golden(), "LICENCES.md": _licences(self.sources).encode()}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=self.recipe.name,
            target=self.target.name,
            recipe="recipe.toml",
            files=(),
            preprocess=self.preprocess,
            image_space=self.image_space(),
            text_space=self.text_space(),
            tokenizer="tokenizer.json",
            flavors=self.flavors,
            fusion=None if decoder is None else decoder.spec,
            answering=self.rules,
            parity=proven,
            golden=GOLDEN,
            calibration_sha256=fingerprint(self.gathered.calibration),
            sources=self.sources,
            engines=tuple(engine for engine, _ in engines),
            meaning_space=None if self.meaning is None else self.meaning.space(self.image_space(), self.text_space()),
        )
        return files, manifest

    # -- the rest of the bundle --------------------------------------------------------------------------------

    def engines(self) -> list[tuple[Engine, bytes]]:
        """Built ahead of time where the target's library can do that without its GPU."""
        if self.target.engine != "tensorrt_rtx":
            return []
        with needs_extra("export"):
            from edge_ravlm.export.engines import build as build_engines  # noqa: PLC0415  # a GPU target's library

        file = self.flavors[self.target.flavor].image.file
        with self.bar(f"building engines for {self.target.name}", None):
            return build_engines(self.models[file], file, self.target)

    def sensitivity(self, flavor: str) -> dict[str, float]:
        """By layer, the cosine that comes back when it alone stays in floats; worth its minutes when the gate fails."""
        shipped = self.embedder(flavor)
        quantized = onnx.load_model_from_string(shipped.model)
        pictures = self.gathered.calibration[:16]
        with self.bar(f"looking for the layer that {flavor} harms", None) as advance:
            return layer_gains(
                self.original, quantized, lambda data: replace(shipped, model=data)(pictures), advance=advance
            )

    def golden(self) -> bytes:
        """Frames with their full-precision embeddings, for the device to replay before it answers.

        They are of the package's own clip: a bundle carries no picture that is somebody else's.
        """
        with open_camera(load_clip()[0]) as camera:
            frames = [f.pixels for f in islice(camera.frames(), 0, GOLDEN_FRAMES * GOLDEN_STRIDE, GOLDEN_STRIDE)]
        out = io.BytesIO()
        pixels = np.concatenate(prepared(frames, self.preprocess))
        np.savez_compressed(out, pixels=pixels, embeddings=self.full(frames))
        return out.getvalue()

    def image_space(self) -> Space:
        """Named by the full-precision student."""
        weights = {name: tensor.numpy().tobytes() for name, tensor in self.student.state_dict().items()}
        definition = {"preprocess": msgspec.to_builtins(self.preprocess), "output": "unit(project(unit(mean(grid))))"}
        return Space(id=space_id(weights, definition), dim=self.recipe.student.dim)

    def text_space(self) -> Space:
        """Named by the full-precision table and its tokenizer."""
        weights = {"table": self.text_student.table.tobytes(), "tokenizer": self.text_student.tokenizer_json}
        return Space(id=space_id(weights, {"output": "unit(sum(rows))"}), dim=self.recipe.text.dim)

    @property
    def sources(self) -> tuple[Source, ...]:
        """Everything that the weights were made from."""
        texts = (package_source("minilm-l6"), package_source("wiki-summaries"), package_source("wordfreq"))
        teacher = self.teacher.sources if self.teacher is not None else ()
        aligned = [name for source in self.recipe.align.sources for name in captioned.PACKAGES[source]]
        names = [*aligned, *classes.PACKAGES, *SCENE_PACKAGES] if aligned else []
        names += making.PACKAGES if self.recipe.fusion.steps else ()
        every = (*self.kind.sources, *teacher, *texts, *self.gathered.sources, *map(package_source, names))
        return tuple(dict.fromkeys(every))


def embed_texts(model: bytes, tokenizer_json: bytes, texts: Sequence[str]) -> Vectors:
    """A text model's embeddings in ONNX Runtime, float32 [n, dim]."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    batch = tokenizer.encode_batch(list(texts))
    feeds = {
        "input_ids": np.array([encoding.ids for encoding in batch], np.int64),
        "attention_mask": np.array([encoding.attention_mask for encoding in batch], np.int64),
    }
    session = open_session(model, Model(file="text"), threads=1)
    try:
        return np.asarray(session.run(feeds, ("embedding",))[0], np.float32)
    finally:
        session.close()


def _indented(figures: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"


def _summary(figures: parity.Figures, report: str, below_gate: bool) -> Parity:
    shared = {name: getattr(figures, name) for name in Parity.__struct_fields__ if hasattr(figures, name)}
    return Parity(**shared, report=report, below_gate=below_gate)


def _square(side: int) -> Preprocess:
    return Preprocess(height=side, width=side)


def _save(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    save_file(dict(tensors), part)
    part.replace(path)


def _licences(sources: Sequence[Source]) -> str:
    rows = [f"| {source.name} | {source.origin} | {source.licence} |" for source in sources]
    lines = [
        "# What the weights in this bundle were made from",
        "",
        "Pictures and texts were used for training and judging only; none of them is in the bundle.",
        "",
        "| name | from | licence |",
        "| --- | --- | --- |",
        *rows,
    ]
    return "\n".join(lines) + "\n"
