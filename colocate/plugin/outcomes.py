# SPDX-License-Identifier: Apache-2.0
"""Translate verdicts into pytest's outcomes: passed, failed or error, in terminal, JUnit and HTML alike.

A case hands over a `GroupResult`, which travels between processes as JSON: xdist sends builtin types only.
"""

import json
import shlex
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from colocate.errors import ColocateError, InconclusiveError
from colocate.plugin.options import option
from colocate.plugin.session import group_of
from colocate.results import GroupResult, journal
from colocate.units import to_mib
from colocate.verdict import Outcome

if TYPE_CHECKING:
    from colocate.plan import Group

# Endings without a verdict. The first two are nobody's finding about the group, the others are errors.
NOT_RUN = journal.NOT_RUN
ERROR = "ERROR"
INTERRUPTED = "INTERRUPTED"
CRASHED = "CRASHED"

_RESULT = pytest.StashKey[GroupResult]()


def refuse(node: pytest.Item, group: "Group", code: str, why: str) -> NoReturn:
    """End a case before anything was started.

    Raises:
        InconclusiveError: always.
    """
    text = f"nothing was started: {why} [{code}]"
    attach(node, replace(GroupResult.without_verdict(group, str(Outcome.INCONCLUSIVE), text), codes=(code,)))
    raise InconclusiveError(text)


def attach(node: pytest.Item, result: GroupResult) -> None:
    """Hand a case's result to the reports; call it before the case ends, from its body or a fixture of it."""
    node.stash[_RESULT] = result


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse to run a group that was judged: whoever runs failed tests again would run it until it passes."""
    if _RESULT in item.stash and group_of(item.config, item.nodeid) is not None:
        judged = item.stash[_RESULT].outcome
        raise ColocateError(f"{item.nodeid}: expected to be run once, found that it was judged: {judged}")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
    """Send the result as JSON: execnet cannot send an integer below -2**31, such as a headroom of -2537 MiB."""
    data = yield
    if data is not None and "colocate" in data:
        data["colocate"] = json.dumps(data["colocate"].to_json())
    return data


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_report_from_serializable(data: dict[str, Any]) -> Generator[None, Any, Any]:
    """Read the result that a worker sent as JSON."""
    if isinstance(data.get("colocate"), str):
        data["colocate"] = GroupResult.from_json(json.loads(data["colocate"]))
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say pytest's word for the outcome of a group, and put its result on the report."""
    report = yield
    group = group_of(item.config, item.nodeid)
    if group is not None:
        result = _settle(report, call, group, item.stash.get(_RESULT, None))
        if result is not None:
            item.stash[_RESULT] = result
            _describe(report, result, option(item.config, "plan"))
    return report


def _settle(
    report: pytest.TestReport, call: pytest.CallInfo[None], group: "Group", result: GroupResult | None
) -> GroupResult | None:
    """Make the report say what the result says, or the result what the report says."""
    if hasattr(report, "wasxfail") and call.excinfo is not None:  # a mark `xfail` turns no verdict
        del report.wasxfail
        report.outcome = "failed"
    if report.skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        return GroupResult.without_verdict(group, NOT_RUN, text.removeprefix("Skipped: "))
    if call.excinfo is not None:
        return _settle_error(report, call.excinfo.value, group, result)
    if report.when == "call" and (result is None or result.outcome != Outcome.FEASIBLE):
        return _settle_unfounded(report, group, result)
    return result


def _settle_error(
    report: pytest.TestReport, error: BaseException, group: "Group", result: GroupResult | None
) -> GroupResult | None:
    """A verdict of infeasible is a failure; everything else is an error, for it says nothing about the group."""
    outcome = None if result is None else result.outcome
    infeasible = outcome == Outcome.INFEASIBLE and isinstance(error, AssertionError)
    if infeasible:  # what pytest appends to an assertion's own message says nothing more
        report.longrepr = str(error).splitlines()[0]
    elif isinstance(error, ColocateError):  # a bug of the harness keeps its traceback
        report.longrepr = str(error).replace("\n", "; ") or type(error).__name__
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    if report.when == "teardown" and result is not None:  # the verdict stands, the error is counted beside it
        return replace(result, reasons=(*result.reasons, f"cleaning up failed: {what}"))
    if infeasible and report.when == "call":
        return result
    _make_error(report)
    if isinstance(error, InconclusiveError) and outcome == Outcome.INCONCLUSIVE:
        return result
    ended = str(Outcome.INCONCLUSIVE) if isinstance(error, InconclusiveError) else ERROR
    return GroupResult.without_verdict(group, ended, str(error) if isinstance(error, ColocateError) else what)


def _settle_unfounded(report: pytest.TestReport, group: "Group", result: GroupResult | None) -> GroupResult:
    """A green line that judged nothing must not exist."""
    found = "none" if result is None else result.outcome
    report.outcome = "failed"
    report.longrepr = f"a case that passes: expected the verdict FEASIBLE behind it, found {found}"
    _make_error(report)
    return GroupResult.without_verdict(group, ERROR, report.longrepr)


def _make_error(report: pytest.TestReport) -> None:
    """Terminal, JUnit and pytest-html all call a failure outside the call phase an error."""
    if report.when == "call":
        report.when = "setup"


def _describe(report: pytest.TestReport, result: GroupResult, plan: Path | None) -> None:
    """Put the result on the report, and its numbers among the properties that JUnit writes."""
    report.colocate = result  # type: ignore[attr-defined]
    report.user_properties += properties(result)
    if report.failed and result.directory:
        chosen = "" if plan is None else f" {shlex.quote(str(plan))}"
        notes = [f"note:   {text}" for text in result.warnings]
        lines = [*notes, f"record: {result.directory}", f"again:  colocate run{chosen} -k {result.group}"]
        report.sections.append((result.group, "\n".join(lines)))


def told_of(report: Any) -> GroupResult | None:
    """The result on a report; None on that of another test."""
    return getattr(report, "colocate", None)


def properties(result: GroupResult) -> list[tuple[str, object]]:
    """A result as JUnit properties; sizes in MiB, what is unknown is left out."""
    found: list[tuple[str, object]] = []
    for name, value in result.to_json().items():
        if value is None or value == [] or name == "content_hash":
            continue
        if name.endswith("_bytes"):
            found.append((name.removesuffix("_bytes") + "_mib", to_mib(value)))
        else:
            found.append((name, " | ".join(value) if isinstance(value, list) else value))
    return found
