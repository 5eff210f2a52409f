# SPDX-License-Identifier: Apache-2.0
"""The table of groups: its columns, what they sort by, and what the search looks in."""

from collections.abc import Sequence

from colocate.results import Row, peak_text
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


def columns(rows: Sequence[Row]) -> dict[str, str]:
    """Choose the columns that say something, by name with their heads: GPU and run only where the rows differ."""
    alike = {"gpu": len({row.gpu for row in rows if all(row.gpu)}) < 2, "run": len({row.run for row in rows}) < 2}
    alike["overlap"] = all(row.record["overlap"] is None for row in rows)
    return {name: head for name, head in COLUMNS.items() if not alike.get(name, False)}


def sort_value(row: Row, name: str) -> str | int | float:
    """Return what a cell sorts by; empty where it is not known."""
    record = row.record
    if name == "verdict":
        outcome = record["outcome"]
        return _ORDER.index(outcome) if outcome in _ORDER else len(_ORDER)
    if name in ("peak", "headroom") and not peak_text(record):
        return ""
    known = {"gpu": " ".join(row.gpu), "run": row.run}
    value = known[name] if name in known else record.get(_SORTED_BY.get(name, name))
    return "" if value is None else value


def found_by(row: Row) -> str:
    """Return what the search looks in."""
    record = row.record
    words = [row.group, record["outcome"], record["tier"], record["foreground"], record["background"]]
    words += [record["memory_class"], record["basis"], *record["codes"], row.run, record["device_name"]]
    return " ".join(str(word) for word in words if word).lower()


def counted(rows: Sequence[Row], name: str) -> dict[str, int]:
    """Count the values of a field, in the order in which they come."""
    found: dict[str, int] = {}
    for row in rows:
        if value := row.record[name]:
            found[value] = found.get(value, 0) + 1
    return found
