# SPDX-License-Identifier: Apache-2.0
"""Run directories become summary.csv and the parts of the page. Never touches a GPU; knows no pytest."""

from colocate.report import github, status_line
from colocate.report.comparison import Comparison, compare, lines
from colocate.report.follow import Following
from colocate.report.html import page
from colocate.report.html.memory_chart import downsampled
from colocate.report.html.page import Report, document, headline, write
from colocate.report.summary_csv import Summary, write_summary
from colocate.report.terminal import Lasting, Screen, Through
