"""What a bundle is made of: the students, their INT8 models and the decoder, each made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from tokenizers import Tokenizer

from edge_ravlm.console import Bar
from edge_ravlm.export import parity
from edge_ravlm.export.align import classes
from edge_ravlm.export.align.fit import fit, looking, observe
from edge_ravlm.export.align.head import Meaning, with_meaning
from edge_ravlm.export.data import captioned, corpus
from edge_ravlm.export.data.scenes import material
from edge_ravlm.export.distil import distil
from edge_ravlm.export.distil.checkpoint import storing_in
from edge_ravlm.export.fusion import making
from edge_ravlm.export.images import SCENE_PACKAGES, Gathered, materials
from edge_ravlm.export.judging import prepared
from edge_ravlm.export.onnx_graph import image_graph, picture_graph
from edge_ravlm.export.quantize import quantizer
from edge_ravlm.export.quantize.candidates import calibrations
from edge_ravlm.export.recipe import AUTO, Recipe
from edge_ravlm.export.students import STUDENTS, StudentKind, closer, static_text
from edge_ravlm.export.students.choose import choose_student
from edge_ravlm.export.students.image import ImageStudent, batched
from edge_ravlm.export.students.static_text import StaticText
from edge_ravlm.export.teachers import ImageTeacher, image_teacher, text_teacher
from edge_ravlm.export.teachers.weights import package_source
from edge_ravlm.files import write_file
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import (
    Closer,
    Flavor,
    Fusion,
    Model,
    Source,
    Space,
    space_id,
)
from edge_ravlm.preprocess import Preprocess
from edge_ravlm.runtime.apps.demo import load_clip
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.camera import open_camera
from edge_ravlm.runtime.encoders import TOKENS, Eye
from edge_ravlm.targets import Target

BASE = "cpu-u8"
"""The flavour that every bundle holds: where a device's own flavour cannot run, this one answers."""

SESSIONS: Mapping[str, dict[str, Any]] = {
    "cpu-u8": {"backend": "onnxruntime", "graph_optimization": "all"},
    # ONNX Runtime's optimizer ruins strongly typed INT8 + FP16 graphs: its stand-in session must not optimize.
    "trt-s8": {"backend": "tensorrt", "graph_optimization": "disable"},
}
EVERYDAY = "everyday"

Vectors = NDArray[np.float32]

GOLDEN_FRAMES, GOLDEN_STRIDE = 3, 200


