# SPDX-License-Identifier: Apache-2.0
"""What opens below a group: why, the memory over time, the evidence as a table, the logs, and how to run it again."""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from markupsafe import Markup

from colocate.advice import read_speedup
from colocate.files import tail
from colocate.report.html import evidence_table, memory_chart
from colocate.report.html.templating import render
from colocate.results import (
    GroupDirectory,
    GroupResult,
    StoredRun,
    carries_peak,
    headroom_text,
    over_budget_bytes,
    peak_text,
    whole,
)
from colocate.units import GIB, duration_text, energy_text, format_mib, plural
from colocate.verdict import Member

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

_WORST_CASE_SOURCES = {
    "allocator": "what their allocators held over time",
    "processes": "the driver's lists of processes, which miss what happens between them",
}
_SPEEDUP_HEADS = (
    "together",
    "one after the other",
    "time saved",
    "foreground slower",
    "background slower",
    "energy saved",
)


def details(row: GroupResult, run: StoredRun | None, folder: Path, *, many: bool = False) -> Markup:
    """Render everything below one row; ``folder`` is where the page lies, for its links."""
    row = replace(row, deciding=None if row.deciding is None else whole(row.deciding))
    points = POINTS_OF_MANY if many else memory_chart.NUM_POINTS
    directory = row.folder
    return render(
        "details.html",
        row=row,
        facts=_facts(row),
        worst=_worst_case(row),
        evidence=evidence_table.evidence_table(row) if row.evidence.foreground.name else None,
        attempts=_attempts(row, folder, points) if directory is not None else None,
        speedup=_speedup(directory),
        files=[] if directory is None else [(path.name, link(path, folder)) for path in _files(directory)],
        epoch="" if many else evidence_table.last_epoch(row),
        logs=[] if directory is None else list(_logs(row, directory, LOG_LINES_OF_MANY if many else LOG_LINES)),
        traceback=[clean(line) for line in row.text.splitlines()[-60:]],
        command=again([row.group], run),
        curves=[] if directory is None else memory_chart.vitals(directory),
        **_timeline(row, points),
    )


def _timeline(row: GroupResult, points: int) -> dict[str, Any]:
    """The picture of the GPU's memory, or why there is none."""
    try:
        drawn = None if row.folder is None else memory_chart.timeline(row, row.folder, points)
    except (OSError, ValueError) as error:
        return {"timeline": None, "trace_error": str(error)}
    balloon = row.evidence.device.balloon
    if drawn is not None and balloon is not None:
        drawn["caption"] = f"The balloon of {balloon.held_bytes / GIB:.1f} GiB below it is not drawn. "
    return {"timeline": drawn, "trace_error": ""}


def _facts(row: GroupResult) -> dict[str, str]:
    if not row.basis:
        return {}
    facts = {
        "verdict": f"{row.outcome} ({row.basis})",
        "peak": peak_text(row),
        "headroom": headroom_text(row),
        "limit": format_mib(row.limit_bytes, ""),
        "budget": _budget(row),
        "class": row.memory_class,
        "overlap": None if row.overlap is None else f"{row.overlap:.0%}",
        "time": duration_text(row.duration_s),
        "energy of the GPU": energy_text(row.evidence.gpu_energy_j),
        "GPU": row.device_name,
        "driver": row.evidence.device.driver_version,
        "machine": row.evidence.host,
        "run": row.run,
    }
    return {name: str(fact) for name, fact in facts.items() if fact}


def _budget(row: GroupResult) -> str | None:
    """The plan's budget, and by how much the peak is above it."""
    over = over_budget_bytes(row)
    if row.budget_bytes is None:
        return None
    return format_mib(row.budget_bytes) + ("" if over is None else f", over by {format_mib(over, beside=0)}")


def _worst_case(row: GroupResult) -> dict[str, Any] | None:
    """The peak that was seen beside the one of another meeting of the two, and which phases would have to meet.

    None where no two traces were told, and of a prediction: its range rests on all maxima at once already, and lies
    above what the dry run can show of them.
    """
    found = None if row.verdict is None else row.verdict.worst_case
    if found is None or row.peak_high_bytes is None or row.basis == "predicted" or not carries_peak(row):
        return None
    limit = row.limit_bytes
    return {
        "seen": format_mib(row.peak_high_bytes, beside=limit),
        "size": format_mib(found.peak_bytes, beside=limit),
        "over": limit is not None and found.peak_bytes >= limit,
        "met": str(found),
        "reported_by": _WORST_CASE_SOURCES[found.reported_by],
    }


def _speedup(directory: GroupDirectory | None) -> dict[str, Any] | None:
    """Time and energy together against one after the other; None where nobody asked."""
    found = None if directory is None else read_speedup(directory)
    if found is None:
        return None
    rows = [
        (
            f"{one.together_s:.1f} s",
            f"{one.sequential_s:.1f} s",
            f"{one.time_saved:.0%}",
            f"{one.foreground_slowdown:.2f} times",
            f"{one.background_slowdown:.2f} times" if one.background_solo_s else "",
            "not known" if one.energy_saved is None else f"{one.energy_saved:.0%} (GPU)",
        )
        for one in found.runs
    ]
    unknown = "" if found.runs else str(found.unknown)
    return {"unknown": unknown, "text": "" if unknown else str(found), "heads": _SPEEDUP_HEADS, "rows": rows}


