"""The text student: one vector per word piece, weighted, summed and normalised; an encoder without layers.

Recipe, after model2vec (Tulkens & van Dongen 2024) and tokenlearn (MinishLab): each vocabulary entry goes
through the teacher alone, the result is projected on the principal directions of the teacher's sentence
embeddings and weighted by rarity (SIF: Arora, Liang & Ma 2017, "A Simple but Tough-to-Beat Baseline for
Sentence Embeddings"); then the table is trained so that the normalised sum over a sentence's tokens points
where the teacher's sentence embedding points. Every weight ends up in the table, so the runtime needs
``tokenizers`` and one small ONNX graph.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

from edge_ravlm.errors import DataError

OPSET, IR_VERSION = 17, 8
"""Below the bundle's limits (opset 20, IR 10); every operator here is older still."""

MAX_TOKENS = 64
"""Longer texts are cut here: the student learns from sentences. The runtime reads all of a text."""

_PAD, _UNK = "[PAD]", "[UNK]"
_TINY = 1e-12  # added under the square root: the sum over no token at all stays finite (it becomes zeros)
_SIF = 1e-3  # a of a / (a + p), within the range 1e-4 … 1e-3 that the paper recommends
_EPOCHS, _BATCH, _RATE = 10, 2048, 2e-2

Floats = NDArray[np.float32]
Ids = Sequence[Sequence[int]]
Progress = Callable[[str, int, int], None]
"""Called with (stage, done, in all): sentences in stage "teacher", batches in stage "table"."""
_Done = Callable[[int, int], None]


class Teacher(Protocol):
    """What the student learns from; ``edge_ravlm.export.teachers.minilm.MiniLM`` is one."""

    tokenizer_json: bytes
    """A WordPiece file with [PAD], [UNK], [CLS] and [SEP]."""

    def embed(self, texts: Sequence[str], batch_size: int = 64, progress: _Done | None = None) -> Floats:
        """Float32 [texts, teacher dim], L2-normalised."""
        ...

    def embed_ids(self, ids: Ids, batch_size: int = 64, progress: _Done | None = None) -> Floats:
        """The same for token ids, [CLS] and [SEP] included."""
        ...


@dataclass(frozen=True, slots=True)
class StaticText:
    """The student.

    Attributes:
        table: float32 [vocabulary, dim]; row 0 is [PAD] and is zero.
        tokenizer_json: the ``tokenizers`` file whose ids index the table: pads to the longest of a batch,
            cuts after MAX_TOKENS, adds no special tokens.
    """

    table: Floats
    tokenizer_json: bytes

    def embed(self, texts: Sequence[str]) -> Floats:
        """Float32 [texts, dim], L2-normalised, zeros for a text without tokens: the ONNX graphs in numpy."""
        bags = _token_ids(self.tokenizer_json, texts)
        sums = np.array([self.table[bag].sum(0) for bag in bags], np.float32).reshape(len(bags), -1)
        norms: Floats = np.sqrt((sums * sums).sum(1, keepdims=True) + np.float32(_TINY))
        return sums / norms


