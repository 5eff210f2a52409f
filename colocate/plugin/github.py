# SPDX-License-Identifier: Apache-2.0
"""Write the job summary and the annotations in a job of GitHub Actions."""

import pytest

from colocate.plugin.invocation import leads
from colocate.plugin.session import Session, session_of, terminal_of
from colocate.report import github, page
from colocate.results import read_run


class GitHub:
    """The hook at the end of a session, in the controller or the only process."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session

    def pytest_unconfigure(self) -> None:
        """Called when everything is written; annotations are lines of their own at the end of the output."""
        run = self.session.run_directory
        terminal = terminal_of(self.config)
        if run is None or terminal is None or not self.session.results:
            return
        try:
            report = page.Report.of([read_run(run.path)], run.path)
            markdown = github.of_run((page.headline(part), part) for part in report.parts)
            annotations = github.annotations_of_run(result for part in report.parts for result in part.counting)
            for line in github.publish(markdown, annotations):
                terminal.write_line(line)
        except Exception as error:  # whatever it is: verdicts and page are on disk
            terminal.write_line(f"could not write the job summary: {type(error).__name__}: {error}")


def register(config: pytest.Config) -> None:
    """Take part in this session, where it is part of such a job."""
    if leads(config) and github.is_job():
        config.pluginmanager.register(GitHub(config, session_of(config)), "colocate-github")
