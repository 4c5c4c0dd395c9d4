"""The job file: which keys are part of what a run is."""

from __future__ import annotations

from typing import Any

import pytest

from attrib_batch.errors import JobError
from attrib_batch.spec import SweepSpec, parse_spec


def job(**keys: Any) -> SweepSpec:
    data = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "p"}],
        "methods": [{"id": "atp"}],
        **keys,
    }
    return parse_spec(data, source="job")


def test_boundaries_are_allowed_only_where_a_job_says_so_and_then_it_is_another_job() -> None:
    assert not job().allow_boundary
    assert job(allow_boundary=True).allow_boundary
    assert job(allow_boundary=True).settings() != job().settings() == job(allow_boundary=False).settings()
    assert job(allow_boundary=True).settings() == job(allow_boundary=True, name="other").settings()


def test_allow_boundary_is_yes_or_no() -> None:
    with pytest.raises(JobError, match=r"job: allow_boundary: .*boolean.*not 'perhaps'"):
        job(allow_boundary="perhaps")


def test_a_bos_token_is_another_model_and_needs_a_bos() -> None:
    [plain], [named] = (
        job(models=[{"id": "m", "prepend_bos": True, **keys}]).models for keys in ({}, {"bos_token": "<eos>"})
    )
    assert "bos_token" not in plain.identity()
    assert named.identity() == plain.identity() | {"bos_token": "<eos>"}
    with pytest.raises(JobError, match=r"bos_token is what prepend_bos: true prepends; leave it out"):
        job(models=[{"id": "m", "prepend_bos": False, "bos_token": "<eos>"}])
