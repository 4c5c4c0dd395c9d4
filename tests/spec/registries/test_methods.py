"""The registry of methods, and a method of one's own: from an installed package to scores and to a report's words."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from nnsight.intervention.backends.local import LocalSimulationBackend

from attrib_batch.analysis import read_verified
from attrib_batch.attribution.engine import ScoredBatch
from attrib_batch.attribution.groups import group_methods, scoring_function
from attrib_batch.errors import JobError, ModelError
from attrib_batch.models.checks.capabilities import check_methods
from attrib_batch.ndif import request
from attrib_batch.ndif.model import RemoteModel
from attrib_batch.report.sections.verdict import Value, judge
from attrib_batch.report.wording import describe_method, describe_scale
from attrib_batch.spec import Cell, Component, MethodSpec, ModelSpec, parse_spec, share_forward_passes
from attrib_batch.spec.registries import methods as registry
from attrib_batch.spec.registries.methods import BUILT_IN_METHODS, GradientAt
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import environment
from tests.support.near import assert_near
from tests.support.own_package import install_package
from tests.support.scored import encoded, method, score, tiny_model
from tests.support.synthetic_run import Pair, write_run
from tests.support.synthetic_verification import write_exact
from tests.support.terms import terms_of

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = """
from pydantic import Field
from attrib_batch.spec.base import Strict
from attrib_batch.spec.registries.methods import MethodEntry

class Scale(Strict):
    factor: float = Field(2.0, gt=0, description="what scores are multiplied by")

entry = MethodEntry(
    "own",
    function="own_scaling:scaled",
    title="Scaled patching",
    explanation="magnitudes of attribution patching times {factor}.",
    cost="3",
    paper="none",
    parameters=Scale,
    magnitudes=True,
    advice="divide by the factor",
    least_layers=3,
    least_layers_reason="it says so",
)
"""
FUNCTION = """
from dataclasses import replace
from attrib_batch.attribution.methods.atp import attribution_patching

