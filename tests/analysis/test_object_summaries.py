"""Summaries of a run in an object store are those of the same run on a disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from attrib_batch.analysis import compare, read_summary, summarize
from attrib_batch.execution.strata import join_strata
from attrib_batch.spec import Cell
from attrib_batch.storage.store import Store
from tests.support.synthetic_run import Pair, write_run

if TYPE_CHECKING:
    from tests.support.object_store import ObjectStore

pytestmark = pytest.mark.slow

CELL, OTHER = Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "other")


@pytest.mark.parametrize("moments", [False, True])
def test_they_are_the_same(object_store: ObjectStore, tmp_path: Path, *, moments: bool) -> None:
    """Groups straddle chunks, and there are more chunks than are read at once: 16 with moments, 3 with rows."""
    rng = np.random.default_rng(0)
    cells = {
        cell: [
            Pair(index, {"z": rng.normal(size=(2, 3, 4))}, {3: "end"}, rng.normal(4), 0.0, index // 2, f"t{index % 3}")
            for index in range(60)
        ]
        for cell in (CELL, OTHER)
    }
    size = 3 if moments else 9
    local = write_run(tmp_path, cells, cuts=tuple(range(size, 60, size)), moments=moments)
    join_strata(Store(local), [OTHER])
    bucket = object_store.make_bucket(f"summaries-{moments}".lower())
    for path in local.rglob("*"):
        if path.is_file():
            object_store.put(f"{bucket}/run/{path.relative_to(local)}", path.read_bytes())
    there = f"s3://{bucket}/run"
    summarize(local)
    summarize(there)
    ours, theirs = read_summary(local), read_summary(there)
    for name in ("heads", "positions", "strata", "stability", "baselines", "failures"):
        assert_frame_equal(getattr(theirs, name), getattr(ours, name), rel_tol=1e-12)
    assert len(ours.strata) > 0
    assert_frame_equal(compare(there, CELL, OTHER), compare(local, CELL, OTHER), rel_tol=1e-12)
    Store.parse(there).remove("summary/heads.parquet")
    join_strata(Store.parse(there), [CELL, OTHER])
    summarize(there)
    assert_frame_equal(read_summary(there).strata, ours.strata, rel_tol=1e-9, abs_tol=1e-9)
