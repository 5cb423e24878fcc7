"""The report room: figures on disk and one offline HTML file."""

from condmis_interp.report.html import write_report

__all__ = ["write_report"]
