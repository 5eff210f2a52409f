# SPDX-License-Identifier: Apache-2.0
"""The evidence of a group as a table: a line per fact, a column for the GPU and one for each training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from colocate.plan import ROLES, Role
from colocate.report.html.peak_shares import own_bytes
from colocate.results import Row, mapping, number
from colocate.units import format_mib
from colocate.verdict import STEP_KINDS

_SOURCES = {"samples": "peak, sampled", "accounting": "peak, by process", "allocator": "peak, PyTorch's allocator"}


def evidence_table(row: Row) -> dict[str, Any]:
    """Return the heads and rows of the table; a fact that nobody knows has no row."""
    roles = [role for role in ROLES if row.member(role)]
    blank = [""] * len(roles)
    rows = [(name, gpu, *(cells or blank)) for name, gpu, cells in _facts_of(row, roles) if gpu or any(cells)]
    return {"heads": ("evidence", "GPU", *roles), "rows": rows}


def _facts_of(row: Row, roles: Sequence[Role]) -> Iterator[tuple[str, str, list[str]]]:
    members = [row.member(role) for role in roles]
    trace, peaks = mapping(row.evidence.get("trace")), _peaks(row)
    for source in dict.fromkeys(source for source, _ in peaks):
        cells = [format_mib(peaks.get((source, role)), "") for role in roles]
        yield _SOURCES.get(source, f"peak, {source}"), format_mib(peaks.get((source, "gpu")), ""), cells
    accounted = [format_mib(peaks.get(("accounting", role)), "") for role in roles]
    held = {
        "held or wanted, contexts included": [format_mib(own_bytes(row, role), "") for role in roles],
        "held, by list of processes": [format_mib(number(member.get("held_bytes")), "") for member in members],
    }
    yield from ((name, "", cells) for name, cells in held.items() if cells != accounted)
    yield "baseline", format_mib(row.baseline_bytes, ""), []
    yield "balloon", _balloon(row), []
    yield "after the group", format_mib(number(row.evidence.get("final_bytes")), ""), []
    yield "out of memory", "", [_ooms(member) for member in members]
    yield "allocator retries", "", [_sum(member, "num_alloc_retries") for member in members]
    yield "starts, failed", "", [_starts(member) for member in members]
    yield "optimizer steps", "", [_sum(member, "optimizer_steps") for member in members]
    yield "steps beside the foreground", "", ["" if role == "foreground" else _beside(row) for role in roles]
    yield "epoch steps of full", "", [_epoch_steps(member) for member in members]
    yield "data", "", [str(member.get("data") or "") for member in members]
    yield "ended", "", [_ending(member) for member in members]
    overlap = row.record["overlap"]
    yield "overlap", "" if overlap is None else f"{overlap:.0%}", []
    yield "samples", str(row.document.get("samples") or ""), []
    yield "gaps, longest", _gaps(trace), []
    yield "attempt", _attempt_number(row), []


def _balloon(row: Row) -> str:
    held, gpu = balloon_bytes(row), mapping(row.device.get("balloon"))
    if held is None:
        return ""
    return f"{format_mib(held)} of {format_mib(number(gpu.get('gpu_bytes')))}, process {gpu.get('pid')}"


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


def _attempt_number(row: Row) -> str:
    attempt, run = number(row.evidence.get("attempt")), number(row.evidence.get("run"))
    reported = f"{attempt}" if attempt and attempt > 1 else ""
    return reported + (f" (run {run})" if run and run > 1 else "")


def last_epoch(row: Row) -> str:
    """What the foreground told of its last epoch; it means nothing on a GPU that computes nothing."""
    epochs = [mapping(epoch) for epoch in row.member("foreground").get("epochs") or ()]
    metrics = mapping(epochs[-1].get("metrics")) if epochs else {}
    if row.record["basis"] == "predicted":
        return ""
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def balloon_bytes(row: Row) -> int | None:
    """Return what the balloon held, its context included; None on a GPU that had none."""
    return number(mapping(row.device.get("balloon")).get("held_bytes"))
