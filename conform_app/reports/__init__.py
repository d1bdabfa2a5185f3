# SPDX-License-Identifier: Apache-2.0
"""Reports: one HTML page a subject, its figures, and the methods text.

Everything here is drawn from what a finished fit left in the output folder (the fit record, maps and
tables), never from the input data, so that a report can be built again years later on another machine.
"""

from conform_app.reports.boilerplate import write_boilerplate
from conform_app.reports.page import build_report
from conform_app.reports.pandoc import convert_text

__all__ = ["build_report", "convert_text", "write_boilerplate"]