# --- attempts


def _attempts(row: GroupResult, folder: Path, points: int) -> dict[str, Any] | None:
    """Every attempt at a group in the order in which they ended; None where there was only one."""
    if len(row.attempts) < 2:
        return None
    found = [GroupResult.of(one, one.verdict, (one,)) for one in map(whole, row.attempts)]
    places = [one.attempts[0].place for one in found]
    runs = len({run for run, _ in places})
    begun = f"begun {plural(len(found), 'time')}"
    head = f"{plural(runs, 'run')}, {begun}. The worst of the runs decides."
    return {
        "head": head if runs > 1 else f"{begun.capitalize()}. The last attempt counts.",
        "folds": [_attempt(one, row.directory, places, folder, points) for one in found],
    }


Places = Sequence[tuple[int, int]]
"""The run that the plan asked for and the attempt at it, both from 1."""


def _attempt(one: GroupResult, deciding: str | None, places: Places, folder: Path, points: int) -> dict[str, Any]:
    assert one.folder is not None, "an attempt has a folder"
    decides, peak, (run, attempt) = one.directory == deciding, peak_text(one), one.attempts[0].place
    figures = [f"peak {peak}" if peak else "", duration_text(one.duration_s)]
    repeated = any(other_run == run and other > attempt for other_run, other in places)
    return {
        "name": _attempt_name((run, attempt), places),
        "outcome": one.outcome,
        "figures": "".join(f", {figure}" for figure in figures if figure),
        "decides": decides,
        "reasons": one.reasons,
        "again_because": ", ".join(one.codes) if repeated else "",
        "timeline": None if decides else _timeline(one, points)["timeline"],
        "folder": one.folder.path.name,
        "href": link(one.folder.path, folder),
    }


def _attempt_name(place: tuple[int, int], places: Places) -> str:
    """Such as ``run 2, attempt 1``, with what there is several of."""
    run, attempt = place
    parts = [f"run {run}"] if len({other for other, _ in places}) > 1 else []
    if not parts or sum(other == run for other, _ in places) > 1:
        parts.append(f"attempt {attempt}")
    return ", ".join(parts)


# --- files


def _files(directory: GroupDirectory) -> list[Path]:
    named = [directory.experiment, directory.verdict, directory.trace, directory.foreground_log]
    background = _last_background_log(directory)
    return [path for path in (*named, background) if path is not None and path.exists()]


def _last_background_log(directory: GroupDirectory) -> Path | None:
    process_run = 0
    while directory.background_log(process_run + 1).exists():
        process_run += 1
    return directory.background_log(process_run) if process_run else None


def link(path: Path, folder: Path) -> str:
    """Return the address of a file for a page in a folder."""
    target = Path(os.path.relpath(path, folder)).as_posix()
    return target.replace("%", "%25").replace("#", "%23").replace("?", "%3F")


# --- logs and what to do next


def _logs(row: GroupResult, directory: GroupDirectory, most: int) -> Iterator[dict[str, Any]]:
    evidence, dry = row.evidence, row.basis == "predicted"
    background = _last_background_log(directory)
    for role, path, member in (
        ("foreground", directory.foreground_log, evidence.foreground),
        ("background", background, evidence.background),
    ):
        found = last_lines(path, most) if path is not None and path.exists() else _kept_lines(member)[-most:]
        if found or path is not None:
            yield {"role": role, "lines": found, "name": path.name if path is not None else "log", "dry": dry}


def _kept_lines(member: Member | None) -> list[str]:
    runs = () if member is None else member.process_runs
    return [clean(line) for line in runs[-1].last_lines] if runs else []


def last_lines(path: Path, most: int = LOG_LINES) -> list[str]:
    """Read the end of a log without control characters: some lines of some length, whatever the log's size."""
    try:
        data = tail(path, LOG_BYTES + 1)
    except (OSError, ValueError) as error:  # gone, or something in its place that is no file
        return [str(error)]
    lines = data.decode("utf-8", errors="replace").splitlines()[1 if len(data) > LOG_BYTES else 0 :]
    return [clean(line) for line in lines[-most:]]


def clean(line: str) -> str:
    """Return a line without control characters and of bounded length."""
    return _CONTROL.sub("", line)[:LOG_LINE_CHARACTERS]


def again(groups: Sequence[str], run: StoredRun | None, *, measure: bool = False) -> str:
    """Return the command that runs these groups, with the options that the run had; ``measure``: on a real GPU."""
    words = [word.replace("--colocate-", "--") for word in run.info.arguments] if run else []
    kept = {}
    for word, following in pairwise([*words, ""]):
        name, _, value = word.partition("=")
        if name in _KEPT_OPTIONS and (value or following):
            kept[name] = value or following
    plan = [kept.pop("--plan")] if "--plan" in kept else []
    if measure:
        kept["--device"] = "nvidia"
    options = [*plan, *(f"{name}={value}" for name, value in kept.items())]
    return " ".join(["colocate run", *map(shlex.quote, options), f"-k {shlex.quote(' or '.join(groups))}"])
