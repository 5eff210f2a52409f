# SPDX-License-Identifier: Apache-2.0
"""The evidence of a group as a table: a line per fact, a column for the GPU and one for each training."""

from collections.abc import Iterable, Iterator
from typing import Any

from colocate.device import BalloonInfo
from colocate.report.html.peak_shares import own_bytes
from colocate.results import GroupResult
from colocate.units import format_mib
from colocate.verdict import Member, Trace

_SOURCES = {"samples": "peak, sampled", "accounting": "peak, by process", "allocator": "peak, PyTorch's allocator"}


def evidence_table(row: GroupResult) -> dict[str, Any]:
    """Return the heads and rows of the table; a fact that nobody knows has no row."""
    members = row.evidence.members
    blank = [""] * len(members)
    rows = [(name, gpu, *(cells or blank)) for name, gpu, cells in _facts_of(row) if gpu or any(cells)]
    return {"heads": ("evidence", "GPU", *(member.role for member in members)), "rows": rows}


def _facts_of(row: GroupResult) -> Iterator[tuple[str, str, list[str]]]:
    evidence, members = row.evidence, row.evidence.members
    peaks = {} if row.verdict is None else {(one.source, one.of): one.used_bytes for one in row.verdict.peaks}
    for source in dict.fromkeys(source for source, _ in peaks):
        cells = [format_mib(peaks.get((source, member.role)), "") for member in members]
        yield _SOURCES.get(source, f"peak, {source}"), format_mib(peaks.get((source, "gpu")), ""), cells
    accounted = [format_mib(peaks.get(("accounting", member.role)), "") for member in members]
    held = {
        "held or wanted, contexts included": [format_mib(own_bytes(row, member.role), "") for member in members],
        "held, by list of processes": [format_mib(member.held_bytes, "") for member in members],
    }
    yield from ((name, "", cells) for name, cells in held.items() if cells != accounted)
    yield "baseline", format_mib(evidence.baseline_bytes, ""), []
    yield "balloon", _balloon(evidence.device.balloon), []
    yield "after the group", format_mib(evidence.final_bytes, ""), []
    yield "out of memory", "", [_ooms(member) for member in members]
    yield "allocator retries", "", [_sum(one.num_alloc_retries for one in member.allocators) for member in members]
    yield "starts, failed", "", [_starts(member) for member in members]
    yield "optimizer steps", "", [_sum(one.optimizer_steps for one in member.allocators) for member in members]
    yield "epoch steps of full", "", [_epoch_steps(member) for member in members]
    yield "data", "", [member.data or "" for member in members]
    yield "ended", "", [_ending(member) for member in members]
    yield "overlap", "" if row.overlap is None else f"{row.overlap:.0%}", []
    yield "samples", "" if row.deciding is None else str(row.deciding.experiment.samples or ""), []
    yield "gaps, longest", _gaps(evidence.trace), []
    yield "attempt", _attempt_number(row), []


def _balloon(balloon: BalloonInfo | None) -> str:
    if balloon is None:
        return ""
    return f"{format_mib(balloon.held_bytes)} of {format_mib(balloon.gpu_bytes)}, process {balloon.pid}"


def _sum(counts: Iterable[int]) -> str:
    known = list(counts)
    return str(sum(known)) if known else ""


def _ooms(member: Member) -> str:
    counted = max(sum(one.num_ooms for one in member.allocators), len(member.out_of_memory))
    sources = ", ".join(dict.fromkeys(event.source for event in member.out_of_memory))
    return f"{counted} ({sources})" if sources else str(counted)


def _starts(member: Member) -> str:
    ends = [run.exit for run in member.process_runs]
    return f"{len(ends)}, {sum(end is not None and not end.stopped and end.code != 0 for end in ends)}"


def _epoch_steps(member: Member) -> str:
    last = member.epochs[-1] if member.epochs else None
    return "" if last is None else f"{last.steps} of {last.steps_full}{' (cut)' if last.cut else ''}"


def _ending(member: Member) -> str:
    if not member.process_runs:
        return ""
    end = member.last_exit
    return "did not end" if end is None else f"{end}{', by the harness' if end.stopped else ''}"


def _gaps(trace: Trace) -> str:
    longest = max((gap.end_s - gap.start_s for gap in trace.gaps), default=0.0)
    return f"{len(trace.gaps)}, {longest:.1f} s" if trace.gaps else "0"


def _attempt_number(row: GroupResult) -> str:
    run, attempt = (1, 1) if row.deciding is None else row.deciding.place
    return (f"{attempt}" if attempt > 1 else "") + (f" (run {run})" if run > 1 else "")


def last_epoch(row: GroupResult) -> str:
    """What the foreground told of its last epoch; it means nothing on a GPU that computes nothing."""
    epochs = row.evidence.foreground.epochs
    metrics = epochs[-1].metrics if epochs and row.basis != "predicted" else {}
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
