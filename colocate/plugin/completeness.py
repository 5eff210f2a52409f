# SPDX-License-Identifier: Apache-2.0
"""Every selected group ends with exactly one outcome, in terminal, JUnit and HTML, however the run ends.

pytest itself forgets the group that was running when the run was interrupted, those not started by then, and those
whose process died: such a report looks green. Here they become INTERRUPTED, NOT RUN and CRASHED.
"""

import contextlib
import os
import signal
import stat
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import pytest

from colocate.plugin import gate, private_api, signals
from colocate.plugin.invocation import is_worker, only_looks
from colocate.plugin.options import option
from colocate.plugin.outcomes import CRASHED, ERROR, INTERRUPTED, NOT_RUN, properties, told_of
from colocate.plugin.session import group_of, run_directory_of, session_of
from colocate.results import GroupResult, group_result_of, journal
from colocate.verdict import Outcome, ReasonCode

if TYPE_CHECKING:
    from colocate.plan import Group

# A worker that was told to end stops its trainings first: they get some seconds of grace, then their GPU must be free.
WORKERS_GRACE_S = 30.0


_CUT_OFF = (CRASHED, INTERRUPTED)


class CompletenessCheck:
    """Track which groups were planned, started, judged and done, in the controller or the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = session_of(config)
        self.interruption = signals.interruption_of(config)
        self.planned: list[str] = []
        self.started: set[str] = set()
        self.latest: dict[str, pytest.TestReport] = {}
        self.judged: dict[str, pytest.TestReport] = {}
        self.done: set[str] = set()
        self.cleaning_up = ""
        self.setbacks: dict[str, str] = {}

    # What pytest and xdist tell.

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note the selection of a run without workers."""
        if session.items:
            self._plan([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Note the selection of a run with workers."""
        self._plan(ids)

    def _plan(self, nodeids: list[str]) -> None:
        found = {nodeid: group for nodeid in nodeids if (group := group_of(self.config, nodeid)) is not None}
        self.planned, self.session.selected = list(found), tuple(found.values())

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a group runs, before a signal interrupts somebody who tells it: it would be NOT RUN."""
        self.started.add(nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, None, None]:
        """Keep the record of a group before others look for it; a group that was cut off is done with that."""
        _share(report, self.latest.get(report.nodeid))
        result = told_of(report)
        if result is not None:
            again = f"run again after {self.setbacks.get(report.nodeid)} [worker_lost]"
            if report.nodeid in self.setbacks and again not in result.warnings:
                result = result.with_warning(again)
                report.colocate = result  # type: ignore[attr-defined]
            earlier = self.session.results.get(result.group) if report.nodeid in self.latest else None
            if earlier is None or _badness(earlier) <= _badness(result):  # a plugin may judge a group twice
                self.session.results[result.group] = result
        self.latest[report.nodeid] = report
        if report.when == "call" or not report.passed:
            self.judged[report.nodeid] = report
        if report.when == "teardown":
            self.done.add(report.nodeid)
        yield
        if result is not None and result.outcome in _CUT_OFF and report.when != "teardown":
            self.config.hook.pytest_runtest_logreport(report=self._report(report.nodeid, "passed"))

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Called by xdist for the group whose worker died; as it comes, pytest-html would not show the report."""
        report.duration = 0.0
        if group_of(self.config, crashitem) is not None:
            self._end_as_crashed(crashitem, report, report.longreprtext.splitlines()[-1])

    def crash(self, nodeid: str, why: str) -> None:
        """Report a group whose task elsewhere has ended without a report."""
        report = self._report(nodeid, "failed", "setup")
        self._end_as_crashed(nodeid, report, why)
        self.config.hook.pytest_runtest_logreport(report=report)

    def _end_as_crashed(self, nodeid: str, report: pytest.TestReport, why: str) -> None:
        report.when = "setup"
        if nodeid in self.judged:  # the verdict was there; what died was only the cleaning up
            report.when, report.outcome, report.longrepr = "teardown", "passed", None
        else:
            group = self._group(nodeid)
            found = group_result_of(run_directory_of(self.config), group)  # it may have recorded an interruption
            told = found is not None and any(ReasonCode.INTERRUPTED in one.verdict.codes for one in found.last)
            died = "the process that ran this group was told to end" if told else "the process that ran this group died"
            died += f" ({why})"
            if nodeid in self.setbacks:
                died += f"; before, {self.setbacks[nodeid]}"
            self._end_as(report, INTERRUPTED if told else CRASHED, died)

    def _group(self, nodeid: str) -> "Group":
        group = group_of(self.config, nodeid)
        assert group is not None, "only groups are in the ledger"
        return group

    # How a run ends.

    def pytest_keyboard_interrupt(self) -> None:
        """Called by pytest at once; pass the request on to the workers."""
        if self.interruption.received is not None:
            signal_workers(self.config, signal.SIGTERM)  # SIGINT may be ignored there

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> Generator[None, None, None]:
        """Close the ledger before anybody writes a report, and set the exit code afterwards."""
        self.interruption.ending = True
        if exitstatus == pytest.ExitCode.INTERRUPTED:
            wait_for_workers(self.config)
        try:  # what was interrupted ends before it is reported, for its fixtures write its record
            private_api.end_fixtures(session)
        except Exception as error:  # whatever a fixture raises must not cost the reports of the other groups
            self.cleaning_up = f"; cleaning up failed: {type(error).__name__}: {error}"
        for report in list(self._missing(session)):
            self.config.hook.pytest_runtest_logreport(report=report)
            if report.skipped:
                private_api.run_first_with_lf(self.config, report.nodeid)
        self.session.lost = list(self._lost())
        try:
            yield
        finally:
            session.exitstatus = self._exit_code(session, exitstatus)

    def pytest_unconfigure(self) -> None:
        """Give the signals back."""
        self.interruption.restore()

    def _missing(self, session: pytest.Session) -> Iterator[pytest.TestReport]:
        """A report for each planned group that has none that ends it."""
        for nodeid in self.planned:
            if nodeid in self.done:
                continue
            if nodeid in self.judged:
                yield self._report(nodeid, "passed")
            elif nodeid in self.started:
                report = self._report(nodeid, "failed", when="setup")  # JUnit would count a failed teardown twice
                yield self._end_as(report, INTERRUPTED, f"while it ran, {self._why(session)}{self.cleaning_up}")
            else:
                yield self._end_as(self._report(nodeid, "skipped"), NOT_RUN, self._why(session))

    def _lost(self) -> Iterator[str]:
        """Groups whose record is not on the disk any more: a verdict without it is none, and is not counted as one."""
        told = journal.read(run_directory_of(self.config).path).results.keys()
        for group, directory, result in list(self.session.recorded()):
            if not result.is_judged:
                continue
            gone = [path.name for path in (directory.experiment, directory.verdict) if not _is_file(path)]
            gone += [] if group.id in told else [journal.NAME]
            if gone:
                text = f"{group.id}: judged {result.outcome}, and then {', '.join(gone)} of its record was gone"
                lost = replace(result, outcome=ERROR, reasons=(*result.reasons, text), codes=())
                self.session.results[group.id] = lost
                yield text

    def _report(self, nodeid: str, outcome: Any, when: Any = "teardown") -> pytest.TestReport:
        path, _, name = nodeid.partition("::")
        location = (path, None, name.replace("::", "."))
        report = pytest.TestReport(nodeid, location, {}, outcome, None, when)
        latest = self.latest.get(nodeid)
        for attribute in ("node", "worker_id", "item_index", "colocate"):  # JUnit finds a test's entry by the first
            if hasattr(latest, attribute):
                setattr(report, attribute, getattr(latest, attribute))
        return report

    def _end_as(self, report: pytest.TestReport, outcome: str, why: str) -> pytest.TestReport:
        group = self._group(report.nodeid)
        text = f"{outcome}: {why}"
        report.longrepr = (report.nodeid.partition("::")[0], 0, text) if report.skipped else text
        result = GroupResult.without_verdict(group, outcome, why)
        name, parallel = group.foreground.name, group.background is not None
        path = run_directory_of(self.config).group(name, group.number, parallel=parallel).path
        if report.failed and path.exists():  # what it wrote before it was cut off
            result = replace(result, directory=str(path))
        report.colocate = result  # type: ignore[attr-defined]
        report.user_properties += properties(result)
        return report

    def _why(self, session: pytest.Session) -> str:
        if self.interruption.received is not None:
            return f"the run was ended by {self.interruption.received.name}"
        return f"the run ended early ({private_api.why_stopped(self.config, session) or 'see above'})"

    def _exit_code(self, session: pytest.Session, exitstatus: int) -> int:
        if exitstatus == pytest.ExitCode.INTERRUPTED and self.interruption.exit_code is not None:
            return self.interruption.exit_code
        found = {result.outcome for result in self.session.results.values()}
        if exitstatus == pytest.ExitCode.OK and (self.session.lost or found - {Outcome.FEASIBLE, NOT_RUN}):
            exitstatus = pytest.ExitCode.TESTS_FAILED
        stopped = exitstatus == pytest.ExitCode.INTERRUPTED and session.testsfailed  # -x under xdist, which says 2
        if stopped or (exitstatus == pytest.ExitCode.OK and session.testsfailed):
            exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.session.lost:
            return exitstatus
        judged = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
        if judged and option(self.config, "gate") == gate.PLAN_RULE:
            holds = gate.selected(self.session).holding == "holds"
            return pytest.ExitCode.OK if holds else pytest.ExitCode.TESTS_FAILED
        return exitstatus


def _badness(result: GroupResult) -> int:
    """How much a result speaks against a group; one without a verdict, such as an error, says nothing."""
    return {str(Outcome.INFEASIBLE): 2, str(Outcome.INCONCLUSIVE): 1}.get(result.outcome, 0)


def _is_file(path: Path) -> bool:
    """Whether a file has something in it; what stands in its place counts as nothing."""
    try:
        return stat.S_ISREG((status := path.lstat()).st_mode) and status.st_size > 0
    except OSError:
        return False


def _share(report: pytest.TestReport, former: pytest.TestReport | None) -> None:
    """Let a group's reports have what they have in common once: pytest keeps all of them, and xdist sends copies."""
    for name in ("colocate", "keywords", "user_properties", "location"):
        known = getattr(former, name, None)
        if known is not None and getattr(report, name, None) == known:
            setattr(report, name, known)


def signal_workers(config: pytest.Config, number: signal.Signals) -> None:
    """Send a signal to every worker; the tasks of an executor, which have ended theirs by then, can only be killed."""
    executor = session_of(config).executor
    if executor is not None and number == signal.SIGKILL:
        executor.cancel()
    for process in private_api.worker_processes(config):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def wait_for_workers(config: pytest.Config) -> None:
    """Let workers end their groups, take in what they still report, then end them."""
    distributed = private_api.xdist_session(config)
    if distributed is None or distributed.nodemanager is None:
        return
    waiting = private_api.active_workers(distributed)
    deadline = time.monotonic() + WORKERS_GRACE_S
    while waiting and time.monotonic() < deadline:
        try:
            name, event = distributed.queue.get(timeout=0.2)
        except Empty:
            continue
        if name == "testreport":
            event["rep"].node = event["node"]
            config.hook.pytest_runtest_logreport(report=event["rep"])
        elif name == "logstart":
            config.hook.pytest_runtest_logstart(nodeid=event["nodeid"], location=event["location"])
        elif name in ("workerfinished", "errordown"):
            waiting.discard(event["node"])
    distributed.nodemanager.teardown_nodes()


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    if is_worker(config):
        config.pluginmanager.register(signals)
    elif not only_looks(config):
        interruption = signals.interruption_of(config)
        interruption.kill = lambda: signal_workers(config, signal.SIGKILL)
        interruption.install()
        config.pluginmanager.register(CompletenessCheck(config), "colocate-ledger")
