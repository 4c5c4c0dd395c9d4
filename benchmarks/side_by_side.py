"""``python -m benchmarks.side_by_side``: two models in one job beside the same two one after the other."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import yaml

from benchmarks import machine, tiny
from benchmarks.commands import attrib_batch
from benchmarks.page import RESULTS, replace_part

if TYPE_CHECKING:
    from collections.abc import Sequence

WORKERS = {"count": 2, "cpus": 0.5}


@dataclass(frozen=True)
class SideBySide:
    """Seconds of whole commands, in each round."""

    together: list[float]
    """One job of both models."""
    apart: list[float]
    """A job of each, one after the other."""

    @property
    def ratios(self) -> list[float]:
        """Together beside apart, round by round."""
        return [one / two for one, two in zip(self.together, self.apart, strict=True)]


def measure(folder: Path, *, n_pairs: int, n_rounds: int) -> SideBySide:
    """Run two tiny models with two workers each, in alternating rounds."""
    pairs = folder / "pairs.parquet"
    attrib_batch("pairs", "make", "ioi", "--count", str(n_pairs), "--out", pairs)
    for name in ("one", "two"):
        tiny.save_model(folder / name, pairs)
    together, apart = [], []
    for number in range(n_rounds):
        together.append(_seconds(folder, f"both-{number}", ["one", "two"], pairs))
        apart.append(sum(_seconds(folder, f"{name}-{number}", [name], pairs) for name in ("one", "two")))
    return SideBySide(together, apart)


def _seconds(folder: Path, out: str, names: Sequence[str], pairs: Path) -> float:
    models = [{"id": str(folder / name), "name": name, "prepend_bos": False, "workers": WORKERS} for name in names]
    job: dict[str, Any] = {
        "name": "side-by-side",
        "models": models,
        "datasets": [{"id": "ioi", "path": str(pairs)}],
        "methods": [{"id": "atp"}],
        "chunk_pairs": 256,
    }
    path = folder / f"{out}.yaml"
    path.write_text(yaml.safe_dump(job), encoding="utf-8")
    started = time.perf_counter()
    attrib_batch("run", path, "--out", folder / out)
    return time.perf_counter() - started


def render(where: str, found: SideBySide, n_pairs: int) -> str:
    """The part of the page about models side by side."""
    return (
        f"## (h) Two models in one job\n\nWritten by `python -m benchmarks.side_by_side`. {where}\n\nTwo tiny models "
        f"with two workers each on {n_pairs:,} generated IOI pairs; whole commands, Ray's start included, "
        f"{len(found.together)} alternating rounds. One job of both takes **{median(found.ratios):.2f}** of the time "
        f"of two jobs one after the other (rounds: {', '.join(f'{ratio:.2f}' for ratio in found.ratios)}; target 0.6): "
        f"{median(found.together):.1f} s beside {median(found.apart):.1f} s.\n"
    )


def main() -> int:
    """Measure, print, and write this part of the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.side_by_side", description=__doc__)
    parser.add_argument("--pairs", type=int, default=2048, help="pairs of a run")
    parser.add_argument("--rounds", type=int, default=3, help="rounds")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), n_pairs=options.pairs, n_rounds=options.rounds)
    text = render(machine.describe(), found, options.pairs)
    replace_part(options.out, "models", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
