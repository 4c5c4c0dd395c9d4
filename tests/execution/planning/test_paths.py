"""Paths and servers of a job that mean the same wherever a worker runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attrib_batch.errors import DatasetError
from attrib_batch.execution.planning.paths import with_absolute_paths, with_ndif_host
from attrib_batch.spec import SweepSpec, parse_spec


def spec(*, models: list[dict[str, Any]] | None = None, paths: tuple[str, ...] = ("pairs.parquet",)) -> SweepSpec:
    data = {
        "name": "job",
        "models": models or [{"id": "models/mine", "name": "mine", "prepend_bos": False}],
        "datasets": [{"id": f"d{number}", "path": path} for number, path in enumerate(paths)],
        "methods": [{"id": "atp"}],
    }
    return parse_spec(data, source="job")


def test_local_paths_are_made_absolute_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models/mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    models = [
        {"id": identity, "name": f"m{number}", "prepend_bos": False}
        for number, identity in enumerate(["models/mine", "~/models/mine", "link/mine", "org/name", "smollm2-135m"])
    ]
    paths = ("pairs.parquet", "~/pairs.parquet", "a/../pairs.parquet", "s3://bucket/pairs.parquet")
    asked = spec(models=models, paths=paths)
    found = with_absolute_paths(asked)
    here = str(tmp_path / "models/mine")
    assert [model.id for model in found.models] == [here, here, here, "org/name", "smollm2-135m"]
    assert [dataset.path for dataset in found.datasets] == [str(tmp_path / "pairs.parquet")] * 3 + [paths[3]]
    assert found.model_dump(exclude={"models", "datasets"}) == asked.model_dump(exclude={"models", "datasets"})
    assert with_absolute_paths(found) == found
    assert asked.datasets[0].path == "pairs.parquet", "the job that was asked for stays as it is"


def test_a_url_of_no_known_kind_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"ftp://host/pairs\.parquet"):
        with_absolute_paths(spec(paths=("ftp://host/pairs.parquet",)))


@pytest.mark.parametrize(
    ("said", "in_job", "in_environment", "host"),
    [
        ("http://said", "http://job", "http://environment", "http://said"),
        (None, "http://job", "http://environment", "http://job"),
        (None, None, "http://environment", "http://environment"),
        (None, None, None, None),
    ],
)
def test_the_server_is_that_of_the_command_then_of_the_job_then_of_the_environment(
    said: str | None, in_job: str | None, in_environment: str | None, host: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NDIF_HOST", raising=False)
    if in_environment:
        monkeypatch.setenv("NDIF_HOST", in_environment)
    models = [
        {"id": "a", "name": "here", "prepend_bos": False},
        {"id": "b", "name": "there", "prepend_bos": False, "workers": {"kind": "ndif", "host": in_job}},
    ]
    here, there = with_ndif_host(spec(models=models), said).models
    assert there.workers.host == host
    assert here.workers.host is None, "it lies on no server"
