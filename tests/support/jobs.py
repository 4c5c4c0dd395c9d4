"""Small real jobs: a tiny model in a folder, a table of pairs of its words, and the command line as a process."""

from __future__ import annotations

import atexit
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import yaml

from attrib_batch.cli import main
from attrib_batch.pairs.making.writer import write_pairs
from attrib_batch.pairs.reading.reader import Pair, Role
from tests.support.demo_pairs import TokenPair, random_pairs
from tests.support.forked import BARE, FORKER, ForkedCommand, Forker
from tests.support.tiny_models import VOCABULARY, save_tiny

ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 150
FAULTY = ROOT / "tests/support/faulty"
"""Whose ``sitecustomize`` makes processes of a run go wrong, and forks workers."""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    output: str
    messages: str

    @property
    def said(self) -> str:
        """What it printed on either stream."""
        return self.output + self.messages


def attrib_batch(
    *arguments: str | Path,
    cwd: Path = ROOT,
    seconds: float = COMMAND_SECONDS,
    env: dict[str, str] | None = None,
    fresh: bool = False,
) -> Ended:
    """Run ``attrib-batch`` in a process of its own, for so many seconds at most; ``fresh`` forks it from nothing."""
    if fresh:
        done = subprocess.run(
            command(*arguments), cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=seconds
        )
        return Ended(done.returncode, done.stdout, done.stderr)
    with start(*arguments, env=env, cwd=cwd) as process:
        code = process.wait(seconds)
        return Ended(code, *process.streams())


def attrib_batch_here(*arguments: str | Path, local: bool = True) -> Ended:
    """Run ``attrib-batch`` in this process; what runs models does so here too, without Ray, unless told otherwise."""
    words = [str(argument) for argument in arguments]
    if local and words[0] in {"run", "verify", "demo"}:
        words.append("--local")
    output, messages = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["attrib-batch", *words]),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
        redirect_stdout(output),
        redirect_stderr(messages),
    ):
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
    return Ended(code, output.getvalue(), messages.getvalue())


def start(
    *arguments: str | Path, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> AbstractContextManager[ForkedCommand]:
    """Start ``attrib-batch`` in a process of its own; what it prints is told together; it is killed in the end."""
    return _running(forker().start([str(part) for part in arguments], env or environment(), cwd))


def start_script(
    script: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> AbstractContextManager[ForkedCommand]:
    """Start a Python script in a process of its own, forked as commands are; it is killed in the end."""
    words = [str(part) for part in arguments]
    return _running(forker().start(words, env or environment(), ROOT, script=script))


def run_script(
    script: Path, *arguments: str | Path, env: dict[str, str] | None = None, seconds: float = COMMAND_SECONDS
) -> Ended:
    """Run a Python script in a process of its own to its end."""
    with start_script(script, *arguments, env=env) as process:
        code = process.wait(seconds)
        return Ended(code, *process.streams())


@contextmanager
def _running(process: ForkedCommand) -> Iterator[ForkedCommand]:
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)
        process.close()


@cache
def forker() -> Forker:
    """Return the process that commands are forked from."""
    # Short, since the path of a socket has to be.
    made = Forker(Path(tempfile.mkdtemp(prefix="forker-")))
    atexit.register(made.close)
    return made


def command(*arguments: str | Path) -> list[str]:
    """The command line of ``attrib-batch``."""
    return [sys.executable, "-m", "attrib_batch", *map(str, arguments)]


def environment() -> dict[str, str]:
    """The environment commands run in: the package of this checkout, no model hub."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def in_words(pairs: list[TokenPair], *, first_id: int = 0) -> list[Pair]:
    """Token pairs as rows of a table: words of the tiny vocabulary, the last one with the role ``end``."""
    rows = []
    for index, pair in enumerate(pairs):
        clean = " ".join(VOCABULARY[token] for token in pair.clean)
        rows.append(
            Pair(
                pair_id=first_id + index,
                clean=clean,
                corrupted=" ".join(VOCABULARY[token] for token in pair.corrupted),
                answers=tuple(f" {VOCABULARY[token]}" for token in pair.answers),
                wrong_answers=tuple(f" {VOCABULARY[token]}" for token in pair.wrong_answers),
                roles=(Role("end", clean.rindex(" ") + 1, len(clean)),),
                task="random",
                template=f"length-{len(pair.clean)}",
                group=(first_id + index) // 2,
            )
        )
    return rows


def with_forked_workers(env: dict[str, str], *, bare: bool = False) -> dict[str, str]:
    """An environment in which a Ray that a command starts has its workers forked, as commands are.

    Where they are bare, they import the package from where they find it themselves.
    """
    path = os.pathsep.join([*filter(None, [env.get("PYTHONPATH")]), str(FAULTY)])
    return env | {"PYTHONPATH": path, FORKER: str(forker().path)} | ({BARE: "1"} if bare else {})


@dataclass(frozen=True)
class TinyJob:
    """A folder with everything a run needs."""

    folder: Path
    model: Path
    pairs: Path

    @classmethod
    def make(cls, folder: Path, *, n_pairs: int = 40, architecture: str = "llama") -> TinyJob:
        """A tiny model and a table of random pairs of two lengths."""
        model = save_tiny(architecture, folder / "model")
        half = n_pairs // 2
        rows = in_words(random_pairs(half, 9, 4) + random_pairs(n_pairs - half, 11, 5, seed=1))
        write_pairs(folder / "pairs.parquet", rows)
        return cls(folder, model, folder / "pairs.parquet")

    def data(self, **changes: Any) -> dict[str, Any]:
        """The job's data, with top-level keys changed."""
        return {
            "name": "tiny",
            "models": [{"id": str(self.model), "name": "tiny", "prepend_bos": False}],
            "datasets": [{"id": "random", "path": str(self.pairs)}],
            "methods": [{"id": "atp"}],
            "chunk_pairs": 8,
            **changes,
        }

    def write(self, file: str = "job.yaml", /, **changes: Any) -> Path:
        """Write the job file."""
        return self.write_data(self.data(**changes), file)

    def write_data(self, data: object, file: str = "job.yaml") -> Path:
        """Write any data as a job file."""
        path = self.folder / file
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        return path


SCORE_KEYS = ["model", "dataset", "method", "pair_id", "component", "layer", "head", "position"]


def read_scores(out: Path) -> pl.DataFrame:
    """All scores of a run in one fixed order."""
    frame = pl.scan_parquet(out / "scores/**/*.parquet", hive_partitioning=True).collect()
    return frame.with_columns(pl.col("component", "role").cast(pl.String)).sort(SCORE_KEYS)


def read_table(out: Path, table: str) -> pl.DataFrame:
    """All rows of the baselines or failures, in one fixed order."""
    return pl.scan_parquet(out / table / "**/*.parquet", hive_partitioning=True).collect().sort("pair_id")
