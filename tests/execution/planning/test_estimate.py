"""What a job will write: rows at the positions that are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrib_batch.execution.planning.estimate import estimate_job
from attrib_batch.spec import load_spec
from tests.support.jobs import TinyJob
from tests.support.tiny_models import N_HEADS, N_LAYERS

if TYPE_CHECKING:
    from pathlib import Path

N_PAIRS = 20


def test_rows_are_counted_at_the_positions_that_are_asked_for(tmp_path: Path) -> None:
    job = TinyJob.make(tmp_path, n_pairs=N_PAIRS)
    at = {"whole": "all", "last": "last", "role": ["end", "S"], "none": "S"}
    methods = [{"id": name, "kind": "exact", "at": positions} for name, positions in at.items()]
    rows = {cell.plan.cell.method: cell.score_rows for cell in estimate_job(load_spec(job.write(methods=methods)))}
    of_one_position = N_PAIRS * N_LAYERS * N_HEADS
    # Half of the pairs have 9 tokens, the others 11.
    expected = {"whole": 10 * of_one_position, "last": of_one_position, "role": of_one_position, "none": 0}
    assert rows == expected
