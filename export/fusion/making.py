"""From a finished image encoder to the decoder that a bundle ships: pictures, word pieces, training, constants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edge_ravlm.console import Bar
from edge_ravlm.errors import DataError
from edge_ravlm.export.data import corpus, datasets
from edge_ravlm.export.distil.checkpoint import storing_in
from edge_ravlm.export.distil.things import parted
from edge_ravlm.export.fusion import training
from edge_ravlm.export.fusion.bank import Bank, make_bank, see
from edge_ravlm.export.fusion.batches import Batch, collated
from edge_ravlm.export.fusion.episodes import Episodes, Shelf, Texts, Told
from edge_ravlm.export.fusion.graphs import prefill_graph, step_graph, with_small_weights
from edge_ravlm.export.fusion.model import FusionDecoder, Shape, spread
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.export.fusion.tokenizer import fit_tokenizer
from edge_ravlm.export.fusion.training import Lesson
from edge_ravlm.frames import Pixels
from edge_ravlm.manifest import FusionSpec, Model
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.encoders import Eye
from edge_ravlm.runtime.fusion.decoder import PREFILL_OUTPUTS, STEP_OUTPUTS
from edge_ravlm.runtime.fusion.layout import NONE

TOKENIZER = "fusion-tokenizer.json"

PACKAGES = ("mapillary-signs", "sweethome3d-furniture", "sweethome3d", "plasma-wallpapers", "easy-vqa")
"""What it learns from beside the encoder's pictures; by their names in ``packages.toml``."""

_HELD_OUT = 0.08
"""Share of easy-VQA's training pictures that the decoder does not learn from, to stop by."""

_TOKENIZED, _READ = 4_000, 20_000
"""Episodes and sentences of the corpus that the tokenizer is learnt from."""

_HELD_OUT_EPISODES = 960
"""Half of them set the threshold, the other half are reported."""

_FALSE_ABSTENTION = 0.02
"""Share of answerable questions that it may keep silent about, where the threshold is set."""


class FusionFigures(msgspec.Struct, frozen=True, kw_only=True):
    """How the decoder does on held-out training episodes that nothing was fitted on; fractions of 1.

    Attributes:
        exact: answerable episodes with every word right, full precision.
        abstains: unanswerable ones that it is silent about, at ``abstain_above``.
        false_abstention: answerable ones that it is silent about.
        agreement: episodes in which the shipped graphs choose the same words as full precision.
        by_kind: right episodes, by kind.
        parameters: of the model.
    """

    exact: float
    abstains: float
    false_abstention: float
    agreement: float
    by_kind: dict[str, float]
    parameters: int


@dataclass(frozen=True)
class Made:
    """What a bundle gets.

    Attributes:
        prefill, step: ONNX.
        tokenizer: JSON.
        spec: the manifest's constants.
        figures: for the report.
    """

    prefill: bytes
    step: bytes
    tokenizer: bytes
    spec: FusionSpec
    figures: FusionFigures


def make(settings: FusionSettings, eye: Eye, texts: Texts, encoder_seed: int, work: Path, bar: Bar) -> Made:
    """Train a decoder for an encoder; goes on where an interrupted call stopped.

    Args:
        settings: of the recipe.
        eye: the image encoder that ships, with cells.
        texts: the text encoder that ships.
        encoder_seed: that the image encoder's training chose its kept things with (``distil.things``).
        work: folder for what takes minutes.
        bar: opens progress bars.

    Raises:
        DataError: a package cannot be had, or the loss is no number any more.
        StorageError: the disk refused.
    """
    lesson = lesson_for(settings, eye, texts, encoder_seed, work, bar)
    decoder = fresh(settings, lesson)
    with bar("training the fusion decoder", settings.steps) as advance:
        training.train(decoder, lesson, settings, work, lambda done, _: advance(completed=done))
    with bar("judging the fusion decoder", None):
        return _made(decoder, lesson, settings)


def lesson_for(settings: FusionSettings, eye: Eye, texts: Texts, encoder_seed: int, work: Path, bar: Bar) -> Lesson:
    """What a decoder for an encoder learns from; see ``make``."""
    work.mkdir(parents=True, exist_ok=True)
    learnt, held_out = _episodes(settings, eye, texts, encoder_seed, work, bar)
    return Lesson(learnt, held_out, _tokenizer(settings, learnt, work, bar), texts)


def fresh(settings: FusionSettings, lesson: Lesson) -> FusionDecoder:
    """A decoder that has learnt nothing yet; the same settings give the same one."""
    torch.manual_seed(settings.seed)
    return FusionDecoder(_shape(settings, lesson.tokenizer, lesson.episodes))


