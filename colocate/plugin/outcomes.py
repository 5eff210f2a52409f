# SPDX-License-Identifier: Apache-2.0
"""Translate verdicts into pytest's outcomes: passed, failed or error, in terminal, JUnit and HTML alike.

A case hands over a plain *record* of its verdict. Records hold builtin types only, because xdist can send nothing else
and an unknown type would end the whole session.
"""

import json
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from colocate.errors import ColocateError, InconclusiveError
from colocate.plugin.options import option
from colocate.plugin.session import group_of
from colocate.results import RECORD_FIELDS, journal, judged_record
from colocate.units import to_mib
from colocate.verdict import Outcome

if TYPE_CHECKING:
    from colocate.plan import Group
    from colocate.results import GroupResult

Record = dict[str, Any]
"""A `colocate.results.schema.GroupRecord`."""

# Endings without a verdict. The first two are nobody's finding about the group, the others are errors.
NOT_RUN = journal.NOT_RUN
ERROR = "ERROR"
INTERRUPTED = "INTERRUPTED"
CRASHED = "CRASHED"

_RECORD = pytest.StashKey[Record]()


def record_of(group: "Group", group_result: "GroupResult") -> Record:
    """Everything that terminal, JUnit and page show of a judged group, as builtin types; None is unknown.

    GPU and duration are those of the record on disk, which is written before the case ends.
    """
    deciding = group_result.deciding
    judged = judged_record(deciding.directory, deciding.experiment, group_result.verdict.to_json())
    return builtin_record({**judged, **_planned(group)})


def _planned(group: "Group") -> Record:
    """What the plan says of a group."""
    return {
        "group": group.id,
        "number": group.number,
        "tier": group.tier,
        "foreground": group.foreground.name,
        "background": None if group.background is None else group.background.name,
        "expected_bytes": group.expected_bytes,
        "budget_bytes": group.budget_bytes,
    }


def unjudged(group: "Group", outcome: str, *reasons: str) -> Record:
    """The record of a group that ended without a verdict, and why."""
    known = {
        "limit_bytes": group.limits.peak_bytes,
        "outcome": outcome,
        "codes": [],
        "reasons": list(reasons),
        "warnings": [],
    }
    return builtin_record({**dict.fromkeys(RECORD_FIELDS), **_planned(group), **known})


def refuse(node: pytest.Item, group: "Group", code: str, why: str) -> NoReturn:
    """End a case before anything was started.

    Raises:
        InconclusiveError: always.
    """
    text = f"nothing was started: {why} [{code}]"
    attach(node, {**unjudged(group, Outcome.INCONCLUSIVE, text), "codes": [code]})
    raise InconclusiveError(text)


def builtin_record(record: Record) -> Record:
    """The same record in builtin types."""
    return {str(name): plain(value) for name, value in record.items()}


def plain(value: Any) -> Any:
    """The same value in builtin types: a numpy number becomes a number, a path or an enumeration a string."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in value]
    if hasattr(value, "item"):  # a numpy scalar
        return plain(value.item())
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    return str(value)


def attach(node: pytest.Item, record: Record) -> None:
    """Hand a case's record to the reports; call it before the case ends, from its body or a fixture of it."""
    node.stash[_RECORD] = builtin_record(record)


class Outcomes:
    """The hooks around a case and its reports, in every process that runs cases."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Refuse to run a group that was judged: whoever runs failed tests again would run it until it passes."""
        if _RECORD in item.stash and group_of(item.config, item.nodeid) is not None:
            judged = item.stash[_RECORD]["outcome"]
            raise ColocateError(f"{item.nodeid}: expected to be run once, found that it was judged: {judged}")

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self) -> Generator[None, dict[str, Any] | None, dict[str, Any] | None]:
        """Send the record as JSON: execnet cannot send an integer below -2**31, such as a headroom of -2537 MiB."""
        data = yield
        if data is not None and "colocate" in data:
            data["colocate"] = json.dumps(data["colocate"])
        return data

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_from_serializable(self, data: dict[str, Any]) -> Generator[None, Any, Any]:
        """Read the record that a worker sent as JSON."""
        if isinstance(data.get("colocate"), str):
            data["colocate"] = json.loads(data["colocate"])
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Say pytest's word for the outcome of a group, and put its record on the report."""
        report = yield
        group = group_of(item.config, item.nodeid)
        if group is not None:
            record = _settle(report, call, group, item.stash.get(_RECORD, None))
            if record is not None:
                item.stash[_RECORD] = record
                _describe(report, record, option(item.config, "plan"))
        return report