def distil(
    teacher: Teacher,
    corpus: Sequence[str],
    *,
    dim: int = 256,
    vocab: int = 22_000,
    speech: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> StaticText:
    """Distil a sentence teacher into a table of word-piece vectors.

    The same inputs give the same bytes as long as torch keeps its number of threads. Nearly all of the time
    goes into the teacher reading the corpus; a teacher that remembers its answers makes a second run short.

    Args:
        teacher: the sentence encoder to imitate.
        corpus: sentences and names like those the student will meet; duplicates count once.
        dim: numbers per embedding, at most the teacher's.
        vocab: pieces to keep; single characters stay even beyond it, so that words rarely become [UNK].
        speech: how often words are said, to keep household words ("kettle") that an encyclopedia lacks.
        seed: order of the sentences in training.
        progress: told how far the teacher and the training are.

    Raises:
        DataError: if there are fewer sentences, or fewer teacher dimensions, than ``dim``, or the teacher's tokenizer
            is of another kind.
    """
    _check_pieces(teacher.tokenizer_json)
    sentences = list(dict.fromkeys(text for text in corpus if text.strip()))
    if len(sentences) < dim:
        raise _too_small(f"{dim} sentences", f"{len(sentences)}", "add sentences or lower dim")
    tokenizer_json, pieces = prune_tokenizer(teacher.tokenizer_json, sentences, vocab, speech or {})
    alone = teacher.embed_ids(_wrapped(teacher.tokenizer_json, pieces), 256)
    if alone.shape[1] < dim:
        raise _too_small(f"a teacher of {dim} dimensions", f"{alone.shape[1]}", "lower dim")
    read = teacher.embed(sentences, progress=_stage(progress, "teacher"))
    basis, bags = _principal_directions(read, dim), _token_ids(tokenizer_json, sentences)
    start = alone @ basis * _rarity(bags, teacher.tokenizer_json, pieces)[:, None]
    words = [row for row, piece in enumerate(pieces) if row > 1 and not _is_inner(piece)]
    bags += [[row] for row in words]
    targets = np.concatenate([read, alone[words]]) @ basis
    return StaticText(_fit(start, bags, targets, seed, _stage(progress, "table")), tokenizer_json)


def prune_tokenizer(
    tokenizer_json: bytes, corpus: Sequence[str], vocab: int, speech: Mapping[str, int]
) -> tuple[bytes, list[str]]:
    """A WordPiece file of ``vocab`` pieces, and those pieces in the order of their ids.

    [PAD] is 0, [UNK] is 1; all single characters stay. Of the rest the most frequent stay: share of the corpus,
    plus share of speech, plus a little of Zipf's law on the old file's order.
    """
    spec = json.loads(tokenizer_json)
    old = [piece for piece in _by_id(spec) if _is_text(piece)]
    written, spoken, prior = _shares(spec, dict.fromkeys(corpus, 1)), _shares(spec, speech), _zipf(old)
    useful = {piece: written[piece] + spoken[piece] + 0.1 * prior[piece] for piece in old}
    always = {piece for piece in old if len(_bare(piece)) == 1}
    rest = sorted(useful.keys() - always, key=lambda piece: (-useful[piece], piece))
    chosen = always | set(rest[: max(0, vocab - len(always) - 2)])
    pieces = [_PAD, _UNK, *(piece for piece in old if piece in chosen)]
    return _pruned(spec, pieces), pieces


def to_onnx_int8(student: StaticText) -> bytes:
    """The student as a graph over an INT8 table: symmetric, one scale per row, multiplied back after the lookup.

    Inputs ``input_ids`` and ``attention_mask``: int64 [batch, tokens]. Output ``embedding``: float32
    [batch, dim], L2-normalised; zeros for a row whose mask is.
    """
    scales = np.abs(student.table).max(1, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    table = np.rint(student.table / scales).astype(np.int8)
    axes = {"token_axis": np.array([1]), "last_axis": np.array([2])}
    constants = {"table": table, "scales": scales, **axes, "tiny": np.array([_TINY], np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["table", "input_ids"], ["quantized"]),
            helper.make_node("Cast", ["quantized"], ["rows"], to=TensorProto.FLOAT),
            helper.make_node("Gather", ["scales", "input_ids"], ["row_scales"]),
            helper.make_node("Unsqueeze", ["mask", "last_axis"], ["wide_mask"]),
            helper.make_node("Mul", ["row_scales", "wide_mask"], ["weights"]),
            helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "token_axis"], ["sums"], keepdims=0),
            helper.make_node("Mul", ["sums", "sums"], ["squares"]),
            helper.make_node("ReduceSum", ["squares", "token_axis"], ["squared"], keepdims=1),
            helper.make_node("Add", ["squared", "tiny"], ["positive"]),
            helper.make_node("Sqrt", ["positive"], ["norm"]),
            helper.make_node("Div", ["sums", "norm"], ["embedding"]),
        ],
        "static_text",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
            for name in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", student.table.shape[1]])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="edge-ravlm")
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _fit(start: Floats, bags: Ids, targets: Floats, seed: int, progress: _Done | None) -> Floats:
    """Tokenlearn: turn each bag's sum towards its target by cosine; Adam, one-cycle rate."""
    filled = [row for row, bag in enumerate(bags) if bag]
    pool, goal = _Bags([bags[row] for row in filled]), torch.from_numpy(targets[filled])
    table = torch.tensor(start, dtype=torch.float32, requires_grad=True)
    batches = _batches(len(filled), seed)
    optimizer = torch.optim.Adam([table], lr=_RATE)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=len(batches))
    for done, rows in enumerate(batches, 1):
        loss = 1 - F.cosine_similarity(pool.sums(table, rows), goal[rows]).mean()
        (table.grad,) = torch.autograd.grad(loss, [table])
        optimizer.step()
        rate.step()
        if progress is not None:
            progress(done, len(batches))
    fitted: Floats = table.detach().numpy()
    fitted[0] = 0.0
    return fitted


