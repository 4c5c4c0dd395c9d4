"""The generated pages say what the code says: compared with the models, commands and schemas themselves."""

from __future__ import annotations

import re

import pytest
import typer

from attrib_batch.analysis.examples import EXAMPLES
from attrib_batch.analysis.summary import _TABLES as SUMMARY_TABLES
from attrib_batch.analysis.summary import HEADS
from attrib_batch.cli.app import app
from attrib_batch.errors import ExitCode
from attrib_batch.spec import DatasetSpec, MethodSpec, ModelSpec, SweepSpec, VerificationSpec, WorkersSpec
from attrib_batch.spec.registries.methods import BUILT_IN_METHODS, built_in_parameters
from attrib_batch.spec.registries.metrics import METRICS
from attrib_batch.tables import Table
from attrib_batch.tables.schema import PAIRS, SCORES, FailureReason
from docs.reference import GENERATED
from docs.reference.command_line import commands
from docs.reference.tables import TABLES


def sections(page: str) -> dict[str, str]:
    """The text below each heading of the second level, by heading."""
    parts = re.split(r"^## (.*)$", GENERATED[page](), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def first_column(text: str) -> list[str]:
    """What stands as code in the first column of the tables."""
    return re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("The job itself", SweepSpec),
        ("`models`", ModelSpec),
        ("`models[].workers`", WorkersSpec),
        ("`datasets`", DatasetSpec),
        ("`verify`", VerificationSpec),
    ],
)
def test_every_key_of_a_job_is_there(heading: str, model: type) -> None:
    assert first_column(sections("reference/job-file.md")[heading]) == list(model.model_fields)


def test_parameters_of_methods_are_there_too() -> None:
    keys = first_column(sections("reference/job-file.md")["`methods`"])
    assert keys == [*MethodSpec.model_fields, *(name for name in built_in_parameters())]


def test_types_and_defaults_are_written_as_in_yaml() -> None:
    lines = GENERATED["reference/job-file.md"]().splitlines()
    assert any(line.startswith("| `prepend_bos` | `true or false` | **required** |") for line in lines)
    assert any(line.startswith("| `seed` | `integer` | `0` |") for line in lines)
    assert any(line.startswith("| `components` | `list of component` | `[z]` |") for line in lines)
    assert any(line.startswith("| `batch_tokens` | `auto or integer` | `auto` |") for line in lines)
    assert any(line.startswith("| `deterministic` | `true or false` | `false` |") for line in lines)


def test_every_command_is_there_with_all_it_takes() -> None:
    found = sections("reference/command-line.md")
    program = typer.main.get_command(app)
    assert {heading.strip("`").split()[1] for heading in found if heading.startswith("`")} == set(program.commands)
    run = found["`attrib-batch run`"]
    for parameter in program.commands["run"].params:
        assert parameter.help in " ".join(run.split())
    assert first_column(run)[0] == "JOB"
    assert "`--mirror`, `--no-mirror`" in found["`attrib-batch pairs make ioi`"]
    assert first_column(found["Exit codes"]) == []
    assert [int(code) for code in re.findall(r"^\| (\d) \|", found["Exit codes"], re.MULTILINE)] == list(ExitCode)
    assert len(list(commands())) == len(found) - 1


@pytest.mark.parametrize(
    ("heading", "schema"),
    [
        ("A table of pairs", PAIRS),
        ("scores", SCORES),
        ("summary/heads.parquet", HEADS),
        ("What run.examples returns", EXAMPLES),
    ],
)
def test_every_column_is_there(heading: str, schema: object) -> None:
    names = schema.names() if callable(getattr(schema, "names", None)) else schema.names  # type: ignore[attr-defined]
    assert first_column(sections("reference/tables.md")[heading]) == list(names)
    assert len(sections("reference/tables.md")) == len(TABLES)


def test_every_table_of_a_run_is_there() -> None:
    assert set(Table) <= TABLES.keys()
    assert {f"summary/{name}.parquet" for name in SUMMARY_TABLES} <= TABLES.keys()


def test_columns_have_the_comments_of_their_own_schema() -> None:
    found = sections("reference/tables.md")
    assert "| `pair_id` | `int64` | unique; the row number where the column is absent |" in found["A table of pairs"]
    assert "| `pair_id` | `int64` |  |" in found["scores"]
    assert "| `answers` | `list<item: string>` | Right continuations of clean" in found["A table of pairs"]
    assert "cluster-robust standard error of the mean" in found["summary/heads.parquet"]


def test_registries_are_there_whole() -> None:
    page = GENERATED["reference/methods-and-metrics.md"]()
    for entry in BUILT_IN_METHODS.values():
        assert f"### `{entry.kind}`" in page
        assert entry.paper in page
    for metric in METRICS.values():
        assert f"| `{metric.name}` | {metric.unit} | {metric.explanation}" in page
    reasons = first_column(sections("reference/methods-and-metrics.md")["Reasons of failures"])
    assert reasons == list(FailureReason)
