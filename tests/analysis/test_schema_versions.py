"""Runs of earlier releases stay readable: version 1 had positions of 16 bits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from attrib_batch.analysis import read_summary, scan_scores, summarize
from attrib_batch.errors import RequestError
from attrib_batch.execution.planning.verification import Verification, open_verification
from attrib_batch.observe.status import read_status
from attrib_batch.report import write_report
from attrib_batch.spec import Cell
from attrib_batch.tables import SCHEMA_VERSION, SCORES
from tests.support.synthetic_run import IoiLike, write_run

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("m", "d", "atp")


def _as_version_1(out: Path) -> Path:
    """Rewrite a run as the first release wrote it."""
    narrow = SCORES.set(SCORES.get_field_index("position"), pa.field("position", pa.int16(), nullable=False))
    for path in out.glob("scores/**/*.parquet"):
        pq.write_table(pq.ParquetFile(path).read().cast(narrow), path)
    manifest = out / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 1}))
    return out


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path]:
    """The same run as the first release wrote it, and as this one does."""
    pairs = IoiLike(layers=2, heads=2).pairs(8)
    return (
        _as_version_1(write_run(tmp_path / "old", {CELL: pairs}, cuts=(3,))),
        write_run(tmp_path / "new", {CELL: pairs}, cuts=(3,)),
    )


def test_summaries_and_reports_of_version_1(both: tuple[Path, Path]) -> None:
    old, new = both
    for out in both:
        summarize(out)
        assert write_report(out).stat().st_size > 1e5
    assert_frame_equal(read_summary(old).heads, read_summary(new).heads)
    assert_frame_equal(read_summary(old).positions, read_summary(new).positions, check_dtypes=False)
    assert_frame_equal(scan_scores(old).collect(), scan_scores(new).collect(), check_dtypes=False)
    for out in both:
        assert [cell.scored for cell in read_status(out).cells] == [8]


def test_version_1_is_not_measured_with_answers_it_may_not_have_had(both: tuple[Path, Path]) -> None:
    with pytest.raises(RequestError, match=f"earlier release .schema version 1, this one writes {SCHEMA_VERSION}"):
        open_verification(both[0], Verification(pairs=2, seed=0))
