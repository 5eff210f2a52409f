"""The groups of a page that are too many for one file: their rows and their details in files beside it.

A browser that opens a page from a disk runs scripts from beside it but fetches no other file, so the rows are a script
that hands them over, and so are the details of a hundred groups each. `large.js` draws what is looked at.
"""

import gc
import json
import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from colocate.files import make_folder, write_text
from colocate.report.html import table
from colocate.report.html.elements import Html, el
from colocate.report.html.peak_chart import picture
from colocate.results import LARGE, Row, colour
from colocate.units import to_mib

SCRIPT = Path(__file__).with_name("large.js")
ROWS = "rows.js"

# Groups per file of details: half a megabyte, which a browser takes in at once.
GROUPS_PER_FILE = 100

# More bars or entries of a list than these are not read; the table has all.
MOST_BARS = 100
MOST_ENTRIES = 50

Entry = TypeVar("Entry")

_BINS = 40


def is_large(rows: Sequence[Row]) -> bool:
    """Whether a page of these rows needs files beside it."""
    return len(rows) > LARGE


def folder_beside(page: Path) -> Path:
    """The folder of details of a page."""
    return page.with_name(f"{page.stem}_groups")


def write_details(page: Path, rows: Sequence[Row], details: Callable[[Row], Html], processes: int = 1) -> None:
    """Write rows and details beside the page, and take away those of a former one.

    With several ``processes`` this one is forked, so it must not have other threads.

    Raises:
        OSError: they cannot be written.
    """
    folder = folder_beside(page)
    for old in folder.glob("*.js"):
        with suppress(OSError):
            old.unlink()
    if not is_large(rows):
        with suppress(OSError):
            folder.rmdir()
        return
    make_folder(folder)
    names = table.columns(rows)
    with (folder / ROWS).open("w", encoding="utf-8") as file:
        file.write(f"colocateRows({{perFile:{GROUPS_PER_FILE},rows:[\n")
        file.writelines(f"{_script_json(_row(row, names))},\n" for row in rows)
        file.write("]});\n")

    def write(starts: Sequence[int]) -> None:
        for start in starts:
            opened = {row.key: details(row.whole()) for row in rows[start : start + GROUPS_PER_FILE]}
            number = start // GROUPS_PER_FILE
            write_text(folder / _file(number), f"colocateDetails({number}, {_script_json(opened)});\n")

    _shared(write, range(0, len(rows), GROUPS_PER_FILE), processes)


def _shared(work: Callable[[Sequence[int]], None], places: Sequence[int], processes: int) -> None:
    """Have the work on all places done by so many processes; a drawn group costs milliseconds, and there are many."""
    if processes < 2:
        work(places)
        return
    gc.freeze()  # else the collector of every child would touch, and so copy, all that it shares with this process
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=work, args=(places[share::processes],)) for share in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    gc.unfreeze()
    if any(child.exitcode for child in children):
        raise OSError("details: expected to be written, got an error in a process that writes them")


def _file(number: int) -> str:
    return f"details_{number:04}.js"


def _script_json(value: object) -> str:
    """JSON that can stand in a script: no text in it can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def section(page: Path, rows: Sequence[Row]) -> Html:
    """The table of groups: search, filters, heads, and the rows as data."""
    folder = folder_beside(page).name
    without = (
        f"The table of {len(rows)} groups needs scripts, which are switched off here. summary.csv in the folder of "
        "the run has all of them."
    )
    return el(
        "section",
        el("h2", "Groups"),
        Html("<noscript><style>.js{display:none}</style></noscript>"),
        el("noscript", el("p", without, class_="banner")),
        table.filters(rows),
        el("p", f"{folder}/{ROWS} is not beside this page: copy the folder together with it.", class_="banner lost js"),
        el("table", table.head(table.columns(rows)), class_="groups large", data_folder=folder),
        el("p", el("button", "show more", type="button", class_="more"), class_="js"),
        el("p", "No group matches.", class_="none-match muted", hidden=True),
        el("script", Html(SCRIPT.read_text(encoding="utf-8"))),
        el("script", "", src=f"{folder}/{ROWS}"),
        class_="groups-section large",
    )


def _row(row: Row, names: Sequence[str]) -> list[object]:
    """Key, outcome, tier, what the search looks in, what the columns sort by, and the row as markup."""
    shown = table.shown(row, names)
    return [row.key, row.record["outcome"], row.record["tier"] or "", table.found_by(row), shown.values, shown.html]


def first(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The beginning of a long list; all of it where it is no longer than what one reads through."""
    return entries[:MOST_ENTRIES] if len(entries) > 2 * MOST_ENTRIES else entries


def rest(entries: Sequence[object]) -> Html | None:
    """How many `first` leaves out."""
    more = len(entries) - len(first(entries))
    return el("p", f"and {more} more, in the table", class_="muted") if more else None


def pictures(rows: Sequence[Row], limit_bytes: int | None) -> Html:
    """How the peaks of all groups are spread, and the bars of the highest."""
    with_peak = [row for row in rows if row.record["peak_bytes"] is not None]
    highest = sorted(with_peak, key=lambda row: -row.record["peak_bytes"])[:MOST_BARS]
    text = f"Below are the {len(highest)} highest of {len(with_peak)} peaks; the table has all."
    note = el("p", text, class_="muted") if len(highest) < len(with_peak) else None
    return Html(_spread(with_peak, limit_bytes) + (note or "") + picture(highest, limit_bytes))


def _spread(rows: Sequence[Row], limit_bytes: int | None) -> Html:
    """A column for every stretch of memory, as high as there are groups with such a peak, coloured by outcome."""
    if not rows:
        return Html()
    top = max([limit_bytes or 0, *(row.record["peak_bytes"] for row in rows)]) * 104 // 100
    counts: list[dict[str, int]] = [{} for _ in range(_BINS)]
    for row in rows:
        column, outcome = counts[row.record["peak_bytes"] * _BINS // (top + 1)], row.record["outcome"]
        column[outcome] = column.get(outcome, 0) + 1
    most = max(sum(column.values()) for column in counts)
    width, height = 1000 / _BINS, 120
    drawn = []
    for place, column in enumerate(counts):
        foot = float(height)
        for outcome, count in sorted(column.items()):
            size = count * height / most
            foot -= size
            low, high = (round(to_mib(top * edge // _BINS)) for edge in (place, place + 1))
            said = f"{low} to {high} MiB: {count} {outcome}"
            drawn.append(
                el(
                    "rect",
                    el("title", said),
                    class_=f"spread {colour(outcome)}",
                    x=round(place * width + 1, 1),
                    y=round(foot, 1),
                    width=round(width - 2, 1),
                    height=round(size, 1),
                )
            )
    if limit_bytes is not None:
        at = round(1000 * limit_bytes / top, 1)
        drawn.append(el("line", class_="limit", x1=at, x2=at, y1=0, y2=height))
    said = f"peaks of {len(rows)} groups from 0 to {round(to_mib(top))} MiB, at most {most} in one column"
    return el(
        "figure",
        el("figcaption", f"How the peaks are spread: 0 to {round(to_mib(top))} MiB, the limit as a line."),
        el(
            "svg",
            drawn,
            viewBox=f"0 0 1000 {height}",
            preserveAspectRatio="none",
            role="img",
            aria_label=said,
            class_="spread-svg",
        ),
    )