@dataclass
class Parts:
    """The parts of one bundle; those that take minutes leave their result in the work folder.

    Attributes:
        recipe: what to make.
        target: for which device.
        gathered: the pictures.
        work: the folder for results that take minutes.
        base: the folder that the recipe's paths are relative to.
        bar: opens progress bars.
    """

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
            with storing_in(self.work):
                write_file(mark, f"{choice.kind.name}\n{choice.reason}".encode())
        return STUDENTS[mark.read_text(encoding="utf-8").partition("\n")[0]]

    @property
    def reason(self) -> str:
        """Why it is that student."""
        kind, mark = self.kind, self.work / "student.txt"
        return mark.read_text(encoding="utf-8").partition("\n")[2] if mark.is_file() else f"{kind.name}: the recipe's"

    @cached_property
    def preprocess(self) -> Preprocess:
        """Of the student."""
        return square(self.recipe.student.side or self.kind.side)

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
        with storing_in(self.work):
            write_file(tokenizer, found.tokenizer_json)
            write_file(table, save({"table": found.table}))
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
        shape = square(classes.SIDE)
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

    @cached_property
    def closer(self) -> closer.Fitted | None:
        """What lets it look a second time; None where the recipe does without."""
        wanted = self.recipe.closer
        if not wanted.scenes:
            return None
        with (
            self.bar("fitting the closer look", wanted.scenes) as advance,
            looking(self.encoder, self.preprocess, "tokens") as tokens,
        ):
            query = self.student.query.detach().numpy()
            return closer.fit(tokens, query, materials(self.recipe), wanted, self.recipe.seed, advance)

    # -- what ships --------------------------------------------------------------------------------------------

    @cached_property
    def encoder(self) -> onnx.ModelProto:
        """The image student in full precision."""
        return image_graph(self.student, self.preprocess)

    @cached_property
    def original(self) -> onnx.ModelProto:
        """It with its heads, if it has any."""
        return self._with_heads(self.encoder, int8=False)

    def _with_heads(self, model: onnx.ModelProto, *, int8: bool) -> onnx.ModelProto:
        """An image graph with what reads its cells; ``int8`` stores the meaning's weights as bytes."""
        # Bytes as weights of a floating-point product are ONNX Runtime's to unpack, not every engine's.
        model = model if self.meaning is None else with_meaning(model, self.meaning, int8=int8)
        return model if self.closer is None else closer.with_closer(model, self.closer)

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
            found[flavor.image.file] = self._with_heads(quantized, int8=name == BASE).SerializeToString()
        return found

    def embedder(self, flavor: str) -> parity.Embedder:
        """A shipped image model; ONNX Runtime stands in for a device's backend, with the options of its fallback."""
        spec = msgspec.structs.replace(self.flavors[flavor].image, backend="onnxruntime")
        return parity.Embedder(self.models[spec.file], spec, self.preprocess, self.constants)

    @cached_property
    def full(self) -> parity.Embedder:
        """The image student in full precision, as ONNX Runtime runs it best."""
        return parity.Embedder(
            self.original.SerializeToString(), Model(file="original"), self.preprocess, self.constants
        )

    @property
    def constants(self) -> Closer | None:
        """Of the closer look, for the manifest."""
        return None if self.closer is None else self.closer.constants

    @cached_property
    def decoder(self) -> making.Made | None:
        """The fusion decoder, trained on what the base flavour sees; None where the recipe wants none."""
        if not self.recipe.fusion.steps:
            return None
        eye = self.embedder(BASE).eye(TOKENS)
        try:
            return making.make(
                self.recipe.fusion, eye, self.embed_texts, self.recipe.seed, self.work / "fusion", self.bar
            )
        finally:
            eye.close()

    @cached_property
    def embed_texts(self) -> Callable[[Sequence[str]], Vectors]:
        """Embeds texts with the model that ships."""
        return text_embedder(self.models[f"models/text.{BASE}.onnx"], self.text_student.tokenizer_json)

    @cached_property
    def golden(self) -> dict[str, NDArray[Any]]:
        """Frames, and glimpses of them if there is a closer look, with their full-precision embeddings (``Manifest``).

        They are of the package's own clip: a bundle carries no picture that is somebody else's.
        """
        with open_camera(load_clip()[0]) as camera:
            frames = [f.pixels for f in islice(camera.frames(), 0, GOLDEN_FRAMES * GOLDEN_STRIDE, GOLDEN_STRIDE)]
        eye = self.full.eye()
        found = {"pixels": np.concatenate(prepared(frames, self.preprocess))}
        if self.constants is not None:
            found["glimpse_pixels"] = np.concatenate(prepared(frames, eye.glimpse))
        embeddings = {name.replace("pixels", "embeddings"): embedded(eye, pixels) for name, pixels in found.items()}
        eye.close()
        return {**found, **embeddings}

    def replayed(self, flavor: str) -> float:
        """The least cosine of a flavour's golden frames and glimpses to those of full precision, as it runs here."""
        eye, golden = self.embedder(flavor).eye(), self.golden
        names = [name for name in golden if name.endswith("pixels")]
        found = [parity.cosine(golden[n.replace("pixels", "embeddings")], embedded(eye, golden[n])) for n in names]
        eye.close()
        return float(np.min(found))

    def image_space(self) -> Space:
        """Named by the full-precision student."""
        weights = {name: tensor.numpy().tobytes() for name, tensor in self.student.state_dict().items()}
        definition: dict[str, object] = {"preprocess": msgspec.to_builtins(self.preprocess)}
        definition["output"] = "unit(project(unit(mean(grid))))"
        if self.closer is not None:
            definition["closer"] = msgspec.to_builtins(self.closer.constants)
            weights["closer"] = self.closer.weights.tobytes()
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


def text_embedder(model: bytes, tokenizer_json: bytes) -> Callable[[Sequence[str]], Vectors]:
    """A text model in ONNX Runtime, opened once: texts -> float32 [n, dim]."""
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    session = open_session(model, Model(file="text"), threads=1)

    def embed(texts: Sequence[str]) -> Vectors:
        batch = tokenizer.encode_batch(list(texts))
        feeds = {
            "input_ids": np.array([encoding.ids for encoding in batch], np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in batch], np.int64),
        }
        return np.asarray(session.run(feeds, ("embedding",))[0], np.float32)

    return embed


def embedded(eye: Eye, pixels: Pixels) -> Vectors:
    """Each picture alone: uint8 [n, h, w, 3] -> float32 [n, dim]."""
    return np.stack([eye.embed(one[None]) for one in pixels])


def square(side: int) -> Preprocess:
    """Of a square input, in pixels."""
    return Preprocess(height=side, width=side)
