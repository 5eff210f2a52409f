# SPDX-License-Identifier: Apache-2.0
"""What is drawn of all groups: one bar per group, its peak in parts against its own limit.

Positions are thousandths of the width; the templates draw them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from colocate.report.html.peak_shares import Shares, shares
from colocate.results import Row, carries_peak, peak_text
from colocate.units import MIB, format_mib, plural, to_mib

WIDTH = 1000
# More bars than these scroll in a window of their own, and more than those are not read; the table has all.
MANY, MOST_BARS = 40, 100

ORDERS = {
    "plan": "order of the plan",
    "peak": "highest peak first",
    "headroom": "least headroom first",
    "miss": "furthest above what was expected",
}


def picture(rows: Sequence[Row], *, highest: bool = False) -> dict[str, Any] | None:
    """Lay out the bars of all groups whose peak stands for something; with ``highest`` only those of the highest."""
    drawable = [row for row in rows if carries_peak(row.record)]
    shown = sorted(drawable, key=lambda row: -row.record["peak_bytes"])[:MOST_BARS] if highest else drawable
    if not shown:
        return None
    top = _top(shown)
    limits = {row.record["limit_bytes"] for row in shown}
    without = len(rows) - len(drawable)
    return {
        "legend": list(_legend(shown)),
        "orders": ORDERS,
        "note": f"The {len(shown)} highest of {len(drawable)} peaks; the table has all."
        if len(shown) < len(drawable)
        else "",
        "ticks": list(_scale(top, next(iter(limits)) if len(limits) == 1 else None)),
        "many": len(shown) > MANY,
        "grid": [_x(size, top) for size in _ticks(top)],
        "bars": [_bar(row, top, one_limit=len(limits) == 1) for row in shown],
        "without": f"{plural(without, 'group')} without a peak that counts {'are' if without > 1 else 'is'} not shown."
        if without
        else "",
    }


def _top(rows: Sequence[Row]) -> int:
    names = ("peak_bytes", "peak_high_bytes", "expected_bytes", "limit_bytes")
    return max([MIB, *(row.record[name] or 0 for row in rows for name in names)]) * 104 // 100


def _x(size: float, top: int) -> float:
    return round(WIDTH * max(0, size) / top, 1)


def _legend(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    yield from (("foreground", "foreground"), ("background", "background"), ("other", "baseline and other"))
    if any(row.record["expected_bytes"] for row in rows):
        yield "expected", "expected by the plan"
    if any(_is_interval(row) for row in rows):
        yield "whisker", "range of the prediction"
    yield "limit", "limit"


def _scale(top: int, limit: int | None) -> Iterator[tuple[str, float, str]]:
    """Marks as text, place in percent and class; the limit where all groups have the same."""
    for size in _ticks(top):
        if limit is None or abs(size - limit) > top * 0.06:
            yield f"{round(to_mib(size))}", round(100 * size / top, 2), ""
    if limit is not None:
        # Centred on a mark near the right edge, the label would stand out of a phone's screen.
        kind = "limit ends" if limit > 0.8 * top else "limit"
        yield f"limit {format_mib(limit)}", round(100 * limit / top, 2), kind


def _ticks(top: int) -> Iterator[int]:
    steps = (500, 1000, 2000, 4000, 8000, 16000, 32000)
    step = next((step for step in steps if top / (step * MIB) <= 6), max(64000, top // (6 * MIB)))
    yield from range(0, top, step * MIB)


def _is_interval(row: Row) -> bool:
    low, high = row.record["peak_low_bytes"], row.record["peak_high_bytes"]
    return low is not None and high is not None and low != high


def _bar(row: Row, top: int, *, one_limit: bool) -> dict[str, Any]:
    record, split = row.record, shares(row)
    assert split is not None, "only rows with a peak have a bar"
    peak, expected, limit = record["peak_bytes"], record["expected_bytes"], record["limit_bytes"]
    figure = peak_text(record).removesuffix(" MiB")
    return {
        "row": row,
        "said": spoken(row, split),
        "segments": list(_segments(split, top)),
        "expected": _x(expected, top) if expected else None,
        "range": (_x(record["peak_low_bytes"], top), _x(record["peak_high_bytes"], top)) if _is_interval(row) else (),
        "limit": None if limit is None else _x(limit, top),
        "figure": figure if one_limit or limit is None else f"{figure} of {round(to_mib(limit))}",
        "order": {
            "plan": record["number"] or 0,
            "peak": -peak,
            "headroom": record["headroom_bytes"] if record["headroom_bytes"] is not None else 2**60,
            "miss": (expected or peak) - peak,
        },
    }


def _segments(split: Shares, top: int) -> Iterator[tuple[str, float, float]]:
    sizes = {"other": split.other_bytes, "background": split.background_bytes, "foreground": split.foreground_bytes}
    start = 0
    for kind, size in sizes.items() if split.known else [("unsplit", split.peak_bytes)]:
        if size:
            yield kind, _x(start, top), _x(size, top)
            start += size


def spoken(row: Row, split: Shares) -> str:
    """Say the bar in words, for those who do not see it and for those who point at it."""
    record = row.record
    parts = [f"{row.group}, {record['outcome']}: peak {peak_text(record)} of {format_mib(record['limit_bytes'])}"]
    sizes = {"foreground": split.foreground_bytes, "background": split.background_bytes}
    parts += [f"{name} {format_mib(size)}" for name, size in sizes.items() if size is not None]
    if split.known:
        unknown = [name for name, size in sizes.items() if size is None and row.member(name).get("uses_gpu")]
        included = f", {' and '.join(unknown)} included" if unknown else ""
        parts.append(f"baseline and other{included} {format_mib(split.other_bytes)}")
    if split.clipped:
        parts.append("the members' own maxima were not at the same moment")
    if record["expected_bytes"]:
        parts.append(f"the plan expected {format_mib(record['expected_bytes'])}")
    return "; ".join(parts)
