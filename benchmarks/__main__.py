"""``python -m benchmarks``: what the engine costs; writes its part of ``benchmarks/RESULTS.md``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import machine, memory, share, speed
from benchmarks.models import MODEL_ID
from benchmarks.page import RESULTS, replace_part
from benchmarks.tables import render


def main() -> int:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--model", default=MODEL_ID, help="bundled name, local folder or Hub id; of the Llama family")
    parser.add_argument("--pairs", type=int, default=64, help="pairs in a batch")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each comparison")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the Markdown file whose part is replaced")
    options = parser.parse_args()

    speeds = speed.measure(options.model, n_pairs=options.pairs, n_rounds=options.rounds)
    # After the timed part: these start processes of their own.
    run = share.model_share(options.model)
    peaks = memory.peaks(options.model)
    text = render(machine.describe(), options.model, speeds, run, peaks)
    replace_part(options.out, "engine", text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
