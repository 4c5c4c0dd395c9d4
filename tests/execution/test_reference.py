"""Mean ablation as a run: a stage of means before the scoring, against means and effects by plain hooks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
import torch

import attrib_batch as ab
from attrib_batch.attribution.scores import ActivationSums
from attrib_batch.errors import JobError, ResumeMismatchError
from attrib_batch.execution.means import join_means, load_means, mean_name, means_table
from attrib_batch.execution.planning.reference import mean_methods
from attrib_batch.spec import Cell, Component, parse_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import Chunk, Table, read_manifest
from tests.support import teacher_forced
from tests.support.near import assert_near, assert_same_scores
from tests.support.teacher_forced import COMPONENTS, WholePair
from tests.support.tiny_models import ARCHITECTURES, tiny_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tests.support.teacher_forced import Activations

PAIRS = [
    {
        "clean": "Mary w1 w2 w3",
        "answers": [" Paul"],
        "wrong_answers": [" Kate"],
        "roles": {"name": (0, 4), "end": (11, 13)},
    },
    {
        "clean": "w4 John w5",
        "answers": [" Mary"],
        "wrong_answers": [" Anna"],
        "roles": {"name": (3, 7), "end": (8, 10)},
    },
    {"clean": "Anna w6 w7 w8", "answers": [" Mary"], "wrong_answers": [" Kate"], "roles": {"name": (0, 4)}},
    {"clean": "w9", "answers": [" Mary Paul"], "wrong_answers": [" Kate"]},
    {"clean": "Kate w3 Paul w1", "answers": [" Mark"], "wrong_answers": [" Kate"], "roles": {"name": (0, 4)}},
]
"""The fourth cannot be scored, and counts in no mean."""
ROLES = {0: ["name", None, None, "end"], 1: [None, "name", "end"], 2: ["name", None, None, None]}
ROLES[4] = ROLES[2]
METHODS = [
    {"id": kind, "kind": kind, "components": list(COMPONENTS), "reference": "mean"}
    for kind in ("atp", "atp_ig", "exact")
]


def attribute(model: PreTrainedModel, out: Path, **options: Any) -> ab.Run:
    given = {"methods": METHODS, "chunk_pairs": 2, "progress": False, "name": "words", **options}
    return ab.attribute(model, given.pop("pairs", PAIRS), tokenizer=tiny_tokenizer(), out=out, **given)


def whole_pair(index: int) -> WholePair:
    """The pair by token ids."""
    ids = tiny_tokenizer()
    texts = (PAIRS[index]["clean"], PAIRS[index]["answers"][0], PAIRS[index]["wrong_answers"][0])
    clean, right, wrong = (ids(text, add_special_tokens=False)["input_ids"] for text in texts)
    return WholePair(clean, clean, [right], [wrong])


def by_hooks(model: PreTrainedModel) -> dict[tuple[str, int], dict[str | None, torch.Tensor]]:
    """Means of every component, layer and role over the clean prompts."""
    tokens: dict[tuple[str, int], dict[str | None, list[torch.Tensor]]] = defaultdict(lambda: defaultdict(list))
    for index, roles in ROLES.items():
        for key, values in teacher_forced.activations(model, whole_pair(index).clean).items():
            for role, value in zip(roles, values, strict=True):
                tokens[key][role].append(value)
    return {key: {role: torch.stack(of).mean(0) for role, of in by.items()} for key, by in tokens.items()}


def of_prompt(means: dict[tuple[str, int], dict[str | None, torch.Tensor]], index: int) -> Activations:
    return {key: torch.stack([of[role] for role in ROLES[index]]) for key, of in means.items()}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return ARCHITECTURES["gpt2"]()


@pytest.fixture(scope="module")
def run(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ab.Run:
    return attribute(model, tmp_path_factory.mktemp("run"))


def test_the_means_are_those_of_plain_hooks(run: ab.Run, model: PreTrainedModel) -> None:
    theirs, store = by_hooks(model), Store.parse(run.path).below("reference")
    components = [Component(name) for name in COMPONENTS]
    found = load_means(store, run.manifest.plan[0].model, "words", components)
    assert found.roles == (None, "end", "name")
    for component in components:
        for layer, roles in enumerate(found.values[component]):
            for role, heads in zip(found.roles, roles, strict=True):
                mean = theirs[component, layer][role].numpy()
                assert_near(heads.reshape(-1), mean, np.abs(mean).max())
    for role, mean in zip(found.roles, found.entering, strict=True):
        expected = theirs["entering", -1][role].numpy()
        assert_near(mean, expected, np.abs(expected).max())
    counted = pl.read_parquet(f"{store.root}/joined/**/*.parquet").filter(
        pl.col("layer") == 1, pl.col("component") == "mlp_out"
    )
    assert dict(counted.select("role", "n_tokens").rows()) == {"name": 4, "end": 2, None: 9}


@pytest.mark.parametrize("index", ROLES)
def test_scores_and_metrics_are_those_of_plain_hooks(run: ab.Run, model: PreTrainedModel, index: int) -> None:
    pair, other = whole_pair(index), of_prompt(by_hooks(model), index)
    terms = teacher_forced.terms(model, pair)
    expected = {
        "atp": teacher_forced.atp(model, pair, direction="noise", other=other),
        "atp_ig": teacher_forced.atp(model, pair, direction="noise", steps=8, other=other),
        "exact": {c: teacher_forced.exact(model, pair, c, direction="noise", other=other) for c in COMPONENTS},
    }
    ablated = teacher_forced.ablated(model, pair, other, COMPONENTS)
    for method, theirs in expected.items():
        rows = run.scores(method=method).filter(pl.col("pair_id") == index).collect()
        ours = {name: np.zeros_like(values) for name, values in theirs.items()}
        for component, layer, head, position, score in rows.select(
            "component", "layer", "head", "position", "score"
        ).rows():
            ours[component][layer, head or 0, position] = score
        assert_same_scores(ours, theirs, terms)
        baseline = run.baselines(method=method).filter(pl.col("pair_id") == index).collect().row(0, named=True)
        assert_near(baseline["clean_metric"], teacher_forced.metric(model, pair.clean, pair), terms)
        assert_near(baseline["corrupted_metric"], ablated, terms)


def test_a_role_that_one_component_lost_has_no_mean(tmp_path: Path) -> None:
    """As where a later component is added up from fewer chunks."""
    store, rng = Store(tmp_path), np.random.default_rng(0)
    of_roles = {Component.Z: (None, "name"), Component.RESID_PRE: (None, "end", "name"), Component.K: ("name", "end")}
    for component, roles in of_roles.items():
        n_heads = 2 if component.has_heads else 1
        totals, entering = rng.normal(size=(3, len(roles), n_heads, 4)), np.ones((len(roles), 4))
        sums = ActivationSums(roles, np.full(len(roles), 2), totals, entering)
        chunk = Chunk(Cell("m", "d", mean_name(component)), 0, 2)
        store.write_table(chunk.path(Table.MEANS), means_table(component, [sums]))
        join_means(store, [chunk])
    found = load_means(store, "m", "d", list(of_roles))
    assert found.roles == ("name",)
    assert found.values[Component.K].shape == (3, 1, 2, 4)
    assert load_means(store, "m", "d", [Component.RESID_PRE]).roles == (None, "end", "name")
    assert load_means(store, "m", "d", [Component.Z, Component.RESID_PRE]).roles == (None, "name")


def test_every_pair_is_accounted_for_and_the_stage_is_in_the_manifest(run: ab.Run) -> None:
    assert run.failures().select("pair_id").unique().collect()["pair_id"].to_list() == [3]
    entry = run.manifest.stage("reference")
    assert entry is not None
    assert [plan.cell.method for plan in entry.cells] == [f"mean-{name}" for name in COMPONENTS]
    assert all(plan.fingerprint for plan in entry.cells)
    assert entry.identities.datasets["words"]["pairs of the means"] == len(PAIRS)
    assert run.result.stages["reference"].expected == 3 * len(PAIRS)
    assert "mean ablation" in Path(run.report()).read_text(encoding="utf-8")


def test_a_sample_is_measured_with_the_means_of_all_pairs(run: ab.Run) -> None:
    agreement = run.verify(2)
    assert set(agreement["method"]) >= {"atp", "atp_ig"}
    measured = pl.read_parquet(f"{run.path}/verification/scores/**/*.parquet", hive_partitioning=True)
    keys = ["pair_id", "component", "layer", "head", "position"]
    exact = run.scores(method="exact").select(*keys, again="score").collect()
    both = measured.join(exact, on=keys, nulls_equal=True)
    assert len(both) == len(measured) > 0
    assert_near(both["score"], both["again"], float(both["again"].abs().max()))


def test_the_same_job_resumes_and_one_of_more_components_goes_on(model: PreTrainedModel, tmp_path: Path) -> None:
    attribute(model, tmp_path, methods=METHODS[:1])
    again = attribute(model, tmp_path, methods=METHODS[:1])
    assert again.result.tally.scored == 0
    more = [*METHODS[:1], {"id": "k", "kind": "atp", "components": ["k"], "reference": "mean"}]
    grown = attribute(model, tmp_path, methods=more)
    assert grown.result.stages["reference"].expected == 4 * len(PAIRS)
    assert set(grown.scores(method="k").collect()["component"]) == {"k"}


def test_means_over_fewer_pairs_are_not_mixed_with_those_over_more(model: PreTrainedModel, tmp_path: Path) -> None:
    attribute(model, tmp_path, methods=METHODS[:1], limit=2)
    with pytest.raises(ResumeMismatchError, match="pairs of the means: was 2, is now 5"):
        attribute(model, tmp_path, methods=METHODS[:1])
    assert attribute(model, tmp_path, methods=METHODS[:1], limit=2).result.tally.scored == 0


def test_what_an_unscored_run_left_is_not_taken_for_another_dataset(model: PreTrainedModel, tmp_path: Path) -> None:
    attribute(model, tmp_path / "a", methods=METHODS[:1])
    left, here = tmp_path / "a" / "reference", tmp_path / "b" / "reference"
    here.parent.mkdir()
    left.rename(here)
    other = [{**pair, "clean": f"w50 {pair['clean']}", "roles": None} for pair in PAIRS]
    fresh = attribute(model, tmp_path / "b", methods=METHODS[:1], pairs=other)
    alone = attribute(model, tmp_path / "c", methods=METHODS[:1], pairs=other)
    columns = ["pair_id", "component", "layer", "head", "position", "score"]
    assert fresh.scores().select(columns).collect().equals(alone.scores().select(columns).collect())


def _spec(**options: Any) -> Any:
    return parse_spec(
        {
            "name": "job",
            "models": [{"id": "m", "prepend_bos": False, **options.pop("model", {})}],
            "datasets": [{"id": "d", "path": "d.parquet"}],
            "methods": options["methods"],
        },
        source="job",
    )


def test_what_the_stage_computes_follows_from_the_job() -> None:
    mean = {"kind": "atp", "reference": "mean"}
    spec = _spec(
        methods=[
            {"id": "a", **mean, "components": ["z", "k"]},
            {"id": "b", **mean, "components": ["k", "q"]},
            {"id": "atp"},
        ]
    )
    assert [method.id for method in mean_methods(spec)] == ["mean-z", "mean-k", "mean-q"]
    whole = {**mean, "metric": "sequence_logprob_diff"}
    assert {m.metric for m in mean_methods(_spec(methods=[{"id": "a", **whole}]))} == {"sequence_logprob_diff"}
    mixed = mean_methods(_spec(methods=[{"id": "a", **whole}, {"id": "b", **mean}]))
    assert {method.metric for method in mixed} == {"logit_diff"}


def test_no_job_names_the_stages_own_kind() -> None:
    with pytest.raises(JobError, match="expected the kind of a method"):
        _spec(methods=[{"id": "mean_activations"}])


def test_manifest_of_a_run_with_means_is_read_again(run: ab.Run) -> None:
    assert read_manifest(Store.parse(run.path)) == run.manifest
