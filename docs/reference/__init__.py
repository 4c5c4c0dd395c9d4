"""Pages that are written from the code whenever the site is built; nothing here needs mkdocs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from docs.reference.command_line import command_line_page
from docs.reference.job_file import job_file_page
from docs.reference.registries import registries_page
from docs.reference.tables import tables_page

if TYPE_CHECKING:
    from collections.abc import Callable

GENERATED: dict[str, Callable[[], str]] = {
    "reference/command-line.md": command_line_page,
    "reference/job-file.md": job_file_page,
    "reference/methods-and-metrics.md": registries_page,
    "reference/tables.md": tables_page,
}
"""Each generated page by its path among the pages, with the function that returns its Markdown."""
