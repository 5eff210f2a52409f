"""The table of groups: one body per group, so that a group and what opens below it stay together when it is sorted."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from colocate.report.html.elements import Attribute, Html, Part, breakable, el
from colocate.results import Record, Row, colour, peak_text
from colocate.units import duration_text, mib_text
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
    "gpu": "gpu",
    "run": "run",
}
NUMBERS = ("expected", "peak", "headroom", "overlap", "time")
_UNLABELLED = ("group", "verdict")


def columns(rows: Sequence[Row]) -> list[str]:
    """Those that say something: GPU and run only where the rows differ in them."""
    alike = {"gpu": len({row.gpu for row in rows if all(row.gpu)}) < 2, "run": len({row.run for row in rows}) < 2}
    empty = {"overlap": all(row.record["overlap"] is None for row in rows)}
    return [name for name in COLUMNS if not alike.get(name, False) and not empty.get(name, False)]


def head(names: Sequence[str]) -> Html:
    """The heads of the columns, each with a button that sorts."""
    cells = [
        el(
            "th",
            el("button", COLUMNS[name], type="button", data_sort=name),
            scope="col",
            class_="num" if name in NUMBERS else None,
        )
        for name in names
    ]
    return el("thead", el("tr", cells))


def body(row: Row, names: Sequence[str], opened: Html, *, lazy: bool) -> Html:
    """One group: its row and, folded away, what opens below it; ``lazy`` leaves that unbuilt until it is asked for."""
    return _body(row, names, [_cell(row, name) for name in names], el("template", opened) if lazy else opened)


@dataclass(frozen=True)
class Shown:
    """A row as markup with nothing below it yet, and what its columns sort by."""

    html: Html
    values: list[Attribute]


def shown(row: Row, names: Sequence[str]) -> Shown:
    """One group without what opens below it."""
    cells = [_cell(row, name) for name in names]
    return Shown(_body(row, names, cells, Html()), [_content(row, name)[1] for name in names])


def _body(row: Row, names: Sequence[str], cells: Sequence[Html], below: Html) -> Html:
    return el(
        "tbody",
        el("tr", cells, class_="group-row"),
        el("tr", el("td", below, colspan=len(names)), class_="opened", id=f"{row.key}-details", hidden=True),
        id=row.key,
        class_="group",
        data_outcome=row.record["outcome"],
        data_tier=row.record["tier"] or "",
        data_find=found_by(row),
    )


def found_by(row: Row) -> str:
    """What the search looks in."""
    record = row.record
    words = [row.group, record["outcome"], record["tier"], record["foreground"], record["background"]]
    words += [record["memory_class"], record["basis"], *record["codes"], row.run, record["device_name"]]
    return " ".join(str(word) for word in words if word).lower()


def _cell(row: Row, name: str) -> Html:
    content, value = _content(row, name)
    label = None if name in _UNLABELLED else COLUMNS[name]
    classes = f"col-{name}" + (" num" if name in NUMBERS else "")
    shown = "" if value is None else value
    if name == "group":
        return el("th", content, scope="row", class_=classes, data_v=shown)
    return el("td", content, class_=classes, data_v=shown, data_label=label if content else None)


def _content(row: Row, name: str) -> tuple[Part, Attribute]:
    """What a cell shows, and what it sorts by."""
    record = row.record
    known: dict[str, Callable[[], tuple[Part, Attribute]]] = {
        "group": lambda: _group(row),
        "verdict": lambda: _verdict(row),
        "foreground": lambda: (breakable(record["foreground"]), record["foreground"]),
        "background": lambda: (breakable(record["background"] or "none"), record["background"] or ""),
        "expected": lambda: _size(record["expected_bytes"]),
        "peak": lambda: _peak(row),
        "headroom": lambda: _size(record["headroom_bytes"], beside=0),
        "overlap": lambda: _overlap(row),
        "time": lambda: (duration_text(record["duration_s"]), record["duration_s"]),
        "gpu": lambda: (el("span", row.gpu[0], " ", el("span", row.gpu[1], class_="muted")), " ".join(row.gpu)),
        "run": lambda: (breakable(row.run), row.run),
    }
    return known[name]() if name in known else (record.get(name) or "", record.get(name) or "")


def _group(row: Row) -> tuple[Html, int | str]:
    button = el(
        "button", row.group, type="button", class_="fold", aria_expanded="false", aria_controls=f"{row.key}-details"
    )
    return button, row.record["number"] if row.record["number"] is not None else ""


def _verdict(row: Row) -> tuple[Html, int]:
    record = row.record
    badge = el("span", record["outcome"], class_=f"badge {colour(record['outcome'])}")
    basis = el("span", record["basis"], class_="basis") if record["basis"] else None
    codes = [el("span", breakable(code), class_="codes") for code in record["codes"]]
    order = [Outcome.INFEASIBLE, Outcome.INCONCLUSIVE, Outcome.FEASIBLE]
    place = order.index(Outcome(record["outcome"])) if record["outcome"] in set(Outcome) else len(order)
    return el("span", badge, " ", basis, codes), place


def _size(num_bytes: int | None, beside: int | None = None) -> tuple[str, int | None]:
    return mib_text(num_bytes, beside=beside), num_bytes


def _peak(row: Row) -> tuple[Html | str, int | None]:
    record: Record = row.record
    peak, limit = record["peak_bytes"], record["limit_bytes"]
    if peak is None:
        return "", None
    text = el("span", peak_text(record).removesuffix(" MiB"))
    if not limit:
        return text, peak
    width = min(100, round(100 * peak / limit))
    return Html(text + el("span", el("i", style=f"width:{width}%"), class_=f"bar {colour(record['outcome'])}")), peak


def _overlap(row: Row) -> tuple[str, float | None]:
    overlap = row.record["overlap"]
    return ("" if overlap is None else f"{overlap:.0%}"), overlap


def filters(rows: Sequence[Row]) -> Html:
    """Search, and a box for every verdict and every tier that occurs."""
    outcomes = _counted(row.record["outcome"] for row in rows)
    tiers = _counted(row.record["tier"] for row in rows if row.record["tier"])
    boxes = [_boxes("verdict", "outcome", outcomes)]
    if len(tiers) > 1:
        boxes.append(_boxes("tier", "tier", tiers))
    search = el("label", "Search ", el("input", type="search", class_="find", placeholder="group, model, reason …"))
    buttons = el(
        "span",
        el("button", "unfold all", type="button", class_="unfold-all"),
        el("button", "fold all", type="button", class_="fold-all"),
    )
    count = el("output", "", class_="count", aria_live="polite")
    return el("form", search, boxes, buttons, count, class_="filters-own js", role="search", onsubmit="return false")


def _counted(values: Iterator[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def _boxes(legend: str, name: str, counts: dict[str, int]) -> Html:
    boxes = [
        el("label", el("input", type="checkbox", checked=True, data_filter=name, value=value), f" {value} {count}")
        for value, count in counts.items()
    ]
    return el("fieldset", el("legend", legend), boxes)
