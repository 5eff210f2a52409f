"""The section for remedies that were tried: each group before and after, and the settings to copy.

Everything stands in ``remedies.json`` and the records beside it; nothing is run while a page is made.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from colocate.report.html.elements import Html, el, scrolling_table
from colocate.results import Part, Row, colour, headroom_text, mapping, number, peak_text
from colocate.units import format_mib

Entry = Mapping[str, Any]
Figures = Mapping[str, Any]


def section(part: Part) -> Html | None:
    """Every group for which something was tried; None where nothing was."""
    found = [_entry(row, entry) for row, entry in _of(part)]
    if not found:
        return None
    intro = (
        "Tried at the end of the run, the cheapest first, each in a record of its own. The verdict of the group itself"
        " stays what it was."
    )
    return el("section", el("h2", "Remedies"), el("p", intro, class_="muted"), el("ul", found, class_="needs"))


def _of(part: Part) -> Iterator[tuple[Row, Entry]]:
    """Remedies for the groups as these rows have them, not as an earlier session of the run had them."""
    tried = {run.name: run.remedies for run in part.runs}
    for row in part.counting:
        entry = mapping(mapping(tried.get(row.run)).get(row.group))
        if entry.get("tried") and entry.get("content_hash") == row.content_hash:
            yield row, entry


def _entry(row: Row, entry: Entry) -> Html:
    tried = list(map(mapping, entry["tried"]))
    holds = number(entry.get("holds"))
    remedy = tried[holds] if holds is not None and holds < len(tried) else None
    said = f"fits with {remedy.get('settings')}" if remedy else f"none of {len(tried)} holds"
    head = el("p", el("a", row.group, href=f"#{row.key}"), f" {said}.")
    return el("li", head, _table(entry, tried), _copy(remedy) if remedy else None)


def _table(entry: Entry, tried: list[Entry]) -> Html:
    names = ("", "verdict", "peak", "headroom", "predicted", "record")
    before = _line("as planned", mapping(entry.get("before")), "", "")
    rows = [
        _line(
            f"{one.get('training')}: {one.get('settings')}",
            mapping(one.get("after")),
            _predicted(mapping(one.get("predicted"))),
            str(one.get("directory") or ""),
        )
        for one in tried
    ]
    return scrolling_table("evidence", names, [before, *rows])


def _line(name: str, figures: Figures, predicted: str, directory: str) -> Html:
    known = {"peak_low_bytes": None, "peak_high_bytes": None, "peak_bytes": None, "headroom_bytes": None, **figures}
    outcome = str(figures.get("outcome") or "")
    codes = ", ".join(map(str, figures.get("codes") or ()))
    reported = f"{outcome} ({figures.get('basis')})" + (f": {codes}" if codes else "")
    badge = el("span", reported, class_=colour(outcome))
    cells = (el("td", badge), el("td", peak_text(known)), el("td", headroom_text(known)), el("td", predicted))
    return el("tr", el("th", name, scope="row"), cells, el("td", el("code", directory) if directory else ""))


def _predicted(reported: Entry) -> str:
    peak = mapping(reported.get("peak"))
    low, high = number(peak.get("low_bytes")), number(peak.get("high_bytes"))
    answer = str(reported.get("answer") or "")
    return answer if low is None or high is None else f"{format_mib(low)} to {format_mib(high)}: {answer}"


def _copy(remedy: Entry) -> Html:
    """The member as it is to stand in the plan."""
    text = json.dumps(remedy.get("member"), indent=2, ensure_ascii=False)
    return el("details", el("summary", "To copy into the plan"), el("pre", text))