def _made(decoder: FusionDecoder, lesson: Lesson, settings: FusionSettings) -> Made:
    count = max(2, _HELD_OUT_EPISODES // settings.batch)
    batches = [held_out_batch(lesson, settings, decoder.shape, number) for number in range(count)]
    fitted, judged = batches[::2], batches[1::2]
    abstain_above = threshold(*_silences(decoder, fitted))
    cells = int(batches[0].cells.shape[1])
    prefill, step = (with_small_weights(graph) for graph in (prefill_graph(decoder, cells), step_graph(decoder, cells)))
    found = training.judge(decoder, judged)
    silences, answerable = _silences(decoder, judged)
    figures = FusionFigures(
        exact=found.exact,
        abstains=float((silences >= abstain_above)[~answerable].mean()),
        false_abstention=float((silences >= abstain_above)[answerable].mean()),
        agreement=agreement(decoder, prefill, step, judged),
        by_kind=found.by_kind,
        parameters=sum(part.numel() for part in decoder.parameters()),
    )
    shape = decoder.shape
    spec = FusionSpec(
        tokenizer=TOKENIZER,
        entries=settings.entries,
        longest=shape.longest,
        abstain_above=abstain_above,
        layers=shape.writers,
        heads=shape.heads,
        width=shape.width,
    )
    return Made(
        prefill.SerializeToString(),
        step.SerializeToString(),
        lesson.tokenizer.to_str().encode(),
        spec,
        figures,
    )


def threshold(silences: NDArray[np.float64], answerable: NDArray[np.bool_]) -> float:
    """From which probability of NONE to abstain.

    Where most questions are answered rightly: the value with the most right decisions among those that keep the false
    silences below a limit.

    Args:
        silences: float [n], the probability of NONE as the first word.
        answerable: bool [n].
    """
    tried = np.unique(np.concatenate([np.linspace(0.05, 0.95, 91), np.quantile(silences[answerable], [0.97, 0.98])]))
    kept = [value for value in tried if (silences[answerable] >= value).mean() <= _FALSE_ABSTENTION] or [tried[-1]]
    right = [(silences[answerable] < value).mean() + (silences[~answerable] >= value).mean() for value in kept]
    return float(round(kept[int(np.argmax(right))], 4))


@torch.no_grad()
def agreement(
    decoder: FusionDecoder, prefill: onnx.ModelProto, step: onnx.ModelProto, batches: Sequence[Batch]
) -> float:
    """Share of episodes in which both choose the same words, the right ones before each; see ``FusionFigures``."""
    reads = open_session(prefill.SerializeToString(), Model(file="prefill"), threads=1)
    writes = open_session(step.SerializeToString(), Model(file="step"), threads=1)
    same = []
    try:
        for batch in batches:
            words, copies, _ = training.predicted(decoder, batch)
            best = spread(words, copies, batch.source).argmax(2)
            for row in range(len(batch.kinds)):
                wanted = int((batch.wanted[row] != 0).sum())
                names = ("tokens", "roles", "features", "products")
                feeds = {name: getattr(batch, name)[row].numpy() for name in names}
                feeds["cells"] = batch.cells[row : row + 1].numpy()
                fixed = dict(zip(PREFILL_OUTPUTS, reads.run(feeds, PREFILL_OUTPUTS), strict=True))
                shape = decoder.shape
                keys = values = np.zeros((shape.writers, 1, shape.heads, 0, shape.width // shape.heads), np.float32)
                chosen, source = [], batch.tokens[row].flatten().numpy()
                for place in range(wanted):
                    feeds = {
                        "last": batch.last[row, place : place + 1].numpy(),
                        "position": np.array([place], np.int64),
                        "past_keys": keys,
                        "past_values": values,
                        "continues": batch.everywhere(row, place),
                        **fixed,
                    }
                    said, copied, keys, values = writes.run(feeds, STEP_OUTPUTS)
                    chances = np.asarray(said[0], np.float64)
                    np.add.at(chances, source, copied[0, : len(source)])
                    chosen.append(int(chances.argmax()))
                same.append(chosen == best[row, :wanted].tolist())
    finally:
        reads.close()
        writes.close()
    return float(np.mean(same))


def held_out_batch(lesson: Lesson, settings: FusionSettings, shape: Shape, number: int) -> Batch:
    """Held-out episodes that the training did not look at."""
    rngs = (np.random.default_rng((settings.seed, number, row)) for row in range(settings.batch))
    drawn = [lesson.held_out.draw(rng) for rng in rngs]
    return collated(drawn, lesson.tokenizer, lesson.texts, shape.dim, shape.longest)


@torch.no_grad()
def _silences(decoder: FusionDecoder, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The probability of NONE as the first word, and whether there is an answer; of each episode."""
    decoder.eval()
    silences, answerable = [], []
    for batch in batches:
        words, _, _ = training.predicted(decoder, batch)
        silences += words[:, 0, NONE].tolist()
        answerable += (batch.wanted[:, 0] != NONE).tolist()
    return np.array(silences), np.array(answerable)


def _shape(settings: FusionSettings, tokenizer: Tokenizer, episodes: Episodes) -> Shape:
    drawn = episodes.draw(np.random.default_rng(0))
    return Shape(
        vocab=tokenizer.get_vocab_size(),
        width=settings.width,
        heads=settings.heads,
        readers=settings.readers,
        writers=settings.writers,
        kind=settings.kind,
        dim=episodes.dim,
        channels=int(drawn.cells.shape[1]),
        longest=settings.longest,
        dropout=settings.dropout,
    )


def _episodes(
    settings: FusionSettings, eye: Eye, texts: Texts, encoder_seed: int, work: Path, bar: Bar
) -> tuple[Episodes, Episodes]:
    """To learn, and of other things to look at."""
    banks = [
        (_bank(datasets.traffic().train, "traffic", settings, eye, work, bar), 0.6),
        (_bank(datasets.home().train, "home", settings, eye, work, bar), 0.4),
    ]
    learnt, held_out = [], []
    for row, (bank, weight) in enumerate(banks):
        # What the encoder kept for looking too: how sure it is of things that it never saw is what has to be known.
        kept, others = parted(len(bank.things), row, encoder_seed)
        # What is learnt stays in their memory: a question is as hard as its memory is large.
        held_out.append(Shelf(bank, weight, kept, np.arange(len(bank.things))))
        learnt.append(Shelf(bank, weight, others, others))
    told, other = _told(eye, work, bar)
    return Episodes(learnt, texts, told), Episodes(held_out, texts, other)


def _bank(
    part: datasets.Part[datasets.ThingT], name: str, settings: FusionSettings, eye: Eye, work: Path, bar: Bar
) -> Bank:
    kept = work / f"{name}.npz"
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as arrays:
            return Bank(part.things, arrays["taught"], arrays["asked"], arrays["cells"])
    with bar(f"looking at scenes: {name}", len(part.things) * settings.views) as advance:
        bank = make_bank(part, settings.views, eye, settings.seed, lambda done, _: advance(completed=done))
    _keep(kept, taught=bank.taught, asked=bank.asked, cells=bank.cells)
    return bank


def _told(eye: Eye, work: Path, bar: Bar) -> tuple[Told, Told]:
    """Easy-VQA's training part, with a share of its pictures to look at."""
    asked = datasets.easy_vqa().train
    files = sorted({question.image for question in asked})
    kept = work / "easy-vqa.npz"
    if not kept.is_file():
        with bar("looking at pictures: easy-vqa", len(files)) as advance:
            seen = see([_picture(file) for file in files], eye, lambda done, _: advance(completed=done))
        _keep(kept, asked=seen.asked, cells=seen.cells)
    with np.load(kept, allow_pickle=False) as arrays:
        asked_of, cells = arrays["asked"], arrays["cells"]
    rows = {file: row for row, file in enumerate(files)}
    every = [(question.text, question.answer, rows[question.image]) for question in asked]
    limit = round(len(files) * (1 - _HELD_OUT))
    parts = ([row for row in every if row[2] < limit], [row for row in every if row[2] >= limit])
    learnt, held_out = (Told(part, cells, asked_of) for part in parts)
    return learnt, held_out


def _picture(path: Path) -> Pixels:
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise DataError(f"picture '{path}'", expected="a PNG picture", got="another file", do="fetch easy-vqa again")
    return np.asarray(found, np.uint8)


def _tokenizer(settings: FusionSettings, episodes: Episodes, work: Path, bar: Bar) -> Tokenizer:
    kept = work / TOKENIZER
    if kept.is_file():
        return Tokenizer.from_file(str(kept))
    with bar("learning word pieces", None):
        texts = corpus.sentences(settings.seed)[:_READ]
        for number in range(_TOKENIZED):
            drawn = episodes.draw(np.random.default_rng((settings.seed, 2**40, number)))
            texts += [drawn.question, drawn.answer or "", *(passage.text for passage in drawn.passages)]
        tokenizer = fit_tokenizer(texts, settings.vocab)
    part = kept.with_suffix(".part")
    part.write_text(tokenizer.to_str(), encoding="utf-8")
    part.replace(kept)
    return tokenizer


def _keep(path: Path, **arrays: NDArray[np.float16]) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part.npz")
    with storing_in(path.parent):
        np.savez(part, **arrays)  # type: ignore[arg-type]  # its stubs take the names for other arguments
        part.replace(path)
