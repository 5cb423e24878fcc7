"""The report room: figures on disk and one offline HTML file."""

from condmis_interp.report.again import report_again
from condmis_interp.report.directions import directions_section
from condmis_interp.report.html import write_report
from condmis_interp.report.survey import write_survey

__all__ = ["directions_section", "report_again", "write_report", "write_survey"]