class _Bags:
    """Token ids of many sentences in one flat tensor, so that a batch is a gather and not a Python loop."""

    def __init__(self, bags: Ids) -> None:
        self._lengths = torch.tensor([len(bag) for bag in bags])
        self._starts = self._lengths.cumsum(0) - self._lengths
        self._ids = torch.tensor([token for bag in bags for token in bag])

    def sums(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Float32 [rows, dim]: per sentence the sum of its table rows."""
        lengths = self._lengths[rows]
        offsets = lengths.cumsum(0) - lengths
        shifts = torch.repeat_interleave(self._starts[rows] - offsets, lengths)
        places = shifts + torch.arange(len(shifts))
        return F.embedding_bag(self._ids[places], table, offsets, mode="sum")


def _batches(count: int, seed: int) -> list[torch.Tensor]:
    """Row numbers of every batch of every epoch, each epoch in its own order."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(count, generator=generator) for _ in range(_EPOCHS)]
    return [order[start : start + _BATCH] for order in orders for start in range(0, count, _BATCH)]


def _principal_directions(embeddings: Floats, dim: int) -> Floats:
    """Float32 [teacher dim, dim]: the directions that keep most of the embeddings.

    Not centred, unlike PCA proper: taking the mean away would change the teacher's cosines.
    """
    _, _, directions = np.linalg.svd(embeddings.T @ embeddings)
    return np.ascontiguousarray(directions[:dim].T, np.float32)


def _rarity(bags: Ids, tokenizer_json: bytes, pieces: Sequence[str]) -> Floats:
    """Float32 [pieces]: SIF's a / (a + p); p is half the corpus, half Zipf's law on the old file."""
    prior = _zipf(_by_id(json.loads(tokenizer_json)))
    seen = np.bincount([token for bag in bags for token in bag], minlength=len(pieces))
    zipf = np.array([prior[piece] for piece in pieces])
    frequency = 0.5 * seen / max(1, seen.sum()) + 0.5 * zipf
    return np.asarray(_SIF / (_SIF + frequency), np.float32)


def _zipf(pieces: Sequence[str]) -> dict[str, float]:
    """Probabilities that fall with the rank, summing to one (model2vec's stand-in for counted frequencies).

    Single characters stand first in BERT's file by code point, not by frequency: they get none.
    """
    ranked = [piece for piece in pieces if _is_text(piece) and len(_bare(piece)) > 1]
    total = sum(1 / rank for rank in range(2, len(ranked) + 2))
    return dict.fromkeys(pieces, 0.0) | {piece: 1 / rank / total for rank, piece in enumerate(ranked, 2)}


def _shares(spec: dict[str, Any], texts: Mapping[str, int]) -> dict[str, float]:
    """How often the unpruned tokenizer uses each piece, as a share of all; ``texts`` with their counts."""
    plain = json.dumps({**spec, "post_processor": None, "truncation": None, "padding": None})
    counts = dict.fromkeys(_by_id(spec), 0)
    for encoding, count in zip(Tokenizer.from_str(plain).encode_batch(list(texts)), texts.values(), strict=True):
        for piece in encoding.tokens:
            counts[piece] += count
    in_all = max(1, sum(counts.values()))
    return {piece: count / in_all for piece, count in counts.items()}


def _pruned(spec: dict[str, Any], pieces: Sequence[str]) -> bytes:
    """The tokenizer file with another vocabulary; no template, cut to MAX_TOKENS, padded to the longest."""
    ids = {piece: row for row, piece in enumerate(pieces)}
    special = [{**token, "id": ids[token["content"]]} for token in spec["added_tokens"] if token["content"] in ids]
    model = {**spec["model"], "vocab": ids}
    changed = {"added_tokens": special, "post_processor": None, "model": model}
    tokenizer = Tokenizer.from_str(json.dumps({**spec, **changed, "padding": None, "truncation": None}))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding(pad_id=0, pad_token=_PAD)
    return str(tokenizer.to_str(pretty=False)).encode()


def _wrapped(tokenizer_json: bytes, pieces: Sequence[str]) -> list[list[int]]:
    """Every piece as the teacher reads it alone: [CLS] piece [SEP], in the teacher's ids."""
    ids: dict[str, int] = json.loads(tokenizer_json)["model"]["vocab"]
    return [[ids["[CLS]"], ids[piece], ids["[SEP]"]] for piece in pieces]


def _token_ids(tokenizer_json: bytes, texts: Sequence[str]) -> list[list[int]]:
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def _check_pieces(tokenizer_json: bytes) -> None:
    """Raises DataError unless it is BERT's kind of tokenizer."""
    model = json.loads(tokenizer_json)["model"]
    pieces = model["vocab"] if model.get("type", "WordPiece") == "WordPiece" else {}
    if not {_PAD, _UNK, "[CLS]", "[SEP]"} <= set(pieces):
        raise DataError(
            "text teacher's tokenizer",
            expected=f"WordPiece with {_PAD}, {_UNK}, [CLS] and [SEP], as BERT's family has it",
            got=str(model.get("type", "one without these")),
            do="choose a sentence encoder of that family, such as minilm-l6",
        )


def _by_id(spec: dict[str, Any]) -> list[str]:
    vocab: dict[str, int] = spec["model"]["vocab"]
    return sorted(vocab, key=vocab.__getitem__)


def _is_text(piece: str) -> bool:
    """Whether a piece is worth a row: single characters of any script, longer ones in Latin letters."""
    bare = _bare(piece)
    special = bare.startswith("[") and bare.endswith("]") and len(bare) > 1
    return not special and (len(bare) == 1 or all(ord(character) < 0x250 for character in bare))


def _is_inner(piece: str) -> bool:
    """Whether a piece continues a word ("##ing")."""
    return piece.startswith("##") and len(piece) > 2


def _bare(piece: str) -> str:
    return piece[2:] if _is_inner(piece) else piece


def _stage(progress: Progress | None, stage: str) -> _Done | None:
    return None if progress is None else lambda done, total: progress(stage, done, total)


def _too_small(expected: str, got: str, do: str) -> DataError:
    return DataError("text student", expected=f"at least {expected}", got=got, do=do)
