"""Names in the tables: what is allowed is read back from folders as it was written, and the rest is refused."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from attrib_batch.errors import JobError
from attrib_batch.spec import ModelSpec, parse_spec

ALLOWED = """
gpt2 smollm2-135m Llama-3.1-8B-Instruct atp atp_ig a 1a 7B 8b d007 id-007 id-1e5 1e 1e5x 2024-01-01x x2024-01-01
2024-W01
2024-Jan-01 1day 5m 0o7 0xg 0bit a1e5 e5 none None NA t F yes no today nan- inf. infinity1 True-1 xnull
123e4567-e89b-12d3-a456-426614174000 1_000a 1-1-BC
"""
REFUSED = """
7 007 0 00 1.5 1. 1_000 1-1 2024 2024-01 2024-01-01 2024.01.01 01-02-2024 2024_01_01 1.2.3 1e5 1E5 1e-5 1.2e3 0e0 1e400
0x10 0XFF 0x1_8 0b1 0b0_1 20240101T000000 20240101T000000Z 2024-01-01T00.00 nan NaN inf INF Infinity true TRUE False
null
NULL epoch 99999999999999999999 170141183460469231731687303715884105728
"""


def job(model: str = "m", dataset: str = "d", method: str = "k", *, name: str = "2024") -> dict[str, object]:
    return {
        "name": name,
        "models": [{"id": "x", "name": model, "prepend_bos": False}],
        "datasets": [{"id": dataset, "path": "y"}],
        "methods": [{"id": method, "kind": "atp"}],
    }


@pytest.mark.parametrize("name", ALLOWED.split())
def test_an_allowed_name_is_read_back_as_it_is(name: str, tmp_path: Path) -> None:
    [cell] = parse_spec(job(name, name, name), source="job").cells
    assert cell.partition == f"model={name}/dataset={name}/method={name}"
    for number, names in enumerate([[name], [name, "ordinary"]]):
        scores = tmp_path / str(number) / "scores"
        for index, each in enumerate(names):
            folder = scores / f"model={each}/dataset={each}/method={each}"
            folder.mkdir(parents=True)
            pq.write_table(pa.table({"pair_id": [index]}), folder / "part-000000000-000000001.parquet")
        polars = pl.scan_parquet(scores / "**/*.parquet", hive_partitioning=True).sort("pair_id").collect()
        arrow = ds.dataset(scores, partitioning="hive").to_table().sort_by("pair_id")
        for column in ("model", "dataset", "method"):
            assert polars[column].to_list() == names
            assert arrow[column].to_pylist() == names


@pytest.mark.parametrize("name", REFUSED.split())
def test_a_name_that_is_not_is_refused_with_one_that_is_allowed(name: str) -> None:
    for part, key in (("model", "models[0].name"), ("dataset", "datasets[0].id"), ("method", "methods[0].id")):
        with pytest.raises(JobError, match=rf"'id-{name}'") as refused:
            parse_spec(job(**{part: name}), source="job")
        assert f"job: {key}: " in str(refused.value)
        parse_spec(job(**{part: f"id-{name}"}), source="job")  # what the message suggests


def test_the_last_part_of_a_models_id_is_no_name_where_it_would_be_refused() -> None:
    with pytest.raises(ValueError, match=r"the last part of id, '2024', .*: set name, for example name: id-2024"):
        ModelSpec.model_validate({"id": "org/2024", "prepend_bos": False})
    assert ModelSpec.model_validate({"id": "org/2024", "name": "mine", "prepend_bos": False}).name == "mine"
