"""What users write against: names, parameters and their defaults. A change here is a change for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

import attrib_batch
from attrib_batch import analysis

NAMES = ["Job", "LocalExecutor", "RayExecutor", "Run", "__version__", "attribute", "load_job", "open_run"]

ANALYSIS = [
    "Summary",
    "SummaryPaths",
    "Verified",
    "agreement_path",
    "compare",
    "examples",
    "examples_of_top",
    "half_width",
    "has_agreement",
    "heatmap",
    "mean_effects",
    "normalized",
    "rank_correlations",
    "read_agreement",
    "read_manifest",
    "read_stability",
    "read_summary",
    "read_verified",
    "reliability",
    "scan_baselines",
    "scan_failures",
    "scan_measured",
    "scan_scores",
    "stability_sentence",
    "stratum_spread",
    "strongest_disagreements",
    "summarize",
    "summary_is_current",
    "verified_cells",
    "write_agreement",
]

SIGNATURES = {
    "attribute": "(model, pairs, methods=('atp',), *, components=('z',), metric='logit_diff', direction=None, "
    "reference='corrupted', tokenizer=None, prepend_bos=False, bos_token=None, dtype='float32', device='auto', "
    "limit=None, verify=None, out=None, name=None, chunk_pairs=256, batch_tokens='auto', executor=None, progress=True)",
    "load_job": "(source)",
    "open_run": "(out)",
    "Job": "(spec, models=<factory>)",
    "LocalExecutor": "(given=<factory>)",
    "RayExecutor": "(address=None)",
}

JOB = {"run": "(self, out, *, executor=None, progress=True, retry_failures=False, ndif_host=None)"}

RUN = {
    "baselines": "(self, **cell)",
    "compare": "(self, other=None, a=None, b=None, *, normalized=True, relative_depth=False)",
    "examples": "(self, layer, head=None, *, component='z', at='all', n=5, **cell)",
    "export": "(self, to=None, **options)",
    "failures": "(self, **cell)",
    "heads": "(self, **cell)",
    "heatmap": "(self, component='z', at='last', *, normalized=True, **cell)",
    "measured": "(self, **cell)",
    "positions": "(self, **cell)",
    "reliability": "(self, **cell)",
    "report": "(self)",
    "scores": "(self, **cell)",
    "stability": "(self, **cell)",
    "status": "(self)",
    "top": "(self, n=10, *, at='last', component='z', by='magnitude', **cell)",
    "verify": "(self, pairs=32, *, seed=0, at='all', executor=None, progress=True, locations=None, ndif_host=None)",
}
RUN_PROPERTIES = ["agreement_path", "is_summarized", "manifest", "path"]


def signature(function: Callable[..., Any]) -> str:
    """Return names, kinds and defaults of the parameters; what a type is called is not the users' concern."""
    found = inspect.signature(function)

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(plain, value))
        return value.value if isinstance(value, Enum) else value

    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty, default=plain(parameter.default))
        for parameter in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def public_members(owner: type) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if not name.startswith("_")}


def test_the_package_exports_these_names_and_has_them() -> None:
    assert sorted(attrib_batch.__all__) == NAMES == dir(attrib_batch)
    assert all(hasattr(attrib_batch, name) for name in NAMES)


def test_analysis_exports_these_names_and_has_them() -> None:
    assert sorted(analysis.__all__) == ANALYSIS
    assert all(hasattr(analysis, name) for name in ANALYSIS)


def test_calls_take_these_parameters() -> None:
    assert {name: signature(getattr(attrib_batch, name)) for name in SIGNATURES} == SIGNATURES


def test_a_job_has_these_methods() -> None:
    methods = {name: found for name, found in public_members(attrib_batch.Job).items() if inspect.isfunction(found)}
    assert {name: signature(found) for name, found in methods.items()} == JOB


def test_a_run_has_these_methods_and_properties() -> None:
    members = public_members(attrib_batch.Run)
    assert {name: signature(found) for name, found in members.items() if inspect.isfunction(found)} == RUN
    assert sorted(name for name, found in members.items() if isinstance(found, property)) == RUN_PROPERTIES
    assert len(members) == len(RUN) + len(RUN_PROPERTIES)
