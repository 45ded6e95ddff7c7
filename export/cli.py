"""The export half's commands. Importing this needs none of the export extra; running a command does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from edge_ravlm.console import progress, say, say_json, table
from edge_ravlm.errors import needs_extra
from edge_ravlm.export import engine_cli, estimate_cli, eval_cli

app = cyclopts.App()
app.command(engine_cli.app)
app.command(estimate_cli.estimate)
app.command(eval_cli.evaluate, name="eval")

EXTRA = "export"


@app.command
def export(
    recipe: str,
    /,
    *,
    target: str,
    output: Annotated[Path, Parameter(name=("--output", "-o"))],
    allow_below_gate: bool = False,
    keep_work: bool = False,
    json: bool = False,
) -> None:
    """Make a bundle for a device: distil, quantize, build engines, and prove it against full precision.

    That takes minutes to hours. Once interrupted, the same command goes on where it was.

    Args:
        recipe: a TOML file, or the name of a recipe that ships: starter, smart-home, traffic, clip-to-edge.
        target: the device's profile, for instance cpu-x86 or rtx-40; an unknown one is answered with all there are.
        output: the bundle's folder; new or empty.
        allow_below_gate: ship even what misses a limit of the parity gate; the manifest records it.
        keep_work: keep the folder '.NAME.work' beside the output, which holds what was trained, in full precision.
        json: print one JSON object.
    """
    from edge_ravlm.targets import target as profile

    wanted = profile(target)
    with needs_extra(EXTRA):
        from edge_ravlm.export.pipeline import export as make
        from edge_ravlm.export.recipe import read_recipe

    what, data = read_recipe(recipe)
    base = Path(recipe).parent if Path(recipe).is_file() else Path()
    allowed = {"allow_below_gate": allow_below_gate, "keep_work": keep_work}
    bundle = make(what, data, wanted, output, base=base, bar=progress, **allowed)
    parity = bundle.manifest.parity
    if json:
        say_json({"bundle": str(output), "sha256": bundle.sha256, "target": target, "parity": parity})
        return
    names = next(iter(parity.values())).__struct_fields__
    rows = [(name, *(str(getattr(figures, name)) for figures in parity.values())) for name in names]
    table("Parity with full precision", ("figure", *parity), rows)
    say(f"{output}: {len(bundle.manifest.files)} files, {bundle.verify():,} bytes, for {target}.")
