"""What the page says of groups that were stressed: how much more could be taken, beside what subtraction says."""

from collections.abc import Sequence

from colocate.advice import Stress
from colocate.report.html.elements import Html, el, scrolling_table
from colocate.results import Part, Row, headroom_text, peak_text
from colocate.units import format_mib

_HEADS = ("group", "peak", "headroom, subtracted", "held with less by", "broke with less by", "class", "class, felt")


def found_in(rows: Sequence[Row]) -> list[tuple[Row, Stress]]:
    """The groups with an answer, and the answer."""
    read = [(row, Stress.read(row.directory)) for row in rows if row.directory is not None]
    return [(row, found) for row, found in read if found is not None]


def section(part: Part) -> Html | None:
    """A table; nothing where no group was stressed."""
    found = found_in(part.counting)
    if not found:
        return None
    rows = [_row(row, one) for row, one in found]
    basis = "predicted on virtual GPUs" if found[0][1].basis == "predicted" else "measured"
    return el(
        "section",
        el("h2", "Distance to the breaking point"),
        el(
            "p",
            f"Each group was run again on smaller and smaller GPUs until it broke ({basis}). A training can live with "
            "less than it takes, because PyTorch's allocator gives back what it only keeps; so the breaking point may "
            "be further than the headroom says, or nearer, where two peaks met that had not met before. The felt "
            "class is drawn by what the group is known to need; the plan's class and verdict stay as they are.",
            class_="muted",
        ),
        scrolling_table("plain", _HEADS, rows, numbers=_HEADS[1:]),
    )


def _row(row: Row, found: Stress) -> Html:
    broke = format_mib(found.breaks_bytes, "not seen")
    why = f"{found.broke_by or ''}{'; ' if found.broke_by and found.unfinished else ''}{found.unfinished or ''}"
    cells = [
        peak_text(row.record),
        headroom_text(row.record),
        format_mib(found.holds_bytes),
        el("span", broke, " ", el("span", why, class_="muted")) if why else broke,
        row.record["memory_class"],
        found.memory_class,
    ]
    name = el("th", el("a", row.group, href=f"#{row.key}"), scope="row")
    return el("tr", name, [el("td", cell, class_="num") for cell in cells])
