# SPDX-License-Identifier: Apache-2.0
"""What is drawn of a group over time: the GPU's memory with each member's share of it, phases, restarts, and vitals.

Times lie on 1000 units of width, sizes on 200 of height; the templates draw them, and the page's script zooms in.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

from colocate.files import content, finite
from colocate.plan import ROLES
from colocate.results import GroupDirectory, GroupResult, read_trace
from colocate.units import MIB, format_mib, plural, to_mib
from colocate.verdict import Interval, ProcessRun, ProgressEvent, Sample, Steps, summed

NUM_POINTS = 300
WIDTH, HEIGHT, _LANE = 1000, 200, 12

# A training that loops through short phases draws so many of them and no more.
MOST_PHASES = 80

# A phase is as high as this share of its lane: phases are told apart without colours, which stand for the members.
_PHASES = {"train": 1.0, "evaluate": 0.55, "save": 0.25}

_VITALS = (
    ("gpu_power.csv", "power_draw_w", "power", "W"),
    ("gpu_utilization.csv", "gpu_util_percent", "busy", "%"),
)

Step = tuple[float, int]


def downsampled(samples: Sequence[Sample], num_points: int = NUM_POINTS) -> list[Sample]:
    """Keep at most so many samples that look the same: the lowest and the highest of every stretch, in order of time.

    The peak is the highest of its stretch, so it is always among them.
    """
    if len(samples) <= num_points:
        return list(samples)
    width = ceil(len(samples) / (num_points // 2))
    stretches = (samples[start : start + width] for start in range(0, len(samples), width))
    return [sample for stretch in stretches for sample in _extremes(stretch)]


def _extremes(stretch: Sequence[Sample]) -> list[Sample]:
    low = min(stretch, key=lambda sample: sample.used_bytes)
    high = max(stretch, key=lambda sample: sample.used_bytes)
    return sorted({low, high})


@dataclass(frozen=True)
class Member:
    """When one training ran, when each of its processes began, its phases, and what it held; times in seconds."""

    process_runs: tuple[Interval, ...] = ()
    phases: tuple[tuple[str, Interval], ...] = ()
    held: tuple[Step, ...] = ()

    @property
    def end_s(self) -> float:
        """When it was last seen."""
        return max((end for _, end in (*self.process_runs, *(span for _, span in self.phases))), default=0.0)


def timeline(row: GroupResult, directory: GroupDirectory, num_points: int = NUM_POINTS) -> dict[str, Any] | None:
    """Lay out the GPU's memory over time; None without samples: nothing is drawn that was not read.

    Raises:
        OSError: the trace cannot be read.
        ValueError: the trace is damaged.
    """
    limit, baseline_bytes = row.limit_bytes, row.evidence.baseline_bytes or 0
    if limit is None or not directory.trace.exists():
        return None
    samples = read_trace(directory.trace).samples
    return Drawing(samples, limit, members(row), baseline_bytes, num_points).facts(row.group) if samples else None


class Drawing:
    """Lays out samples, at least one, with limit and peak, what each member held, and when it ran."""

    def __init__(
        self,
        samples: Sequence[Sample],
        limit_bytes: int,
        members: Mapping[str, Member],
        baseline_bytes: int = 0,
        num_points: int = NUM_POINTS,
    ) -> None:
        self.samples = downsampled(samples, num_points)
        self.peak = max(samples, key=lambda sample: sample.used_bytes)
        self.limit_bytes = limit_bytes
        self.members = members
        self.baseline_bytes = baseline_bytes
        self.end_s = max(samples[-1].elapsed_s, *(member.end_s for member in members.values()), 0.001)
        self.top_bytes = max(limit_bytes, self.peak.used_bytes) * 1.08

    def x(self, elapsed_s: float) -> float:
        """A time as a place from the left."""
        return round(WIDTH * min(max(0.0, elapsed_s) / self.end_s, 1.0), 1)

    def y(self, used_bytes: float) -> float:
        """A size as a place from above."""
        return round(HEIGHT * (1 - min(max(0.0, used_bytes) / self.top_bytes, 1.0)), 1)

    def facts(self, title: str = "") -> dict[str, Any]:
        """What the template draws; ``title`` begins what is said of it."""
        peak_size = format_mib(self.peak.used_bytes, beside=self.limit_bytes)
        peak_y, limit_y = self.y(self.peak.used_bytes), self.y(self.limit_bytes)
        line = [f"{self.x(sample.elapsed_s)},{self.y(sample.used_bytes)}" for sample in self.samples]
        ends = self.x(self.samples[0].elapsed_s), self.x(self.samples[-1].elapsed_s)
        said = f"{title}: memory of the GPU over {self.end_s:.0f} s, peak {peak_size} at {self.peak.elapsed_s:.1f} s, "
        return {
            "said": said + f"limit {format_mib(self.limit_bytes)}",
            "line": " ".join(line),
            "area": " ".join([f"{ends[0]},{HEIGHT}", *line, f"{ends[1]},{HEIGHT}"]),
            "stack": list(self._stack()),
            "sizes": [(format_mib(round(size)), self.y(size) / 2) for size in self._sizes()],
            "times": [(self._clock(at), self.x(at) / 10) for at in _ticks(self.end_s, time_step_s(self.end_s))],
            "limit_y": limit_y,
            "limit_text": format_mib(self.limit_bytes),
            "peak_x": self.x(self.peak.elapsed_s),
            "peak_y": peak_y,
            "peak_text": f"{peak_size} at {self.peak.elapsed_s:.1f} s",
            "label_below": 0 <= peak_y - limit_y < 22,  # else it would lie on the limit's
            "lanes": [self._lane(role, member) for role, member in self.members.items()],
            "legend": list(self._legend()),
            "caption": "",
            "series": json.dumps(self._series(), separators=(",", ":")),
        }

    def _stack(self) -> Iterator[tuple[str, str]]:
        """The areas of baseline, background and foreground, each on top of the one before."""
        held = [(role, member.held) for role in reversed(ROLES) if (member := self.members.get(role)) and member.held]
        floor, layers = Steps((), self.end_s), [("baseline", ((0.0, self.baseline_bytes),)), *held]
        for kind, steps in layers if held else ():
            ceiling = summed([floor, Steps.of(steps, self.end_s)])
            corners = [*_corners(ceiling), *reversed(_corners(floor))]
            yield kind, " ".join(f"{self.x(at)},{self.y(size)}" for at, size in corners)
            floor = ceiling

    def _legend(self) -> Iterator[tuple[str, str]]:
        told = [role for role, member in self.members.items() if member.held]
        if told:
            yield from ((role, role) for role in told)
            yield "baseline", "baseline"
            yield "other", "not told by either"
        phases = dict.fromkeys(phase for member in self.members.values() for phase, _ in member.phases)
        yield from ((f"phase-{phase_name(phase)}", phase) for phase in phases)
        restarts = sum(max(0, len(member.process_runs) - 1) for member in self.members.values())
        if restarts:
            yield "restart", f"started again ({plural(restarts, 'time')})"

    def _series(self) -> dict[str, Any]:
        """What the script shows of a moment, in seconds and MiB."""
        held = {role: [_rounded(step) for step in member.held] for role, member in self.members.items() if member.held}
        return {
            "end": round(self.end_s, 3),
            "gpu": [_rounded((sample.elapsed_s, sample.used_bytes)) for sample in self.samples],
            **held,
        }

    def _sizes(self) -> list[float]:
        return list(_ticks(self.top_bytes * 0.97, _size_step(self.top_bytes)))

    def _clock(self, elapsed_s: float) -> str:
        return f"{elapsed_s:g} s" if self.end_s < 180 else f"{elapsed_s / 60:g} min"

    def _lane(self, role: str, member: Member) -> dict[str, Any]:
        bars = [
            self._bar("span", 0.15, f"{role} ran from {start:.1f} s to {end:.1f} s", start, end)
            for start, end in member.process_runs
        ]
        bars += [
            self._bar(
                "phase", _PHASES.get(phase, 0.4), f"{role}: {phase} from {start:.1f} s to {end:.1f} s", start, end
            )
            for phase, (start, end) in member.phases
        ]
        restarts = [(self.x(start), f"{role} started again at {start:.1f} s") for start, _ in member.process_runs[1:]]
        return {
            "role": role if role in ROLES else "other",
            "name": role,
            "said": f"{role}: when it ran, and its phases",
            "bars": bars,
            "restarts": restarts,
        }

    def _bar(self, kind: str, share: float, said: str, start: float, end: float) -> dict[str, Any]:
        height = round(_LANE * share, 1)
        width = max(1.0, round(self.x(end) - self.x(start), 1))
        return {
            "kind": kind,
            "said": said,
            "x": self.x(start),
            "width": width,
            "y": round(_LANE - height, 1),
            "height": height,
        }


def _rounded(step: Step) -> list[float]:
    return [round(step[0], 2), round(to_mib(step[1]), 1)]


def _corners(steps: Steps) -> list[Step]:
    ends = [(0.0, 0), (steps.end_s, 0)]  # of one that is empty
    return [(at, size) for start, end, size in steps.spans() for at in (start, end)] or ends


def phase_name(phase: str) -> str:
    """The name under which the stylesheet has the key of a phase."""
    return phase if phase in _PHASES else "other"


def _ticks(end: float, step: float) -> Iterator[float]:
    value = 0.0
    while value <= end:
        yield value
        value += step


def _size_step(top_bytes: float) -> float:
    """2000 MiB, or a multiple of it on GPUs so large that the lines would lie too close."""
    return 2000 * MIB * max(1, ceil(top_bytes / (10 * 2000 * MIB)))


def time_step_s(end_s: float) -> float:
    """A round number of seconds, or of minutes, that makes about six ticks."""
    steps = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    return next((step for step in steps if end_s / step <= 7), end_s / 6)


# --- what a record has of the members


def members(row: GroupResult) -> dict[str, Member]:
    """Read when each member ran, in which phases, and what it held, as far as the record tells."""
    return {
        member.role: Member(
            tuple(filter(None, map(_process_run, member.process_runs))),
            tuple(_phases(member.progress_events))[:MOST_PHASES],
            member.held,
        )
        for member in row.evidence.members
        if member.role
    }


def _process_run(process_run: ProcessRun) -> Interval | None:
    return None if process_run.exit is None else (process_run.started_s, process_run.exit.ended_s)


def _phases(progress_events: Iterable[ProgressEvent]) -> list[tuple[str, Interval]]:
    """Stretches of one phase of one process; neighbouring ones become one."""
    found: list[tuple[str, Interval]] = []
    for event, following in pairwise(progress_events):
        if event.phase and event.pid == following.pid:
            start_s = event.elapsed_s
            if found and (found[-1][0], found[-1][1][1]) == (event.phase, start_s):
                start_s = found.pop()[1][0]
            found.append((event.phase, (start_s, following.elapsed_s)))
    return [(phase, span) for phase, span in found if span[1] > span[0]]


# --- power and utilisation


def vitals(directory: GroupDirectory) -> list[dict[str, str]]:
    """Lay out power and utilisation over time, as far as they were read."""
    read = [(name, unit, list(_column(directory.energy / file, column))) for file, column, name, unit in _VITALS]
    return [curve(name, unit, points) for name, unit, points in read if len(points) > 1]


def curve(name: str, unit: str, points: Sequence[tuple[float, float]]) -> dict[str, str]:
    """Lay out one slow reading on a scale from 0 to its highest value."""
    highest = max(value for _, value in points)
    some = points[:: max(1, len(points) // NUM_POINTS)]
    start, end, top = some[0][0], max(some[-1][0], some[0][0] + 0.001), max(highest * 1.1, 1.0)
    drawn = (f"{WIDTH * (at - start) / (end - start):.1f},{58 - 56 * value / top:.1f}" for at, value in some)
    return {"name": name, "highest": f"{highest:.0f} {unit}", "points": " ".join(drawn)}


def _column(path: Path, column: str) -> Iterator[tuple[float, float]]:
    try:
        with io.StringIO(content(path).decode("utf-8"), newline="") as file:
            for cells in csv.DictReader(file):
                at, value = cells.get("timestamp"), cells.get(column)
                if at and value:
                    yield finite(at), finite(value)
    except (OSError, ValueError):
        return
