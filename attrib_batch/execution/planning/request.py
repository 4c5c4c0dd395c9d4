"""Check what a job asks of its models, before a worker starts."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from attrib_batch.execution.imports import collector_paused
from attrib_batch.models.sources import find_model
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from attrib_batch.models.load import LoadedModel
    from attrib_batch.models.sources import ModelSource
    from attrib_batch.pairs.encoding.tokens import Tokenizer
    from attrib_batch.spec import ModelSpec, SweepSpec


def open_tables(spec: SweepSpec) -> dict[str, PairTable]:
    """Open every table of a job; by dataset id.

    Raises:
        DatasetError: one cannot be read, or does not have the columns that the methods need.
    """
    corrupted = any(Reading.of(method).against_corrupted for method in spec.methods)
    return {dataset.id: PairTable.open(dataset.path, dataset.limit, corrupted=corrupted) for dataset in spec.datasets}


def find_models(spec: SweepSpec) -> dict[str, ModelSource]:
    """Find every model of a job; by name.

    Raises:
        ModelError: one cannot be found.
    """
    return {model.name: find_model(model) for model in spec.models}


def find_fingerprints(
    spec: SweepSpec, given: Mapping[str, LoadedModel]
) -> tuple[dict[str, ModelSource], dict[str, str]]:
    """Find every model of a job that is not given, and the fingerprints of all of them; by name.

    Raises:
        ModelError: one cannot be found.
    """
    sources = {model.name: find_model(model) for model in spec.models if model.name not in given}
    known = {name: source.fingerprint for name, source in sources.items()}
    for name, model in given.items():
        from attrib_batch.models.in_memory import weights_fingerprint

        known[name] = weights_fingerprint(model.module)
    return sources, known


def check_models(
    spec: SweepSpec,
    sources: Mapping[str, ModelSource],
    *,
    workers_here: bool,
    given: Mapping[str, LoadedModel] = MappingProxyType({}),
    verifies: bool = False,
) -> None:
    """Check that every model can be attributed as every method asks, from its configuration alone.

    A metric of one's own is tried on made-up logits.

    Args:
        spec: the job.
        sources: its models, found.
        workers_here: whether the workers run on this machine, so that its devices are theirs.
        given: models that are in memory already, by name.
        verifies: whether activation patching is to follow, though the job does not say ``verify``.

    Raises:
        RequestError: naming the model and what is wrong.
    """
    # It brings transformers and torch, which a run with nothing left to do need not wait for.
    with collector_paused():
        verifies = verifies or spec.verify is not None
        _check_models(spec, sources, workers_here=workers_here, given=given, verifies=verifies)


def _check_models(
    spec: SweepSpec,
    sources: Mapping[str, ModelSource],
    *,
    workers_here: bool,
    given: Mapping[str, LoadedModel],
    verifies: bool,
) -> None:
    from attrib_batch.attribution.metrics import try_metrics
    from attrib_batch.models.checks.capabilities import check_config, check_methods, check_verification
    from attrib_batch.models.devices import choose_device
    from attrib_batch.models.families import dimensions_of
    from attrib_batch.models.load import read_config

    for model in spec.models:
        if model.name in given:
            config = given[model.name].module.config
            check_config(model, config)
        else:
            config = read_config(model, sources[model.name])
        check_methods(model, config, spec.methods)
        if verifies:
            check_verification(model, config)
        if model.workers.shards is not None:
            # It brings nnsight.
            from attrib_batch.models.sharded import check_degree

            check_degree(model, config, model.workers.shards)
        if model.name in given:
            pass
        elif workers_here and model.workers.kind != "ndif" and model.device not in {"auto", "cpu"}:
            choose_device(model)
        try_metrics(spec.methods, dimensions_of(config).d_vocab)


def check_tokenizers(
    spec: SweepSpec,
    sources: Mapping[str, ModelSource],
    tables: Mapping[str, PairTable],
    given: Mapping[str, LoadedModel],
) -> None:
    """Check that tables made for one tokenizer meet models of no other; no tokenizer is loaded where none is.

    Raises:
        ModelError: naming the table, the model and both tokenizers.
    """
    bound = [table for table in tables.values() if table.form.notes.tokenizer is not None]
    if not bound:
        return
    from attrib_batch.models.load import load_tokenizer

    for model in spec.models:
        tokenizer = given[model.name].tokenizer if model.name in given else load_tokenizer(model, sources[model.name])
        check_tables(model, tokenizer, bound)


def check_tables(model: ModelSpec, tokenizer: Tokenizer, tables: Iterable[PairTable]) -> None:
    """Check that tables can be read with a model's tokenizer.

    Raises:
        ModelError: one was made for another tokenizer.
    """
    for table in tables:
        table.form.notes.check(table.path, model.id, tokenizer)


def weight_bytes(model: ModelSpec) -> int:
    """Return about how much memory a model's weights take; 0 where that is not known without the Hub, or not here."""
    folder = Path(model.id).expanduser()
    if model.workers.kind == "ndif" or not folder.is_dir():
        return 0
    return sum(path.stat().st_size for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
