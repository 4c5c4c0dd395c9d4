"""What the demo says: about its own job before it runs, and about its own tables afterwards."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer

from attrib_batch.analysis import write_agreement
from attrib_batch.api import open_run
from attrib_batch.cli import story
from attrib_batch.cli.app import app
from attrib_batch.spec import Cell, load_demo
from tests.support.synthetic_run import Pair
from tests.support.synthetic_verification import write_verified_run

if TYPE_CHECKING:
    from pathlib import Path

CELL = Cell("smollm2-135m", "ioi", "atp")
GAP = 4.0
MEANS = {(0, 1): 2.0, (1, 2): -1.6, (1, 0): 0.8, (0, 0): 0.1}
"""Means of heads at the last position, in metric units."""


def pairs_of_known_heads() -> list[Pair]:
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(24):
        z = rng.normal(0, 0.01, (2, 3, 4))
        for (layer, head), mean in MEANS.items():
            z[layer, head, -1] = mean + 0.1 * (-1) ** number
        z[0, 2, 0] = 9.0  # elsewhere than at the last position
        pairs.append(Pair(number, {"z": z}, clean=3.0, corrupted=3.0 - GAP))
    return pairs


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_verified_run(
        tmp_path_factory.mktemp("story") / "run", {CELL: {"noise": 0.0}}, pairs=pairs_of_known_heads()
    )
    write_agreement(run, seed=0)
    return run


def test_before_it_says_what_its_job_asks() -> None:
    said = "\n".join(story.before(load_demo(), local=False))
    assert "72 such pairs, on 2 Ray workers" in said
    assert "measures 16 of them" in said
    assert "'When John and Mary went to the shops, John gave the bag to'" in said
    assert "in this process" in "\n".join(story.before(load_demo(), local=True))


def test_after_it_names_the_three_strongest_heads_with_shares_of_the_gap(out: Path) -> None:
    said = list(story.after(open_run(out), load_demo(), str(out), local=False))
    heads = [line.split()[:2] for line in said if line.startswith("  L")]
    shares = {
        f"L{layer}H{head}": f"{mean / GAP:+.2f}".replace("-", "\N{MINUS SIGN}") for (layer, head), mean in MEANS.items()
    }
    assert heads == [[name, shares[name]] for name in ("L0H1", "L1H2", "L1H0")]
    assert any("of 24 pairs" in line for line in said)


def test_it_says_how_far_to_trust_them(out: Path) -> None:
    [line] = [line for line in story.after(open_run(out), load_demo(), str(out), local=False) if "trust" in line]
    assert "follow activation patching closely" in line


def test_where_nothing_is_measured_it_says_nothing_of_trust(tmp_path: Path) -> None:
    run = write_verified_run(tmp_path / "run", {CELL: {"noise": 0.0}}, pairs=pairs_of_known_heads())
    assert not [line for line in story.after(open_run(run), load_demo(), str(run), local=False) if "trust" in line]


@pytest.mark.parametrize("local", [False, True])
def test_its_last_two_lines_are_commands_that_are_understood(
    out: Path, monkeypatch: pytest.MonkeyPatch, *, local: bool
) -> None:
    monkeypatch.setattr("sys.argv", ["attrib-batch", "demo"])
    lines = list(story.after(open_run(out), load_demo(), "runs/demo", local=local))[-2:]
    program: Any = typer.main.get_command(app)
    making = program.commands["pairs"].commands["make"].commands["greater_than"]
    program.commands["verify"].callback = making.callback = lambda **values: values
    verified, made = (
        program.main(args=shlex.split(line, comments=True)[1:], prog_name="attrib-batch", standalone_mode=False)
        for line in lines
    )
    assert (verified["out"], verified["at"], verified["local"]) == ("runs/demo", ["last"], local)
    assert verified["pairs"] > load_demo().verify.pairs
    assert made["out"] == "years.parquet"


@pytest.mark.parametrize(
    ("called", "on_path", "expected"),
    [
        (".venv/bin/attrib-batch", False, ".venv/bin/attrib-batch"),
        (".venv/bin/attrib-batch", True, "attrib-batch"),
        ("/lib/attrib_batch/__main__.py", False, "python -m attrib_batch"),
    ],
)
def test_commands_begin_as_this_one_was_called(
    called: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, on_path: bool
) -> None:
    if on_path:
        (tmp_path / "attrib-batch").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [called, "demo"])
    assert story.program() == expected
