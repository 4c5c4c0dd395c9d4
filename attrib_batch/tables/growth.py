"""Check whether a job may go on in a directory, and grow the directory's manifest.

A sweep grows: what a job adds is planned beside what is there. What is committed is never computed again, and never
under another identity: a name means one model, dataset or method in a directory as long as it has scores there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrib_batch.errors import ResumeMismatchError
from attrib_batch.tables.manifest import Identities, Manifest, StageEntry, with_fingerprints
from attrib_batch.tables.plan import CellPlan, Segment, no_groups
from attrib_batch.tables.schema import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from attrib_batch.spec import Cell
    from attrib_batch.tables.plan import Boundaries

    HasScores = Callable[[Cell], bool]

_KINDS = {"models": "model", "datasets": "dataset", "methods": "method"}


def grow_manifest(
    existing: Manifest,
    asked: Manifest,
    has_scores: HasScores,
    where: object,
    boundaries: Boundaries = no_groups,
) -> Manifest:
    """Return the manifest of a directory in which a job goes on.

    Args:
        existing: the directory's manifest.
        asked: the manifest that the job would have in a directory of its own.
        has_scores: whether a cell of the job has a committed chunk.
        where: the directory, for messages.
        boundaries: which boundaries of new chunks would split a group.

    Raises:
        ResumeMismatchError: what is committed conflicts with the job; one line for each difference.
    """
    if not any(has_scores(plan.cell) for plan in existing.plan):
        # It was refused, or never came so far: a run of which nothing is committed is in nobody's way.
        same = existing.scoring.identities == asked.scoring.identities and existing.plan == asked.plan
        return existing.model_copy(update={"job": asked.job, "named": asked.named}) if same else asked
    if existing.schema_version != SCHEMA_VERSION:
        raise ResumeMismatchError(
            f"{where} holds tables of schema version {existing.schema_version}, and this release writes "
            f"{SCHEMA_VERSION}. Choose another --out; status, summarize and report go on reading this one."
        )
    scoring = grow_stage(existing.scoring, asked.scoring, has_scores, where, boundaries)
    return existing.model_copy(
        update={
            "manifest_version": asked.manifest_version,
            "job": _grow_job(existing.job, asked.job, scoring),
            "named": {key: {**existing.named.get(key, {}), **asked.named.get(key, {})} for key in asked.named},
        }
    ).with_stage(scoring)


def grow_stage(
    existing: StageEntry,
    asked: StageEntry,
    has_scores: HasScores,
    where: object,
    boundaries: Boundaries = no_groups,
) -> StageEntry:
    """Return a stage that holds what is committed of ``existing``, and all of ``asked``.

    Arguments and errors are those of `grow_manifest`.
    """
    committed = [plan for plan in existing.cells if has_scores(plan.cell)]
    problems = [*_conflicts(committed, existing.identities, asked.identities), *_shrunk(committed, asked.cells)]
    if problems:
        raise ResumeMismatchError(
            f"{where} holds scores of something else. What differs:\n"
            + "\n".join(f"  {line}" for line in problems)
            + "\nRun the job as it was to resume it, give what differs a name of its own, or choose another --out."
        )
    known = {plan.cell: plan for plan in committed}
    wanted = {plan.cell: plan for plan in asked.cells}
    plans = [_grow_cell(plan, wanted.get(plan.cell), boundaries) for plan in committed]
    for cell, plan in wanted.items():
        if cell not in known:
            plans.append(_like_its_siblings(plan, plans))
    identities = Identities(
        models={**existing.identities.models, **asked.identities.models},
        datasets={**existing.identities.datasets, **asked.identities.datasets},
        methods={**existing.identities.methods, **asked.identities.methods},
        settings=asked.identities.settings,
    )
    return asked.model_copy(
        update={
            "cells": with_fingerprints(plans, identities),
            "identities": identities,
            "job": {
                key: _united(existing.job.get(key, ()), asked.job.get(key, ())) for key in {**existing.job, **asked.job}
            },
        }
    )


def _conflicts(committed: list[CellPlan], before: Identities, now: Identities) -> Iterator[str]:
    """Yield each difference between the identities of names that have scores and what they are asked to be now."""
    for kind, word in _KINDS.items():
        old, new = getattr(before, kind), getattr(now, kind)
        used = {getattr(plan, word) for plan in committed}
        for name in new:
            if name in used and name in old:
                yield from _differences(old[name], new[name], f"{word} {name}, ")
    if committed:
        yield from _differences(before.settings, now.settings, "")


def _shrunk(committed: list[CellPlan], asked: tuple[CellPlan, ...]) -> Iterator[str]:
    """Yield each dataset of which fewer pairs are asked for than are planned and partly committed."""
    known = {plan.cell: plan for plan in committed}
    lines = {
        f"dataset {plan.dataset}: its first {known[plan.cell].n_pairs:,} pairs were asked for, now its first "
        f"{plan.n_pairs:,}; a sweep may grow and not shrink: raise the limit"
        for plan in asked
        if plan.cell in known and plan.n_pairs < known[plan.cell].n_pairs
    }
    yield from sorted(lines)


def _grow_cell(plan: CellPlan, asked: CellPlan | None, boundaries: Boundaries) -> CellPlan:
    """Return the plan of a cell with the pairs that are new behind those it had.

    What was planned ends where it did, in the middle of a group or not: it may be committed.
    """
    if asked is None or asked.n_pairs == plan.n_pairs:
        return plan
    size = asked.segments[-1].chunk_pairs
    moved = boundaries(plan.dataset, plan.n_pairs, asked.n_pairs, size)
    more = Segment(stop=asked.n_pairs, chunk_pairs=size, moved=moved)
    return plan.model_copy(update={"segments": (*plan.segments, more)})


def _like_its_siblings(plan: CellPlan, others: list[CellPlan]) -> CellPlan:
    """Return a new cell's plan with the chunks of another cell of the same pairs: methods may share forward passes."""
    for other in others:
        if (other.dataset, other.n_pairs) == (plan.dataset, plan.n_pairs):
            return plan.model_copy(update={"segments": other.segments})
    return plan


def _grow_job(existing: dict[str, Any], asked: dict[str, Any], scoring: StageEntry) -> dict[str, Any]:
    """Return the job with everything that the plan names."""
    used = {kind: {getattr(plan, word) for plan in scoring.cells} for kind, word in _KINDS.items()}
    united = {}
    for kind, names in used.items():
        items = _united(existing.get(kind, ()), asked.get(kind, ()))
        united[kind] = [item for item in items if _name(item) in names]
    return {**existing, **asked, **united}


def _united(before: Any, now: Any) -> list[Any]:
    """Return items by name, in order of appearance; what is asked now stands for what was."""
    found = {_name(item): item for item in before}
    return list({**found, **{_name(item): item for item in now}}.values())


def _name(item: dict[str, Any]) -> Any:
    return item.get("name") or item.get("id")


def _differences(before: object, now: object, where: str) -> Iterator[str]:
    """Yield every leaf in which two identities differ, as one line."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(before.get(key), now.get(key), f"{where}{key}")
    elif before != now:
        yield f"{where}: was {_short(before)}, is now {_short(now)}"


def _short(value: object) -> str:
    return "absent" if value is None else json.dumps(value)
