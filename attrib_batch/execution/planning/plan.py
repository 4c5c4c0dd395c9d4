"""Tasks: the same pairs of one model and dataset, for methods that share forward passes."""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import TYPE_CHECKING

from attrib_batch.spec import Cell, share_forward_passes
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from attrib_batch.pairs.reading.reader import PairTable
    from attrib_batch.spec import SweepSpec
    from attrib_batch.storage.store import Store
    from attrib_batch.tables import CellPlan, Chunk
    from attrib_batch.tables.growth import HasScores
    from attrib_batch.tables.plan import Boundaries

Task = tuple["Chunk", ...]


def boundaries_of(tables: Mapping[str, PairTable]) -> Boundaries:
    """Return what tells a plan, from the tables of pairs by dataset id, which boundaries would split a group.

    Every model and method asks the same of a dataset, and its column is read once.
    """

    @cache
    def boundaries(dataset: str, begin: int, stop: int, chunk_pairs: int) -> dict[int, int]:
        return tables[dataset].moved_boundaries(begin, stop, chunk_pairs)

    return boundaries


def tasks_by_model(spec: SweepSpec, plans: Iterable[CellPlan], waiting: Container[Chunk]) -> dict[str, list[Task]]:
    """Return the tasks that compute the chunks in ``waiting``, for each model in the order they are to be done.

    Cells may have been cut into chunks at different times, and so differently: a task holds chunks of the same pairs.
    """
    plan_of = {plan.cell: plan for plan in plans}
    tasks: dict[str, list[Task]] = {model.name: [] for model in spec.models}
    for model in spec.models:
        for dataset in spec.datasets:
            for methods in share_forward_passes(spec.methods):
                same_pairs: dict[tuple[int, int], list[Chunk]] = defaultdict(list)
                for method in methods:
                    for chunk in plan_of[Cell(model.name, dataset.id, method.id)].chunks():
                        if chunk in waiting:
                            same_pairs[chunk.start, chunk.stop].append(chunk)
                tasks[model.name] += [tuple(chunks) for _, chunks in sorted(same_pairs.items())]
    return tasks


def uncommitted(store: Store, plans: Iterable[CellPlan], *, retry_failures: bool = False) -> set[Chunk]:
    """Return the chunks that are to be computed: those without a scores file, and on request those with failures."""
    waiting: set[Chunk] = set()
    for plan in plans:
        committed = store.parts(Table.SCORES, plan.cell.partition)
        if retry_failures:
            committed -= store.parts(Table.FAILURES, plan.cell.partition)
        waiting.update(chunk for chunk in plan.chunks() if (chunk.start, chunk.stop) not in committed)
    return waiting


def has_scores_in(store: Store) -> HasScores:
    """Return what tells whether a cell has a committed chunk there."""
    return lambda cell: bool(store.parts(Table.SCORES, cell.partition))
