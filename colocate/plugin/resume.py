# SPDX-License-Identifier: Apache-2.0
"""``--resume`` and ``--resume-dry-run``: decide which groups are reused and why the others run again."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from colocate.device import FoundGpu
from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.harness import Decision, decide, find_run, reported, take_up
from colocate.plan import Group
from colocate.plugin import devices, session
from colocate.plugin.invocation import is_worker, only_looks
from colocate.plugin.options import option
from colocate.plugin.outcomes import properties
from colocate.plugin.session import Session, folder, group_of, session_of
from colocate.process import boot_id
from colocate.results import (
    GroupDirectory,
    GroupResult,
    PlanRecord,
    RunDirectory,
    group_results,
    read_attempt,
    read_run,
)
from colocate.verdict import AGAIN, Outcome

_PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")


class Resumption:
    """Reports kept groups in place of running them, in every process; the controller tells its workers which."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session: Session = session_of(config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Called by xdist before a worker is told what to do."""
        node.workerinput["colocate_decisions"] = sendable(self.session.decisions)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Called for each case; a kept one is reported and not run."""
        group = group_of(item.config, item.nodeid)
        decision = None if group is None else self.session.decisions.get(group.id)
        if group is None or decision is None or decision.reused is None:
            return None
        result = _reused(group, decision.reused)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in _reports(item, result):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def _reused(group: Group, reused: GroupResult) -> GroupResult:
    """The result of a kept group, which says so."""
    assert reused.folder is not None, "it is on disk"
    since = f"reused from {reused.folder.run.name}, {reused.evidence.started_at}"
    return replace(reused.as_planned(group), reused=since).with_warning(f"{since} [reused]")


def _reports(item: pytest.Item, result: GroupResult) -> Iterator[pytest.TestReport]:
    """Setup, call and teardown as pytest would have reported them; an inconclusive group is an error, in setup."""
    failing = {Outcome.INFEASIBLE.value: "call", Outcome.INCONCLUSIVE.value: "setup"}.get(result.outcome)
    text = f"{result.outcome} ({result.basis}): {'; '.join(result.reasons)}"
    keywords: Mapping[str, Literal[1]] = dict.fromkeys(item.keywords, 1)
    reported = properties(result)  # one of each for all three
    for when in _PHASES:
        if when == "call" and failing == "setup":
            continue
        failed = when == failing
        report = pytest.TestReport(
            item.nodeid,
            item.location,
            keywords,
            "failed" if failed else "passed",
            text if failed else None,
            when,
            start=time.time(),
            stop=time.time(),
        )
        report.colocate = result  # type: ignore[attr-defined]
        report.user_properties = reported
        yield report


def sendable(decisions: Mapping[str, Decision]) -> list[dict[str, Any]]:
    """Return decisions as builtin types; a worker reads the records itself."""
    return [
        {
            "group": one.group,
            "why": one.why,
            "reused": one.reused is not None,
            "done": [attempt.directory.path.name for attempt in one.done],
        }
        for one in decisions.values()
    ]


def _received(config: pytest.Config) -> Iterator[Decision]:
    """Return the decisions of this worker's controller."""
    run, sent = session.run_directory_of(config), config.workerinput["colocate_decisions"]  # type: ignore[attr-defined]
    found = group_results(run) if any(one["reused"] for one in sent) else {}
    for one in sent:
        done = tuple(read_attempt(GroupDirectory(run.path / name)) for name in one["done"])
        yield Decision(one["group"], one["why"], found[one["group"]] if one["reused"] else None, done)


class Holding:
    """Keeps the run directory to this session, and room for its records on the disk, until the session ends."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._stack = ExitStack()
        self._stack.enter_context(run.locked())
        self._stack.callback(run.release)
        self._stack.callback(shutil.rmtree, run.dry_runs, ignore_errors=True)
        shutil.rmtree(run.dry_runs, ignore_errors=True)  # of a session that was killed

    def pytest_unconfigure(self) -> None:
        """Let go of it."""
        if self._run.path.exists():
            self._stack.close()


def hold(config: pytest.Config, run: RunDirectory) -> None:
    """Lock a run for this session and keep room for its records.

    Raises:
        ColocateError: another session is at this run, or there is no room.
    """
    config.pluginmanager.register(Holding(run), "colocate-holding")
    try:
        run.reserve()
    except ColocateError:
        run.discard()
        raise


def take_over(config: pytest.Config, session: Session) -> RunDirectory:
    """The run that ``--resume`` names, locked, made fit to go on, and with a decision for each group.

    Its record has the plan as it is now: what was run with other settings counts no more.

    Raises:
        ColocateError: there is no such run, or somebody is at it.
        OSError: it cannot be written.
    """
    run = find_run(folder(config, "results", session.home), option(config, "resume"), session.plan.name)
    hold(config, run)
    done = take_up(run)
    decisions = decide(run, session.plan.groups, session.gpus)
    session.decisions = {decision.group: decision for decision in decisions}
    session.earlier = {row.group: _standing(session.decisions.get(row.group)) for row in read_run(run.path).results}
    session.notes += [f"resume: {line}" for line in [*done, *reported(decisions)]]
    if any(decision.reused for decision in decisions):
        asked = [f"--{name}" for name in ("stress", "compare-solo") if option(config, name.replace("-", "_"))]
        session.notes += [f"resume: {name} is for groups that are run, not for those kept" for name in asked]
    _record_session(config, session, run, decisions)
    return run


def _standing(decision: Decision | None) -> str:
    """Return the outcome of a group that an earlier session ran and this one may not select."""
    return AGAIN if decision is None or decision.reused is None else decision.reused.outcome


def _record_session(
    config: pytest.Config, session: Session, run: RunDirectory, decisions: tuple[Decision, ...]
) -> None:
    document = read_json(run.record)
    entry = {
        "resumed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "boot_id": boot_id(),
        "arguments": [str(argument) for argument in config.invocation_params.args],
        "reused": [decision.group for decision in decisions if decision.reused],
        "again": {decision.group: decision.why for decision in decisions if not decision.reused},
    }
    write_json(
        run.record,
        {**document, "plan": asdict(PlanRecord.of(session.plan)), "sessions": [*document.get("sessions", []), entry]},
    )


def explain(config: pytest.Config) -> int:
    """Print what ``--resume`` would do; needs no GPU and starts nothing.

    Raises:
        pytest.UsageError: plan or run cannot be used.
    """
    current = session.start(config)
    try:
        run = find_run(folder(config, "results", current.home), option(config, "resume") or "", current.plan.name)
        decisions = decide(run, current.plan.groups, _gpus(config, current))
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    print(f"run: {run.path}")
    for decision in decisions:
        print(decision)
    return 0


def _gpus(config: pytest.Config, session: Session) -> tuple[FoundGpu, ...]:
    try:
        return devices.find(config, session.plan.limits.gpu_bytes).free
    except pytest.UsageError:  # busy or missing: then the GPUs are no reason
        return ()


def register(config: pytest.Config) -> None:
    """Take part in this session; a worker learns what its controller decided."""
    if only_looks(config):
        return
    session = session_of(config)
    if is_worker(config):
        session.decisions = {decision.group: decision for decision in _received(config)}
    config.pluginmanager.register(Resumption(config), "colocate-resumption")
