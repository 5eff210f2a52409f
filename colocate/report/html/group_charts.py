"""A group's course as pictures: the GPU's memory with limit, peak, phases and restarts, and power and utilisation."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colocate.files import finite
from colocate.plan import ROLES
from colocate.report.html import constrained_device
from colocate.report.html.elements import Html, el
from colocate.report.html.memory_chart import Curve, Member, curves, phase_class, timeline
from colocate.results import GroupDirectory, Row, mapping, number, read_trace
from colocate.units import plural
from colocate.verdict import Interval

# A training that loops through short phases draws so many of them and no more.
MOST_PHASES = 80


def memory(row: Row, directory: GroupDirectory, num_points: int) -> Html | None:
    """The GPU's memory over time with the limit; None without samples."""
    limit = number(row.record["limit_bytes"])
    if limit is None or not directory.trace.exists():
        return None
    try:
        samples = read_trace(directory.trace).samples
    except (OSError, ValueError) as error:
        return el("p", str(error), class_="v-warn")
    drawn = timeline(samples, limit, members(row), f"{row.group}", num_points)
    return el("figure", el("figcaption", _caption(row)), el("div", Html(drawn), class_="scroll")) if drawn else None


def _caption(row: Row) -> Html:
    phases = dict.fromkeys(phase for member in members(row).values() for phase, _ in member.phases)
    keys = [(el("i", class_=f"key {phase_class(phase)}"), phase, " ") for phase in phases]
    restarts = sum(max(0, len(member.process_runs) - 1) for member in members(row).values())
    more = f"▲ started again ({plural(restarts, 'time')})" if restarts else ""
    return el("span", "Memory of the GPU. ", constrained_device.caption(row), keys, more)


def members(row: Row) -> dict[str, Member]:
    """When each member ran and in which phases, as far as the record tells."""
    found: dict[str, Member] = {}
    for role in ROLES:
        member = row.member(role)
        if member:
            process_runs = tuple(
                filter(None, (_process_run(mapping(process_run)) for process_run in member.get("process_runs") or ()))
            )
            found[role] = Member(process_runs, tuple(_phases(member.get("progress_events") or ()))[:MOST_PHASES])
    return found


def _process_run(process_run: Mapping[str, Any]) -> Interval | None:
    start, end = process_run.get("started_s"), mapping(process_run.get("exit")).get("ended_s")
    return (float(start), float(end)) if isinstance(start, int | float) and isinstance(end, int | float) else None


def _phases(progress_events: Sequence[Any]) -> Iterator[tuple[str, Interval]]:
    """Stretches of one phase of one process; neighbouring ones become one."""
    current: tuple[str, Any, float, float] | None = None
    for event in map(mapping, progress_events):
        at, phase, pid = event.get("elapsed_s"), event.get("phase"), event.get("pid")
        if not isinstance(at, int | float):
            continue
        if current is not None and pid == current[1]:
            current = (*current[:3], float(at))
        if current is None or phase != current[0] or pid != current[1]:
            if current is not None and current[3] > current[2]:
                yield current[0], (current[2], current[3])
            current = (str(phase), pid, float(at), float(at)) if phase else None
    if current is not None and current[3] > current[2]:
        yield current[0], (current[2], current[3])


_VITALS = (
    ("gpu_power.csv", "power_draw_w", "power", "W"),
    ("gpu_utilization.csv", "gpu_util_percent", "busy", "%"),
)


def vitals(row: Row, directory: GroupDirectory) -> Html | None:
    """Power and utilisation over time; None where neither was read."""
    found = [Curve(name, unit, tuple(_column(directory.energy / file, column))) for file, column, name, unit in _VITALS]
    drawn = curves(found, row.group)
    return (
        el("figure", el("figcaption", "Power and utilisation of the GPU."), el("div", Html(drawn), class_="scroll"))
        if drawn
        else None
    )


def _column(path: Path, column: str) -> Iterator[tuple[float, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for cells in csv.DictReader(file):
                at, value = cells.get("timestamp"), cells.get(column)
                if at and value:
                    yield finite(at), finite(value)
    except (OSError, ValueError):
        return
