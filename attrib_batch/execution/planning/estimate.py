"""Estimate what a job will write, without loading a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attrib_batch.execution.planning.paths import with_absolute_paths
from attrib_batch.execution.planning.plan import boundaries_of
from attrib_batch.execution.planning.request import check_models, check_tables, find_models, open_tables
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.families import dimensions_of
from attrib_batch.models.load import load_tokenizer, read_config
from attrib_batch.pairs.encoding.encode import EncodedPair, encode_pairs
from attrib_batch.spec import Reading
from attrib_batch.spec.positions import ALL, positions_asked
from attrib_batch.tables import CellPlan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attrib_batch.pairs.encoding.encode import Tokenizer
    from attrib_batch.pairs.reading.reader import PairTable
    from attrib_batch.spec import SweepSpec

BYTES_PER_ROW = 1.0
"""Bytes of a score row in a scores file, about: measured on the bundled model and IOI pairs."""
SAMPLE_PAIRS = 512
"""Pairs of each dataset that are tokenised to know how long prompts are."""


@dataclass(frozen=True)
class CellEstimate:
    """What one cell will write, about."""

    plan: CellPlan
    score_rows: int
    score_bytes: int


def estimate_job(spec: SweepSpec) -> list[CellEstimate]:
    """Estimate every cell from the models' configurations and a sample of each dataset's prompts.

    Raises:
        RequestError: a dataset or a model's configuration cannot be read, or a model cannot do what a method asks.
    """
    spec = with_absolute_paths(spec)
    tables = open_tables(spec)
    boundaries = boundaries_of(tables)
    plans = [CellPlan.of(cell, tables[cell.dataset].n_rows, spec.chunk_pairs, boundaries) for cell in spec.cells]
    sources = find_models(spec)
    check_models(spec, sources, workers_here=False)
    sizes = {model.name: dimensions_of(read_config(model, sources[model.name])) for model in spec.models}
    tokenizers = {model.name: load_tokenizer(model, sources[model.name]) for model in spec.models}
    for model in spec.models:
        check_vocabulary(model, tokenizers[model.name], sizes[model.name].d_vocab)
        check_tables(model, tokenizers[model.name], tables.values())
    ats = {method.parameters.get("at", ALL) for method in spec.methods}
    positions = {
        (model.name, name, reading): _mean_positions(
            table,
            ats,
            tokenizers[model.name],
            prepend_bos=model.prepend_bos,
            max_tokens=sizes[model.name].max_tokens,
            vocabulary_size=sizes[model.name].d_vocab,
            allow_boundary=spec.allow_boundary,
            bos_token=model.bos_token,
            **reading._asdict(),
        )
        for model in spec.models
        for name, table in tables.items()
        for reading in {Reading.of(method) for method in spec.methods}
    }
    estimates = []
    for plan in plans:
        size = sizes[plan.cell.model]
        method = spec.method(plan.cell.method)
        heads = sum(size.heads_of(component) or 1 for component in method.components)
        of_cell = positions[plan.cell.model, plan.cell.dataset, Reading.of(method)]
        of_pair = of_cell[method.parameters.get("at", ALL)]
        rows = round(plan.n_pairs * size.n_layers * heads * of_pair)
        estimates.append(CellEstimate(plan, rows, round(rows * BYTES_PER_ROW)))
    return estimates


def _mean_positions(
    table: PairTable, ats: Iterable[str | tuple[str, ...]], tokenizer: Tokenizer, **options: Any
) -> dict[str | tuple[str, ...], float]:
    """Count the positions per pair that methods store, pairs that cannot be scored counting none.

    Args:
        table: a dataset.
        ats: the values of ``at`` of the methods.
        tokenizer: the model's.
        **options: those of ``encode_pairs``.
    """
    sample = table.rows(0, min(table.n_rows, SAMPLE_PAIRS))
    encoded = [item for item in encode_pairs(sample, tokenizer, **options) if isinstance(item, EncodedPair)]
    return {at: sum(len(positions_asked(at, pair.roles)) for pair in encoded) / len(sample) for at in ats}
