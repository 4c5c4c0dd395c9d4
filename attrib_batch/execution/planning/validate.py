"""Validate every table of a job against every model of it, with the job's own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.execution.planning.paths import with_absolute_paths
from attrib_batch.execution.planning.request import check_models, check_tables, find_models, open_tables
from attrib_batch.models.checks.vocabulary import check_vocabulary
from attrib_batch.models.families import dimensions_of
from attrib_batch.models.load import load_tokenizer, read_config
from attrib_batch.pairs.validate import validate
from attrib_batch.spec import Reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attrib_batch.pairs.validate import ValidationReport
    from attrib_batch.spec import SweepSpec


def validate_job(spec: SweepSpec) -> Iterator[tuple[str, str, ValidationReport]]:
    """Yield for every model and dataset: the model's name, the dataset's id, and which of its pairs can be scored.

    A dataset is checked for each way in which methods read pairs: answers of one token or whole ones, with corrupted
    prompts or without.

    Raises:
        RequestError: a model or a table cannot be had, or a model cannot do what a method asks.
    """
    spec = with_absolute_paths(spec)
    tables = open_tables(spec)
    sources = find_models(spec)
    check_models(spec, sources, workers_here=False)
    for model in spec.models:
        dimensions = dimensions_of(read_config(model, sources[model.name]))
        tokenizer = load_tokenizer(model, sources[model.name])
        check_vocabulary(model, tokenizer, dimensions.d_vocab)
        check_tables(model, tokenizer, tables.values())
        readings = dict.fromkeys(map(Reading.of, spec.methods))
        for dataset, table in tables.items():
            for reading in readings:
                report = validate(
                    table,
                    tokenizer,
                    prepend_bos=model.prepend_bos,
                    max_tokens=dimensions.max_tokens,
                    vocabulary_size=dimensions.d_vocab,
                    allow_boundary=spec.allow_boundary,
                    bos_token=model.bos_token,
                    **reading._asdict(),
                )
                yield model.name, f"{dataset}, {reading}" if str(reading) else dataset, report
