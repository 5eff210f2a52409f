# SPDX-License-Identifier: Apache-2.0
"""Say what runs, a line per group, for the live view of a terminal and for `colocate watch`."""

import time
from collections.abc import Iterator
from pathlib import Path

from colocate.files import line, number
from colocate.results import SILENT_S, GroupState, progress_file, read_document
from colocate.units import mib_text

_CELLS = 12


def waiting(run: Path) -> list[str]:
    """A line for each reason why groups of a run wait in a queue, as the run itself told it last."""
    document = read_document(run / progress_file.QUEUE)
    rows = document.get("waiting")
    by_reason: dict[str, list[str]] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and (name := line(row.get("name"))):
            by_reason.setdefault(line(row.get("reason")) or "no reason told", []).append(name)
    reported = number(document.get("at"))
    silent_s = 0.0 if reported is None else time.time() - reported
    news = f", no news for {clock(silent_s)}" if silent_s > SILENT_S else ""
    return [
        f"{'1 group waits' if len(names) == 1 else f'{len(names)} groups wait'} in {line(document.get('place'))}: "
        f"{reason} ({', '.join(names)}){news}"
        for reason, names in by_reason.items()
    ]


def clock(seconds: float) -> str:
    """A duration such as ``3:05`` or ``1:02:09``."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def line_of(state: GroupState, expected_s: float | None, width: int) -> str:
    """Describe a running group on one line of at most ``width`` characters; with less room it tells less."""
    pieces = dict(_pieces(state, expected_s))
    for left_out in ("", "bar", "elapsed", "members", "left", "gpu"):
        pieces.pop(left_out, None)
        memory = " · ".join(pieces[name] for name in ("members", "gpu") if name in pieces)
        text = "  ".join(filter(None, ({**pieces, "members": "", "gpu": memory}).values()))
        if len(text) <= width:
            return text
    return text[:width]


def _pieces(state: GroupState, expected_s: float | None) -> Iterator[tuple[str, str]]:
    yield "group", state.group
    yield "stage", _stage(state)
    if state.limit_bytes and state.used_bytes is not None:
        yield "bar", bar(state.used_bytes, state.peak_bytes or 0, state.limit_bytes)
    roles = (("fg", state.foreground), ("bg", state.background))
    sizes = [f"{name} {mib_text(member.used_bytes) or '?'}" for name, member in roles if member is not None]
    if not all(size.endswith("?") for size in sizes):
        yield "members", " · ".join(sizes)
    if state.used_bytes is not None:
        of = f"/{mib_text(state.limit_bytes)}" if state.limit_bytes is not None else ""
        yield "gpu", f"GPU {mib_text(state.used_bytes, beside=state.limit_bytes)}{of} MiB"
    if state.peak_bytes is not None:
        yield "peak", f"peak {mib_text(state.peak_bytes, beside=state.limit_bytes)}"
    yield "elapsed", clock(state.elapsed_s)
    left = state.left_s(expected_s)
    if state.silent_s > SILENT_S:
        yield "silent", f"no news for {clock(state.silent_s)}"
    elif left is not None:
        yield "left", f"{clock(left)} left"


def bar(used_bytes: int, peak_bytes: int, limit_bytes: int) -> str:
    """Draw memory against the limit: full cells are in use, half-tone ones were at the peak."""
    used, peak = (min(_CELLS, round(_CELLS * size / limit_bytes)) for size in (used_bytes, peak_bytes))
    return "█" * used + "▒" * max(0, peak - used) + "·" * (_CELLS - max(used, peak))


def _stage(state: GroupState) -> str:
    return f"attempt {state.attempt}: {_doing(state)}" if state.attempt > 1 else _doing(state)


def again(state: GroupState) -> str:
    """Say that a group is begun again, and why."""
    why = f": {', '.join(state.again_because)}" if state.again_because else ""
    return f"{state.group} is begun again, attempt {state.attempt}{why}"


def _doing(state: GroupState) -> str:
    member = state.foreground
    if state.stage != "foreground":
        return {"background": "background starts", "ending": "ends", "preflight": "looks at the GPU"}.get(
            state.stage, state.stage
        )
    if member.phase is None:
        return "foreground starts"
    epoch = f"epoch {member.epoch}/{state.epochs} " if state.epochs > 1 and member.epoch else ""
    steps = f" {member.step}/{member.steps}" if member.step and member.steps else ""
    return f"{epoch}{member.phase}{steps}"


def status(done: int, total: int, num_running: int, left_s: float | None) -> str:
    """The run in one line."""
    left = f", about {clock(left_s)} left" if left_s is not None else ""
    return f"{done} of {total} groups done, {num_running} running{left}"
