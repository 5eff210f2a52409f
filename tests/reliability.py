"""The rows of docs/reliability.md: each fault, the tests that provoke it, and the outcome that those tests saw.

A person writes a row; ``WRITE_RELIABILITY=1 python -m pytest $(python tests/reliability.py)`` fills its last column.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
NOT_RUN, NOT_TESTED = "not run", "not tested"


@dataclass(frozen=True)
class Fault:
    """One row of the page. ``feasible`` says why a FEASIBLE is right there, where it is."""

    number: str
    fault: str
    provoked: str
    expected: str
    seen: str

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`(test_\w+\.py::[^`]+)`", self.provoked)

    @property
    def feasible(self) -> str:
        return self.expected.partition(" (may be FEASIBLE: ")[2].removesuffix(")")

    def __str__(self) -> str:
        return f"| {self.number} | {self.fault} | {self.provoked} | {self.expected} | {self.seen} |"

    def provokes(self, nodeid: str) -> bool:
        return any(_names(test, nodeid) for test in self.tests)


def read(text: str) -> list[Fault]:
    """The rows of a page."""
    rows = (line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| [0-9A-Z]", line))
    return [Fault(*cells) for cells in rows]


FAULTS = read(PAGE.read_text(encoding="utf-8"))


def feasible_by_mistake(nodeid: str, seen: Sequence[str]) -> str | None:
    """Say why what a test saw must not be, or None."""
    faults = [fault for fault in FAULTS if not fault.feasible and fault.provokes(nodeid)]
    if faults and any(text.startswith("FEASIBLE") for text in seen):
        return f"fault {faults[0].number} ({faults[0].fault}): expected any verdict but FEASIBLE, saw {list(seen)}"
    return None


def completed(fault: Fault, passed: Mapping[str, Sequence[str]]) -> Fault:
    """The row with what its tests saw; unchanged where one of them did not run or pass."""
    ran = {test: [node for node in passed if _names(test, node)] for test in fault.tests}
    if not fault.tests or not all(ran.values()):
        return fault
    nodes = list(dict.fromkeys(node for nodes in ran.values() for node in nodes))
    words = f"{len(nodes)} test{'s' if len(nodes) > 1 else ''} passed"
    return replace(fault, seen="; ".join([*dict.fromkeys(text for node in nodes for text in passed[node]), words]))


def write_page(passed: Mapping[str, Sequence[str]]) -> None:
    """Put what this session saw into the last column of the page."""
    text = PAGE.read_text(encoding="utf-8")
    for fault in read(text):
        text = text.replace(str(fault), str(completed(fault, passed)))
    PAGE.write_text(text, encoding="utf-8")


def _names(test: str, nodeid: str) -> bool:
    node = nodeid.removeprefix("tests/").partition("@")[0]  # xdist names the group of a test behind its name
    return node == test or (not test.endswith("]") and node.partition("[")[0] == test)


if __name__ == "__main__":
    print("\n".join(dict.fromkeys("tests/" + test.partition("[")[0] for fault in FAULTS for test in fault.tests)))
