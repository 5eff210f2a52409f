"""Below a group: whether sharing was worth it, from ``speedup.json`` beside its record."""

from colocate.advice import read_speedup
from colocate.report.html.elements import Html, el, scrolling_table
from colocate.results import Row


def section(row: Row) -> Html | None:
    """Time and energy together against one after the other; nothing where nobody asked."""
    found = None if row.directory is None else read_speedup(row.directory)
    if found is None:
        return None
    if not found.runs:
        return el("p", el("b", "Worth it? "), f"Not known: {found.unknown}.", class_="speedup")
    heads = ("together", "one after the other", "time saved", "foreground slower", "background slower", "energy saved")
    rows = [
        el(
            "tr",
            [
                el("td", cell, class_="num")
                for cell in (
                    f"{one.together_s:.1f} s",
                    f"{one.sequential_s:.1f} s",
                    f"{one.time_saved:.0%}",
                    f"{one.foreground_slowdown:.2f} times",
                    f"{one.background_slowdown:.2f} times" if one.background_solo_s else "",
                    "not told" if one.energy_saved is None else f"{one.energy_saved:.0%} (GPU)",
                )
            ],
        )
        for one in found.runs
    ]
    text = el("p", el("b", "Worth it? "), f"{found}, for the same work.", class_="speedup")
    return el("div", text, scrolling_table("evidence", heads, rows, numbers=heads))