def scaled(model, pairs, method, *, batch_tokens):
    [result] = attribution_patching(model, pairs, [method], batch_tokens=batch_tokens)
    factor = method.parameters["factor"]
    return replace(result, scores={name: factor * abs(values) for name, values in result.scores.items()})
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers the method ``own``; it is forgotten after the test."""
    monkeypatch.setattr(registry, "_loaded", {})
    for module in ("own_method", "own_scaling"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    folder = tmp_path / "site-packages"
    install_package(folder, "own_method", ENTRY, "own = own_method:entry", group=registry.METHOD_GROUP)
    (folder / "own_scaling.py").write_text(FUNCTION)
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.usefixtures("own")
def test_a_method_of_an_installed_package_scores_pairs() -> None:
    model, pairs = tiny_model("llama"), encoded(random_pairs(3, 9, 4))
    plain = score(model, pairs, method())
    for job, factor in ((method(id="own"), 2.0), (method(id="mine", kind="own", factor=3), 3.0)):
        assert job.parameters == {"factor": factor}
        for pair_id, scores in score(model, pairs, job).items():
            assert np.array_equal(scores["z"], np.float32(factor) * abs(plain[pair_id]["z"]))


@pytest.mark.usefixtures("own", "without_shape_checks")
def test_a_method_of_an_installed_package_travels_to_a_server() -> None:
    model, pairs = tiny_model("llama"), encoded(random_pairs(3, 9, 4))
    there = RemoteModel(model.traced, "", model.tokenizer, model.architecture, model.dimensions)
    jobs = [method(id="own")]
    answer = request.ask(there, pairs, jobs, batch_tokens=64, backend=LocalSimulationBackend(model.traced))
    assert answer is not None
    _, outcome = next(request.outcomes(answer, pairs, jobs))
    assert isinstance(outcome, ScoredBatch), outcome
    here = score(model, pairs, jobs[0])
    for pair, values in zip(outcome.pairs, outcome.result.scores[Component.Z], strict=True):
        # A server pads suffixes, and this process packs them.
        assert_near(values, here[pair.pair_id]["z"][..., pair.first_difference :], terms_of(model.module, pair))


@pytest.mark.usefixtures("own")
def test_a_method_of_an_installed_package_is_explained_in_a_report(tmp_path: Path) -> None:
    data = {"id": "mine", "kind": "own", "factor": 3.0}
    assert describe_method(data) == "Scaled patching: magnitudes of attribution patching times 3.0."
    assert describe_scale(data) == "0 is no effect and 1 the whole gap."
    assert "divide by the factor" in judge({"pearson@end": Value(0.1, 0.0, 0.2)}, data, "the end").headline
    cell = Cell("m", "d", "own")
    pairs = [Pair(index, {"z": np.full((2, 2, 3), -1.0)}) for index in range(3)]
    write_run(tmp_path / "out", {cell: pairs}, method={"kind": "own"})
    write_exact(tmp_path / "out", cell, pairs)
    verified = read_verified(tmp_path / "out", cell)
    assert verified.magnitudes
    assert verified.rows.get_column("exact").to_list() == [1.0] * len(verified.rows)


@pytest.mark.usefixtures("own")
def test_what_a_method_of_an_installed_package_needs_is_checked() -> None:
    config = tiny_model("llama").module.config
    spec = ModelSpec(id="tiny", prepend_bos=False)
    check_methods(spec, config, [method(id="own")])
    config.num_hidden_layers = 2
    with pytest.raises(ModelError, match="own needs a model of 3 layers or more, and this one has 2: it says so"):
        check_methods(spec, config, [method(id="own")])


@pytest.mark.usefixtures("own")
def test_its_parameters_are_checked_as_those_of_any_method() -> None:
    for wrong, message in (
        ({"factor": 0}, r"methods\[0\].factor: Input should be greater than 0, not 0"),
        ({"ig_steps": 3}, "ig_steps is for kind atp_ig; kind is own"),
        ({"facto": 1}, r"methods\[0\].facto: unknown key"),
    ):
        with pytest.raises(JobError, match=message):
            parse_spec(_job({"id": "own", **wrong}), source="job")


@pytest.mark.slow
def test_a_job_names_methods_without_torch(own: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(own)!r})\n"
        "from attrib_batch.spec import MethodSpec\n"
        "assert MethodSpec.model_validate({'id': 'own'}).parameters == {'factor': 2.0}\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_module", "cannot be loaded from own_method:entry: ModuleNotFoundError"),
        ("entry = 3", "own_method:entry is no MethodEntry of attrib_batch.spec.registries.methods"),
        (ENTRY.replace('"own",', '"other",', 1), "is of kind 'other'"),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(
    source: str, message: str, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own / "own_method.py").write_text(source)
    monkeypatch.delitem(sys.modules, "own_method", raising=False)
    with pytest.raises(JobError, match=message):
        parse_spec(_job({"id": "own"}), source="job")
    monkeypatch.delitem(sys.modules, "own_method", raising=False)


def test_a_function_that_cannot_be_loaded_is_named(own: Path) -> None:
    (own / "own_scaling.py").write_text("import no_such_module")
    with pytest.raises(
        JobError, match="method 'own': its function own_scaling:scaled cannot be loaded: ModuleNotFound"
    ):
        group_methods([method(id="own")])


@pytest.mark.usefixtures("own")
def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        JobError, match=r"kind: .*\(atp, atp_ig, atp_hvp, atp_star, relp, refined, exact, own\), not 'magic'"
    ):
        parse_spec(_job({"id": "magic"}), source="job")
    assert describe_method({"kind": "magic"}) == ""


@pytest.mark.parametrize("kind", BUILT_IN_METHODS)
def test_every_built_in_entry_is_whole(kind: str) -> None:
    entry = BUILT_IN_METHODS[kind]
    assert entry.kind == kind
    assert callable(scoring_function(kind))
    assert entry.cost
    assert entry.paper
    assert entry.explain({}).startswith(f"{entry.title}: ")
    assert entry.measured == (not entry.differentiates)


def test_methods_of_a_kind_that_shares_passes_are_one_group() -> None:
    methods = [
        MethodSpec.model_validate(data)
        for data in (
            {"id": "exact"},
            {"id": "atp"},
            {"id": "kind", "kind": "atp_ig"},
            {"id": "noise", "kind": "atp", "direction": "noise"},
        )
    ]
    groups = [[job.id for job in group] for group in share_forward_passes(methods)]
    assert groups == [["atp", "noise"], ["exact"], ["kind"]]


def test_only_gradients_on_the_clean_prompt_rule_out_a_metric_that_is_flat_there() -> None:
    for kind, entry in BUILT_IN_METHODS.items():
        job = _job({"id": kind, "metric": "kl", "direction": "noise"})
        if entry.gradient_at is GradientAt.BASE:
            with pytest.raises(JobError, match=f"where {kind} with direction noise takes its gradients"):
                parse_spec(job, source="job")
        else:
            parse_spec(job, source="job")


def _job(of_method: dict[str, object]) -> dict[str, object]:
    return {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "d.parquet"}],
        "methods": [of_method],
    }
