"""From a recipe to a verified bundle for a named target.

Stages that take minutes leave their result in a work folder beside the output, so that an export that was interrupted
goes on where it was; the bundle itself appears whole, and only after the gate.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edge_ravlm.bundle import Bundle, check_new, write_bundle
from edge_ravlm.console import Bar
from edge_ravlm.errors import BundleError, needs_extra
from edge_ravlm.export import answering, parity
from edge_ravlm.export.data import corpus
from edge_ravlm.export.distil import whitened
from edge_ravlm.export.distil.checkpoint import storing_in
from edge_ravlm.export.fusion import making
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.images import fingerprint, gather, own_files
from edge_ravlm.export.judging import prepared
from edge_ravlm.export.onnx_graph import teacher_graph
from edge_ravlm.export.parts import BASE, EVERYDAY, Parts, square
from edge_ravlm.export.quantize.candidates import calibrations
from edge_ravlm.export.quantize.sensitivity import layer_gains
from edge_ravlm.export.recipe import Quantization, Recipe
from edge_ravlm.export.report import report_files
from edge_ravlm.machine import libraries, machine
from edge_ravlm.manifest import (
    SCHEMA_VERSION,
    Answering,
    Engine,
    Manifest,
    Parity,
    Source,
)
from edge_ravlm.targets import Target

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
"""Of glibc's ``malloc.h``."""

GOLDEN = "parity/golden.npz"


