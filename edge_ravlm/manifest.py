"""The bundle's ``manifest.json``: what export promises and the runtime relies on, validated field by field."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edge_ravlm.errors import BundleError
from edge_ravlm.preprocess import Preprocess, Side

MANIFEST_NAME = "manifest.json"
SCHEMA_VERSION = 1

Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[int, Meta(gt=0)]
Few = Annotated[int, Meta(gt=0, le=1024)]
Width = Annotated[int, Meta(gt=0, le=65_536)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Immutable, and an unknown field is an error: a newer bundle must not be half understood."""


class FileRecord(_Strict, frozen=True):
    """One file of the bundle; ``path`` is relative, with forward slashes."""

    path: str
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Sha256


class Space(_Strict, frozen=True):
    """One embedding space: vectors are comparable exactly when their space ids are equal.

    Attributes:
        id: hash over the full-precision weights, the preprocessing and the output's definition (``space_id``).
        dim: length of an embedding.
    """

    id: Sha256
    dim: Width


class Model(_Strict, frozen=True):
    """One ONNX file and the session it was proven in.

    Attributes:
        file: path in the bundle.
        backend: what runs it; where that is missing, ONNX Runtime does.
        graph_optimization: ONNX Runtime's level; parity was measured with this one, so no other may be used.
    """

    file: str
    backend: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    graph_optimization: Literal["disable", "basic", "extended", "all"] = "all"


class Fusion(_Strict, frozen=True):
    """The fusion decoder's two graphs: what is read once for a question, and what is run for every token written."""

    prefill: Model
    step: Model


class Flavor(_Strict, frozen=True):
    """The models of one quantization flavour; image and text write into the bundle's spaces.

    Attributes:
        fusion: the decoder that answers in words; None where this flavour has none.
    """

    image: Model
    text: Model
    fusion: Fusion | None = None

    def models(self) -> tuple[Model, ...]:
        """All of them."""
        decoder = () if self.fusion is None else (self.fusion.prefill, self.fusion.step)
        return (self.image, self.text, *decoder)


class FusionSpec(_Strict, frozen=True):
    """What every flavour's fusion decoder has in common.

    Attributes:
        tokenizer: path of its own tokenizer; not the text encoder's.
        entries: how many a picture brings it to read, or a question without one; words and a second hop bring few more.
        longest: tokens of an answer, at most.
        abstain_above: probability of "nothing answers this" from which the runtime says that it does not know.
        layers, heads, width: of its attention; each head has ``width / heads`` numbers.
    """

    tokenizer: str
    entries: Few
    longest: Width
    abstain_above: Share
    layers: Few
    heads: Few
    width: Width


class Closer(_Strict, frozen=True):
    """How the image encoder takes a second, closer look; see ``runtime.closer``.

    Attributes:
        side: of the cut-out's square input in pixels, smaller than the whole picture's.
        margin: sides of the cut-out, as a multiple of the thing's.
        studied: further margins, for what is taught.
        x, y: gain and shift from the middle of the attention to the middle of the thing, in shares of a side.
    """

    side: Side
    margin: Annotated[float, Meta(ge=1.0, le=8.0)]
    studied: tuple[Annotated[float, Meta(ge=1.0, le=8.0)], ...] = ()
    x: tuple[float, float] = (1.0, 0.0)
    y: tuple[float, float] = (1.0, 0.0)


class TensorInfo(_Strict, frozen=True):
    """One input or output of an engine, as the built engine itself describes it; -1 is a dynamic side."""

    name: str
    mode: Literal["input", "output"]
    dtype: str
    shape: tuple[int, ...]


