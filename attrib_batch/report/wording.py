"""What a page says in sentences about a cell: units, what a method computes, what colours mean, what to beware of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.spec.method import CORRUPTED, ZERO, reference_of
from attrib_batch.spec.registries.methods import find_method_entry, has_magnitudes
from attrib_batch.spec.registries.metrics import metric_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from attrib_batch.spec.registries.methods import MethodEntry


def unit_of(metric: str) -> str:
    """Return the unit of a metric; for one of the user's own, its name."""
    return metric_entry(metric).unit


def describe_method(method: Mapping[str, Any]) -> str:
    """Say what the numbers of a method are, and how far to trust them; nothing for a kind that is not known here."""
    entry = _entry(method)
    return entry.explain(method) if entry else ""


def describe_scale(method: Mapping[str, Any]) -> str:
    """Say what normalised numbers and their colours mean."""
    if has_magnitudes(method):
        return "0 is no effect and 1 the whole gap."
    if (reference := reference_of(method)) != CORRUPTED:
        return (
            f"{reference} ablation, so 0 is the clean behaviour and \N{MINUS SIGN}1 that with everything replaced by "
            f"{'zeros' if reference == ZERO else 'means'} at once; what carries the behaviour is red."
        )
    if method.get("direction", "denoise") == "noise":
        return (
            "noising, so 0 is the clean behaviour and \N{MINUS SIGN}1 the corrupted one; what carries the behaviour "
            "is red."
        )
    return "denoising, so 0 is the corrupted behaviour and 1 the clean one; what restores the behaviour is blue."


def warning_about(baseline: Mapping[str, Any], method: Mapping[str, Any]) -> str | None:
    """Say what a reader must know before trusting a cell's numbers.

    Args:
        baseline: the cell's row of the baselines summary.
        method: the job's method.
    """
    if not baseline["scored"]:
        return "No pair of this cell has been scored, so there is nothing to draw."
    if not baseline["normalizable"]:
        return (
            f"{_ends(method)} have the same mean metric, so scores cannot be normalised: maps and tables show raw "
            "means."
        )
    gap, sem = baseline["mean_difference"], baseline["sem_difference"]
    if sem is not None and abs(gap) < 2 * sem:
        return (
            "The gap between the clean and the corrupted metric is less than two standard errors, so normalised "
            "scores divide by a number that may well be 0. Trust the raw means."
        )
    if gap < 0 and has_magnitudes(method):
        return "The gap is negative, so these magnitudes are negative where they are normalised."
    if gap < 0 and not metric_entry(str(method.get("metric"))).lower_is_cleaner:
        ablated = reference_of(method) != CORRUPTED
        return (
            f"The {'ablated' if ablated else 'corrupted'} prompts have the higher mean metric. Normalised scores "
            "divide by this negative gap, so their signs are the reverse of the raw ones; check answers and "
            "wrong_answers in the dataset."
        )
    return None


def _ends(method: Mapping[str, Any]) -> str:
    clean = "The clean prompts"
    return (
        f"{clean} as they are and ablated"
        if reference_of(method) != CORRUPTED
        else "The clean and the corrupted prompts"
    )


def _entry(method: Mapping[str, Any]) -> MethodEntry | None:
    return find_method_entry(str(method.get("kind")))


def is_measured(method: Mapping[str, Any]) -> bool:
    """Return whether a method's scores are the effects themselves; otherwise they are estimates."""
    entry = _entry(method)
    return entry is not None and entry.measured


@dataclass(frozen=True)
class RunState:
    """How far a run is, for a page."""

    name: str
    """``complete``, ``unfinished``, ``empty`` or ``failed``."""
    sentence: str


def describe_state(expected: int, scored: int, failed: int, *, n_cells: int = 1) -> RunState:
    """Say how many pairs there are, over all cells, and whether the run has ended."""
    left = expected - scored - failed
    pairs = "pair" if expected == 1 else "pairs"
    all_pairs = f"{expected:,} {pairs}" + (f" of {n_cells:,} cells" if n_cells > 1 else "")
    if not expected:
        return RunState("empty", "Empty: the plan holds no pair.")
    if not scored + failed:
        return RunState("empty", f"Empty: none of {all_pairs} has been computed yet. The same command starts.")
    done = f"{scored:,} of {expected:,} {pairs} scored, {failed:,} failed"
    if left > 0:
        return RunState(
            "unfinished",
            f"Unfinished: {left:,} of {all_pairs} are still to do ({done}). The same command resumes the run; "
            "all numbers below are of the pairs that are scored.",
        )
    if not scored:
        return RunState("failed", f"Failed: none of {all_pairs} could be scored. The reasons are below.")
    return RunState("complete", f"Complete: {done}." if failed else f"Complete: all {all_pairs} scored.")
