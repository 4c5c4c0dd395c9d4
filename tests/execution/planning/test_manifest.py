"""What a run's directory may be used for again: only one that has scores is somebody's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from attrib_batch.errors import OutputError, ResumeMismatchError
from attrib_batch.execution.planning.manifest import MANIFEST, build_manifest, check_run, open_run
from attrib_batch.spec import Cell, parse_spec
from attrib_batch.storage.store import Store
from attrib_batch.tables import BASELINES, SCORES, Chunk, Table

if TYPE_CHECKING:
    from pathlib import Path

PART = Chunk(Cell("m", "d", "atp"), 0, 4)


def manifest(**of_method: object) -> dict[str, Any]:
    job = parse_spec(
        {
            "name": "job",
            "models": [{"id": "m", "prepend_bos": False}],
            "datasets": [{"id": "d", "path": "d.parquet"}],
            "methods": [{"id": "atp", **of_method}],
        },
        source="job",
    )
    return build_manifest(job, [], datasets={"d": "a"}, models={"m": "b"}, named={})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The directory of a run that was begun."""
    store = Store(tmp_path)
    open_run(store, manifest())
    return store


def test_a_run_without_scores_gives_way_to_another(store: Store) -> None:
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())  # its commit never came
    store.write_bytes("ndif/job.json", b"{}")
    store.write_bytes("logs/1.jsonl", b"{}")
    other = manifest(direction="noise")
    assert check_run(store, other) is None
    assert store.exists(PART.path(Table.BASELINES)), "nothing is written before the run begins"
    found, resumed = open_run(store, other)
    assert (found, resumed) == (other, False)
    assert json.loads(store.read_bytes(MANIFEST)) == other
    assert not store.list(Table.BASELINES, recursive=True)
    assert not store.list("ndif")
    assert store.exists("logs/1.jsonl"), "what happened stays told"


def test_the_same_run_goes_on_without_scores_too(store: Store) -> None:
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())
    _, resumed = open_run(store, manifest())
    assert resumed
    assert store.exists(PART.path(Table.BASELINES))


def test_a_run_with_scores_is_kept(store: Store) -> None:
    store.write_table(PART.path(Table.SCORES), SCORES.empty_table())
    with pytest.raises(ResumeMismatchError, match=r"direction: was .denoise., is now .noise"):
        open_run(store, manifest(direction="noise"))
    assert store.exists(PART.path(Table.SCORES))


def test_scores_of_an_earlier_release_are_kept_and_said_to_be(store: Store) -> None:
    store.write_table(PART.path(Table.SCORES), SCORES.empty_table())
    old = manifest()
    old["schema_version"] = old["fingerprint"]["schema_version"] = 1
    store.write_bytes(MANIFEST, json.dumps(old).encode())
    with pytest.raises(ResumeMismatchError, match=r"schema version 1, and this release writes 2.*report go on reading"):
        check_run(store, manifest())


def test_tables_without_a_manifest_are_not_touched(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_table(PART.path(Table.BASELINES), BASELINES.empty_table())
    with pytest.raises(OutputError, match="not the directory of a run"):
        open_run(store, manifest())
