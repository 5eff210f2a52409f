"""The page docs/reliability.md: the faults of `faults.FAULTS`, what the tests that provoke them saw, and the soak.

``WRITE_RELIABILITY=1 python -m pytest $(python tests/reliability.py)`` runs these tests only and writes the page.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from faults import FAULTS, Fault

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
MEASURED = "## Measured by hand\n"

_HEAD = (
    "# What colocate survives\n\n"
    "This page is written by the tests: `WRITE_RELIABILITY=1 scripts/test` puts what they saw into the last column; "
    "`tests/test_reliability.py` fails when it is stale.\n"
    "The rows are in `tests/faults.py`, each with the tests that provoke the fault for real: with real processes, a "
    "simulated NVML library, the virtual GPU, or a disk of its own.\n\n"
    "No fault ever yields FEASIBLE: a test below that sees this verdict fails, but for the rows that say why it is "
    "right there.\n\n"
)


def feasible_by_mistake(nodeid: str, seen: Sequence[str]) -> str | None:
    """Why what a test saw must not be, or None."""
    faults = [fault for fault in FAULTS if not fault.feasible and _provokes(fault, nodeid)]
    if faults and any(text.startswith("FEASIBLE") for text in seen):
        return f"fault {faults[0].number} ({faults[0].fault}): expected any verdict but FEASIBLE, saw {list(seen)}"
    return None


def outcomes(passed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What was seen of each fault, by its number; faults of which a test did not run or pass are left out."""
    found = {}
    for fault in FAULTS:
        ran = {test: [node for node in passed if _names(test, node)] for test in fault.tests}
        if fault.tests and all(ran.values()):
            nodes = list(dict.fromkeys(node for nodes in ran.values() for node in nodes))
            seen = dict.fromkeys(text for node in nodes for text in passed[node])
            words = f"{len(nodes)} test{'s' if len(nodes) > 1 else ''} passed"
            found[fault.number] = "; ".join([*seen, words])
    return found


def render(seen: Mapping[str, str], measured: str) -> str:
    """The whole page."""
    rows = ["| # | fault | provoked by | expected | outcome seen |", "| --- | --- | --- | --- | --- |"]
    rows += [_row(fault, seen.get(fault.number)) for fault in FAULTS]
    return _HEAD + "\n".join(rows) + "\n\n" + MEASURED + measured


def write_page(passed: Mapping[str, Sequence[str]]) -> None:
    """Put what this session saw into the page; rows of which not all tests ran keep what they say."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    PAGE.write_text(render({**stored(text), **outcomes(passed)}, measured_of(text)), encoding="utf-8")


def stored(text: str) -> dict[str, str]:
    """The outcomes that a page shows."""
    found = (line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [0-9A-Z]", line))
    return {cells[0]: cells[-1] for cells in found}


def measured_of(text: str) -> str:
    """What a person wrote below the table."""
    return text.partition(MEASURED)[2]


def _row(fault: Fault, seen: str | None) -> str:
    how = fault.untested or f"{fault.provoked}: " + ", ".join(f"`{test}`" for test in fault.tests)
    expected = fault.expected + (f" (may be FEASIBLE: {fault.feasible})" if fault.feasible else "")
    cells = (fault.number, fault.fault, how, expected, "not tested" if fault.untested else seen or "not run")
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _provokes(fault: Fault, nodeid: str) -> bool:
    return any(_names(test, nodeid) for test in fault.tests)


def _names(test: str, nodeid: str) -> bool:
    node = nodeid.removeprefix("tests/")
    return node == test or (not test.endswith("]") and node.partition("[")[0] == test)


if __name__ == "__main__":
    print("\n".join(dict.fromkeys("tests/" + test.partition("[")[0] for fault in FAULTS for test in fault.tests)))
