# SPDX-License-Identifier: Apache-2.0
"""Show the session in the terminal: the GPU, the plan and its time, what runs, results, and the verdict last.

What runs is read from files, as `colocate watch` reads it, so it is the same with workers and without.
"""

import os
import textwrap
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from colocate.plan import Group
from colocate.plugin import private_api
from colocate.plugin.invocation import only_looks
from colocate.plugin.options import option
from colocate.plugin.outcomes import told_of
from colocate.plugin.session import Session, folder, group_of, run_directory_of, session_of, terminal_of
from colocate.report import Lasting, Screen, Through, status_line
from colocate.results import Estimate, GroupResult, basis_of, estimate, line_of, over_budget_text, status
from colocate.units import format_mib, format_size, plural
from colocate.verdict import Outcome

# How often what changes is drawn again on a terminal; elsewhere a line comes every --progress seconds.
REDRAW_S = 1.0

# A plan of more groups than this is not listed before it starts.
LISTED = 24

_BREAKING_POINT = ("stress: ", "the distance to the breaking point")  # how the notes about it begin
_COLOURS = {Outcome.FEASIBLE.value: "green", Outcome.INFEASIBLE.value: "red"}


class Progress:
    """Hooks around pytest's terminal reporter, in the controller or the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = session_of(config)
        self.finished: set[str] = set()
        self.folders: set[str] = set()  # of finished groups, which the live view need not look into any more
        self.running: dict[str, float] = {}
        self.shown = False
        self.estimate = Estimate({})
        self.screen: Screen | None = None
        self.ticker: threading.Thread | None = None
        self.stopping = threading.Event()
        self.over = False
        self.told_again: set[tuple[str, int]] = set()

    @property
    def terminal(self) -> Any:
        """The terminal reporter of pytest."""
        return terminal_of(self.config)

    @pytest.hookimpl(trylast=True)
    def pytest_report_header(self) -> list[str]:
        """The first lines; trylast puts them above those of pytest and of other plugins.

        A terminal would break long ones in the middle of a word; in a file they stay whole.
        """
        lines = header(self.config, self.session)
        if self.terminal is None or not self.terminal.isatty:
            return lines
        return [part for line in lines for part in folded(line, private_api.width_of(self.terminal) - 1)]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """The name of the only file of cases, once per run, says nothing; what waits in a queue is told from now on."""
        if self.terminal is not None and not only_looks(self.config):
            self.terminal.showfspath = False
        if self.session.executor is not None:
            self._start_ticking()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Show the plan of a run without workers; by now it is noted what was selected."""
        self._show_plan()
        if self.config.option.collectonly and self.terminal is not None:
            found = [group for item in session.items if (group := group_of(self.config, item.nodeid)) is not None]
            for line in self._table([_planned(group, None) for group in found]):
                self.terminal.write_line(line)

    @pytest.hookimpl(optionalhook=True, trylast=True)
    def pytest_xdist_node_collection_finished(self) -> None:
        """Show the plan of a run with workers, when the first of them has collected; each of them says the same."""
        self._show_plan()

    def _show_plan(self) -> None:
        if self.shown or not self.session.selected:
            return
        self.shown = True
        self.estimate = self._estimated()
        self.session.estimates = dict(self.estimate.seconds)
        if self.terminal is not None and self.config.option.verbose >= 0:
            if self.terminal.isatty and self._side_by_side:  # xdist's "ready: 1/2 workers" stands there
                self.terminal.rewrite("", erase=True)
                self.terminal.rewrite("")
            for line in self._plan_lines():
                self.terminal.write_line(line)

    def _estimated(self) -> Estimate:
        """Estimate how long the groups take; the plan's minutes are those of a real GPU."""
        gpus = self.session.gpus
        executor = self.session.executor
        real = any(gpu.kind == "nvidia" for gpu in gpus) or (executor is not None and executor.gpu)
        names = [gpu.uuid or f"virtual {format_size(gpu.total_bytes or 0)} GPU" for gpu in gpus]
        groups = {
            group.id: (group.content_hash, group.expected_minutes if real else None) for group in self.session.selected
        }
        return estimate(groups, folder(self.config, "results", self.session.home), names)

    def _plan_lines(self) -> Iterator[str]:
        if len(self.session.selected) <= LISTED:
            yield from self._table(
                [_planned(group, self.estimate.seconds.get(group.id)) for group in self.session.selected]
            )
        together = self._side_by_side or 1
        decisions = self.session.decisions
        to_run = [g.id for g in self.session.selected if g.id not in decisions or decisions[g.id].reused is None]
        if to_run:
            yield f"time: {self.estimate.sentence(to_run, together)}"

    def _table(self, rows: list[tuple[str, ...]]) -> Iterator[str]:
        """Align the groups of a plan, a line each."""
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        for cells in rows:
            padded = [f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True) if width]
            yield _cut("  ".join(padded).rstrip(), private_api.width_of(self.terminal) - 1)

    @property
    def _side_by_side(self) -> int:
        """Groups that run at the same time, one per worker or as many as an executor can run; 0 without either."""
        if self.session.executor is not None:
            return int(getattr(self.config.option, "numprocesses", None) or self.session.executor.most_at_once)
        return len(getattr(self.config.option, "tx", None) or ())

    # What runs.

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logstart(self, nodeid: str) -> Generator[None, None, None]:
        """Show what runs from now on, until the line of the finished group.

        With ``-v`` pytest would begin a line here that the live lines tear.
        """
        group = group_of(self.config, nodeid)
        if group is None:
            yield
        else:
            with private_api.without_case_lines(self.config):
                yield
            self.running[group.id] = time.monotonic()
            self._start_ticking()

    def _start_ticking(self) -> None:
        if self.ticker is not None or self.terminal is None or self.config.option.verbose < -1:
            return
        self.screen = screen = Screen()
        every_s = REDRAW_S if screen.moves else float(option(self.config, "progress"))
        if every_s > 0:
            private_api.write_through(self.terminal, Through(private_api.stream_of(self.terminal), screen))
            self.ticker = threading.Thread(
                target=self._tick, args=(screen, every_s), name="colocate-progress", daemon=True
            )
            self.ticker.start()

    def _tick(self, screen: Screen, every_s: float) -> None:
        while not self.stopping.wait(every_s):
            try:
                lines = self._running_lines(screen)
            except Exception as error:  # whatever is wrong with a file that is being written, the run goes on
                lines = [f"progress: {type(error).__name__}: {error}"]
            if screen.moves:
                screen.draw(lines)
            else:
                for line in (lines[:-1] if self.session.selected else lines) or lines:
                    screen.line(line)

    def _running_lines(self, screen: Screen) -> list[str]:
        run, width = run_directory_of(self.config).path, screen.width
        waiting, running = status_line.waiting(run), dict(self.running)
        if not self.session.selected:
            return waiting
        states = {one.group: one for one in status.running(run, self.folders) if one.group in running}
        for state in states.values():
            if state.attempt > 1 and (state.group, state.attempt) not in self.told_again:
                self.told_again.add((state.group, state.attempt))
                screen.line(status_line.again(state)[:width])
        lines = [status_line.line_of(state, self.estimate.seconds.get(name), width) for name, state in states.items()]
        now = time.monotonic()
        lines += [f"{name}  {status_line.clock(now - since)}" for name, since in running.items() if name not in states]
        whole = status_line.status(len(self.finished), len(self.session.selected), len(running), self._left_s(running))
        return [*lines, *waiting, whole]

    def _left_s(self, running: dict[str, float]) -> float | None:
        """Seconds until the end of the run."""
        took = {name: result.duration_s for name, result in list(self.session.results.items())}
        took = {name: seconds for name, seconds in took.items() if name in self.finished}
        passed_s = [time.monotonic() - since for since in running.values()]
        selected = [group.id for group in self.session.selected]
        return self.estimate.left_s(selected, self.finished, took, passed_s, self._side_by_side or 1)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Nothing runs any more."""
        self._stop_ticking()

    def pytest_unconfigure(self) -> None:
        """The same where a session ends without finishing."""
        self._stop_ticking()

    def _stop_ticking(self) -> None:
        self.stopping.set()
        if self.ticker is not None:
            self.ticker.join()
            self.ticker = None
        if self.screen is not None:
            stream = None if self.terminal is None else private_api.stream_of(self.terminal)
            if isinstance(stream, Through):
                private_api.write_through(self.terminal, stream.stream)
            self.screen.close()
            self.screen = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No dot per group where it gets a line of its own; the counts at the end stay pytest's."""
        if str(report.when) == "verdict":
            return "error", "E", "ERROR"
        if self.over or str(report.when) == "collect" or group_of(self.config, report.nodeid) is None:
            return None
        failed = "failed" if report.when == "call" else "error"
        if report.passed:
            return ("passed" if report.when == "call" else ""), "", ""
        return ("skipped" if report.skipped else failed), "", ""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        """Write the line of a group once it is done."""
        group = group_of(self.config, report.nodeid)
        with nullcontext() if group is None else private_api.without_case_lines(self.config):
            yield
        if report.when != "teardown" or group is None or group.id in self.finished:
            return
        self.finished.add(group.id)
        self.running.pop(group.id, None)
        result = self.session.results.get(group.id)
        if result is not None and self.terminal is not None and self.config.option.verbose >= -1:
            for line, markup in self._lines(result):
                self.terminal.write_line(line, **markup)

    def _lines(self, result: GroupResult) -> list[tuple[str, dict[str, bool]]]:
        total = len(self.session.selected) or len(self.session.plan.groups)  # none where no worker came to tell
        count = f"[{len(self.finished):{len(str(total))}}/{total}]"
        colour = {_COLOURS.get(result.outcome, "yellow"): True}
        lines = [(f"{count} {line_of(result)}", colour)]
        indent = " " * (len(count) + 1)
        width = max(40, private_api.width_of(self.terminal) - len(indent) - 1)
        reasons = textwrap.wrap("; ".join(result.reasons), width)
        reported = [text for text in result.warnings if text.startswith(_BREAKING_POINT)]
        reported += [f"worth it? {result.speedup}"] if result.speedup else []
        return lines + [(indent + line, {}) for line in [*reasons, *reported]]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, None, None]:
        """Write the plan's verdict below everything but pytest's last line."""
        self.over = True
        for report in terminalreporter.stats.get("error", ()):
            if told_of(report) is not None:
                report.when = "verdict"  # "ERROR at setup of" would name the wrong place
        for ending in ("error", "failed"):  # workers finish in any order
            terminalreporter.stats.get(ending, []).sort(key=_place)
            for report in terminalreporter.stats.get(ending, []):
                self._shorten(report)
        yield
        if self.session.results:
            terminalreporter.write_sep("=", f"plan {self.session.plan.name}", bold=True)
            for line, markup in summary(self.config, self.session):
                terminalreporter.write_line(line, **markup)

    def _shorten(self, report: Any) -> None:
        """Name the codes of reasons that stand below the group's line already; a traceback stays."""
        result = told_of(report)
        if result is None or result.group not in self.finished or self.config.option.verbose < -1:
            return
        if result.codes and isinstance(report.longrepr, str):
            report.longrepr = ", ".join(result.codes)


