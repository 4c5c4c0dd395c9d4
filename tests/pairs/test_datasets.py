"""The tables that come with the repository are what their datasheet says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.tutorial import tutorial_pairs
from attrib_batch.pairs.reading.reader import PairTable
from attrib_batch.pairs.validate import validate
from attrib_batch.spec.demo import DEMO_FOLDER

DATASETS = Path(__file__).parents[2] / "datasets"


def test_the_generators_make_the_same_rows_again() -> None:
    assert PairTable.open(DATASETS / "ioi.parquet").rows(0, 9999) == list(generate_ioi(2000, 0))
    assert PairTable.open(DATASETS / "ioi_tutorial.parquet").rows(0, 99) == tutorial_pairs()


def test_the_demo_has_the_same_tables() -> None:
    for path in DEMO_FOLDER.glob("*.parquet"):
        assert path.read_bytes() == (DATASETS / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["ioi", "ioi_tutorial"])
def test_tables_are_small_and_have_ids(name: str) -> None:
    path = DATASETS / f"{name}.parquet"
    assert path.stat().st_size < 300_000
    PairTable.open(path).check_ids()


@pytest.mark.slow
@pytest.mark.parametrize("prepend_bos", [False, True])
@pytest.mark.parametrize("name", ["ioi", "ioi_tutorial"])
def test_every_row_can_be_scored_with_the_bundled_model(smollm2_tokenizer: Any, name: str, prepend_bos: bool) -> None:
    report = validate(PairTable.open(DATASETS / f"{name}.parquet"), smollm2_tokenizer, prepend_bos=prepend_bos)
    assert report.ok, report.examples
