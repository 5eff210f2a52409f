# SPDX-License-Identifier: Apache-2.0
"""What the exit code rests on, told in the last line of the terminal, in JUnit and by pytest's exit code alike.

With ``--gate=plan`` the plan's own rule decides about the groups that were selected. Where it holds, groups that do not
fit are tolerated: JUnit has them as expected failures, so that a CI system does not contradict the exit code.
"""

import os
from collections.abc import Generator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from colocate.plugin.options import option
from colocate.plugin.session import Session, session_of, terminal_of, warn
from colocate.verdict import Outcome, PlanVerdict

PLAN_RULE = "plan"
MOST_NAMED = 6

HELD = {"holds": "holds", "fails": "does not hold", "is undecided": "is undecided"}
OTHER_CODES = {
    int(pytest.ExitCode.NO_TESTS_COLLECTED): "no group was selected",
    int(pytest.ExitCode.INTERNAL_ERROR): "an error inside of pytest, see above; what was finished is recorded",
    int(pytest.ExitCode.USAGE_ERROR): "the arguments cannot be used, see above",
}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None, None, None]:
    """Once everybody has written and the exit code stands: make JUnit agree with it, and say why it is so."""
    yield
    config, code = session.config, int(session.exitstatus)
    ours, by_plan = session_of(config), option(config, "gate") == PLAN_RULE
    against = [name for name, found in selected(ours).outcomes.items() if found != Outcome.FEASIBLE]
    tolerated = against if by_plan and code == pytest.ExitCode.OK else []
    path = getattr(config.option, "xmlpath", None)
    if path:
        try:
            agree(Path(os.path.abspath(os.path.expanduser(path))), ours, set(tolerated))  # noqa: PTH100, PTH111
        except (OSError, ElementTree.ParseError) as error:
            warn(config, f"{path}: could not add the plan's verdict: {error}")
    terminal = terminal_of(config)
    if terminal is not None:
        terminal.write_line(f"exit {code}: {_why(code, selected(ours), against, by_plan=by_plan)}")


def _why(code: int, verdict: PlanVerdict, against: list[str], *, by_plan: bool) -> str:
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return OTHER_CODES.get(code, "the run was ended early")
    counted = f"{verdict.feasible} of {verdict.total} feasible, {verdict.needed} needed by the plan"
    named = ", ".join(against[:MOST_NAMED])
    named += f" and {len(against) - MOST_NAMED} more" if len(against) > MOST_NAMED else ""
    if by_plan:
        tolerated = f"; tolerated: {named}" if code == pytest.ExitCode.OK and against else ""
        return f"the plan's rule {HELD[verdict.holding]} for the selected groups, {counted}{tolerated}"
    return f"{counted}; not: {named}" if against else counted


def selected(session: Session) -> PlanVerdict:
    """How the plan's rule stands for the groups that this session selected; for all of them where nobody told which."""
    plan = session.plan
    ids = [group.id for group in session.selected] or list(plan.ids)
    found = {name: result.outcome for name, result in session.results.items()}
    return PlanVerdict.of(ids, session.earlier | found, plan.needed(len(ids)), plan.limits.success_rate)


def agree(path: Path, session: Session, tolerated: set[str]) -> None:
    """Put the plan's verdict into a JUnit file, and turn the failures of tolerated groups into expected ones.

    Raises:
        OSError: it cannot be read or written.
        ElementTree.ParseError: it is no XML.
    """
    document = ElementTree.parse(path)
    for suite in document.iter("testsuite"):
        for case in suite.iter("testcase"):
            name = case.get("name", "")
            if name[name.find("[") + 1 : -1] in tolerated:
                _expect(case, suite)
        _describe(suite, selected(session))
    document.write(path, encoding="utf-8", xml_declaration=True)


def _expect(case: ElementTree.Element, suite: ElementTree.Element) -> None:
    for kind, counter in (("failure", "failures"), ("error", "errors")):
        for found in case.findall(kind):
            found.tag = "skipped"
            found.attrib = {"type": "pytest.xfail", "message": found.get("message", "")}
            suite.set(counter, str(int(suite.get(counter, "1")) - 1))
            suite.set("skipped", str(int(suite.get("skipped", "0")) + 1))


def _describe(suite: ElementTree.Element, verdict: PlanVerdict) -> None:
    properties = suite.find("properties")
    if properties is None:
        properties = ElementTree.Element("properties")
        suite.insert(0, properties)
    values = {"plan": verdict.holding, "feasible": verdict.feasible, "needed": verdict.needed, "groups": verdict.total}
    for name, value in values.items():
        ElementTree.SubElement(properties, "property", name=f"colocate_{name}", value=str(value))