def _planned(group: Group, seconds: float | None) -> tuple[str, ...]:
    """A group before it starts: how long it takes, what it may need and what it is."""
    takes = "" if seconds is None else status_line.clock(seconds)
    needs = "" if group.expected_bytes is None else f"expects {format_mib(group.expected_bytes):>8}"
    return group.id, takes, group.tier or "", needs, " + ".join(training.name for training in group.trainings)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def folded(text: str, width: int) -> list[str]:
    """Lines between words; a path stays in one piece."""
    return textwrap.wrap(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _place(report: Any) -> int:
    result = told_of(report)
    return 0 if result is None else result.number or 0


def header(config: pytest.Config, session: Session) -> list[str]:
    """GPU and basis, plan, run directory, and what was read into the options."""
    plan = session.plan
    limits = plan.limits
    needed = plan.needed(len(plan.groups))
    lines = [f"GPU: {session.choice}"] if session.choice is not None else []
    lines.append(f"plan: {shown_path(config, plan.path)}: {plural(len(plan.groups), 'group')}, {needed} must fit")
    lines.append(f"limit: {format_mib(limits.peak_bytes)} of {format_mib(limits.gpu_bytes)} (1 MB of a plan is 1 MiB)")
    if session.run_directory is not None:
        lines.append(f"run: {shown_path(config, session.run_directory.path)}")
    if option(config, "gate") == "plan":
        lines.append("gate: the plan's rule makes the exit code")
    return lines + session.notes


def summary(config: pytest.Config, session: Session) -> list[tuple[str, dict[str, bool]]]:
    """The last lines: the plan's verdict, its basis, what is missing, and where everything is."""
    plan_verdict = session.plan_verdict()
    colour = {"holds": "green", "fails": "red"}.get(plan_verdict.holding, "yellow")
    lines = [(line, {colour: True, "bold": True}) for line in textwrap.wrap(str(plan_verdict), 79)]
    lines.append((f"basis: {basis_of(session.results.values())}", {}))
    for text in filter(None, (over_budget_text(session.results.values()), plan_verdict.missing())):
        lines += [(line, {"yellow": True}) for line in textwrap.wrap(text, 79)]
    timed = [one for one in session.results.values() if one.duration_s and not one.reused]
    timed.sort(key=lambda one: -(one.duration_s or 0))
    if len(timed) > 1:
        longest = ", ".join(f"{one.group} {status_line.clock(one.duration_s or 0)}" for one in timed[:4])
        lines.append((f"time: longest {longest}", {}))
    lines += [(f"lost: {text}", {"red": True}) for text in session.lost]
    if session.report is not None and session.report.exists():
        lines.append((f"report:  {shown_path(config, session.report)}", {}))
    if session.run_directory is not None and session.run_directory.summary.exists():
        lines.append((f"summary: {shown_path(config, session.run_directory.summary)}", {}))
    return lines


def shown_path(config: pytest.Config, path: Path) -> str:
    """A path as one would type it from where pytest was started."""
    return os.path.relpath(path, config.invocation_params.dir)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Called before anything is written: a run goes on to its page where nobody reads the terminal any more."""
    terminal = terminal_of(session.config)
    if terminal is not None:
        private_api.write_through(terminal, Lasting(private_api.stream_of(terminal)))


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(Progress(config))
