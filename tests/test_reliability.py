"""docs/reliability.md is whole, up to date, and every row of it is tested or says why not."""

import ast
from functools import cache
from pathlib import Path

import pytest
import reliability
from faults import FAULTS, Fault

TESTS = Path(__file__).parent


@cache
def functions(file: str) -> frozenset[str]:
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_all_faults_of_the_study_are_there() -> None:
    assert [fault.number for fault in FAULTS if fault.number.isdigit()] == [str(n) for n in range(1, 45)]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.number)
def test_a_fault_has_tests_that_exist_or_a_reason(fault: Fault) -> None:
    assert bool(fault.tests) != bool(fault.untested)
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert name.partition("[")[0] in functions(file), test


def test_the_page_is_that_of_the_table() -> None:
    text = reliability.PAGE.read_text(encoding="utf-8")

    assert text == reliability.render(reliability.stored(text), reliability.measured_of(text)), (
        "docs/reliability.md is stale: run WRITE_RELIABILITY=1 scripts/test"
    )


def test_the_page_has_an_outcome_for_every_fault() -> None:
    seen = reliability.stored(reliability.PAGE.read_text(encoding="utf-8"))

    assert [fault.number for fault in FAULTS if seen[fault.number] == "not run"] == []


def test_a_fault_that_passes_for_a_group_that_fits_is_a_failure() -> None:
    crash_loop = "tests/test_group_run.py::test_evidence_with_a_hole_is_inconclusive[a crash loop]"

    assert "fault 6" in (reliability.feasible_by_mistake(crash_loop, ["FEASIBLE"]) or "")
    assert reliability.feasible_by_mistake(crash_loop, ["INCONCLUSIVE (background_gave_up)"]) is None
