"""Summaries and statistics of a run's tables; needs neither torch nor ray.

Quick start::

    from attrib_batch.analysis import heatmap, read_summary, summarize

    summarize("out/ioi")
    heads = read_summary("out/ioi").heads
    heatmap(heads, component="z", scope="last")  # layer x head, 0 = corrupted, 1 = clean
"""

from attrib_batch.analysis.manifest import PlanEntry, RunManifest, read_manifest
from attrib_batch.analysis.moments import half_width
from attrib_batch.analysis.summarize import summarize
from attrib_batch.analysis.summary import Summary, SummaryPaths, heatmap, read_summary, summary_is_current
from attrib_batch.analysis.tables import normalized, scan_baselines, scan_failures, scan_scores

__all__ = [
    "PlanEntry",
    "RunManifest",
    "Summary",
    "SummaryPaths",
    "half_width",
    "heatmap",
    "normalized",
    "read_manifest",
    "read_summary",
    "scan_baselines",
    "scan_failures",
    "scan_scores",
    "summarize",
    "summary_is_current",
]
