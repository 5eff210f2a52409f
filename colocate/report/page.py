"""The parts of the page: cells, details of a group, tiles and banners, as HTML in which everything foreign is escaped.

Reads run directories; knows neither pytest nor pytest-html.
"""

import os
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.evidence import Interval
from colocate.recordings import read_trace
from colocate.report.tally import Tally
from colocate.report.timeline import timeline
from colocate.report.words import Record, basis_of, duration_text, headroom_text, peak_text
from colocate.run_directory import GroupDirectory, read_json
from colocate.units import format_mib, to_mib
from colocate.verdict import Outcome

STYLESHEET = Path(__file__).with_name("style.css")

# A log stays a file beside the page; what is copied into it is its end.
LOG_LINES = 40
LOG_BYTES = 16 * 1024
LOG_LINE_CHARACTERS = 300

COLUMNS = {
    "group": "group",
    "tier": "tier",
    "foreground": "foreground",
    "background": "background",
    "expected": "expected MiB",
    "peak": "peak MiB",
    "headroom": "headroom MiB",
    "basis": "basis",
    "verdict": "verdict",
}
_NUMBERS = ("expected", "peak", "headroom")
_HIGHEST = 10**15  # bytes; added to a number so that its digits sort as the number does, also below zero
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\x0b-\x1f\x7f]")
_COLOURS = {Outcome.FEASIBLE.value: "v-ok", Outcome.INFEASIBLE.value: "v-bad"}


def colour(record: Record) -> str:
    """The class that colours a verdict."""
    return _COLOURS.get(record["outcome"], "v-warn")


def header_cells() -> list[str]:
    """The heads of the columns; each sorts."""
    return [
        f'<th class="sortable{" num" if name in _NUMBERS else ""}" data-column-type="{name}">{title}</th>'
        for name, title in COLUMNS.items()
    ]


def row_cells(record: Record) -> list[str]:
    """The cells of a group, each on one line, as pytest-html's sorting needs it."""
    texts = {
        "group": _sorted_by(record["number"], escape(record["group"])),
        "tier": escape(record["tier"] or ""),
        "foreground": _name(record["foreground"]),
        "background": _name(record["background"] or "none"),
        "expected": _size(record["expected_bytes"]),
        "peak": _peak(record),
        "headroom": _size(record["headroom_bytes"]),
        "basis": escape(record["basis"] or ""),
        "verdict": _verdict(record),
    }
    return [_cell(name, text) for name, text in texts.items()]


def _name(text: str) -> str:
    """A name that may break after its underscores, where the column is narrow."""
    return escape(text).replace("_", "_<wbr>")


def _cell(name: str, text: str) -> str:
    classes = f"col-{name}" + (" num" if name in _NUMBERS else "")
    label = "" if name in ("group", "verdict") else f' data-label="{COLUMNS[name]}"'
    return f'<td class="{classes}"{label}>{" ".join(text.split())}</td>'


def _sorted_by(number: int | None, text: str) -> str:
    """The sorting compares strings: hidden digits of equal length before the text, the unknown after all numbers."""
    return f"<i hidden>{'~' if number is None else f'{number + _HIGHEST:016}'}</i>{text}"


def _size(num_bytes: int | None) -> str:
    return _sorted_by(num_bytes, "" if num_bytes is None else f"{to_mib(num_bytes):.0f}")


def _peak(record: Record) -> str:
    peak, limit = record["peak_bytes"], record["limit_bytes"]
    if peak is None or not limit:
        return _sorted_by(peak, "")
    width = min(100, round(100 * peak / limit))
    bar = f'<span class="bar {colour(record)}"><i style="width:{width}%"></i></span>'
    return _sorted_by(peak, escape(peak_text(record).removesuffix(" MiB")) + bar)


def _verdict(record: Record) -> str:
    codes = "".join(f'<span class="codes">{escape(code)}</span>' for code in record["codes"])
    return f'<span class="badge {colour(record)}">{escape(record["outcome"])}</span>{codes}'


def details(record: Record, report_folder: Path) -> str:
    """What opens below a row: why, the memory over time, where the record is, and how to run it again."""
    parts = [_why(record), _notes(record), _facts(record)]
    if record["directory"]:
        parts += _from_directory(record, GroupDirectory(Path(record["directory"])), report_folder)
    parts.append(f"<p>Again: <code>pytest feasibility -k {escape(record['group'])}</code></p>")
    return f'<div class="details">{"".join(parts)}</div>'


def _why(record: Record) -> str:
    if not record["reasons"]:
        return ""
    lines = "".join(f"<p>{escape(reason)}</p>" for reason in record["reasons"])
    return f'<div class="why {colour(record)}">{lines}</div>'


def _notes(record: Record) -> str:
    notes = "".join(f"<li>{escape(note)}</li>" for note in record["warnings"])
    return f'<ul class="notes">{notes}</ul>' if notes else ""


def _facts(record: Record) -> str:
    overlap = record["overlap"]
    facts = {
        "verdict": f"{record['outcome']} ({record['basis'] or 'not judged'})",
        "peak": peak_text(record),
        "headroom": headroom_text(record),
        "stability": record["stability"],
        "overlap": None if overlap is None else f"{overlap:.0%}",
        "time": duration_text(record["duration_s"]),
        "card": record["device_name"],
    }
    if not record["basis"]:
        return ""
    shown = "".join(f"<div><span>{name}</span> {escape(str(fact))}</div>" for name, fact in facts.items() if fact)
    return f'<div class="facts">{shown}</div>'


