"""The demo's job: its tables are found from any folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.spec import load_demo


def test_its_tables_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {item.id: PairTable.open(item.path, item.limit).n_rows for item in load_demo().datasets}
    assert sizes == {"tutorial": 8, "ioi": 64}


def test_its_job_is_written_as_it_was_read() -> None:
    """A value of another type than its field's makes pydantic warn, which is an error here."""
    job = load_demo()
    assert type(job).model_validate(job.model_dump(mode="json")) == job
