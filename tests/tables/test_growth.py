"""What a run's directory may be used for again: a sweep grows, and what has scores is kept as it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.errors import ResumeMismatchError
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.tables import Manifest
from attrib_batch.tables.growth import grow_manifest
from attrib_batch.tables.manifest import build_manifest
from attrib_batch.tables.plan import no_groups

if TYPE_CHECKING:
    from attrib_batch.tables.plan import Boundaries


def job(
    models: tuple[str, ...] = ("m",),
    datasets: tuple[str, ...] = ("d",),
    methods: tuple[str, ...] = ("atp",),
    **keys: Any,
) -> dict[str, Any]:
    return {
        "name": "job",
        "models": [{"id": name, "prepend_bos": False} for name in models],
        "datasets": [{"id": name, "path": f"{name}.parquet"} for name in datasets],
        "methods": [{"id": name, "kind": "atp" if name == "noise" else name} for name in methods],
        "chunk_pairs": 4,
        **keys,
    }


def mirrors(_dataset: str, begin: int, stop: int, size: int) -> dict[int, int]:
    """Every pair in an odd row is the mirror of the one before it."""
    return {boundary: boundary + 1 for boundary in range(begin + size, stop, size) if boundary % 2}


def manifest(
    data: dict[str, Any], *, n_pairs: int = 10, weights: str = "w", content: str = "c", groups: Boundaries = no_groups
) -> Manifest:
    spec = parse_spec(data, source="job")
    return build_manifest(
        spec,
        n_pairs={dataset.id: n_pairs for dataset in spec.datasets},
        datasets={dataset.id: content for dataset in spec.datasets},
        models={model.name: weights for model in spec.models},
        named={},
        boundaries=groups,
    )


def grow(existing: Manifest, asked: Manifest, *committed: Cell, groups: Boundaries = no_groups) -> Manifest:
    return grow_manifest(existing, asked, lambda cell: cell in committed, "OUT", groups)


ATP = Cell("m", "d", "atp")


def chunks(found: Manifest, cell: Cell) -> list[tuple[int, int]]:
    [plan] = [plan for plan in found.plan if plan.cell == cell]
    return [(chunk.start, chunk.stop) for chunk in plan.chunks()]


@pytest.mark.parametrize("more", [{"models": ("m", "n")}, {"datasets": ("d", "e")}, {"methods": ("atp", "exact")}])
def test_a_model_dataset_or_method_more_is_planned_beside_what_is_there(more: dict[str, Any]) -> None:
    existing = manifest(job())
    grown = grow(existing, manifest(job(**more)), ATP)
    assert grown.run_id == existing.run_id
    assert len(grown.plan) == 2
    assert grown.plan[0] == existing.plan[0], "what is committed keeps its chunks and its fingerprint"
    [(key, names)] = more.items()
    assert [item.get("name") or item["id"] for item in grown.job[key]] == list(names)


def test_a_job_without_what_is_there_leaves_it_there() -> None:
    grown = grow(manifest(job(methods=("atp", "exact"))), manifest(job(methods=("atp_ig",))), ATP)
    # `exact` was never begun, and nobody asks for it now.
    assert [str(plan.cell) for plan in grown.plan] == ["m x d x atp", "m x d x atp_ig"]
    assert [item["id"] for item in grown.job["methods"]] == ["atp", "atp_ig"]


def test_more_pairs_are_chunks_behind_those_that_were_planned() -> None:
    grown = grow(manifest(job()), manifest(job(), n_pairs=17), ATP)
    assert chunks(grown, ATP) == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 17)]
    again = grow(grown, manifest(job(chunk_pairs=8), n_pairs=30), ATP)
    assert chunks(again, ATP)[5:] == [(17, 25), (25, 30)]


def test_a_new_method_is_cut_like_the_others_so_that_they_share_forward_passes() -> None:
    grown = grow(manifest(job()), manifest(job(), n_pairs=17), ATP)
    more = grow(grown, manifest(job(methods=("atp", "noise")), n_pairs=17), ATP)
    assert chunks(more, Cell("m", "d", "noise")) == chunks(more, ATP)


def test_new_pairs_are_cut_between_groups_and_what_was_planned_stays_as_it_was() -> None:
    plain, odd = manifest(job()), job(chunk_pairs=5)
    assert chunks(manifest(odd, n_pairs=17, groups=mirrors), ATP) == [(0, 6), (6, 10), (10, 16), (16, 17)]
    # The release before cut groups: what it planned is not cut anew.
    grown = grow(plain, manifest(odd, n_pairs=27, groups=mirrors), ATP, groups=mirrors)
    assert chunks(grown, ATP) == [(0, 4), (4, 8), (8, 10), (10, 16), (16, 20), (20, 26), (26, 27)]
    same = grow(grown, manifest(odd, n_pairs=27, groups=mirrors), ATP, groups=mirrors)
    assert chunks(same, ATP) == chunks(grown, ATP)
    both = manifest(odd | job(methods=("atp", "noise"), chunk_pairs=5), n_pairs=27, groups=mirrors)
    more = grow(grown, both, ATP, groups=mirrors)
    assert chunks(more, Cell("m", "d", "noise")) == chunks(grown, ATP)
    assert chunks(Manifest.model_validate_json(more.to_bytes()), ATP) == chunks(grown, ATP)


def test_the_size_of_chunks_is_no_conflict() -> None:
    assert chunks(grow(manifest(job()), manifest(job(chunk_pairs=2)), ATP), ATP) == [(0, 4), (4, 8), (8, 10)]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (manifest(job(), weights="v"), 'model m, weights: was "w", is now "v"'),
        (manifest(job(), content="x"), 'dataset d, content: was "c", is now "x"'),
        (manifest(job(allow_boundary=True)), "allow_boundary: was false, is now true"),
        (
            manifest(job() | {"methods": [{"id": "atp", "direction": "noise"}]}),
            'method atp, direction: was "denoise", is now "noise"',
        ),
        (
            manifest(job() | {"models": [{"id": "m", "prepend_bos": True}]}),
            "model m, prepend_bos: was false, is now true",
        ),
        (
            manifest(job(), n_pairs=9),
            "dataset d: its first 10 pairs were asked for, now its first 9; a sweep may grow and not shrink",
        ),
    ],
)  # fmt: skip
def test_a_conflict_is_named_by_one_line(asked: Manifest, line: str) -> None:
    with pytest.raises(ResumeMismatchError) as refused:
        grow(manifest(job()), asked, ATP)
    named = [text.strip() for text in str(refused.value).splitlines()[1:-1]]
    assert len(named) == 1
    assert named[0].startswith(line)


def test_every_difference_has_a_line() -> None:
    with pytest.raises(ResumeMismatchError) as refused:
        grow(manifest(job()), manifest(job(), weights="v", content="x"), ATP)
    assert len(str(refused.value).splitlines()) == 4


def test_a_conflict_of_what_has_no_scores_is_none() -> None:
    existing = manifest(job(datasets=("d", "e")))
    asked = manifest(job(datasets=("e",)), content="x")
    grown = grow(existing, asked, ATP)
    assert grown.scoring.identities.datasets == {"d": {"content": "c"}, "e": {"content": "x"}}


def test_a_directory_without_scores_is_nobodys() -> None:
    existing, asked = manifest(job()), manifest(job(), weights="v")
    assert grow(existing, asked) == asked
    assert grow(existing, manifest(job(name="renamed"))).run_id == existing.run_id


def test_what_changes_no_number_is_in_no_fingerprint() -> None:
    workers = {"count": 2, "cpus": 3}
    model = {"id": "m", "prepend_bos": False, "batch_tokens": 7, "device": "cpu", "workers": workers}
    one, other = manifest(job()), manifest(job(name="other") | {"models": [model]})
    assert [plan.fingerprint for plan in one.plan] == [plan.fingerprint for plan in other.plan]
    assert one.plan[0].fingerprint != manifest(job(), weights="v").plan[0].fingerprint


def earlier(found: Manifest, *, schema_version: int = 2) -> Manifest:
    """The same run as the release before wrote its manifest."""
    identities = found.scoring.identities
    spec = {
        "models": [{"name": name, **value} for name, value in identities.models.items()],
        "datasets": [{"id": name, "limit": None} for name in identities.datasets],
        "methods": [{"id": name, "ig_steps": None, **value} for name, value in identities.methods.items()],
        "chunk_pairs": 4,
        "allow_boundary": False,
    }
    for model in spec["models"]:
        del model["weights"]
    data = json.loads(found.to_bytes())
    del data["stages"], data["manifest_version"]
    data["fingerprint"] = {
        "spec": spec,
        "models": {name: value["weights"] for name, value in identities.models.items()},
        "datasets": {name: value["content"] for name, value in identities.datasets.items()},
        "schema_version": schema_version,
    }
    data["plan"] = [
        {"model": plan.model, "dataset": plan.dataset, "method": plan.method, "n_pairs": plan.n_pairs, "n_chunks": 3,
         "chunk_pairs": 4}
        for plan in found.plan
    ]  # fmt: skip
    return Manifest.model_validate({**data, "schema_version": schema_version})


def test_a_run_of_the_release_before_goes_on_and_grows() -> None:
    found = earlier(manifest(job()))
    grown = grow(found, manifest(job(methods=("atp", "exact"))), ATP)
    assert chunks(grown, ATP) == [(0, 4), (4, 8), (8, 10)]
    assert len(grown.plan) == 2
    with pytest.raises(ResumeMismatchError, match="model m, weights"):
        grow(found, manifest(job(), weights="v"), ATP)


def test_scores_of_an_earlier_release_are_kept_and_said_to_be() -> None:
    found = earlier(manifest(job()), schema_version=1)
    with pytest.raises(ResumeMismatchError, match=r"schema version 1, and this release writes 2.*report go on reading"):
        grow(found, manifest(job()), ATP)
