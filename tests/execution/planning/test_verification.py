"""Which pairs are sampled to be measured, by which methods, and when that is done; no model runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attrib_batch.errors import RequestError, ResumeMismatchError
from attrib_batch.execution.planning.opening import open_run
from attrib_batch.execution.planning.stages import OpenRun, PlannedStage
from attrib_batch.execution.planning.verification import CHUNK_PAIRS, Verification, _exact_methods, open_verification
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import Cell, MethodSpec, parse_spec
from attrib_batch.spec.positions import ALL
from attrib_batch.tables import SCORES, Chunk, StageEntry, Table
from attrib_batch.tables.sampling import in_random_order
from tests.support.jobs import TinyJob
from tests.support.synthetic_run import Pair, write_chunk

N_PAIRS = 24
NOISE = {"id": "noise", "kind": "atp", "direction": "noise"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """Pairs in groups of two: a pair and the one after it."""
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=N_PAIRS)


def method(identity: str = "atp", kind: str = "atp", **changes: Any) -> MethodSpec:
    return MethodSpec.model_validate({"id": identity, "kind": kind, **changes})


def stage(*methods: dict[str, Any]) -> StageEntry:
    return StageEntry.model_validate({"name": "verification", "cells": [], "job": {"methods": list(methods)}})


def measured(
    *estimates: MethodSpec, before: StageEntry | None = None, at: str | tuple[str, ...] = ALL
) -> dict[str, tuple[str, str, list[str]]]:
    exact = _exact_methods(estimates, before, at)
    assert all(item["kind"] == "exact" for item in exact)
    parse_spec({**JOB, "methods": exact}, source="verification")  # it can be asked for
    return {item["id"]: (item["metric"], item["direction"], list(item["components"])) for item in exact}


JOB = {
    "name": "job",
    "models": [{"id": "x", "name": "tiny", "prepend_bos": False}],
    "datasets": [{"id": "random", "path": "x.parquet"}],
}


def test_estimates_of_the_same_thing_share_a_measurement() -> None:
    estimates = [
        method(components=["z", "mlp_out"]),
        method("ig", "atp_ig", components=["z", "q"], ig_steps=3),
        method("noise", direction="noise"),
        method("share", metric="prob_diff"),
    ]
    assert measured(*estimates) == {
        "exact": ("logit_diff", "denoise", ["z", "mlp_out", "q"]),
        "exact-logit_diff-noise": ("logit_diff", "noise", ["z"]),
        "exact-prob_diff-denoise": ("prob_diff", "denoise", ["z"]),
    }


def test_what_is_measured_already_stays_and_what_is_missing_is_a_method_of_its_own() -> None:
    first = _exact_methods([method()], None, ALL)
    assert _exact_methods([method()], stage(*first), ALL) == first
    grown = measured(method(components=["z", "k"]), before=stage(*first))
    assert grown == {"exact": ("logit_diff", "denoise", ["z"]), "exact-2": ("logit_diff", "denoise", ["k"])}
    second = _exact_methods([method(components=["z", "k"])], stage(*first), ALL)
    again = measured(method(components=["v", "k"]), method("noise", direction="noise"), before=stage(*second))
    assert list(again) == ["exact", "exact-2", "exact-3", "exact-logit_diff-noise"]
    assert again["exact-3"] == ("logit_diff", "denoise", ["v"])


def test_other_positions_are_a_measurement_of_their_own_unless_all_are_measured() -> None:
    last = _exact_methods([method()], None, "last")
    assert [item["at"] for item in last] == ["last"]
    assert _exact_methods([method()], stage(*last), "last") == last
    roles = _exact_methods([method()], stage(*last), ("IO", "end"))
    assert [(item["id"], item["at"]) for item in roles] == [("exact", "last"), ("exact-2", ["IO", "end"])]
    everywhere = _exact_methods([method()], stage(*roles), ALL)
    assert [item["id"] for item in everywhere] == ["exact", "exact-2", "exact-3"]
    assert _exact_methods([method()], stage(*everywhere), ("S1",)) == everywhere, "all holds every other"


def opened(job: TinyJob, out: Path, **changes: Any) -> OpenRun:
    run = open_run(parse_spec(job.data(**{"chunk_pairs": N_PAIRS, **changes}), source="job"), out)
    run.lease.release()
    return run


def commit(run: OpenRun, scored: Iterable[int], method: str = "atp", *, grouped: bool = True) -> None:
    """Commit scores of the pairs of these ids, as a worker would that could score no other."""
    pairs = [
        Pair(pair_id, {"z": np.zeros((1, 1, 2))}, group=pair_id // 2 if grouped else None) for pair_id in sorted(scored)
    ]
    write_chunk(Path(str(run.store.root)), Chunk(Cell("tiny", "random", method), 0, N_PAIRS), pairs)


def sample(planned: PlannedStage) -> list[int]:
    [dataset] = planned.work.spec.datasets
    table = PairTable.open(dataset.path)
    return [pair.pair_id for pair in table.rows(0, table.n_rows)]


def finish(planned: PlannedStage) -> None:
    """Commit everything that waits."""
    for tasks in planned.waiting.values():
        for task in tasks:
            for chunk in task:
                planned.work.store.write_table(chunk.path(Table.SCORES), SCORES.empty_table())


@pytest.fixture
def run(job: TinyJob, tmp_path: Path) -> OpenRun:
    run = opened(job, tmp_path)
    commit(run, range(N_PAIRS))
    return run


def test_a_pair_is_sampled_with_its_mirror_and_the_same_seed_samples_the_same(run: OpenRun) -> None:
    first = sample(Verification(6, seed=3).plan(run))
    assert len(first) == 6
    assert all(pair_id ^ 1 in first for pair_id in first)
    assert first == sorted(first), "in the order of the dataset"
    assert sample(Verification(6, seed=3).plan(run)) == first


def test_half_a_group_is_not_sampled(run: OpenRun) -> None:
    assert len(sample(Verification(5).plan(run))) == 6
    assert len(sample(Verification(1000).plan(run))) == N_PAIRS, "there are no more"


def test_pairs_without_a_group_are_sampled_alone(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path)
    commit(run, range(N_PAIRS), grouped=False)
    assert len(sample(Verification(5).plan(run))) == 5


def test_only_pairs_that_every_method_scored_are_sampled(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path, methods=[{"id": "atp"}, NOISE])
    commit(run, range(10))
    commit(run, range(6, N_PAIRS), "noise")
    assert sample(Verification(N_PAIRS).plan(run)) == [6, 7, 8, 9]


def test_where_no_pair_is_scored_there_is_nothing_to_sample(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path)
    with pytest.raises(RequestError, match="no pair of dataset random is scored by every method yet; run the job"):
        Verification(4).plan(run)
    commit(run, [])
    with pytest.raises(RequestError, match="no pair of dataset random"):
        Verification(4).plan(run)


def test_a_sample_grows_and_what_is_measured_is_not_measured_again(run: OpenRun) -> None:
    planned = Verification(4, seed=3).plan(run)
    kept = sample(planned)
    finish(planned)
    grown = Verification(8, seed=3).plan(run)
    assert sample(grown)[:4] == kept
    assert len(set(sample(grown))) == 8
    [tasks] = grown.waiting.values()
    assert [(chunk.start, chunk.stop) for task in tasks for chunk in task] == [(4, 8)]
    fewer = Verification(2, seed=3).plan(run)
    assert sample(fewer) == sample(grown), "a sample never shrinks"


def test_where_the_run_has_grown_the_sample_is_drawn_from_all_of_it(job: TinyJob, tmp_path: Path) -> None:
    run = opened(job, tmp_path)
    commit(run, range(12))
    planned = Verification(8, seed=3).plan(run)
    kept = sample(planned)
    finish(planned)
    assert Verification(8, seed=3).is_committed(run.store, run.manifest, run.spec)
    commit(run, range(N_PAIRS))
    units = in_random_order([(False, group) for group in range(N_PAIRS // 2)], 3)
    first = {2 * group + mirror for _, group in units[:4] for mirror in range(2)}
    assert max(first) >= 12, "some of the first are new"
    assert not Verification(8, seed=3).is_committed(run.store, run.manifest, run.spec)
    assert set(sample(Verification(8, seed=3).plan(run))) == {*kept, *first}


def test_a_kept_sample_stays_though_its_pairs_are_not_scored_by_a_new_method(job: TinyJob, tmp_path: Path) -> None:
    first = opened(job, tmp_path)
    commit(first, range(N_PAIRS))
    planned = Verification(4, seed=3).plan(first)
    kept = sample(planned)
    finish(planned)
    run = opened(job, tmp_path, methods=[{"id": "atp"}, NOISE])
    others = [pair_id for pair_id in range(N_PAIRS) if pair_id not in kept]
    commit(run, others, "noise")
    grown = Verification(6, seed=3).plan(run)
    assert sample(grown)[:4] == kept
    assert len(sample(grown)[4:]) == 6
    assert set(sample(grown)[4:]) <= set(others)


def test_before_any_pair_is_scored_by_a_new_method_nothing_is_committed_and_nothing_raised(
    job: TinyJob, tmp_path: Path
) -> None:
    first = opened(job, tmp_path)
    commit(first, range(N_PAIRS))
    finish(Verification(4, seed=3).plan(first))
    run = opened(job, tmp_path, methods=[{"id": "atp"}, NOISE])
    assert not Verification(4, seed=5).is_committed(run.store, run.manifest, run.spec)


def test_a_sample_of_another_seed_is_refused_once_some_of_it_is_measured(run: OpenRun) -> None:
    first = sample(Verification(4, seed=3).plan(run))
    planned = Verification(4, seed=4).plan(run)
    assert sample(planned) != first, "nothing was measured yet"
    finish(planned)
    with pytest.raises(ResumeMismatchError, match="seed of the sample"):
        Verification(4, seed=3).plan(run)
    assert sample(planned) != first, "what was measured is still the sample"


def test_the_plan_is_in_the_manifest_before_a_worker_sees_it(run: OpenRun) -> None:
    planned = Verification(6, seed=3).plan(run)
    entry = run.manifest.stage("verification")
    assert entry is not None
    assert entry.needs == ("scoring",)
    assert [plan.n_pairs for plan in entry.cells] == [6]
    assert [chunk.n_pairs for chunk in entry.cells[0].chunks()] == [CHUNK_PAIRS, 2]
    assert entry.identities.datasets["random"]["seed of the sample"] == 3
    assert planned.work.store.root == run.store.below("verification").root
    assert planned.work.pins["random"] == PairTable.open(planned.work.spec.datasets[0].path).fingerprint()


def test_it_is_committed_when_all_that_is_asked_is_measured(job: TinyJob, run: OpenRun) -> None:
    verification = Verification(4)
    assert not verification.is_committed(run.store, run.manifest, run.spec), "it is not planned"
    planned = verification.plan(run)
    assert not verification.is_committed(run.store, run.manifest, run.spec), "nothing is measured"
    finish(planned)
    assert verification.is_committed(run.store, run.manifest, run.spec)
    assert Verification(2).is_committed(run.store, run.manifest, run.spec), "fewer are there too"
    assert not Verification(5).is_committed(run.store, run.manifest, run.spec)
    more = parse_spec(
        job.data(models=[*job.data()["models"], {"id": "y", "name": "other", "prepend_bos": False}]), source="job"
    )
    assert not verification.is_committed(run.store, run.manifest, more), "of another model nothing is measured"
    [(chunk,)] = planned.waiting["tiny"]
    planned.work.store.remove(chunk.path(Table.SCORES))
    assert not verification.is_committed(run.store, run.manifest, run.spec)


@pytest.mark.parametrize("asked", [{"verify": {}}, {}])
def test_exact_methods_have_nothing_to_be_checked_with(asked: dict[str, Any], job: TinyJob, tmp_path: Path) -> None:
    spec = parse_spec(job.data(methods=[{"id": "exact"}], **asked), source="job")
    if asked:
        with pytest.raises(RequestError, match="every method of the job is exact already"):
            Verification.of(spec)
        return
    assert Verification.of(spec) is None
    opened(job, tmp_path, methods=[{"id": "exact"}])
    with pytest.raises(RequestError, match="every method of the job is exact already"):
        open_verification(tmp_path, Verification())


def test_a_job_says_how_many_pairs_and_which_seed(job: TinyJob) -> None:
    spec = parse_spec(job.data(verify={"pairs": 7, "seed": 2}), source="job")
    assert Verification.of(spec) == Verification(7, 2)