def export(
    recipe: Recipe,
    recipe_bytes: bytes,
    target: Target,
    out: Path,
    *,
    base: Path,
    bar: Bar,
    allow_below_gate: bool = False,
    keep_work: bool = False,
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
        keep_work: leave the work folder, which holds what was trained in full precision.

    Raises:
        GateError: a quantized model does not behave like its original; so little, even below the gate, that the runtime
            would not open the bundle.
        DataError: pictures, weights or texts that cannot be used.
        BundleError: ``out`` holds something already, or another export is making it.
        StorageError: the disk refused.
    """
    with storing_in(out):
        check_new(out)
    for flavor in (BASE, target.flavor):
        calibrations(flavor, recipe.quantize.calibration)  # refuse now what would fail after the training
    _keep_freed_memory()
    torch.manual_seed(recipe.seed)
    with bar("composing and reading pictures", None):
        gathered = gather(recipe, base)
        # After that: what cannot be read for once does not empty the work folder.
        inputs = _inputs(recipe, target, base)
    work = out.absolute().with_name(f".{out.name}.work")
    with _held(work, out):
        _keep_made_from(inputs, work)
        if recipe.fusion.steps:  # it reads what the quantized encoder sees
            own = msgspec.json.encode((inputs, recipe.quantize, recipe.fusion), order="deterministic")
            _keep_made_from(hashlib.sha256(own).hexdigest(), work / "fusion")
        job = _Job(Parts(recipe, target, gathered, work, base, bar))
        contents, manifest = job.contents(recipe_bytes, allow_below_gate)
        bundle = write_bundle(out, manifest, contents)
        if not keep_work:
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


def _inputs(recipe: Recipe, target: Target, base: Path) -> str:
    """SHA-256 over all that the students in the work folder learn from: recipe, target and the user's own files.

    What the gate advises to change is not among it: such a change costs no training.
    """
    learnt = msgspec.structs.replace(
        recipe, name="", gate=parity.Gate(), quantize=Quantization(), fusion=FusionSettings()
    )
    digest = hashlib.sha256(msgspec.json.encode((learnt, target.name), order="deterministic"))
    if recipe.text.corpus != EVERYDAY:
        digest.update("\n".join(corpus.read_sentences(base / recipe.text.corpus)).encode())
    for path in own_files(recipe, base):
        with suppress(OSError):  # pictures that cannot be read are left out, as they are in training
            digest.update(b"\0" + os.fsencode(os.path.relpath(path, base)) + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@contextmanager
def _held(work: Path, out: Path) -> Iterator[None]:
    """The work folder, made if need be, is this export's alone; raises BundleError while another one has it."""
    with storing_in(work):
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BundleError(
                f"output '{out}'",
                expected="one export to it at a time",
                got="another one at work",
                do="wait for it, or choose another folder",
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _keep_made_from(inputs: str, folder: Path) -> None:
    """Empty a folder of results unless they were made from these inputs (their SHA-256)."""
    mark = folder / "inputs.sha256"
    with storing_in(folder):
        folder.mkdir(exist_ok=True)
        if mark.is_file() and mark.read_bytes() == inputs.encode():
            return
        for path in folder.iterdir():  # not the folder itself, which is held
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        mark.write_text(inputs, encoding="ascii")


@dataclass
class _Job:
    """One export: the proof of its parts, and what goes into the bundle."""

    parts: Parts

    @cached_property
    def topics(self) -> tuple[list[corpus.Topic], list[corpus.Topic]]:
        """Two halves: to fit on, to judge on."""
        every = corpus.topics()
        order = np.random.default_rng(self.parts.recipe.seed).permutation(len(every))
        return [every[int(i)] for i in order[::2]], [every[int(i)] for i in order[1::2]]

    @cached_property
    def rules(self) -> Answering:
        """Fitted on the base flavour, whose embeddings are in most memories."""
        with self.parts.bar("fitting the answering rules", None):
            seen = answering.see(self.parts.gathered.fitting, self.parts.embedder(BASE))
            return answering.fit(seen, answering.text_pairs(self.topics[0], self.parts.embed_texts))

    @cached_property
    def teacher_view(self) -> parity.Teacher | None:
        """The teacher over the judged pictures, in the space that the student learnt."""
        parts = self.parts
        if parts.teacher is None:
            return None
        with parts.bar("the image teacher looks at the held-out pictures", None):
            view = whitened(
                parts.teacher,
                parts.gathered.training,
                parts.recipe.student.dim,
                parts.recipe.distil,
            )
            shape = square(parts.teacher.side)
            judged = parity.look(lambda pictures: view(prepared(pictures, shape)), parts.gathered.judging)
        return parity.Teacher(judged, teacher_graph(parts.teacher, shape), shape)

    def figures(self, flavor: str) -> parity.Figures:
        """The gate's figures of one flavour, with its failures."""
        parts = self.parts
        judging, shipped = parts.gathered.judging, parts.embedder(flavor)
        said = [text for topic in self.topics[1] for text in (*topic.questions, *(s for t in topic.states for s in t))]
        found = parity.judge(
            judging,
            original=parts.full,
            shipped=shipped,
            reference=shipped if flavor == BASE else parts.embedder(BASE),
            texts=(parts.text_student.embed(said), parts.embed_texts(said)),
            rules=self.rules,
            teacher=self.teacher_view,
            timed=parts.flavors[flavor].image.backend == "onnxruntime",
            meaning=parts.meaning is not None,
        )
        quality = answering.judge(
            answering.see(judging.tasks, shipped),
            answering.text_pairs(self.topics[1], parts.embed_texts),
            self.rules,
        )
        missed = parity.failures(found, parts.recipe.gate, parts.models)
        worst = self.sensitivity(flavor) if missed else {}
        return msgspec.structs.replace(found, answering=quality, failures=missed, sensitivity=worst)

    def sensitivity(self, flavor: str) -> dict[str, float]:
        """By layer, the cosine that comes back when it alone stays in floats; worth its minutes when the gate fails."""
        shipped = self.parts.embedder(flavor)
        quantized = onnx.load_model_from_string(shipped.model)
        pictures = self.parts.gathered.calibration[:16]
        with self.parts.bar(f"looking for the layer that {flavor} harms", None) as advance:
            return layer_gains(
                self.parts.original, quantized, lambda data: replace(shipped, model=data)(pictures), advance=advance
            )

    def contents(self, recipe_bytes: bytes, allow_below_gate: bool) -> tuple[dict[str, bytes], Manifest]:
        """Every file of the bundle, and its manifest; raises GateError first."""
        parts = self.parts
        files, proven = dict(parts.models), {}
        setting = {**machine(), **libraries(), "threads": 1, "target": parts.target.name}
        setting["student"] = parts.reason
        judged = {}
        for flavor in parts.flavors:
            with parts.bar(f"judging {flavor}", None):
                judged[flavor] = self.figures(flavor)
                worst = parts.replayed(flavor)
            if not allow_below_gate:
                parity.pass_or_raise(judged[flavor], flavor)
            parity.open_or_raise(worst, flavor)
        decoder = parts.decoder  # an hour's training, which is not for encoders that fail
        fusion = parts.flavors[BASE].fusion
        if decoder is not None and fusion is not None:
            files |= {fusion.prefill.file: decoder.prefill, fusion.step.file: decoder.step}
            for flavor, figures in judged.items():
                judged[flavor] = parity.with_decoder(figures, decoder.figures.agreement, parts.recipe.gate, files)
                if not allow_below_gate:
                    parity.pass_or_raise(judged[flavor], flavor)
            files |= {making.TOKENIZER: decoder.tokenizer, "parity/fusion.json": _indented(decoder.figures)}
        for flavor, figures in judged.items():
            files |= report_files(flavor, figures, parts.recipe.gate, setting)
            proven[flavor] = _summary(figures, f"parity/{flavor}.json", bool(figures.failures))
        engines = self.engines()
        files |= {engine.file: data for engine, data in engines}
        files |= {"tokenizer.json": parts.text_student.tokenizer_json, "recipe.toml": recipe_bytes}
        files |= {GOLDEN: _packed(parts.golden), "LICENCES.md": _licences(parts.sources).encode()}
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=parts.recipe.name,
            target=parts.target.name,
            recipe="recipe.toml",
            files=(),
            preprocess=parts.preprocess,
            image_space=parts.image_space(),
            text_space=parts.text_space(),
            tokenizer="tokenizer.json",
            flavors=parts.flavors,
            fusion=None if decoder is None else decoder.spec,
            answering=self.rules,
            parity=proven,
            golden=GOLDEN,
            calibration_sha256=fingerprint(parts.gathered.calibration),
            sources=parts.sources,
            engines=tuple(engine for engine, _ in engines),
            meaning_space=None
            if parts.meaning is None
            else parts.meaning.space(parts.image_space(), parts.text_space()),
            closer=parts.constants,
        )
        return files, manifest

    def engines(self) -> list[tuple[Engine, bytes]]:
        """Built ahead of time where the target's library can do that without its GPU."""
        if self.parts.target.engine != "tensorrt_rtx":
            return []
        with needs_extra("export"):
            from edge_ravlm.export.engines import Batch, build  # noqa: PLC0415  # a GPU target's library

        parts = self.parts
        file, closer = parts.flavors[parts.target.flavor].image.file, parts.constants
        sides = None if closer is None else (closer.side, parts.preprocess.height)
        with parts.bar(f"building engines for {parts.target.name}", None):
            return build(parts.models[file], file, parts.target, batch=Batch(sides=sides))


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, **dict[str, Any](arrays))
    return out.getvalue()


def _indented(figures: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n"


def _summary(figures: parity.Figures, report: str, below_gate: bool) -> Parity:
    shared = {name: getattr(figures, name) for name in Parity.__struct_fields__ if hasattr(figures, name)}
    return Parity(**shared, report=report, below_gate=below_gate)


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
