"""The section on what to do next: which pairs are worth a long run, and which are not."""

from colocate.advice import what_next
from colocate.report.html import large_table
from colocate.report.html.elements import Html, el
from colocate.report.html.peak_chart import pair
from colocate.results import Part, Row, peak_text


def section(part: Part) -> Html | None:
    """Lists of the pairs, and the command that makes a plan of the first two."""
    if not part.rows:
        return None
    found = what_next(part)
    lists = [
        ("Recommended for long runs", "stable, below 40 % of the limit", "v-ok", found.stable),
        ("With monitoring", "usable, up to 53.3 %", "v-warn", found.usable),
        ("With caution", "high-risk: fits, with little room", "v-warn", found.high_risk),
        ("Undecided", "fix this and run again", "v-warn", found.undecided),
        ("Not recommended", "does not fit", "v-bad", found.infeasible),
    ]
    columns = [
        el(
            "div",
            el("h3", title, " ", el("span", f"({why})", class_="muted")),
            el("ul", [el("li", _entry(row)) for row in large_table.first(rows)])
            if rows
            else el("p", "none", class_="muted"),
            large_table.rest(rows),
            class_=f"next {kind}",
        )
        for title, why, kind, rows in lists
    ]
    command = (
        el("p", "A plan of the first two, at full length: ", el("code", f"colocate next {part.runs[-1].place}"))
        if found.recommended and part.runs
        else None
    )
    return el("section", el("h2", "What next"), el("div", columns, class_="nexts"), command)


def _entry(row: Row) -> Html:
    why = f" · {', '.join(row.record['codes']) or peak_text(row.record)}"
    return el("span", el("a", row.group, href=f"#{row.key}"), " ", pair(row), el("span", why, class_="muted"))
