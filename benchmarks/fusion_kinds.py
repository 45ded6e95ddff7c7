"""Which way of bringing the picture in reads best? The same short training for each, on the same episodes.

    make data && python benchmarks/fusion_kinds.py --json [--steps 600] [--work DIR]

`attention` lets question and answer attend to the picture's cells, `concat` joins their mean to every token, `add` adds
it. Each is trained from nothing with the starter's encoder and judged on held-out training episodes, in full precision;
`picture` are the questions that only the picture answers. A short training compares, it does not tell how far each
would get.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
from common import setting

from edge_ravlm.bundle import STARTER, Bundle
from edge_ravlm.console import complain, progress, say_json, table
from edge_ravlm.errors import EdgeRavlmError
from edge_ravlm.export.fusion import making, training
from edge_ravlm.export.fusion.settings import FusionSettings
from edge_ravlm.runtime.backends import open_session
from edge_ravlm.runtime.encoders import TOKENS, Eye, TextEncoder

FLAVOR, SEED = "cpu-u8", 0
KINDS = get_args(get_type_hints(FusionSettings)["kind"])
_JUDGED = 30
"""Batches."""


def main() -> int:
    """Run it and say what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--steps", type=int, default=600, help="of each training; 600 unless told")
    parser.add_argument("--work", type=Path, help="folder for what can be used again")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="edge-ravlm-kinds-") as folder:
            found = compared(arguments.steps, arguments.work or Path(folder))
    except EdgeRavlmError as error:
        complain(str(error))
        return 1
    if arguments.json:
        say_json(found)
    else:
        columns = ("exact", "abstains", "false_abstention", "picture", "reading", "two hops", "parameters", "minutes")
        rows = [(name, *(f"{row[column]:.4g}" for column in columns)) for name, row in found["kinds"].items()]
        table(f"After {arguments.steps} steps", ("kind", *columns), rows)
    return 0


def compared(steps: int, work: Path) -> dict[str, Any]:
    """Train and judge each kind."""
    bundle = Bundle.open(STARTER)
    manifest = bundle.manifest
    spec = manifest.flavor(FLAVOR).image
    eye = Eye(open_session(bundle.read(spec.file), spec, 1), manifest.preprocess, manifest.closer, (TOKENS,))
    words = TextEncoder(bundle, FLAVOR)
    settings = FusionSettings(steps=steps, batch=16, views=4, evaluate_every=max(1, steps // 3), patience=99)
    found = {}
    try:
        lesson = making.lesson_for(settings, eye, words.embed, SEED, work, progress)
        for kind in KINDS:
            found[kind] = _judged(msgspec.structs.replace(settings, kind=kind), lesson, work / kind)
    finally:
        eye.close()
        words.close()
    return {"kinds": found, "steps": steps, "batch": settings.batch, **setting(bundle, FLAVOR, 2)}


def _judged(settings: FusionSettings, lesson: training.Lesson, work: Path) -> dict[str, float]:
    decoder, began = making.fresh(settings, lesson), time.monotonic()
    with progress(f"training: {settings.kind}", settings.steps) as advance:
        training.train(decoder, lesson, settings, work, lambda done, _: advance(completed=done))
    minutes = (time.monotonic() - began) / 60
    batches = [making.held_out_batch(lesson, settings, decoder.shape, number) for number in range(_JUDGED)]
    figures = training.judge(decoder, batches)
    return {
        "exact": figures.exact,
        "abstains": figures.abstains,
        "false_abstention": figures.false_abstention,
        **figures.by_kind,
        "parameters": sum(part.numel() for part in decoder.parameters()),
        "minutes": round(minutes, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
