# SPDX-License-Identifier: Apache-2.0
"""Write the job summary and the annotations in a job of GitHub Actions."""

import pytest

from colocate.plugin.session import session_of, terminal_of
from colocate.report import github, page
from colocate.results import read_run


def pytest_unconfigure(config: pytest.Config) -> None:
    """Called when everything is written; annotations are lines of their own at the end of the output."""
    session, terminal = session_of(config), terminal_of(config)
    if session.run_directory is None or terminal is None or not session.results or not github.is_job():
        return
    run = session.run_directory.path
    try:
        report = page.Report.of([read_run(run)], run)
        markdown = github.of_run((page.headline(part), part) for part in report.parts)
        annotations = github.annotations_of_run(result for part in report.parts for result in part.counting)
        for line in github.publish(markdown, annotations):
            terminal.write_line(line)
    except Exception as error:  # whatever it is: verdicts and page are on disk
        terminal.write_line(f"could not write the job summary: {type(error).__name__}: {error}")
