# SPDX-License-Identifier: Apache-2.0
"""The pytest-html page and ``summary.csv`` of a run, both rebuilt from what was recorded; plain ``pytest`` writes them.

Only the controller writes. The parts of the page are `colocate.report.html.page`'s.
"""

import contextlib
import os
import traceback
from collections.abc import Generator
from html import escape
from pathlib import Path
from typing import Any

import pytest

from colocate.errors import ColocateError
from colocate.files import make_folder, write_text
from colocate.plugin.outcomes import told_of
from colocate.plugin.session import folder, group_of, run_directory_of, session_of, warn
from colocate.report import Summary, page
from colocate.results import journal, read_run


class Page:
    """Hooks of pytest-html and around it."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = session_of(config)
        self.run = run_directory_of(config)
        self.begun = False
        self.texts: dict[str, str] = {}
        self.summary = Summary(self.run)

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_report_title(self, report: Any) -> None:
        """Called once, at the start; folding is a setting of the same object."""
        report.title = f"{self.session.plan.name}: can they share one GPU?"
        report.set_data("renderCollapsed", ["all"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_row(self, report: Any, cells: list[str]) -> None:
        """Called for every report; pytest-html would put the name of a case into its page as it is."""
        if len(self.session.selected) > page.LARGE and told_of(report) is not None:
            cells.clear()  # pytest-html's script builds every row at once
            return
        cells[1] = f'<td class="col-testId">{escape(report.nodeid)}</td>'

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_table_html(self, report: Any, data: list[str]) -> None:
        """Empty the log of a judged group: its reasons stand above, and the logs of its trainings."""
        if told_of(report) is not None and isinstance(report.longrepr, str | tuple | None):
            data.clear()

    def pytest_runtest_logstart(self) -> None:
        """Begin the journal with the first case."""
        if self.session.selected:
            self._begin()

    def _begin(self) -> None:
        if not self.begun:
            self.begun = True
            groups = self.session.selected or self.session.plan.groups  # nobody came to tell which
            self._note("started", groups=[group.id for group in groups], estimates=self.session.estimates)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a finished group into the journal, and keep summary.csv up to date."""
        told, group = told_of(report), group_of(self.config, report.nodeid)
        if told is None or group is None:
            return
        if report.failed and not isinstance(report.longrepr, str | tuple):
            self.texts[group.id] = report.longreprtext
        if report.when == "teardown":
            self._begin()
            result = self.session.results.get(group.id, told)
            self._note("group", record=result.to_json(), text=self.texts.get(group.id))
            try:
                self.summary.take(group, result)
            except Exception as error:  # whatever it is: the records are what counts, and they are written
                warn(self.config, f"could not write summary.csv: {error}")

    def _note(self, event: str, **fields: Any) -> None:
        try:
            journal.append(self.run.path, event, **fields)
        except OSError as error:  # the records are what counts
            warn(self.config, f"could not write the journal: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_html_results_summary(self, prefix: list[str]) -> None:
        """Called once, at the end: everything of ours above pytest's own table, from what is on disk."""
        assert self.session.report is not None, "pytest-html writes"
        try:
            prefix.append(page.body(self._report(self.session.report)))
        except Exception as error:  # whatever it is: verdicts are on disk, and pytest would end in an internal error
            text = f"could not write the report: {type(error).__name__}: {error}; colocate report makes it again"
            warn(self.config, text)
            known = isinstance(error, ColocateError)
            prefix.append(f"<pre>{escape(str(error) if known else ''.join(traceback.format_exception(error)))}</pre>")

    def _report(self, path: Path) -> page.Report:
        return page.Report.of([read_run(self.run.path)], path.parent, name=path.name)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, None, None]:
        """End the journal before pytest-html writes; then make its page fit for phones, and found under ``latest``."""
        if self.begun:
            self._note("ended")
        yield
        if self.session.results and self.session.report is not None and self.session.report.exists():
            text = self.session.report.read_text(encoding="utf-8")
            write_text(self.session.report, page.polished(text))
            self._point_latest_here(self.session.report.parent)

    def pytest_unconfigure(self) -> None:
        """Take back what was prepared for a run in which no group came to run."""
        path = self.session.report
        if self.session.results:
            return
        self.run.discard()  # no folder shall look as if something had been run
        if path is not None:
            with contextlib.suppress(OSError, ColocateError):
                if self.run.path.exists():  # one that was to go on: pytest-html has put a page of nothing here, or none
                    make_folder(path.parent)
                    page.write(self._report(path))
                else:
                    path.unlink(missing_ok=True)
                    path.parent.rmdir()

    def _point_latest_here(self, report_folder: Path) -> None:
        """``reports/latest`` is a link; where somebody put a real folder, it stays."""
        latest, aside = report_folder.parent / "latest", report_folder.parent / f".latest.{os.getpid()}"
        if report_folder.name != self.run.name or (latest.exists() and not latest.is_symlink()):
            return
        with contextlib.suppress(OSError):
            aside.symlink_to(report_folder.name, target_is_directory=True)
            aside.replace(latest)


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session: tell pytest-html where and how to write, before it is configured."""
    session, option = session_of(config), config.option
    if hasattr(option, "htmlpath"):  # else pytest-html is switched off
        run = run_directory_of(config)
        own = folder(config, "reports", session.home) / run.name / "report.html"
        session.report = Path(os.path.abspath(option.htmlpath)) if option.htmlpath else own  # noqa: PTH100
        try:
            make_folder(session.report.parent)
        except ColocateError as error:
            run.discard()
            raise pytest.UsageError(f"--html: {error}") from error
        option.htmlpath = str(session.report)
        option.self_contained_html = True
        option.css = [*option.css, str(page.STYLESHEET)]
    config.pluginmanager.register(Page(config))
