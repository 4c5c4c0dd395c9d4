"""Summaries and statistics of a run's tables; needs neither torch nor ray.

Quick start::

    from attrib_batch.analysis import heatmap, read_summary, summarize

    summarize("out/ioi")
    heads = read_summary("out/ioi").heads
    heatmap(heads, component="z", scope="last")  # layer x head, 0 = corrupted, 1 = clean
"""

from attrib_batch.analysis.comparison.compare import compare
from attrib_batch.analysis.comparison.correlations import rank_correlations
from attrib_batch.analysis.examples import examples, examples_of_top
from attrib_batch.analysis.reliability import reliability
from attrib_batch.analysis.statistics.moments import half_width
from attrib_batch.analysis.statistics.stability import stability_sentence
from attrib_batch.analysis.strata import stratum_spread
from attrib_batch.analysis.summarize import summarize
from attrib_batch.analysis.summary import (
    Summary,
    SummaryPaths,
    heatmap,
    read_stability,
    read_summary,
    summary_is_current,
)
from attrib_batch.analysis.tables import (
    normalized,
    read_manifest,
    scan_baselines,
    scan_failures,
    scan_measured,
    scan_scores,
)
from attrib_batch.analysis.verification.agreement import agreement_path, has_agreement, read_agreement, write_agreement
from attrib_batch.analysis.verification.disagreement import mean_effects, strongest_disagreements
from attrib_batch.analysis.verification.verified import Verified, read_verified, verified_cells

__all__ = [
    "Summary",
    "SummaryPaths",
    "Verified",
    "agreement_path",
    "compare",
    "examples",
    "examples_of_top",
    "half_width",
    "has_agreement",
    "heatmap",
    "mean_effects",
    "normalized",
    "rank_correlations",
    "read_agreement",
    "read_manifest",
    "read_stability",
    "read_summary",
    "read_verified",
    "reliability",
    "scan_baselines",
    "scan_failures",
    "scan_measured",
    "scan_scores",
    "stability_sentence",
    "stratum_spread",
    "strongest_disagreements",
    "summarize",
    "summary_is_current",
    "verified_cells",
    "write_agreement",
]
