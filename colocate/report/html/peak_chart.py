"""The picture of the whole: one bar per group, its peak in parts against the limit, as inline SVG.

A bar is stretched to the width that there is; all words stand beside it as text.
"""

from collections.abc import Iterator, Sequence

from colocate.report.html.elements import Html, breakable, el
from colocate.report.html.peak_shares import Shares, shares
from colocate.results import Row, colour, peak_text
from colocate.units import MIB, format_mib, plural, to_mib

WIDTH, HEIGHT = 1000, 26
# More bars than these scroll in a window of their own.
MANY = 40

_BAR_TOP, _BAR_HEIGHT = 6, 14

ORDERS = {
    "plan": "order of the plan",
    "peak": "highest peak first",
    "headroom": "least headroom first",
    "miss": "furthest above what was expected",
}


def picture(rows: Sequence[Row], limit_bytes: int | None) -> Html:
    """All groups that have a peak; nothing where none has."""
    with_peak = [row for row in rows if row.record.get("peak_bytes") is not None]
    if not with_peak:
        return Html()
    top = _top(with_peak, limit_bytes)
    bars = [_bar(row, top, limit_bytes) for row in with_peak]
    without = len(rows) - len(with_peak)
    note = f"{plural(without, 'group')} without a peak {'are' if without > 1 else 'is'} not shown."
    return el(
        "section",
        el("h2", "Peak against the limit"),
        el("div", _legend(with_peak), _order(), class_="picture-head"),
        el(
            "div",
            _scale(top, limit_bytes),
            el("div", bars, class_="bars many" if len(bars) > MANY else "bars"),
            class_="picture",
        ),
        el("p", note, class_="muted") if without else None,
        class_="picture-section",
        aria_label="Peak of every group against the limit",
    )


def _top(rows: Sequence[Row], limit_bytes: int | None) -> int:
    reach = [row.record[name] or 0 for row in rows for name in ("peak_bytes", "peak_high_bytes", "expected_bytes")]
    return max([*reach, limit_bytes or 0, MIB]) * 104 // 100


def _x(size: float, top: int) -> float:
    return round(WIDTH * max(0, size) / top, 1)


def _legend(rows: Sequence[Row]) -> Html:
    names = {"foreground": "foreground", "background": "background", "other": "baseline and other"}
    entries = [el("li", el("i", class_=f"key {kind}"), name) for kind, name in names.items()]
    if any(row.record["expected_bytes"] for row in rows):
        entries.append(el("li", el("i", class_="key expected"), "expected by the plan"))
    if any(_is_interval(row) for row in rows):
        entries.append(el("li", el("i", class_="key whisker"), "range of the prediction"))
    entries.append(el("li", el("i", class_="key limit"), "limit"))
    return el("ul", entries, class_="legend")


def _order() -> Html:
    options = [el("option", text, value=value) for value, text in ORDERS.items()]
    return el("label", "Sorted by ", el("select", options, class_="picture-order"), class_="js")


def _scale(top: int, limit_bytes: int | None) -> Html:
    progress_events = [
        el("span", f"{round(to_mib(size))}", class_="tick", style=f"left:{_percent(size, top)}")
        for size in _ticks(top)
        if limit_bytes is None or abs(size - limit_bytes) > top * 0.06
    ]
    if limit_bytes is not None:
        # Centred on a mark near the right edge, the label would stand out of a phone's screen.
        kind = "tick limit ends" if limit_bytes > 0.8 * top else "tick limit"
        style = f"left:{_percent(limit_bytes, top)}"
        progress_events.append(el("span", f"limit {format_mib(limit_bytes)}", class_=kind, style=style))
    return el(
        "div",
        el("span", "MiB", class_="unit"),
        el("div", progress_events, class_="ticks"),
        class_="scale",
        aria_hidden="true",
    )


def _percent(size: float, top: int) -> str:
    return f"{100 * size / top:.2f}%"


def _ticks(top: int) -> Iterator[int]:
    steps = (500, 1000, 2000, 4000, 8000, 16000, 32000)
    step = next((step for step in steps if top / (step * MIB) <= 6), max(64000, top // (6 * MIB)))
    yield from range(0, top, step * MIB)


def _is_interval(row: Row) -> bool:
    return bool(row.record["peak_low_bytes"] != row.record["peak_high_bytes"])


def _bar(row: Row, top: int, limit_bytes: int | None) -> Html:
    record, split = row.record, shares(row)
    assert split is not None, "only rows with a peak have a bar"
    order = {
        "data_plan": record["number"] or 0,
        "data_peak": -record["peak_bytes"],
        "data_headroom": record["headroom_bytes"] if record["headroom_bytes"] is not None else 2**60,
        "data_miss": (record["expected_bytes"] or record["peak_bytes"]) - record["peak_bytes"],
    }
    label = el("span", el("a", row.group, href=f"#{row.key}"), el("span", pair(row), class_="pair"), class_="label")
    figure = el("span", peak_text(record).removesuffix(" MiB"), class_=f"figure {colour(record['outcome'])}")
    return el("div", label, _svg(row, split, top, limit_bytes), figure, class_="bar-row", data_key=row.key, **order)


def pair(row: Row) -> Html:
    """Both members by name."""
    return el("span", breakable(row.record["foreground"]), " + ", breakable(row.record["background"] or "nothing"))


def _svg(row: Row, split: Shares, top: int, limit_bytes: int | None) -> Html:
    said = spoken(row, split, limit_bytes)
    return el(
        "svg",
        el("title", said),
        [_line("grid", _x(size, top)) for size in _ticks(top)],
        _segments(split, top),
        _progress_events(row, top),
        _line("limit", _x(limit_bytes, top)) if limit_bytes is not None else None,
        class_="bar-svg",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=said,
    )


def _segments(split: Shares, top: int) -> Iterator[Html]:
    if not split.known:
        yield _rect("unsplit", 0, split.peak_bytes, top)
        return
    start = 0
    sizes = {"other": split.other_bytes, "background": split.background_bytes, "foreground": split.foreground_bytes}
    for kind, size in sizes.items():
        if size:
            yield _rect(kind, start, size, top)
            start += size


def _rect(kind: str, start: int, size: int, top: int) -> Html:
    return el("rect", class_=kind, x=_x(start, top), y=_BAR_TOP, width=_x(size, top), height=_BAR_HEIGHT)


def _progress_events(row: Row, top: int) -> Iterator[Html]:
    record = row.record
    if record["expected_bytes"]:
        yield _line("expected", _x(record["expected_bytes"], top), 2, HEIGHT - 2)
    if _is_interval(row) and record["peak_low_bytes"] is not None and record["peak_high_bytes"] is not None:
        low, high = _x(record["peak_low_bytes"], top), _x(record["peak_high_bytes"], top)
        middle = _BAR_TOP + _BAR_HEIGHT / 2
        yield el("line", class_="whisker", x1=low, x2=high, y1=middle, y2=middle)
        yield _line("whisker", low, middle - 4, middle + 4)
        yield _line("whisker", high, middle - 4, middle + 4)


def _line(kind: str, x: float, top: float = 0, bottom: float = HEIGHT) -> Html:
    return el("line", class_=kind, x1=x, x2=x, y1=top, y2=bottom)


def spoken(row: Row, split: Shares, limit_bytes: int | None) -> str:
    """The bar in words, for those who do not see it and for those who point at it."""
    record = row.record
    parts = [f"{row.group}, {record['outcome']}: peak {peak_text(record)} of {format_mib(limit_bytes)}"]
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