def _from_directory(record: Record, directory: GroupDirectory, report_folder: Path) -> Iterator[str]:
    yield _picture(record, directory)
    links = [_link(path, report_folder) for path in _files(directory) if path.exists()]
    if links:
        yield f"<p>Files: {', '.join(links)}</p>"
    for path in (directory.foreground_log, _last_background_log(directory)):
        if path is not None and path.exists():
            yield _log(path, directory)


def _files(directory: GroupDirectory) -> list[Path]:
    named = [directory.experiment, directory.verdict, directory.trace, directory.foreground_log]
    background = _last_background_log(directory)
    return named if background is None else [*named, background]


def _last_background_log(directory: GroupDirectory) -> Path | None:
    life = 0
    while directory.background_log(life + 1).exists():
        life += 1
    return directory.background_log(life) if life else None


def _link(path: Path, report_folder: Path) -> str:
    target = Path(os.path.relpath(path, report_folder)).as_posix()
    return f'<a href="{escape(target)}">{escape(path.name)}</a>'


def _picture(record: Record, directory: GroupDirectory) -> str:
    if record["limit_bytes"] is None or not directory.trace.exists():
        return ""
    try:
        samples = read_trace(directory.trace).samples
    except (OSError, ValueError) as error:
        return f'<p class="v-warn">{escape(str(error))}</p>'
    picture = timeline(samples, record["limit_bytes"], _spans(directory), record["group"])
    return f'<div class="scroll">{picture}</div>'


def _spans(directory: GroupDirectory) -> dict[str, list[Interval]]:
    """When each member ran, by the record; nothing where there is none."""
    try:
        evidence = read_json(directory.experiment)["evidence"]
        members = {role: evidence[role] for role in ("foreground", "background") if evidence.get(role)}
        return {role: [_life(life) for life in member["lives"] if life["exit"]] for role, member in members.items()}
    except (ColocateError, KeyError, TypeError):
        return {}


def _life(life: dict[str, Any]) -> Interval:
    return (float(life["started_s"]), float(life["exit"]["ended_s"]))


def _log(path: Path, directory: GroupDirectory) -> str:
    lines = last_lines(path)
    name = path.relative_to(directory.path).as_posix()
    text = escape("\n".join(lines)) or "(empty)"
    return f"<details><summary>{escape(name)}: last {len(lines)} lines</summary><pre>{text}</pre></details>"


def last_lines(path: Path) -> list[str]:
    """The end of a log without control characters: some lines of some length, whatever the log's size."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(max(0, size - LOG_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = text.splitlines()[1 if size > LOG_BYTES else 0 :]
    return [_CONTROL.sub("", line)[:LOG_LINE_CHARACTERS] for line in lines[-LOG_LINES:]]


def tiles(tally: Tally, records: Sequence[Record], limit_bytes: int, card_bytes: int) -> str:
    """The plan's verdict and the numbers that one asks for first."""
    kind = {"holds": "v-ok", "fails": "v-bad"}.get(tally.holding, "v-warn")
    rule = f"{tally.needed} of {tally.total} groups needed ({tally.rate * 100:g} %, rounded down)"
    shown = [_tile(f"the plan {tally.holding}", rule, f"verdict {kind}")]
    shown.append(_tile(f"{tally.feasible} of {tally.total}", "groups feasible"))
    shown += [_tile(str(tally.count(outcome)), outcome.lower()) for outcome in ("INFEASIBLE", "INCONCLUSIVE")]
    shown.append(_tile(format_mib(limit_bytes), f"limit, of {format_mib(card_bytes)}"))
    peaks = [record for record in records if record["peak_bytes"] is not None]
    if peaks:
        highest = max(peaks, key=lambda record: record["peak_bytes"])
        shown.append(_tile(peak_text(highest), f"highest peak, {highest['group']}"))
    shown.append(_tile(basis_of([{**record, "device_name": None} for record in records]), "basis"))
    return f'<div class="tiles">{"".join(shown)}</div>'


def _tile(number: str, text: str, kind: str = "") -> str:
    return f'<div class="tile {kind}"><b>{escape(number)}</b><span>{escape(text)}</span></div>'


def banners(tally: Tally, records: Sequence[Record]) -> str:
    """What a reader must not overlook: groups without a verdict, and numbers that nobody measured."""
    found = []
    missing = tally.missing()
    if missing:
        head, _, rest = missing.partition(":")
        found.append(f"<b>{escape(head)}:</b>{escape(rest)}")
    if any(record["basis"] == "predicted" for record in records):
        text = "these verdicts rest on a simulated allocator and its error bars, not on a GPU. Measure before you rely"
        found.append(f"<b>PREDICTED:</b> {text} on them.")
    return "".join(f'<div class="banner">{text}</div>' for text in found)


def polished(html: str) -> str:
    """A page of pytest-html made fit for a phone's screen, and without the commas of counts that are hidden."""
    meta = '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    html = html.replace('<meta charset="utf-8"/>', f'<meta charset="utf-8"/>\n    {meta}', 1)
    return re.sub(r'(<span class="\w+">\d+ [A-Z][a-z ]+),</span>', r"\1</span>", html)
