# SPDX-License-Identifier: Apache-2.0
"""What is drawn of all groups: one bar per group, its peak in parts against its own limit.

Positions are thousandths of the width; the templates draw them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from colocate.report.html.peak_shares import Shares, shares
from colocate.results import GroupResult, carries_peak, peak_text
from colocate.units import MIB, format_mib, plural, to_mib

WIDTH = 1000
# More bars than these scroll in a window of their own, and more than those are not read; the table has all.
MANY, MOST_BARS = 40, 100


def picture(rows: Sequence[GroupResult], *, highest: bool = False) -> dict[str, Any] | None:
    """Lay out the bars of all groups whose peak stands for something; with ``highest`` only those of the highest."""
    drawable = [row for row in rows if carries_peak(row)]
    shown = sorted(drawable, key=lambda row: -(row.peak_bytes or 0))[:MOST_BARS] if highest else drawable
    if not shown:
        return None
    top = _top(shown)
    limits = {row.limit_bytes for row in shown}
    without = len(rows) - len(drawable)
    return {
        "legend": list(_legend(shown)),
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


def _top(rows: Sequence[GroupResult]) -> int:
    names = ("peak_bytes", "peak_high_bytes", "expected_bytes", "limit_bytes")
    return max([MIB, *(getattr(row, name) or 0 for row in rows for name in names)]) * 104 // 100


def _x(size: float, top: int) -> float:
    return round(WIDTH * max(0, size) / top, 1)


def _legend(rows: Sequence[GroupResult]) -> Iterator[tuple[str, str]]:
    yield from (("foreground", "foreground"), ("background", "background"), ("other", "baseline and other"))
    if any(row.expected_bytes for row in rows):
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


def _is_interval(row: GroupResult) -> bool:
    return None not in (row.peak_low_bytes, row.peak_high_bytes) and row.peak_low_bytes != row.peak_high_bytes


def _bar(row: GroupResult, top: int, *, one_limit: bool) -> dict[str, Any]:
    split = shares(row)
    assert split is not None, "only rows with a peak have a bar"
    expected, limit = row.expected_bytes, row.limit_bytes
    figure = peak_text(row).removesuffix(" MiB")
    return {
        "row": row,
        "said": spoken(row, split),
        "segments": list(_segments(split, top)),
        "expected": _x(expected, top) if expected else None,
        "range": (_x(row.peak_low_bytes or 0, top), _x(row.peak_high_bytes or 0, top)) if _is_interval(row) else (),
        "limit": None if limit is None else _x(limit, top),
        "figure": figure if one_limit or limit is None else f"{figure} of {round(to_mib(limit))}",
    }


def _segments(split: Shares, top: int) -> Iterator[tuple[str, float, float]]:
    sizes = {"other": split.other_bytes, "background": split.background_bytes, "foreground": split.foreground_bytes}
    start = 0
    for kind, size in sizes.items() if split.known else [("unsplit", split.peak_bytes)]:
        if size:
            yield kind, _x(start, top), _x(size, top)
            start += size


def spoken(row: GroupResult, split: Shares) -> str:
    """Say the bar in words, for those who do not see it and for those who point at it."""
    parts = [f"{row.group}, {row.outcome}: peak {peak_text(row)} of {format_mib(row.limit_bytes)}"]
    sizes = {"foreground": split.foreground_bytes, "background": split.background_bytes}
    parts += [f"{name} {format_mib(size)}" for name, size in sizes.items() if size is not None]
    if split.known:
        silent = [member for member in row.evidence.members if sizes.get(member.role, 0) is None and member.uses_gpu]
        unknown = [member.role for member in silent]
        included = f", {' and '.join(unknown)} included" if unknown else ""
        parts.append(f"baseline and other{included} {format_mib(split.other_bytes)}")
    if split.clipped:
        parts.append("the members' own maxima were not at the same moment")
    if row.expected_bytes:
        parts.append(f"the plan expected {format_mib(row.expected_bytes)}")
    return "; ".join(parts)
