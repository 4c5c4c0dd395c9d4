"""The verb ``export``: what it writes, what it says, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attrib_batch.spec import Cell
from tests.support.jobs import attrib_batch_here
from tests.support.synthetic_run import IoiLike, write_run

CELLS = (Cell("gpt2", "ioi", "atp"), Cell("gpt2", "ioi", "other"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", dict.fromkeys(CELLS, IoiLike(layers=2, heads=3).pairs(6)))


def test_files_are_written_and_named(out: Path, tmp_path: Path) -> None:
    ended = attrib_batch_here(
        "export", out, "--to", tmp_path / "there", "--format", "csv", "--format", "json", "--format", "mib",
        "--top", "4", "--node-order", "magnitude", "--method", "atp", "--parallel-attn-mlp",
    )  # fmt: skip
    assert ended.code == 0, ended.said
    names = ("top.csv", "top.json", "mib/atp_patching_node/ioi_gpt2/importances.json")
    assert ended.output.splitlines() == [f"written: {tmp_path / 'there' / name}" for name in names]
    assert len(json.loads((tmp_path / "there/top.json").read_text())["heads"]) == 4
    written = json.loads((tmp_path / "there" / names[2]).read_text())
    assert written["attrib_batch"]["order"] == "magnitude"
    assert written["cfg"]["parallel_attn_mlp"] is True


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--format", "pdf"], "format pdf: choose from csv, json, png, svg, mib"),
        (["--at", "nowhere", "--format", "csv"], "at='nowhere': choose last, all, or a role: IO, S1, S2, end"),
        (["--component", "q", "--format", "csv"], "no score of q is there; components: z"),
        (["--model", "gpt3", "--format", "csv"], "no cell has model='gpt3'; there are: gpt2 x ioi x atp"),
        (["--by", "size", "--format", "csv"], "by='size': choose one of magnitude, positive, negative"),
        (["--node-order", "size", "--format", "mib"], "node order 'size': choose one of value, magnitude"),
    ],
)
def test_a_bad_request_ends_with_one_message(out: Path, arguments: list[str], says: str) -> None:
    ended = attrib_batch_here("export", out, *arguments)
    assert ended.code == 2, ended.said
    assert says in " ".join(ended.messages.split())
    assert ended.messages.count("error:") == 1
    assert "Traceback" not in ended.said
    assert not (out / "export").exists()
