# SPDX-License-Identifier: Apache-2.0
"""``--resume`` and ``--resume-dry-run``: decide which groups are reused and why the others run again."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Literal

import pytest

from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.harness import decide, find_run, reported, take_up
from colocate.plan import Group
from colocate.plugin import devices, session
from colocate.plugin.options import option
from colocate.plugin.outcomes import properties
from colocate.plugin.session import Session, folder, group_of, session_of
from colocate.process import boot_id
from colocate.results import GroupResult, PlanRecord, RunDirectory, read_run
from colocate.verdict import AGAIN, Outcome

_PHASES: tuple[Literal["setup", "call", "teardown"], ...] = ("setup", "call", "teardown")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Called for each case; a kept one is reported in place of being run, in whatever process runs cases."""
    group = group_of(item.config, item.nodeid)
    decision = None if group is None else session_of(item.config).decisions.get(group.id)
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


def hold(config: pytest.Config, run: RunDirectory) -> None:
    """Keep a run, and room for its records, to this session until it ends.

    Raises:
        ColocateError: another session is at this run, or there is no room.
    """
    stack = ExitStack()
    stack.enter_context(run.locked())
    stack.callback(run.release)
    stack.callback(shutil.rmtree, run.dry_runs, ignore_errors=True)
    shutil.rmtree(run.dry_runs, ignore_errors=True)  # of a session that was killed
    config.add_cleanup(lambda: stack.close() if run.path.exists() else None)
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
    for row in read_run(run.path).results:  # an earlier session ran it, and this one may not select it
        known = session.decisions.get(row.group)
        session.earlier[row.group] = AGAIN if known is None or known.reused is None else known.reused.outcome
    session.notes += [f"resume: {line}" for line in [*done, *reported(decisions)]]
    if any(decision.reused for decision in decisions):
        asked = [f"--{name}" for name in ("stress", "compare-solo") if option(config, name.replace("-", "_"))]
        session.notes += [f"resume: {name} is for groups that are run, not for those kept" for name in asked]
    entry = {
        "resumed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "boot_id": boot_id(),
        "arguments": [str(argument) for argument in config.invocation_params.args],
        "reused": [decision.group for decision in decisions if decision.reused],
        "again": {decision.group: decision.why for decision in decisions if not decision.reused},
    }
    document, plan = read_json(run.record), asdict(PlanRecord.of(session.plan))
    write_json(run.record, {**document, "plan": plan, "sessions": [*document.get("sessions", []), entry]})
    return run


def explain(config: pytest.Config) -> int:
    """Print what ``--resume`` would do; needs no GPU and starts nothing.

    Raises:
        pytest.UsageError: plan or run cannot be used.
    """
    current = session.start(config)
    try:
        run = find_run(folder(config, "results", current.home), option(config, "resume") or "", current.plan.name)
        try:
            gpus = devices.find(config, current.plan.limits.gpu_bytes).free
        except pytest.UsageError:  # busy or missing: then the GPUs are no reason
            gpus = ()
        decisions = decide(run, current.plan.groups, gpus)
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    print(f"run: {run.path}")
    for decision in decisions:
        print(decision)
    return 0