def _settle(
    report: pytest.TestReport, call: pytest.CallInfo[None], group: "Group", record: Record | None
) -> Record | None:
    """Make the report say what the record says, or the record what the report says."""
    if hasattr(report, "wasxfail") and call.excinfo is not None:  # a mark `xfail` turns no verdict
        del report.wasxfail
        report.outcome = "failed"
    if report.skipped:
        return unjudged(group, NOT_RUN, skip_reason(report))
    if call.excinfo is not None:
        return _settle_error(report, call.excinfo.value, group, record)
    if report.when == "call" and (record is None or record["outcome"] != Outcome.FEASIBLE):
        return _settle_unfounded(report, group, record)
    return record


def _settle_error(
    report: pytest.TestReport, error: BaseException, group: "Group", record: Record | None
) -> Record | None:
    """A verdict of infeasible is a failure; everything else is an error, for it says nothing about the group."""
    outcome = None if record is None else record["outcome"]
    infeasible = outcome == Outcome.INFEASIBLE and isinstance(error, AssertionError)
    if infeasible:  # what pytest appends to an assertion's own message says nothing more
        report.longrepr = str(error).splitlines()[0]
    elif isinstance(error, ColocateError):  # a bug of the harness keeps its traceback
        report.longrepr = str(error).replace("\n", "; ") or type(error).__name__
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    if report.when == "teardown" and record is not None:  # the verdict stands, the error is counted beside it
        return {**record, "reasons": [*record["reasons"], f"cleaning up failed: {what}"]}
    if infeasible and report.when == "call":
        return record
    _make_error(report)
    if isinstance(error, InconclusiveError):
        return record if outcome == Outcome.INCONCLUSIVE else unjudged(group, Outcome.INCONCLUSIVE, str(error))
    return unjudged(group, ERROR, str(error) if isinstance(error, ColocateError) else what)


def _settle_unfounded(report: pytest.TestReport, group: "Group", record: Record | None) -> Record:
    """A green line that judged nothing must not exist."""
    found = "none" if record is None else record["outcome"]
    report.outcome = "failed"
    report.longrepr = f"a case that passes: expected the verdict FEASIBLE behind it, found {found}"
    _make_error(report)
    return unjudged(group, ERROR, report.longrepr)


def _make_error(report: pytest.TestReport) -> None:
    """Terminal, JUnit and pytest-html all call a failure outside the call phase an error."""
    if report.when == "call":
        report.when = "setup"


def _describe(report: pytest.TestReport, record: Record, plan: Path | None) -> None:
    """Put the record on the report, and its numbers among the properties that JUnit writes."""
    report.colocate = record  # type: ignore[attr-defined]
    report.user_properties += properties(record)
    if report.failed and record["directory"]:
        report.sections.append((record["group"], "\n".join(_where_to_look(record, plan))))


def skip_reason(report: pytest.TestReport) -> str:
    """The sentence given to ``pytest.skip``."""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return text.removeprefix("Skipped: ")


def properties(record: Record) -> list[tuple[str, object]]:
    """A record as JUnit properties; sizes in MiB, what is unknown is left out."""
    found: list[tuple[str, object]] = []
    for name, value in record.items():
        if value is None or value == []:
            continue
        if name.endswith("_bytes"):
            found.append((name.removesuffix("_bytes") + "_mib", to_mib(value)))
        else:
            found.append((name, " | ".join(value) if isinstance(value, list) else value))
    return found


def _where_to_look(record: Record, plan: Path | None) -> list[str]:
    chosen = "" if plan is None else f" {shlex.quote(str(plan))}"
    again = f"again:  colocate run{chosen} -k {record['group']}"
    return [*(f"note:   {text}" for text in record["warnings"]), f"record: {record['directory']}", again]


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(Outcomes(), "colocate-outcomes")
