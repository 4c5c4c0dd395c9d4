"""``write_report``: one self-contained HTML page about a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jinja2
from plotly.offline import get_plotlyjs

from attrib_batch.analysis import read_manifest, read_summary, summarize, summary_is_current
from attrib_batch.report import formats
from attrib_batch.report.figures import RDBU, Detail
from attrib_batch.report.provenance import describe_run
from attrib_batch.report.sections import CellSection, build_sections
from attrib_batch.report.verification import compared_methods, read_verification
from attrib_batch.storage.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from attrib_batch.analysis import Summary
    from attrib_batch.report.verification import VerifiedCell
    from attrib_batch.spec import Cell
    from attrib_batch.tables import Manifest

REPORT = "report.html"

FIGURE_BUDGET = 3_000_000
"""Most characters of figures in a page; with plotly.js, 4.9 million, the page stays below 8 MB."""


def write_report(out: str | Path | Store) -> Path | str:
    """Write ``OUT/report.html``, after summarising the run if the summary is missing or older than a part.

    The page opens without a network: plotly.js, styles and numbers are in it. A sweep that would outgrow
    ``FIGURE_BUDGET`` is shown in less detail, and the page says so; the summary tables hold everything.

    Args:
        out: the run's directory.

    Returns:
        The path of the page.

    Raises:
        OutputError: see `attrib_batch.analysis.summarize`; or a verification does not match the scores; or the page
            cannot be written.
    """
    store = Store.parse(out)
    manifest = read_manifest(store)
    if not summary_is_current(store):
        summarize(store)
    page = render(manifest, read_summary(store), read_verification(store, manifest))
    store.write_bytes(REPORT, page.encode())
    return store.path(REPORT)


def render(
    manifest: Manifest,
    summary: Summary,
    verification: Mapping[Cell, VerifiedCell] | None = None,
    *,
    budget: int = FIGURE_BUDGET,
) -> str:
    """Write the page as HTML.

    Args:
        manifest: the run's manifest.
        summary: its summary tables.
        verification: its verified cells, from `read_verification`.
        budget: most characters of figures.
    """
    sections, detail = _sections_within(manifest, summary, verification or {}, budget)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("attrib_batch.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=formats.signed, plain=formats.plain, count=formats.count, percent=formats.percent)
    baselines = summary.baselines
    return environment.get_template("page.html.j2").render(
        run=describe_run(manifest),
        sections=sections,
        compared=compared_methods(section.verification for section in sections if section.verification),
        detail=detail,
        Detail=Detail,
        totals={name: int(baselines.get_column(name).sum()) for name in ("expected", "scored", "failed")},
        failures=summary.failures.sort("count", descending=True).to_dicts(),
        plotly_js=get_plotlyjs(),
        light_scale=list(RDBU),
    )


def _sections_within(
    manifest: Manifest, summary: Summary, verification: Mapping[Cell, VerifiedCell], budget: int
) -> tuple[list[CellSection], Detail]:
    """Build the sections in the most detail that fits; where none does, later cells go without figures."""
    for detail in Detail:
        sections = build_sections(manifest, summary, detail, verification)
        if sum(section.size for section in sections) <= budget:
            return sections, detail
    used, kept = 0, []
    for section in sections:
        used += section.size
        kept.append(section if used <= budget else section.without_figures())
    return kept, Detail.CORE
