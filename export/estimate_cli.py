"""``edge-ravlm estimate``: what a bundle costs at least on a target, before anybody owns one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_ravlm.console import say, say_json, table
from edge_ravlm.errors import UsageError, needs_extra

if TYPE_CHECKING:
    from edge_ravlm.bundle import Bundle
    from edge_ravlm.export.roofline import Estimate, Stage
    from edge_ravlm.targets import Target


def estimate(
    bundle: str,
    /,
    *,
    target: str,
    entries: int = 10_000,
    budget_ms: float | None = None,
    json: bool = False,
) -> int:
    """Tell from operations and bytes whether a bundle can meet a target's latency and memory.

    For each stage "least ms" is a bound: nothing that does the same work takes less. "layered ms" is what the stage
    takes if the data of every layer ("MB") pass through memory; "mostly" names the operators that most of that goes
    to. For a processor "real ms" stands there instead, measured on this machine, and its "ratio" to the bound.

    Args:
        bundle: a folder, a .zip, or 'starter'.
        target: the device's profile, for instance jetson-orin-nano, rtx-40 or cpu-x86; a processor is measured here.
        entries: memories to search among.
        budget_ms: milliseconds from a frame's capture to its answer, if not the target's own.
        json: print one JSON object.

    Returns:
        1 if it cannot fit, else 0.
    """
    from edge_ravlm import targets
    from edge_ravlm.bundle import Bundle

    profile = targets.target(target)
    if entries < 0:
        raise UsageError("entries", expected="0 or more", got=str(entries), do="say how many memories there will be")
    budget = profile.budget_ms if budget_ms is None else budget_ms
    if not budget > 0:
        raise UsageError("budget", expected="more than 0 ms", got=f"{budget:g} ms", do="allow for instance 40")
    with needs_extra("export"):
        outcome = _estimate(Bundle.open(bundle), profile, entries, budget)
    if json:
        say_json({**outcome.summary(), "basis": _basis(profile)})
    else:
        _show(outcome, profile)
    return 0 if outcome.fits_latency and outcome.fits_memory else 1


def _estimate(bundle: Bundle, target: Target, entries: int, budget_ms: float) -> Estimate:
    from edge_ravlm.export import roofline, yardsticks

    flavor = roofline.flavor_for(bundle, target)
    works = roofline.workloads(bundle, flavor, entries)
    if target.measured:
        yardsticks.check_machine(target)
        rates = yardsticks.measure_rates(sum(work.least_bytes for work in works))
        measured, memory_mb = yardsticks.measure_stages(bundle, flavor, entries), yardsticks.memory_mb()
    else:
        rates, measured, memory_mb = roofline.Rates.published(target), None, target.memory_mb or 0.0
    return roofline.estimate(
        target,
        works,
        rates,
        flavor=flavor,
        entries=entries,
        memory_mb=memory_mb,
        budget_ms=budget_ms,
        measured_ms=measured,
    )


def _basis(target: Target) -> str:
    if target.measured:
        return "measured on this machine with one thread"
    derived = f" ({', '.join(target.estimated)} estimated, not published)" if target.estimated else ""
    return f"an estimate from published figures of the {target.device}{derived}, {target.verified}"


def _show(outcome: Estimate, target: Target) -> None:
    columns = ("real ms", "ratio") if target.measured else ("layered ms", "mostly")
    last = _measured if target.measured else _layered
    rows = [(*_bound(stage), *last(stage)) for stage in outcome.stages]
    table(
        f"{outcome.target}, {outcome.entries} memories",
        ("stage", "GMAC", "MB", "least ms", "bound by", *columns),
        rows,
    )
    say(outcome.verdict())
    say(f"Basis: {_basis(target)}.")
    if not target.measured:
        say("Libraries and launches add to both; measure on the device before you rely on it.")
    if outcome.flavor != target.flavor:
        say(f"Read from the {outcome.flavor} graphs: the bundle has none for {target.flavor} yet.")


def _bound(stage: Stage) -> tuple[str, ...]:
    least = "(host)" if stage.least_ms is None else _ms(stage.least_ms)
    return stage.name, f"{stage.gmac:.3f}", f"{stage.layered_mb:.2f}", least, stage.bound_by


def _layered(stage: Stage) -> tuple[str, ...]:
    return ("", "") if stage.layered_ms is None else (_ms(stage.layered_ms), stage.op)


def _measured(stage: Stage) -> tuple[str, ...]:
    if stage.measured_ms is None:
        return "", ""
    return _ms(stage.measured_ms), f"{stage.measured_ms / stage.least_ms:.1f}" if stage.least_ms else ""


def _ms(spent: float) -> str:
    return f"{spent:.3f}" if spent >= 0.001 else "<0.001"
