"""What opens below a group that was begun several times: every run and every attempt at it, with its own course."""

import os
from pathlib import Path

from colocate.report.html import group_charts
from colocate.report.html.elements import Html, el
from colocate.results import Row, attempt_rows, colour, number, peak_text
from colocate.units import duration_text, plural


def section(row: Row, folder: Path, num_points: int) -> Html | None:
    """One fold per attempt, in the order in which they ended; None where there was only one."""
    found = attempt_rows(row)
    if len(found) < 2:
        return None
    runs = len({_place(one)[0] for one in found})
    begun = f"begun {plural(len(found), 'time')}"
    head = f"{plural(runs, 'run')}, {begun}" if runs > 1 else begun.capitalize()
    reported = ". The worst of the runs decides." if runs > 1 else ". The last attempt counts."
    folds = [_fold(one, row, found, folder, num_points) for one in found]
    return el("div", el("p", head, reported, class_="muted"), folds, class_="attempts")


def _fold(one: Row, row: Row, found: list[Row], folder: Path, num_points: int) -> Html:
    assert one.directory is not None, "an attempt has a folder"
    assert row.directory is not None, "and so has the one that decides"
    record = one.record
    decides = one.directory.path == row.directory.path
    figures = [peak_text(record), duration_text(record["duration_s"])]
    summary = el(
        "summary",
        f"{_name(one, found)}: ",
        el("b", record["outcome"], class_=colour(record["outcome"])),
        f", peak {', '.join(filter(None, figures))}",
        el("b", ": this one decides") if decides else None,
    )
    link = el("a", one.directory.path.name, href=Path(os.path.relpath(one.directory.path, folder)).as_posix())
    parts = [
        [el("p", reason) for reason in record["reasons"]],
        el("p", f"Begun again because of this: {', '.join(record['codes'])}.") if _was_repeated(one, found) else None,
        None if decides else group_charts.memory(one, one.directory, num_points),
        el("p", "Files: ", link),
    ]
    return el("details", summary, parts, class_="attempt")


def _name(one: Row, found: list[Row]) -> str:
    """Such as ``run 2, attempt 1``, with what there is several of."""
    run, attempt = _place(one)
    parts = [f"run {run}"] if len({_place(other)[0] for other in found}) > 1 else []
    if not parts or sum(_place(other)[0] == run for other in found) > 1:
        parts.append(f"attempt {attempt}")
    return ", ".join(parts)


def _was_repeated(one: Row, found: list[Row]) -> bool:
    """A later attempt at the same run took its place."""
    run, attempt = _place(one)
    later = any(other_run == run and other > attempt for other_run, other in map(_place, found))
    return later and bool(one.record["codes"])


def _place(row: Row) -> tuple[int, int]:
    """The run that the plan asked for and the attempt at it, both from 1."""
    return (number(row.evidence.get("run")) or 1, number(row.evidence.get("attempt")) or 1)
