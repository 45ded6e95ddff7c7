"""How often a caption finds its picture: photographs cut out by Tux Paint's stamps, half of them held out.

``python -m edge_ravlm.export.align.evaluation student.safetensors`` fits a head on an encoder and says so. What is
chosen is chosen by cross-validation inside the training half; the held-out half is looked at with ``--held-out``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from edge_ravlm.bundle import Bundle
from edge_ravlm.console import complain, say
from edge_ravlm.errors import DataError, EdgeRavlmError
from edge_ravlm.export.align import classes
from edge_ravlm.export.align.classes import Embed
from edge_ravlm.export.align.fit import Look, Observed, clean, fit, looking, observe
from edge_ravlm.export.align.settings import AlignSettings
from edge_ravlm.export.data import scenes
from edge_ravlm.export.data.captioned import SOURCES, captioned
from edge_ravlm.export.onnx_graph import image_graph, picture_graph
from edge_ravlm.export.parity import recall
from edge_ravlm.export.parts import text_embedder
from edge_ravlm.export.students import STUDENTS
from edge_ravlm.export.students.image import ImageStudent
from edge_ravlm.preprocess import Preprocess

FOLDS = 4


def cross_validated(
    observed: Observed, query: Tensor, rows: NDArray[np.int64], settings: AlignSettings, folds: int = FOLDS
) -> dict[str, float]:
    """Recall of captions that a head has not learnt, among all photographs of the training half.

    Args:
        observed: all that heads learn from.
        query: float32 [channels] that pooled its features.
        rows: where the photographs are in it.
        settings: of the fit.
        folds: heads that are fitted, each without a part of the captions; equal ones are in one part.
    """
    said = np.stack([observed.said[row][0] for row in rows])
    _, caption = np.unique(said.round(4), axis=0, return_inverse=True)
    part = np.random.default_rng(0).permutation(len(said))[caption.ravel()] % folds
    total = {"1": 0.0, "10": 0.0}
    for number in range(folds):
        asked = np.flatnonzero(part == number)
        kept = np.setdiff1d(np.arange(len(observed.said)), rows[asked])
        gallery = fit(observed.of(kept), query, settings).read(observed.features[rows, 0]).numpy()
        for k, share in recall(gallery, said[asked], asked).items():
            total[k] += share * len(asked) / len(rows)
    return total


def read_student(path: Path, kind: str, side: int) -> ImageStudent:
    """An image student from the file that a distillation leaves; raises DataError when it is another's."""
    student = STUDENTS[kind].build(side=side)
    try:
        stored = {name.rpartition("/")[2]: tensor for name, tensor in load_file(path).items()}
        student.load_state_dict(stored)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(f"student '{path}'", expected=f"weights of {kind}", got=first, do="name its own kind") from None
    return student.eval().fused()


def main(arguments: Iterable[str] | None = None) -> int:
    """See the module; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fit a meaning head on an image student, and judge it.")
    parser.add_argument("student", type=Path, help="student.safetensors of a distillation")
    parser.add_argument("--kind", default="efficientnet-lite0", choices=sorted(STUDENTS))
    parser.add_argument("--side", type=int, default=224, help="of its input in pixels")
    parser.add_argument("--bundle", default="starter", help="whose text model names the text space")
    parser.add_argument("--sources", default=",".join(SOURCES), help="of cut-outs with words")
    parser.add_argument("--settings", default="{}", help="JSON of what is not as by default in `align` of a recipe")
    parser.add_argument("--observed", type=Path, help="file that keeps what was seen, for other settings")
    parser.add_argument("--held-out", action="store_true", help="look at the held-out half")
    parser.add_argument("-o", "--output", type=Path, help="file for the head's weights")
    given = parser.parse_args(None if arguments is None else list(arguments))
    try:
        _run(given)
    except EdgeRavlmError as error:
        complain(str(error))
        return error.exit_code
    return 0


def _run(given: argparse.Namespace) -> None:
    sources = sorted(given.sources.split(","), key=list(SOURCES).index)
    settings = msgspec.convert({**msgspec.json.decode(given.settings), "sources": sources}, AlignSettings)
    student, bundle = read_student(given.student, given.kind, given.side), Bundle.open(given.bundle)
    model, tokenizer = bundle.read(bundle.manifest.flavor("cpu-u8").text.file), bundle.read(bundle.manifest.tokenizer)
    shape, query = Preprocess(height=given.side, width=given.side), student.query.detach()
    embed = text_embedder(model, tokenizer)

    train, unseen = scenes.stamps()
    # `captioned` gives the stamps in this order, and they come first.
    rows = np.flatnonzero([stamp.is_photo for stamp in train if stamp.caption])
    with looking(image_graph(student, shape), shape, "tokens") as tokens:
        observed = _observed(given.observed, settings, query, tokens, embed)
        said = np.stack([observed.said[row][0] for row in rows.tolist()])
        say(f"{len(observed.said)} cut-outs; {len(rows)} photographs to validate on")
        say(f"what the classifier sees: {_shown(recall(observed.goals[rows].numpy(), said, np.arange(len(rows))))}")
        say(f"cross-validated: {_shown(cross_validated(observed, query, rows, settings))}")
        head = fit(observed, query, settings)
        if given.held_out:
            asked = [stamp for stamp in unseen if stamp.is_photo and stamp.caption]
            points = [head(torch.from_numpy(tokens([clean(stamp.pixels)])))[0].numpy() for stamp in asked]
            gallery = np.concatenate([np.stack(points), head.read(observed.features[rows, 0]).numpy()])
            figures = recall(gallery, embed([stamp.caption for stamp in asked]), np.arange(len(asked)))
            say(f"held out: {_shown(figures)} of {len(asked)} captions among {len(gallery)} photographs")
    if given.output is not None:
        save_file(head.state_dict(), given.output)


def _observed(file: Path | None, settings: AlignSettings, query: Tensor, tokens: Look, embed: Embed) -> Observed:
    if file is not None and file.is_file():
        kept = load_file(file)
        said = np.split(kept["said"].numpy(), kept["ends"].numpy())
        return Observed(kept["features"], kept["goals"], said)
    classifier, shape = classes.Classifier(), Preprocess(height=classes.SIDE, width=classes.SIDE)
    backgrounds = scenes.material()[0].backgrounds
    things = captioned(settings.sources)
    with looking(picture_graph(classifier, classes.SIDE, ("logits",)), shape, "logits") as logits:
        observed = observe(
            things, backgrounds, query=query, tokens=tokens, logits=logits, embed=embed, views=settings.views
        )
    if file is not None:
        ends = np.cumsum([len(texts) for texts in observed.said])[:-1]
        texts = {"said": torch.from_numpy(np.concatenate(observed.said)), "ends": torch.from_numpy(ends)}
        save_file({"features": observed.features, "goals": observed.goals, **texts}, file)
    return observed


def _shown(figures: Mapping[str, float]) -> str:
    return ", ".join(f"recall@{k} {share:.3f}" for k, share in figures.items())


if __name__ == "__main__":
    sys.exit(main())