class Engine(_Strict, frozen=True):
    """A built TensorRT engine: a disposable cache that runs only where its whole key matches.

    Attributes:
        file: path in the bundle (or in the folder that `engine build -o` wrote).
        model: path of the ONNX file that it was built from.
        model_sha256: that file's hash; another file means another engine.
        flavor: which library runs it.
        library_version: of that library, exactly.
        compute_capabilities: of the GPUs it was built for, such as "8.9".
        platform: operating system and processor, such as "linux-x86_64".
        seconds: what building took.
        io: its inputs and outputs.
    """

    file: str
    model: str
    model_sha256: Sha256
    flavor: Literal["tensorrt", "tensorrt_rtx"]
    library_version: str
    compute_capabilities: tuple[str, ...]
    platform: str
    seconds: float
    io: tuple[TensorInfo, ...]


class Answering(_Strict, frozen=True):
    """Constants of the answering rules, fitted at export on held-out scenes (``edge_ravlm.export.answering``).

    Attributes:
        image_floor: cosine below which the nearest memory shows something else, so the runtime abstains.
        text_floor: cosine below which no memory talks about the question.
        sibling_floor: cosine between two memories' texts from which they are about the same thing ("the gate is
            open", "the gate is closed").
        sharpness: slope of the logistic that makes a confidence of the winner's lead (``runtime.voting.vote``).
        abstain_below: confidence below which the runtime says that it does not know.
        sure_above: confidence from which the first look at a picture is enough, where there could be a closer one.
        glimpse_above: confidence from which a glimpse, a first look in the closer look's size, is enough; 1 where none
            is to be taken.
    """

    image_floor: float
    text_floor: float
    sibling_floor: float
    sharpness: float
    abstain_below: Share
    sure_above: Share = 1.0
    glimpse_above: Share = 1.0


class Parity(_Strict, frozen=True):
    """What the gate measured on held-out pictures; fractions of 1. The full report is ``report``.

    Attributes:
        images: how many pictures were judged.
        session: what ran the quantized model: the session that ships, or its stand-in where that needs a GPU.
        cosine_mean, cosine_p1: of the embeddings to the full-precision ones; mean and 1st percentile.
        recall1_loss, recall10_loss: full-precision recall minus quantized recall, one memory per object.
        cross_recall1_loss: the same with queries of this flavour against memories of ``cpu-u8``.
        answer_agreement: share of pictures that get the same answer as in full precision, looked at as when asked.
        speedup_vs_fp32: full-precision time over quantized time in one run, one thread; None where it cannot run.
        text_cosine_mean: of the quantized text embeddings to the full-precision ones.
        student_recall_retention: the shipped student's recall@1 over its teacher's; None without a teacher.
        student_speedup: the teacher's time over the shipped student's, one thread.
        meaning_cosine_mean, meaning_cosine_p1: of the quantized ``meaning`` to the full-precision one; None without it.
        glimpse_cosine_mean, glimpse_cosine_p1: of glimpses to those of full precision; None without a closer look.
        decoder_agreement: share of questions in which the shipped decoder chooses the words of full precision, the
            right ones before each; None without a decoder.
        below_gate: whether it was let through by ``--allow-below-gate``.
        report: path of the full report in the bundle.
    """

    images: Positive
    session: str
    cosine_mean: float
    cosine_p1: float
    recall1_loss: float
    recall10_loss: float
    cross_recall1_loss: float
    answer_agreement: float
    speedup_vs_fp32: float | None
    text_cosine_mean: float
    student_recall_retention: float | None
    student_speedup: float | None
    report: str
    below_gate: bool = False
    meaning_cosine_mean: float | None = None
    meaning_cosine_p1: float | None = None
    glimpse_cosine_mean: float | None = None
    glimpse_cosine_p1: float | None = None
    decoder_agreement: float | None = None


class Source(_Strict, frozen=True):
    """Where weights or training material came from, and under which licence (SPDX where there is one)."""

    name: str
    origin: str
    licence: str


