"""``write_report``: one self-contained HTML page about a run."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import polars as pl
from plotly.offline import get_plotlyjs

from attrib_batch.analysis import Summary, read_manifest, read_summary, summarize, summary_is_current
from attrib_batch.analysis import summary as tables_of_summary
from attrib_batch.report import formats
from attrib_batch.report.drawing.figures import RDBU
from attrib_batch.report.drawing.maps import Detail
from attrib_batch.report.payload import page_data
from attrib_batch.report.provenance import describe_run
from attrib_batch.report.sections.cell import CellSection, Material, build_sections, build_sweep
from attrib_batch.report.sections.examples import read_examples
from attrib_batch.report.sections.sweep import Sweep, comparison_of
from attrib_batch.report.sections.verification import compared_methods, read_verification
from attrib_batch.report.wording import describe_state
from attrib_batch.storage.store import Store
from attrib_batch.tables import Table

if TYPE_CHECKING:
    from pathlib import Path

    from attrib_batch.tables import Manifest

REPORT = "report.html"

FIGURE_BUDGET = 5_500_000
"""Most characters of figures in a page; with plotly.js, 4.9 million, and examples the page stays below 12 MB."""
_EXAMPLE_HEADS = 120
"""Heads with examples in a page, over all cells; every cell has those of some."""


def write_report(out: str | Path | Store) -> Path | str:
    """Write ``OUT/report.html``, after summarising the run if the summary is missing or older than a part.

    The page opens without a network: plotly.js, styles and numbers are in it. A sweep that would outgrow
    ``FIGURE_BUDGET`` is shown in less detail, and the page says so; the summary tables hold everything. A run in which
    nothing is committed yet has a page that says so.

    Args:
        out: the run's directory.

    Returns:
        The path of the page.

    Raises:
        OutputError: see `attrib_batch.analysis.summarize`; or a verification does not match the scores; or the page
            cannot be written.
    """
    store = Store.parse(out)
    page = render(read_material(store))
    store.write_bytes(REPORT, page.encode("utf-8", "replace"))
    return store.path(REPORT)


def read_material(store: Store) -> Material:
    """Read what a page is made of; a stale summary is renewed.

    Raises:
        OutputError: see `write_report`.
    """
    manifest = read_manifest(store)
    if not any(store.parts(Table.SCORES, entry.cell.partition) for entry in manifest.plan):
        return Material(manifest, _nothing(manifest))
    if not summary_is_current(store):
        summarize(store)
    summary = read_summary(store)
    return Material(
        manifest,
        summary,
        read_verification(store, manifest),
        examples=read_examples(store, max(3, min(12, _EXAMPLE_HEADS // len(manifest.plan)))),
        stability=summary.stability,
        compare=comparison_of(store, summary),
    )


def render(material: Material, *, budget: int = FIGURE_BUDGET) -> str:
    """Write the page as HTML.

    Args:
        material: from `read_material`.
        budget: most characters of figures.
    """
    manifest, baselines = material.manifest, material.summary.baselines
    sections, sweep, detail = _within(material, budget)
    totals = {name: int(baselines.get_column(name).sum()) for name in ("expected", "scored", "failed")}
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            run=describe_run(manifest),
            state=describe_state(**totals, n_cells=len(baselines)),
            totals=totals,
            sections=sections,
            sweep=sweep,
            compared=compared_methods(section.verification for section in sections if section.verification),
            detail=detail,
            Detail=Detail,
            failures=_failures(material.summary),
            has_stability=material.stability is not None,
            has_examples=material.examples is not None,
            plotly_js=get_plotlyjs(),
            data=page_data(sections, sweep, material.summary),
            light_scale=list(RDBU),
        )
    )


@cache
def _environment() -> jinja2.Environment:
    """Set up the templates; they are compiled once in a process."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("attrib_batch.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in the order of the page, not of names
    environment.filters.update(signed=formats.signed, plain=formats.plain, count=formats.count, percent=formats.percent)
    return environment


def _within(material: Material, budget: int) -> tuple[list[CellSection], Sweep, Detail]:
    """Build the page in the most detail that fits; where none does, later cells go without figures."""
    for detail in Detail:
        sections, sweep = build_sections(material, detail), build_sweep(material, detail)
        if sum(section.size for section in sections) + sweep.size <= budget:
            return sections, sweep, detail
    used, kept = 0, []
    for section in sections:
        used += section.size
        kept.append(section if used <= budget else section.without_figures())
    return kept, Sweep() if used + sweep.size > budget else sweep, Detail.CORE


def _failures(summary: Summary) -> list[dict[str, Any]]:
    return summary.failures.sort("count", descending=True, maintain_order=True).to_dicts()


def _nothing(manifest: Manifest) -> Summary:
    """Return the summary of a run in which nothing is committed."""
    rows = [
        {
            "model": entry.cell.model, "dataset": entry.cell.dataset, "method": entry.cell.method,
            "expected": entry.n_pairs, "scored": 0, "failed": 0, "normalizable": False,
        }
        for entry in manifest.plan
    ]  # fmt: skip
    tables = {field.name: getattr(tables_of_summary, field.name.upper()).to_frame() for field in fields(Summary)}
    baselines = pl.DataFrame(rows, schema_overrides=dict(tables_of_summary.BASELINES)) if rows else pl.DataFrame()
    return Summary(**{**tables, "baselines": pl.concat([tables["baselines"], baselines], how="diagonal")})
