"""What the terminal shows: the card and the basis first, a line per finished group, the plan's verdict last."""

import os
import textwrap
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from colocate.plugin.configuration import Session, group_of, is_worker, only_looks, session_of
from colocate.plugin.outcome import Record
from colocate.report.words import basis_of, headroom_text, peak_text
from colocate.units import format_mib
from colocate.verdict import Outcome

_COLOURS = {Outcome.FEASIBLE.value: "green", Outcome.INFEASIBLE.value: "red"}


class Progress:
    """Hooks around pytest's terminal reporter, in the controller or the only process."""

    def __init__(self, config: pytest.Config, session: Session) -> None:
        self.config = config
        self.session = session
        self.finished: set[str] = set()
        self.running: dict[str, str] = {}
        self.num_selected = 0
        self.over = False

    @property
    def terminal(self) -> Any:
        """The terminal reporter of pytest."""
        return self.config.pluginmanager.get_plugin("terminalreporter")

    @pytest.hookimpl(trylast=True)
    def pytest_report_header(self) -> list[str]:
        """The first lines; trylast puts them above those of pytest and of other plugins."""
        return header(self.config, self.session)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """The name of the only file of cases, once per run, says nothing."""
        if self.terminal is not None and not only_looks(self.config):
            self.terminal.showfspath = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Count what a run without workers selected."""
        self.num_selected = len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Count what a run with workers selected."""
        self.num_selected = len(ids)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """On a terminal, tell what runs and since when, until the next line of a group takes that place."""
        group = group_of(self.config, nodeid)
        if group is not None:
            self.running[group.id] = f"{datetime.now():%H:%M:%S}"
            self._show_running()

    def _show_running(self) -> None:
        if self.running and self.terminal is not None and self.terminal.isatty() and self.config.option.verbose == 0:
            text = "running: " + ", ".join(f"{name} since {since}" for name, since in self.running.items())
            width = self.terminal._tw.fullwidth - 1
            self.terminal.rewrite(text if len(text) <= width else text[: width - 3] + "...", erase=True)

    def _hide_running(self) -> None:
        if self.running and self.terminal is not None and self.terminal.isatty() and self.config.option.verbose == 0:
            self.terminal.rewrite("", erase=True)
            self.terminal.rewrite("")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot per group where it gets a line of its own; the counts at the end stay pytest's."""
        if str(report.when) == "verdict":
            return "error", "E", "ERROR"
        if self.over or str(report.when) == "collect" or group_of(self.config, report.nodeid) is None:
            return None
        if self.config.option.verbose > 0:
            return None
        failed = "failed" if report.when == "call" else "error"
        if report.passed:
            return ("passed" if report.when == "call" else ""), "", ""
        return ("skipped" if report.skipped else failed), "", ""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the line of a group once it is done."""
        group = group_of(self.config, report.nodeid)
        if report.when != "teardown" or group is None or group.id in self.finished:
            return
        self.finished.add(group.id)
        self._hide_running()
        self.running.pop(group.id, None)
        record = self.session.records.get(group.id)
        if record is not None and self.terminal is not None and self.config.option.verbose >= -1:
            for line, markup in self._lines(record):
                self.terminal.write_line(line, **markup)
        self._show_running()

    def _lines(self, record: Record) -> list[tuple[str, dict[str, bool]]]:
        width = len(str(self.num_selected))
        count = f"[{len(self.finished):{width}}/{self.num_selected}]"
        colour = {_COLOURS.get(record["outcome"], "yellow"): True}
        lines = [(f"{count} {line_of(record)}", colour)]
        indent = " " * (len(count) + 1)
        reasons = textwrap.wrap("; ".join(record["reasons"]), max(40, self.terminal._tw.fullwidth - len(indent) - 1))
        return lines + [(indent + line, {}) for line in reasons]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        """Write the plan's verdict below everything but pytest's last line."""
        self.over = True
        for report in terminalreporter.stats.get("error", ()):
            if hasattr(report, "colocate"):
                report.when = "verdict"  # "ERROR at setup of" would name the wrong place
        for ending in ("error", "failed"):  # workers finish in any order
            terminalreporter.stats.get(ending, []).sort(key=_place)
        yield
        if self.session.records:
            terminalreporter.write_sep("=", f"plan {self.session.plan.name}", bold=True)
            for line, markup in summary(self.config, self.session):
                terminalreporter.write_line(line, **markup)


def _place(report: Any) -> int:
    return int(getattr(report, "colocate", {"number": 0})["number"])


def header(config: pytest.Config, session: Session) -> list[str]:
    """Card and basis, plan, run directory, and what was read into the options."""
    plan, option = session.plan, config.option
    limits = plan.limits
    num_groups, needed = len(plan.groups), plan.needed(len(plan.groups))
    lines = [f"card: {session.choice}"] if session.choice is not None else []
    lines.append(f"plan: {shown_path(config, plan.path)}: {num_groups} groups, {needed} must fit")
    lines.append(f"limit: {format_mib(limits.peak_bytes)} of {format_mib(limits.card_bytes)} (1 MB of a plan is 1 MiB)")
    if session.run_directory is not None:
        lines.append(f"run: {shown_path(config, session.run_directory.path)}")
    if option.gate == "plan":
        lines.append("gate: the plan's rule makes the exit code")
    return lines + session.notes


def line_of(record: Record) -> str:
    """One group on one line of at most 80 columns: verdict, basis, peak and headroom."""
    if record["outcome"] not in set(Outcome):
        return f"{record['group']} {record['outcome']}"
    numbers = f"peak {peak_text(record)}, headroom {headroom_text(record)}"
    if record.get("kept"):
        numbers += ", kept"
    return f"{record['group']} {record['outcome']} ({record['basis']}) {numbers}"


def summary(config: pytest.Config, session: Session) -> list[tuple[str, dict[str, bool]]]:
    """The last lines: the plan's verdict, its basis, what is missing, and where everything is."""
    tally = session.tally()
    colour = {"holds": "green", "fails": "red"}.get(tally.holding, "yellow")
    lines = [(line, {colour: True, "bold": True}) for line in textwrap.wrap(str(tally), 79)]
    lines.append((f"basis: {basis_of(session.records.values())}", {}))
    missing = tally.missing()
    if missing:
        lines += [(line, {"yellow": True}) for line in textwrap.wrap(missing, 79)]
    if session.report is not None and session.report.exists():
        lines.append((f"report:  {shown_path(config, session.report)}", {}))
    if session.run_directory is not None and session.run_directory.summary.exists():
        lines.append((f"summary: {shown_path(config, session.run_directory.summary)}", {}))
    return lines


def shown_path(config: pytest.Config, path: Path) -> str:
    """A path as one would type it from where pytest was started."""
    return os.path.relpath(path, config.invocation_params.dir)


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    if not is_worker(config):
        config.pluginmanager.register(Progress(config, session_of(config)), "colocate-progress")
