"""Score pairs with one call, in this process."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attrib_batch.api.job import Job
from attrib_batch.api.pairs import pairs_path
from attrib_batch.spec import Component, MethodSpec, parse_spec
from attrib_batch.spec.method import CORRUPTED, reference_of
from attrib_batch.spec.names import reads_as_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attrib_batch.api.run import Run
    from attrib_batch.execution.executor import Executor
    from attrib_batch.observe.progress import ProgressView

CHUNK_PAIRS = 256
"""Pairs that are committed at once: what an interrupted call may have to compute again."""


def attribute(
    model: Any,
    pairs: Any,
    methods: str | Sequence[str | Mapping[str, Any] | MethodSpec] = ("atp",),
    *,
    components: Sequence[str] = (Component.Z,),
    metric: str = "logit_diff",
    direction: str | None = None,
    reference: str = CORRUPTED,
    tokenizer: Any = None,
    prepend_bos: bool = False,
    bos_token: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    limit: int | None = None,
    verify: int | None = None,
    out: str | Path | None = None,
    name: str | None = None,
    chunk_pairs: int = CHUNK_PAIRS,
    batch_tokens: int | Literal["auto"] = "auto",
    executor: Executor | None = None,
    progress: bool | ProgressView = True,
) -> Run:
    """Score prompt pairs: how much does each component of a model matter, for each pair?

    Args:
        model: a bundled name, a local folder or a Hub repository id; or a ``transformers`` model, with ``tokenizer``;
            or an nnsight model. A model that is given is put into evaluation mode, and its parameters are frozen.
        pairs: the path or URL of a Parquet table; or a Polars or pandas frame, an Arrow table, or a list of dicts, with
            ``clean``, ``corrupted``, ``answers`` and ``wrong_answers``, and optionally ``pair_id``, ``roles``,
            ``task``, ``template``, ``group``.
        methods: kinds of methods, such as ``atp``, ``atp_ig``, ``atp_star``, ``relp`` or ``exact``; or entries of a job
            file.
        components: what is attributed, for methods that do not say so themselves; likewise ``metric`` and
            ``direction`` and ``reference``.
        metric: what is measured at the last position, by name.
        direction: ``denoise``, the default: clean into corrupted; ``noise``: the mirror.
        reference: what activations are replaced by: ``corrupted``, those of the other prompt; or ``zero`` or ``mean``,
            which patch the clean prompt and need no corrupted one.
        tokenizer: the tokenizer of a model that is given.
        prepend_bos: prepend the beginning-of-sequence token. It changes results.
        bos_token: which token that is, as the vocabulary writes it; the tokenizer's own by default.
        dtype: precision of the weights, of a model that is loaded here.
        device: where a model that is loaded here goes: auto, cpu, cuda, ...
        limit: score only the first so many pairs.
        verify: measure so many of the pairs by activation patching, to check the estimates.
        out: the run's directory; the same call with the same directory goes on where it stopped. By default a new
            folder for temporary files, which stays; `Run.path` says which.
        name: the dataset's name in the tables; by default that of its file, or ``pairs``.
        chunk_pairs: pairs that are committed at once.
        batch_tokens: most token positions in one micro-batch, or auto: as many as memory allows; changes no result.
        executor: gives the workers; by default one in this process.
        progress: whether to show how far it is.

    Returns:
        The run: tables, summaries, figures. It holds on to a model that was loaded here, for `Run.verify`.

    Raises:
        RequestError: the model, the pairs or the methods do not allow it; the message says what to do.
        KeyboardInterrupt: by Ctrl-C. What is committed stays.
    """
    folder = Path(tempfile.mkdtemp(prefix="attrib-batch-")) if out is None else out
    given = {}
    model_name, model_id = _model_names(model)
    if not isinstance(model, str | Path):
        from attrib_batch.models.in_memory import adopt_model

        given[model_name] = adopt_model(model, tokenizer)
        dtype = str(given[model_name].module.dtype).removeprefix("torch.")
    dataset = name or (_as_name(Path(str(pairs)).stem) if isinstance(pairs, str | Path) else "pairs")
    defaults = {"components": list(components), "metric": metric, "direction": direction, "reference": reference}
    wanted = [
        _method(method, {key: value for key, value in defaults.items() if value is not None})
        for method in ([methods] if isinstance(methods, str) else methods)
    ]
    corrupted = any(reference_of(method) == CORRUPTED for method in wanted)
    spec = parse_spec(
        {
            "name": dataset,
            "models": [
                {
                    "id": model_id,
                    "name": model_name,
                    "dtype": dtype,
                    "device": device,
                    "prepend_bos": prepend_bos,
                    "bos_token": bos_token,
                    "batch_tokens": batch_tokens,
                }
            ],
            "datasets": [
                {"id": dataset, "path": pairs_path(pairs, folder, dataset, corrupted=corrupted), "limit": limit}
            ],
            "methods": wanted,
            "chunk_pairs": chunk_pairs,
            "verify": None if verify is None else {"pairs": verify},
        },
        source="attribute",
    )
    return Job(spec, given).run(folder, executor=executor, progress=progress)


def _method(method: str | Mapping[str, Any] | MethodSpec, defaults: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(method, MethodSpec):
        return method.model_dump(mode="json")
    return {**defaults, "id": method} if isinstance(method, str) else {**defaults, **method}


def _model_names(model: Any) -> tuple[str, str]:
    """Return a model's name in the tables and its id in the job."""
    if isinstance(model, str | Path):
        return _as_name(str(model).rstrip("/").rsplit("/", 1)[-1]), str(model)
    module = getattr(model, "_module", model)
    config = getattr(module, "config", None)
    known = str(getattr(config, "_name_or_path", "") or getattr(config, "model_type", "") or "model")
    return _as_name(known.rstrip("/").rsplit("/", 1)[-1]), f"in-memory {type(module).__name__}"


def _as_name(text: str) -> str:
    """Return a name that can be a partition's."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-") or "pairs"
    return name if reads_as_text(name) else f"id-{name}"
