"""Every command's help ends with an example, which the command line understands; cheap ones are run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import polars as pl
import psutil
import pytest
import typer
from typer.testing import CliRunner

from attrib_batch.cli.app import app
from attrib_batch.cli.examples import PREFIX
from attrib_batch.pairs.making.ioi import generate_ioi
from attrib_batch.pairs.making.writer import write_pairs
from docs.reference.command_line import commands
from tests.support.jobs import environment

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = {" ".join(path): command for path, command in commands()}
STARTS_IN_SECONDS = 1.0
CHEAP = [name for name in COMMANDS if name.startswith("attrib-batch pairs") and not name.endswith("validate")]


def arguments_of(name: str) -> list[str]:
    """The arguments of a command's example."""
    words = shlex.split(COMMANDS[name].epilog.removeprefix(PREFIX))
    assert words[0] == "attrib-batch"
    return words[1:]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_that_is_understood(name: str) -> None:
    words = name.split()[1:]
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    example = COMMANDS[name].epilog
    assert example.startswith(PREFIX + name)
    assert example in " ".join(shown.output.split())
    program: Any = typer.main.get_command(app)
    command = program
    for word in words:
        command = command.commands[word]
    understood: dict[str, Any] = {}
    command.callback = lambda **values: understood.update(values)
    program.main(args=arguments_of(name), prog_name="attrib-batch", standalone_mode=False)
    assert understood.keys() == {parameter.name for parameter in command.params}


@pytest.mark.parametrize("name", CHEAP)
def test_cheap_examples_do_what_they_say(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_pairs("pairs.parquet", generate_ioi(6, seed=0))
    source = pl.read_parquet("pairs.parquet").select(
        "corrupted",
        prompt="clean",
        answers=pl.col("answers").list.first(),
        wrong_answers=pl.col("wrong_answers").list.first(),
    )
    source.write_csv("prompts.csv")
    ended = CliRunner().invoke(app, arguments_of(name), catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    if (written := [word for word in arguments_of(name) if word.endswith(".parquet")]) and "--out" in arguments_of(
        name
    ):
        assert pl.read_parquet(written[-1]).height in {6, 1000}


@pytest.mark.slow
def test_help_comes_at_once() -> None:
    """In seconds of a processor, which are what an idle machine takes: others may be at work here."""

    def seconds() -> float:
        before = psutil.Process().cpu_times()
        subprocess.run(
            [sys.executable, "-m", "attrib_batch", "--help"], env=environment(), check=True, capture_output=True
        )
        after = psutil.Process().cpu_times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert 0.05 < min(seconds() for _ in range(3)) < STARTS_IN_SECONDS
