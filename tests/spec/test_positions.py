"""The parameter ``at``: what may be asked, how it is kept, and which positions are meant."""

from __future__ import annotations

import json

import pytest

from attrib_batch.errors import JobError
from attrib_batch.spec import SweepSpec, parse_spec
from attrib_batch.spec.positions import positions_asked


def job(**of_method: object) -> SweepSpec:
    data = {
        "name": "job",
        "models": [{"id": "m", "prepend_bos": False}],
        "datasets": [{"id": "d", "path": "d.parquet"}],
        "methods": [{"id": "exact", **of_method}],
    }
    return parse_spec(data, source="job")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, "all"),
        ({"at": "all"}, "all"),
        ({"at": "last"}, "last"),
        ({"at": "IO"}, ("IO",)),
        ({"at": ["S2", "IO", "S2"]}, ("IO", "S2")),
    ],
)
def test_what_may_be_asked(given: dict[str, object], kept: object) -> None:
    spec = job(**given)
    assert spec.methods[0].parameters == {"at": kept}
    again = parse_spec(json.loads(spec.model_dump_json()), source="a manifest")
    assert again.methods == spec.methods
    assert again.methods[0].parameters == {"at": kept}


@pytest.mark.parametrize("at", [[], "", 3, ["IO", 1], {"role": "IO"}])
def test_what_is_no_position_is_refused(at: object) -> None:
    with pytest.raises(JobError, match=r"methods\[0\].at: expected last, all, the name of a role"):
        job(at=at)


@pytest.mark.parametrize("at", [["last"], ["all", "IO"]])
def test_a_list_holds_roles_alone(at: list[str]) -> None:
    with pytest.raises(JobError, match=r"methods\[0\].at: a list holds names of roles; (last|all) stands alone"):
        job(at=at)


def test_only_exact_has_it_and_it_is_part_of_what_is_stored() -> None:
    with pytest.raises(JobError, match="at is for kind exact; kind is atp"):
        job(kind="atp", at="last")
    assert "at" not in job(kind="atp").methods[0].identity()
    assert job(at="last").methods[0].identity() != job().methods[0].identity() == job(at="all").methods[0].identity()
    assert job(at="IO").methods[0].identity() == job(at=["IO"]).methods[0].identity()


def test_the_positions_that_are_meant() -> None:
    roles = (None, "IO", "IO", "S", None)
    assert positions_asked("all", roles) == [0, 1, 2, 3, 4]
    assert positions_asked("last", roles) == [4]
    assert positions_asked(("IO", "end"), roles) == [1, 2]
    assert positions_asked(("end",), roles) == []
