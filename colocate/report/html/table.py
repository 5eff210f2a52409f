# SPDX-License-Identifier: Apache-2.0
"""The table of groups: its columns, what they sort by, and what the search looks in."""

from collections.abc import Sequence

from colocate.results import GroupResult, peak_text
from colocate.verdict import Outcome

COLUMNS = {
    "group": "group",
    "verdict": "verdict",
    "memory_class": "class",
    "tier": "tier",
    "foreground": "foreground",
    "background": "background",
    "expected": "expected MiB",
    "peak": "peak MiB",
    "headroom": "headroom MiB",
    "overlap": "overlap",
    "time": "time",
    "gpu": "GPU",
    "run": "run",
}
NUMBERS = ("expected", "peak", "headroom", "overlap", "time")

_ORDER = [Outcome.INFEASIBLE.value, Outcome.INCONCLUSIVE.value, Outcome.FEASIBLE.value]
_SORTED_BY = {
    "group": "number",
    "expected": "expected_bytes",
    "peak": "peak_bytes",
    "headroom": "headroom_bytes",
    "time": "duration_s",
}


def columns(rows: Sequence[GroupResult]) -> dict[str, str]:
    """Choose the columns that say something, by name with their heads: GPU and run only where the rows differ."""
    alike = {"gpu": len({row.gpu for row in rows if all(row.gpu)}) < 2, "run": len({row.run for row in rows}) < 2}
    alike["overlap"] = all(row.overlap is None for row in rows)
    return {name: head for name, head in COLUMNS.items() if not alike.get(name, False)}


def sort_value(row: GroupResult, name: str) -> str | int | float:
    """Return what a cell sorts by; empty where it is not known."""
    if name == "verdict":
        return _ORDER.index(row.outcome) if row.outcome in _ORDER else len(_ORDER)
    if name in ("peak", "headroom") and not peak_text(row):
        return ""
    value = " ".join(row.gpu) if name == "gpu" else getattr(row, _SORTED_BY.get(name, name))
    return "" if value is None else value


def found_by(row: GroupResult) -> str:
    """Return what the search looks in."""
    words = [row.group, row.outcome, row.tier, row.foreground, row.background]
    words += [row.memory_class, row.basis, *row.codes, row.run, row.device_name]
    return " ".join(str(word) for word in words if word).lower()


def counted(rows: Sequence[GroupResult], name: str) -> dict[str, int]:
    """Count the values of a field, in the order in which they come."""
    found: dict[str, int] = {}
    for row in rows:
        if value := getattr(row, name):
            found[value] = found.get(value, 0) + 1
    return found
