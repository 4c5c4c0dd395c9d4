"""The measurements as Markdown."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from benchmarks import speed
from benchmarks.page import table as _table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.memory import Peak
    from benchmarks.rounds import Timings
    from benchmarks.scale import Scale
    from benchmarks.second_worker import SecondWorker
    from benchmarks.share import RunShare
    from benchmarks.speed import Comparison

_BESIDE = {
    speed.TUTORIAL: "the tutorial's recipe in nnsight: parameters with gradients, all logits",
    speed.HOOKS: "hand-written hooks: 2 forwards, 1 backward, frozen, `logits_to_keep=1`",
    speed.HOOKS_CONTIGUOUS: "the same, last hidden state copied together before the unembedding",
    speed.LENS: "TransformerLens, hooks on both runs, all logits, parameters with gradients",
}
_TARGETS = {
    ("plain pairs", speed.TUTORIAL): "2.7",
    ("plain pairs", speed.HOOKS): "1.6",
    ("pairs with their mirrors", speed.HOOKS): "2.3",
    ("70-token preamble", speed.HOOKS): "5",
}
_FORWARD_TARGETS = {"plain pairs": "1.9", "pairs with their mirrors": "1.3"}


def render(machine: str, model_id: str, comparisons: Sequence[Comparison], run: RunShare, peaks: Sequence[Peak]) -> str:
    """The engine's part of the page."""
    parts = [
        f"Written by `make bench`. {machine}",
        (
            f"Model {model_id}, float32; `z` scores by logit difference; batches of {comparisons[0].n_pairs} pairs. "
            "All variants run in one process in alternating rounds. A ratio is the median of the rounds' own ratios, "
            "the range is its smallest and largest, and `fastest` compares each variant's fastest round. Before "
            f"anything is timed, all variants must give the same scores within {speed.TOLERANCE:g} of the largest."
        ),
        "## (a) How many times as fast the engine is",
        (
            "The tutorial's recipe and TransformerLens keep a graph of everything, so the long prompts go through them "
            f"in parts of at most {speed.PART_TOKENS} tokens a run; all else takes the batch as a whole."
        ),
        _beside(comparisons),
        "## (b) What one pair costs, in plain forward passes of one prompt",
        (
            "A plain forward pass has no graph and no hooks and computes the last position's logits, at the same batch "
            "size. As transformers slices the last position, torch reads the whole unembedding matrix once for each "
            "prompt; the second row has that repaired, so it is the harder comparison."
        ),
        _forwards(comparisons),
        "## (c) What nnsight costs",
        "The engine beside itself with plain torch hooks in place of traces.",
        _nnsight(comparisons),
        "## (d) Share of a run's wall time inside the model",
        (
            f"{run.model_share:.1%} of the time from the worker's being ready to its last commit (a job on "
            f"{run.n_pairs} generated pairs of 17 wordings, one worker of 2 processors; target 95%)."
        ),
        "## (e) Peak memory against batch size",
        _memory(peaks),
    ]
    return "\n\n".join(parts) + "\n"


