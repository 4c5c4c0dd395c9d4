"""``pairs validate`` on a table, and on all that a job file names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.errors import ExitCode, RequestError
from attrib_batch.pairs.making.writer import write_pairs
from tests.support.demo_pairs import random_pairs
from tests.support.jobs import TinyJob, in_words
from tests.support.tiny_models import BOS, save_tiny

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob.make(tmp_path_factory.mktemp("job"), n_pairs=4)


def validate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["pairs", "validate", *map(str, arguments)], standalone_mode=False)


def test_every_table_of_a_job_with_every_model_and_the_jobs_settings(job: TinyJob, tmp_path: Path) -> None:
    """The second table begins with the BOS token, which only the second model puts there too."""
    rows = in_words(random_pairs(3, 9, 4))
    bad = replace(rows[0], pair_id=7, clean=f"{BOS} {rows[0].clean}", corrupted=f"{BOS} {rows[0].corrupted}", roles=())
    write_pairs(tmp_path / "bos.parquet", [*rows, bad])
    other = save_tiny("gpt2", tmp_path / "other")
    path = job.write(
        models=[
            {"id": str(job.model), "name": "tiny", "prepend_bos": False},
            {"id": str(other), "name": "other", "prepend_bos": True},
        ],
        datasets=[{"id": "random", "path": str(job.pairs)}, {"id": "bos", "path": str(tmp_path / "bos.parquet")}],
    )
    result = validate(path)
    assert result.return_value == ExitCode.SOME_FAILED, result.output
    for line in (
        "tiny x random: 4 of 4 pairs can be scored.",
        "tiny x bos: 4 of 4 pairs can be scored.",
        "other x random: 4 of 4 pairs can be scored.",
        "other x bos: 3 of 4 pairs can be scored.",
        "double_bos: 1",
    ):
        assert line in result.output
    assert validate(job.write()).return_value == ExitCode.OK


def test_settings_come_from_the_job_or_from_options_and_never_from_both(job: TinyJob) -> None:
    assert validate(job.pairs, "--model", job.model).return_value == ExitCode.OK
    for arguments, message in (
        ((job.write(), "--prepend-bos"), "is a job file: models and settings are those in it"),
        ((job.pairs,), "name the model whose tokenizer counts, with --model"),
    ):
        result = validate(*arguments)
        assert isinstance(result.exception, RequestError)
        assert message in str(result.exception)
