"""The report room: figures on disk and one offline HTML file."""

from condmis_interp.report.directions import directions_section
from condmis_interp.report.html import write_report
from condmis_interp.report.survey import write_survey

__all__ = ["directions_section", "write_report", "write_survey"]