def render_scale(machine: str, scale: Scale) -> str:
    """The part of the page about long runs."""
    parts = [
        "## (f) A run of many pairs",
        f"Written by `make bench-scale`. {machine}",
        (
            f"{scale.n_pairs:,} generated IOI pairs in {scale.n_chunks:,} chunks, a random Llama of two layers and two "
            "heads, two workers of one thread: what is measured is everything but the model. The driver is killed with "
            "SIGKILL when 99 % are committed, and the same command goes on."
        ),
        _table(
            ["pairs done", "driver, MiB", "larger worker, MiB", "Ray's own processes, MiB"],
            [
                [f"{moment.n_pairs:,}", f"{moment.driver:.0f}", f"{moment.worker:.0f}", f"{moment.services:.0f}"]
                for moment in scale.moments
            ],
        ),
        _table(
            ["figure", "value", "target"],
            [
                ["the driver's memory grows, for every 100,000 pairs", f"{scale.driver_growth:+.2f} MiB", "flat"],
                ["a worker's memory grows, for every 100,000 pairs", f"{scale.worker_growth:+.2f} MiB", "flat"],
                ["the driver's processor time for a chunk", f"{1e3 * scale.driver_cpu_per_chunk:.1f} ms", ""],
                ["pairs a second, two workers together", f"{scale.pairs_per_second:,.0f}", ""],
                ["rows of scores", f"{scale.n_rows:,}", ""],
                ["bytes for a row of scores", f"{scale.score_bytes / scale.n_rows:.2f}", "at most 4.0"],
                ["files", f"{scale.n_files:,}", ""],
                ["`status` with 99 % done, whole command", f"{scale.status_seconds:.1f} s", ""],
                ["resume with 99 % done, up to the first task", f"{scale.resume_seconds:.1f} s", "seconds"],
                ["the same, whole command, the last percent computed", f"{scale.rest_seconds:.1f} s", ""],
                ["the same command when all is done", f"{scale.nothing_seconds:.1f} s", ""],
                ["`summarize`", f"{scale.summarize.seconds:.1f} s, {scale.summarize.peak:,.0f} MiB", ""],
                ["`report`", f"{scale.report.seconds:.1f} s, {scale.report.peak:,.0f} MiB", ""],
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def render_second_worker(machine: str, model_id: str, second: SecondWorker) -> str:
    """The part of the page about one worker more."""
    return (
        f"## (g) What a second worker brings\n\nWritten by `make bench-scale`. {machine}\n\n"
        f"{model_id}, {second.n_pairs:,} generated IOI pairs in chunks of {second.chunk_pairs}, workers of one thread; "
        f"{len(second.one)} alternating rounds; each worker from its first commit to its last. Two workers do "
        f"**{second.ratio:.2f}** times as many pairs a second as one (rounds: "
        f"{', '.join(f'{ratio:.2f}' for ratio in second.ratios)}; target 1.9): {median(second.two):.1f} beside "
        f"{median(second.one):.1f}.\n"
    )


def _beside(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for comparison in comparisons:
        for variant, meaning in _BESIDE.items():
            target = _TARGETS.get((comparison.name, variant), "")
            if variant in comparison.variants:
                rows.append([comparison.name, meaning, *_ratio(comparison.timings, variant, speed.ENGINE), target])
            else:
                rows.append([comparison.name, meaning, "not installed", "", "", target])
    return _table(["pairs", "beside", "ratio", "range", "fastest", "target, at least"], rows)


def _forwards(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for forward, meaning in (
        (speed.FORWARD, "as transformers slices the last position"),
        (speed.FORWARD_CONTIGUOUS, "last hidden state copied together"),
    ):
        rows += [
            [
                comparison.name,
                meaning,
                *_ratio(comparison.timings, speed.ENGINE, forward),
                _FORWARD_TARGETS.get(comparison.name, ""),
            ]
            for comparison in comparisons
        ]
    return _table(["pairs", "plain forward pass", "passes a pair", "range", "fastest", "target, at most"], rows)


def _nnsight(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [comparison.name, *_ratio(comparison.timings, speed.ENGINE, speed.WITHOUT_NNSIGHT), "1.03"]
        for comparison in comparisons
    ]
    return _table(["pairs", "ratio", "range", "fastest", "target, at most"], rows)


def _memory(peaks: Sequence[Peak]) -> str:
    rows = [
        [str(peak.n_pairs), f"{peak.loaded:.0f}", f"{peak.scored:.0f}", f"{peak.scored - peak.loaded:.0f}"]
        for peak in peaks
    ]
    return _table(["pairs in a batch", "peak before the batch, MiB", "peak, MiB", "the batch's part, MiB"], rows)


def _ratio(timings: Timings, slow: str, fast: str) -> list[str]:
    ratio = timings.ratio(slow, fast)
    return [f"{ratio.median:.2f}", f"{ratio.low:.2f} to {ratio.high:.2f}", f"{timings.of_fastest(slow, fast):.2f}"]
