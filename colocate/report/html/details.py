"""What opens below a group: why, the memory over time, the evidence as a table, the logs, and how to run it again."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colocate.plan import ROLES, Role
from colocate.report.html import attempts, constrained_device, group_charts, speedup, worst_case
from colocate.report.html.elements import Html, el, scrolling_table
from colocate.report.html.memory_chart import NUM_POINTS
from colocate.report.html.peak_shares import own_bytes
from colocate.results import (
    GroupDirectory,
    Record,
    Row,
    StoredRun,
    colour,
    headroom_text,
    mapping,
    number,
    over_budget_bytes,
    peak_text,
)
from colocate.units import duration_text, energy_text, format_mib, plural
from colocate.verdict import STEP_KINDS

# A log stays a file beside the page; what is copied into it is its end.
LOG_LINES = 40
LOG_BYTES = 16 * 1024
LOG_LINE_CHARACTERS = 300

# Of many groups less is copied, so that a page of a thousand stays one that a browser opens.
MANY = 100
LOG_LINES_OF_MANY = 12
POINTS_OF_MANY = 120

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|[\x00-\x08\x0b-\x1f\x7f]")
_KEPT_OPTIONS = ("--plan", "--catalog", "--device", "--gpu", "--epochs")


def details(row: Row, run: StoredRun | None, folder: Path, *, many: bool = False) -> Html:
    """Everything below one row; ``folder`` is where the page lies, for its links."""
    parts = [
        _why(row),
        _facts(row),
        worst_case.section(row),
        *_from_directory(row, folder, many),
        _traceback(row),
        again(row, run),
    ]
    return el("div", parts, class_="details")


def _why(row: Row) -> Iterator[Html]:
    record = row.record
    reasons = [el("p", reason) for reason in record["reasons"]]
    if reasons:
        yield el("div", reasons, class_=f"why {colour(record['outcome'])}")
    notes = [el("li", note) for note in record["warnings"]]
    if notes:
        yield el("ul", notes, class_="notes")


def _facts(row: Row) -> Html | None:
    record, evidence = row.record, row.evidence
    if not record["basis"]:
        return None
    overlap = record["overlap"]
    facts = {
        "verdict": f"{record['outcome']} ({record['basis']})",
        "peak": peak_text(record),
        "headroom": headroom_text(record),
        "budget": _budget(record),
        "class": record["memory_class"],
        "overlap": None if overlap is None else f"{overlap:.0%}",
        "time": duration_text(record["duration_s"]),
        "energy of the GPU": energy_text(evidence.get("gpu_energy_j")),
        "gpu": record["device_name"],
        "driver": row.device.get("driver_version"),
        "machine": evidence.get("host"),
        "run": row.run,
    }
    shown = [el("div", el("dt", name), el("dd", fact)) for name, fact in facts.items() if fact]
    return el("dl", shown, class_="facts")


def _budget(record: Record) -> str | None:
    """What the plan allows the peak to be without a word, and by how much it is above that."""
    budget, over = number(record.get("budget_bytes")), over_budget_bytes(record)
    if budget is None:
        return None
    return format_mib(budget) + ("" if over is None else f", over by {format_mib(over, beside=0)}")


def _from_directory(row: Row, folder: Path, many: bool) -> Iterator[Html | None]:
    directory = row.directory
    if directory is None:
        return
    points = POINTS_OF_MANY if many else NUM_POINTS
    yield group_charts.memory(row, directory, points)
    yield group_charts.vitals(row, directory)
    yield _evidence_table(row)
    yield attempts.section(row, folder, points)
    yield speedup.section(row)
    links = [_link(path, folder) for path in _files(directory) if path.exists()]
    if links:
        yield el("p", "Files: ", [(", " if place else "", link) for place, link in enumerate(links)])
    if not many:
        yield _epochs(row)
    for role, path in (("foreground", directory.foreground_log), ("background", _last_background_log(directory))):
        yield _log(row, role, path, LOG_LINES_OF_MANY if many else LOG_LINES)


def _files(directory: GroupDirectory) -> list[Path]:
    named = [directory.experiment, directory.verdict, directory.trace, directory.foreground_log]
    background = _last_background_log(directory)
    return named if background is None else [*named, background]


def _last_background_log(directory: GroupDirectory) -> Path | None:
    process_run = 0
    while directory.background_log(process_run + 1).exists():
        process_run += 1
    return directory.background_log(process_run) if process_run else None


def _link(path: Path, folder: Path) -> Html:
    target = Path(os.path.relpath(path, folder)).as_posix()
    return el("a", path.name, href=target.replace("%", "%25").replace("#", "%23").replace("?", "%3F"))


# --- the evidence


def _evidence_table(row: Row) -> Html | None:
    evidence = row.evidence
    if not evidence:
        return None
    roles = [role for role in ROLES if row.member(role)]
    blank = [""] * len(roles)
    body = [
        el("tr", el("th", name, scope="row"), [el("td", cell, class_="num") for cell in (gpu, *(cells or blank))])
        for name, gpu, cells in _facts_of(row, roles)
        if gpu or any(cells)
    ]
    numbers = ("gpu", *roles)
    return scrolling_table("evidence", ("evidence", *numbers), body, numbers)


def _facts_of(row: Row, roles: Sequence[Role]) -> Iterator[tuple[str, str, list[str]]]:
    members_ = [row.member(role) for role in roles]
    trace, peaks = mapping(row.evidence.get("trace")), _peaks(row)
    for source in dict.fromkeys(source for source, _ in peaks):
        label = {"samples": "peak, sampled", "accounting": "peak, by process", "allocator": "peak, PyTorch's allocator"}
        cells = [format_mib(peaks.get((source, role)), "") for role in roles]
        yield label.get(source, f"peak, {source}"), format_mib(peaks.get((source, "gpu")), ""), cells
    accounted = [format_mib(peaks.get(("accounting", role)), "") for role in roles]
    held = {
        "held or wanted, contexts included": [format_mib(own_bytes(row, role), "") for role in roles],
        "held, by list of processes": [format_mib(number(member.get("held_bytes")), "") for member in members_],
    }
    yield from ((name, "", cells) for name, cells in held.items() if cells != accounted)
    yield "baseline", format_mib(row.baseline_bytes, ""), []
    yield "balloon", constrained_device.fact(row), []
    yield "after the group", format_mib(number(row.evidence.get("final_bytes")), ""), []
    yield "out of memory", "", [_ooms(member) for member in members_]
    yield "allocator retries", "", [_sum(member, "num_alloc_retries") for member in members_]
    yield "starts, failed", "", [_starts(member) for member in members_]
    yield "optimizer steps", "", [_sum(member, "optimizer_steps") for member in members_]
    yield "steps beside the foreground", "", ["" if role == "foreground" else _beside(row) for role in roles]
    yield "epoch steps of full", "", [_epoch_steps(member) for member in members_]
    yield "data", "", [str(member.get("data") or "") for member in members_]
    yield "ended", "", [_ending(member) for member in members_]
    overlap = row.record["overlap"]
    yield "overlap", "" if overlap is None else f"{overlap:.0%}", []
    yield "samples", str(row.document.get("samples") or ""), []
    yield "gaps, longest", _gaps(trace), []
    yield "attempt", _attempt(row), []


def _peaks(row: Row) -> dict[tuple[str, str], int]:
    """What each source told, by source and by whom; from the allocators alone in a record that lists no readings."""
    listed = row.verdict.get("peaks") or row.document.get("peaks") or ()
    found = {}
    for reading in map(mapping, listed):
        size = number(reading.get("used_bytes"))
        if size is not None:
            found[str(reading.get("source")), str(reading.get("of"))] = size
    if not found:
        for role in ROLES:
            reserved = [number(mapping(a).get("max_reserved_bytes")) for a in row.member(role).get("allocators") or ()]
            if any(reserved):
                found["allocator", role] = max(filter(None, reserved))
    return found


def _sum(member: Mapping[str, Any], name: str) -> str:
    allocators = member.get("allocators") or ()
    return str(sum(number(mapping(a).get(name)) or 0 for a in allocators)) if allocators else ""


def _ooms(member: Mapping[str, Any]) -> str:
    events = [mapping(event) for event in member.get("out_of_memory") or ()]
    counted = max([sum(number(mapping(a).get("num_ooms")) or 0 for a in member.get("allocators") or ()), len(events)])
    sources = ", ".join(dict.fromkeys(str(event.get("source")) for event in events))
    return f"{counted} ({sources})" if sources else str(counted)


def _starts(member: Mapping[str, Any]) -> str:
    exits = [mapping(mapping(process_run).get("exit")) for process_run in member.get("process_runs") or ()]
    failed = [end for end in exits if end and not end.get("stopped") and end.get("code") != 0]
    return f"{len(exits)}, {len(failed)}"


def _beside(row: Row) -> str:
    """Steps of the background that lay, at least in part, between the foreground's first sign of training and its last.

    Of many steps in a row the record keeps two a second, so there may have been more.
    """
    ours = [at for event in _progress_events(row, "foreground") if (at := _elapsed(event)) is not None]
    if not ours:
        return ""
    count, earlier = 0, dict[Any, float]()
    for event in _progress_events(row, "background"):
        at, pid = _elapsed(event), event.get("pid")
        if at is None:
            continue
        begun = earlier.get(pid)
        count += event.get("kind") in STEP_KINDS and begun is not None and begun <= ours[-1] and at >= ours[0]
        earlier[pid] = at
    return f"at least {count}"


def _progress_events(row: Row, role: str) -> Iterator[Mapping[str, Any]]:
    return map(mapping, row.member(role).get("progress_events") or ())


def _elapsed(event: Mapping[str, Any]) -> float | None:
    at = event.get("elapsed_s")
    return float(at) if isinstance(at, int | float) else None


def _epoch_steps(member: Mapping[str, Any]) -> str:
    epochs = [mapping(epoch) for epoch in member.get("epochs") or ()]
    if not epochs:
        return ""
    last = epochs[-1]
    cut = " (cut)" if last.get("cut") else ""
    return f"{last.get('steps')} of {last.get('steps_full')}{cut}"


def _ending(member: Mapping[str, Any]) -> str:
    process_runs = [mapping(process_run) for process_run in member.get("process_runs") or ()]
    end = mapping(process_runs[-1].get("exit")) if process_runs else {}
    if not end:
        return "" if not process_runs else "did not end"
    how = f"exit code {end.get('code')}" if end.get("signal") is None else str(end.get("signal"))
    return f"{how}, by the harness" if end.get("stopped") else how


def _gaps(trace: Mapping[str, Any]) -> str:
    gaps = [mapping(gap) for gap in trace.get("gaps") or ()]
    if not trace:
        return ""
    longest = max((float(gap.get("end_s", 0)) - float(gap.get("start_s", 0)) for gap in gaps), default=0.0)
    return f"{len(gaps)}, {longest:.1f} s" if gaps else "0"


def _attempt(row: Row) -> str:
    attempt, run = number(row.evidence.get("attempt")), number(row.evidence.get("run"))
    reported = f"{attempt}" if attempt and attempt > 1 else ""
    return reported + (f" (run {run})" if run and run > 1 else "")


def _epochs(row: Row) -> Html | None:
    """What the foreground told of its last epoch; it means nothing on a GPU that computes nothing."""
    epochs = [mapping(epoch) for epoch in row.member("foreground").get("epochs") or ()]
    metrics = mapping(epochs[-1].get("metrics")) if epochs else {}
    if not metrics or row.record["basis"] == "predicted":
        return None
    return el(
        "p", "Last epoch of the foreground: ", ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    )


# --- logs and what to do next


def _log(row: Row, role: str, path: Path | None, most: int) -> Html | None:
    lines = last_lines(path, most) if path is not None and path.exists() else _kept_lines(row, role)[-most:]
    if not lines and path is None:
        return None
    name = path.name if path is not None else "log"
    summary = el("summary", f"{role}: last {plural(len(lines), 'line')} of {name}")
    return el("details", summary, el("pre", "\n".join(lines) or "(empty)", tabindex=0))


def _kept_lines(row: Row, role: str) -> list[str]:
    process_runs = row.member(role).get("process_runs") or ()
    reused = mapping(process_runs[-1]).get("last_lines") or () if process_runs else ()
    return [clean(str(line)) for line in reused]


def last_lines(path: Path, most: int = LOG_LINES) -> list[str]:
    """The end of a log without control characters: some lines of some length, whatever the log's size."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            size = file.tell()
            file.seek(max(0, size - LOG_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        return [str(error)]
    lines = text.splitlines()[1 if size > LOG_BYTES else 0 :]
    return [clean(line) for line in lines[-most:]]


def clean(line: str) -> str:
    """A line without control characters and of bounded length."""
    return _CONTROL.sub("", line)[:LOG_LINE_CHARACTERS]


def _traceback(row: Row) -> Html | None:
    if not row.text:
        return None
    lines = [clean(line) for line in row.text.splitlines()[-60:]]
    return el("details", el("summary", "what pytest saw"), el("pre", "\n".join(lines), tabindex=0))


def again(row: Row, run: StoredRun | None) -> Html:
    """The command that runs this group alone, with the options that the run had."""
    return el("p", "Again: ", el("code", command(row, run)))


def command(row: Row, run: StoredRun | None) -> str:
    """As one would type it."""
    words = [str(word).replace("--colocate-", "--") for word in (run.info.get("arguments") or ())] if run else []
    reused = []
    for place, word in enumerate(words):
        if word.startswith(tuple(f"{option}=" for option in _KEPT_OPTIONS)):
            reused.append(word)
        elif word in _KEPT_OPTIONS and place + 1 < len(words):
            reused.append(f"{word}={words[place + 1]}")
    return " ".join(["colocate run", *map(shlex.quote, reused), f"-k {shlex.quote(row.group)}"])
