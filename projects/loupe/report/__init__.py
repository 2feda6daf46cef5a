"""A report that stands in a folder: a page, JSON and CSV; and what a file says of itself."""

from loupe.report.file_facts import facts_of_file
from loupe.report.writer import write_report

__all__ = ["facts_of_file", "write_report"]
