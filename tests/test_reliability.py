"""docs/reliability.md is whole, its tests exist, and every fault has an outcome or says why it is not tested."""

import ast
from pathlib import Path

import reliability
from reliability import FAULTS, NOT_RUN, NOT_TESTED

TESTS = Path(__file__).parent


def test_all_faults_of_the_study_are_there() -> None:
    assert [fault.number for fault in FAULTS if fault.number.isdigit()] == [str(n) for n in range(1, 45)]
    assert len({fault.number for fault in FAULTS}) == len(FAULTS)


def test_every_row_names_tests_that_exist_and_their_outcome_or_says_why_there_are_none() -> None:
    functions = {
        f"{path.name}::{node.name}"
        for path in TESTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named = [test.partition("[")[0] for fault in FAULTS for test in fault.tests]

    assert [name for name in named if name not in functions] == []
    assert [fault.number for fault in FAULTS if bool(fault.tests) is (fault.seen == NOT_TESTED)] == []
    assert [fault.number for fault in FAULTS if fault.seen == NOT_RUN] == []


def test_a_row_is_read_and_filled_as_it_stands_on_the_page() -> None:
    text = reliability.PAGE.read_text(encoding="utf-8")
    row = next(fault for fault in FAULTS if fault.number == "1")
    tests = {f"tests/{test}": ["killed"] for test in row.tests}

    assert all(str(fault) in text for fault in FAULTS)
    assert reliability.completed(row, tests).seen == f"killed; {len(tests)} tests passed"
    assert reliability.completed(row, dict(list(tests.items())[1:])) == row


def test_a_fault_that_passes_for_a_group_that_fits_is_a_failure() -> None:
    crash_loop = "tests/test_group_run.py::test_evidence_with_a_hole_is_inconclusive[a crash loop]"

    assert "fault 6" in (reliability.feasible_by_mistake(crash_loop, ["FEASIBLE"]) or "")
    assert reliability.feasible_by_mistake(crash_loop, ["INCONCLUSIVE (background_gave_up)"]) is None
