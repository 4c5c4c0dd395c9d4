"""The report: one HTML page about a run; needs neither torch nor ray."""

from attrib_batch.report.export import export
from attrib_batch.report.page import write_report

__all__ = ["export", "write_report"]