class Manifest(_Strict, frozen=True):
    """Everything about a bundle but its bytes.

    Attributes:
        target: the profile in ``targets.toml`` that it was exported for.
        recipe: path of the recipe that made it.
        golden: path of golden frames and their embeddings in full precision, which a device replays before it
            answers anything: ``.npz`` with ``pixels`` uint8 [n, h, w, 3] and ``embeddings`` float32 [n, dim]. Bundles
            that look closer hold ``glimpse_pixels`` and ``glimpse_embeddings`` too, in that size, but older ones.
        calibration_sha256: over the calibration pictures.
        fusion: the decoder that answers in words; None where no flavour has one.
        meaning_space: of the image model's output ``meaning``: the picture among texts. None without one.
        closer: how to look a second time, for which the image models take any input size and have the outputs
            ``attention`` and ``extent``. None where one look has to do.
    """

    schema_version: int
    name: str
    target: str
    recipe: str
    files: tuple[FileRecord, ...]
    preprocess: Preprocess
    image_space: Space
    text_space: Space
    tokenizer: str
    flavors: dict[str, Flavor]
    answering: Answering
    parity: dict[str, Parity]
    golden: str
    calibration_sha256: Sha256
    sources: tuple[Source, ...]
    engines: tuple[Engine, ...] = ()
    fusion: FusionSpec | None = None
    meaning_space: Space | None = None
    closer: Closer | None = None

    def required_files(self) -> set[str]:
        """The files that the manifest itself refers to; each has to be listed."""
        models = {model.file for flavor in self.flavors.values() for model in flavor.models()}
        reports = {parity.report for parity in self.parity.values()}
        tokenizers = {self.tokenizer} if self.fusion is None else {self.tokenizer, self.fusion.tokenizer}
        return models | reports | {engine.file for engine in self.engines} | tokenizers | {self.recipe, self.golden}

    def flavor(self, name: str) -> Flavor:
        """The flavour by name; raises BundleError with the ones there are."""
        if name not in self.flavors:
            raise BundleError(
                f"bundle '{self.name}'",
                expected=f"flavour {name}",
                got=", ".join(sorted(self.flavors)),
                do=f"export it again with a target that uses {name}",
            )
        return self.flavors[name]


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Parse and validate; raises BundleError naming the field that is wrong, or the version that is too new."""
    do = "export it again with this version of edge-ravlm"
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
        if version != SCHEMA_VERSION:
            raise BundleError(where, expected=f"manifest schema {SCHEMA_VERSION}", got=f"schema {version}", do=do)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(where, expected="a valid manifest.json", got=str(error), do=do) from None
    _check_parts(manifest, where, do)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Indented JSON, byte-identical for equal manifests."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def space_id(weights: dict[str, bytes], definition: dict[str, object]) -> str:
    """Hash of an embedding space.

    Args:
        weights: the full-precision tensors' bytes by name.
        definition: preprocessing and output, as plain JSON values.
    """
    digest = hashlib.sha256(msgspec.json.encode(definition, order="deterministic"))
    for name in sorted(weights):
        digest.update(name.encode() + b"\0" + len(weights[name]).to_bytes(8, "little") + weights[name])
    return digest.hexdigest()


def _check_parts(manifest: Manifest, where: str, do: str) -> None:
    """Refuse optional parts that do not fit: half a decoder, heads that cannot share its width, foreign meanings."""
    spec, meaning, text = manifest.fusion, manifest.meaning_space, manifest.text_space
    having = sorted(name for name, flavor in manifest.flavors.items() if flavor.fusion is not None)
    if spec is None and having:
        expected, got = "`fusion` for its models", f"none, with models in flavour {', '.join(having)}"
    elif spec is not None and not having:
        expected, got = "`fusion` with models", f"none in flavour {', '.join(sorted(manifest.flavors)) or 'any'}"
    elif spec is not None and spec.width % spec.heads:
        expected, got = "`fusion.width` that its heads share", f"{spec.width} for {spec.heads} heads"
    elif meaning is not None and meaning.dim != text.dim:
        expected, got = f"`meaning_space` with the {text.dim} dimensions of `text_space`", str(meaning.dim)
    else:
        return
    raise BundleError(where, expected=f"a valid manifest.json: {expected}", got=got, do=do)


class _Versioned(msgspec.Struct):
    schema_version: int
