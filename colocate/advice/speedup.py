# SPDX-License-Identifier: Apache-2.0
"""Compare sharing with running one after the other: speed, time and energy for the same work. Pure.

The work is what both did while the foreground trained beside the background: the foreground's epochs, and so many steps
of the background. *Together* is how long that took. *One after the other* is the time of the same epochs alone, plus
the time that so many steps of the background take alone, phase by phase. Start-up counts on neither side, and what the
background did between its steps (saving, starting again) counts for nothing, which speaks against sharing and not for
it.

Time is known on a real GPU only: on the virtual one nothing is claimed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from colocate.results import EnergyReading
from colocate.verdict import STEP_KINDS, Evidence, Interval, Outcome, ProgressEvent, foreground_window, judge

NOT_PREDICTED = "time is not predicted: the virtual GPU computes nothing; run the group on a GPU"


class Pace(NamedTuple):
    """The number of steps of one phase and the seconds that they took."""

    steps: float
    seconds: float


@dataclass(frozen=True, slots=True)
class SoloRun:
    """The speed and energy of one solo run of a training.

    ``duration_s`` and ``energy_j`` are those of its window, from the first sign of training to the end of its last
    epoch. ``finished`` is False for a run that was ended because it had done the work that it was to be compared in.
    """

    name: str
    duration_s: float
    finished: bool
    paces: Mapping[str, Pace]
    epoch_steps: tuple[int, ...] = ()
    energy_j: float | None = None
    record: str = ""


@dataclass(frozen=True, slots=True)
class Speedup:
    """One run of a group compared with its trainings one after the other.

    ``background_steps`` are those that it made while the foreground trained, ``background_solo_s`` what they take
    alone. Energies are the GPU's, idle share included.
    """

    together_s: float
    foreground_solo_s: float
    background_steps: float
    background_solo_s: float
    together_j: float | None = None
    sequential_j: float | None = None

    @property
    def sequential_s(self) -> float:
        """Return the time of both trainings one after the other."""
        return self.foreground_solo_s + self.background_solo_s

    @property
    def time_saved(self) -> float:
        """Share of the time that sharing saves; negative where it costs time."""
        return 1 - self.together_s / self.sequential_s

    @property
    def foreground_slowdown(self) -> float:
        """Return how much longer the foreground takes beside the background."""
        return self.together_s / self.foreground_solo_s

    @property
    def background_slowdown(self) -> float:
        """Return how much longer the background's steps take beside the foreground; infinite if it made none."""
        return self.together_s / self.background_solo_s if self.background_solo_s else float("inf")

    @property
    def energy_saved(self) -> float | None:
        """Share of the GPU's energy that sharing saves; None where the counter was not read."""
        if not self.together_j or not self.sequential_j:
            return None
        return 1 - self.together_j / self.sequential_j


@dataclass(frozen=True, slots=True)
class GroupSpeedup:
    """The speedup of a group: one entry per run of it, or why there is none."""

    runs: tuple[Speedup, ...] = ()
    unknown: str | None = None
    foreground: SoloRun | None = None
    background: SoloRun | None = None

    @property
    def saved(self) -> tuple[float, float] | None:
        """The least and the most that sharing saved, as shares of the time."""
        found = [run.time_saved for run in self.runs]
        return (min(found), max(found)) if found else None

    def __str__(self) -> str:
        if self.saved is None:
            return f"not known: {self.unknown}"
        least, most = self.saved
        if least > 0:
            return f"sharing saves {_percent(least, most)} of the time"
        if most <= 0:
            return f"don't: sharing takes {_percent(-most, -least)} more time"
        return f"no clear gain: from {-least:.0%} more to {most:.0%} less time"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        document: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Any) -> "GroupSpeedup":
        """The inverse of :meth:`to_json`.

        Raises:
            pydantic.ValidationError: the document is no such answer.
        """
        return _ADAPTER.validate_python(document)


def _percent(least: float, most: float) -> str:
    low, high = f"{least:.0%}", f"{most:.0%}"
    return low if low == high else f"{low} to {high}"


# What makes a training slower that runs alone, or hides what it did: its time is no measure then.
DISTURBED = frozenset({"foreign_process", "sensor_lost"})


def group_speedup(
    pairs: Sequence[tuple[Evidence, Sequence[EnergyReading]]], foreground: SoloRun, background: SoloRun
) -> GroupSpeedup:
    """Compare all runs of a group, each with the readings of the GPU's counter, with its trainings alone."""
    runs: list[Speedup] = []
    for evidence, energy in pairs:
        found = why_not(evidence) or compare(evidence, energy, foreground, background)
        if isinstance(found, str):
            return GroupSpeedup((), found, foreground, background)
        runs.append(found)
    return GroupSpeedup(tuple(runs), None, foreground, background)


def why_not(evidence: Evidence) -> str | None:
    """Return why a run cannot be compared with any solo run, or None if it can."""
    if evidence.device.basis != "measured":
        return NOT_PREDICTED
    if evidence.background is None:
        return "the group has no background"
    if judge(evidence).outcome is not Outcome.FEASIBLE:
        return "only trainings that were shown to fit are compared"
    if evidence.foreground.epoch_cut or not evidence.foreground.epochs:
        return f"{evidence.foreground.name} tells of no whole epoch"
    return None


def compare(
    evidence: Evidence, energy: Sequence[EnergyReading], foreground: SoloRun, background: SoloRun
) -> Speedup | str:
    """Compare one run of the group with one solo run of each training, or say why that is impossible."""
    window = foreground_window(evidence)
    assert window is not None, "an epoch has ended"
    assert evidence.background is not None, "asked for in why_not"
    steps = tuple(epoch.steps for epoch in evidence.foreground.epochs)
    if not foreground.finished or foreground.epoch_steps != steps:
        return f"{foreground.name} did {_epochs(foreground.epoch_steps)} alone and {_epochs(steps)} together"
    together = paces(evidence.background.progress_events, window)
    missing = [phase for phase, pace in together.items() if pace.steps and not _known(background.paces.get(phase))]
    if not together or missing:
        of = f"the phase {missing[0]} of " if missing else ""
        return f"the steps of {of}{background.name} are not counted, together and alone"
    theirs_s = sum(
        pace.steps * _seconds_a_step(background.paces[phase]) for phase, pace in together.items() if pace.steps
    )
    solo_j = None
    if foreground.energy_j is not None and background.energy_j is not None:
        solo_j = foreground.energy_j + background.energy_j / background.duration_s * theirs_s
    return Speedup(
        together_s=window[1] - window[0],
        foreground_solo_s=foreground.duration_s,
        background_steps=sum(pace.steps for pace in together.values()),
        background_solo_s=theirs_s,
        together_j=energy_between(energy, window),
        sequential_j=solo_j,
    )


def solo_run_of(evidence: Evidence, energy: Sequence[EnergyReading], record: str) -> SoloRun | str:
    """Read the speed of a solo run, or say why it shows none."""
    member, window = evidence.foreground, foreground_window(evidence)
    if evidence.device.basis != "measured":
        return NOT_PREDICTED
    disturbed = [reason for reason in judge(evidence).reasons if reason.code in DISTURBED]
    if evidence.faults or disturbed:
        return f"{member.name} alone: {evidence.faults[0][1] if evidence.faults else disturbed[0].text}"
    if window is None or window[1] <= window[0]:
        return f"{member.name} showed no training alone"
    end = member.last_exit
    return SoloRun(
        name=member.name,
        duration_s=window[1] - window[0],
        finished=bool(member.epochs) and end is not None and end.ok and not member.epoch_cut,
        paces=paces(member.progress_events, window),
        epoch_steps=tuple(epoch.steps for epoch in member.epochs),
        energy_j=energy_between(energy, window),
        record=record,
    )


def paces(progress_events: Sequence[ProgressEvent], window: Interval) -> dict[str, Pace]:
    """Steps and seconds of every phase inside a window; a step that is only partly inside counts for its part."""
    found: defaultdict[str, Pace] = defaultdict(lambda: Pace(0.0, 0.0))
    for phase, start_s, end_s, steps in _stretches(progress_events):
        inside_s = min(end_s, window[1]) - max(start_s, window[0])
        if inside_s > 0:
            share = inside_s / (end_s - start_s)
            found[phase] = Pace(found[phase].steps + steps * share, found[phase].seconds + inside_s)
    return dict(found)


def _stretches(progress_events: Sequence[ProgressEvent]) -> Iterator[tuple[str, float, float, int]]:
    """Yield the steps between two progress events of one process: phase, start, end and number of steps."""
    by_pid: defaultdict[int, list[ProgressEvent]] = defaultdict(list)
    for event in progress_events:
        by_pid[event.pid].append(event)
    for own in by_pid.values():
        for before, event in pairwise(own):
            if event.kind not in STEP_KINDS or event.step is None or event.elapsed_s <= before.elapsed_s:
                continue
            same = before.kind in STEP_KINDS and before.phase == event.phase and before.step is not None
            begins = before.kind == "phase" and before.phase == event.phase
            if same and before.step is not None and event.step > before.step:
                yield event.phase or "train", before.elapsed_s, event.elapsed_s, event.step - before.step
            elif begins:
                yield event.phase or "train", before.elapsed_s, event.elapsed_s, event.step


def energy_between(readings: Sequence[EnergyReading], window: Interval) -> float | None:
    """Joules that the GPU's counter ran on in a window, between two readings in a straight line.

    None where it was not read before and after, and where it went back.
    """
    known = [(one.elapsed_s, one.energy_j) for one in readings if one.energy_j is not None]
    if any(later[1] < earlier[1] for earlier, later in pairwise(known)):
        return None
    begun, ended = _counter_at(known, window[0]), _counter_at(known, window[1])
    return None if begun is None or ended is None else ended - begun


def _counter_at(known: Sequence[tuple[float, float]], time_s: float) -> float | None:
    for (before_s, before_j), (after_s, after_j) in pairwise(known):
        if before_s <= time_s <= after_s and after_s > before_s:
            return before_j + (after_j - before_j) * (time_s - before_s) / (after_s - before_s)
    return None


def _known(pace: Pace | None) -> bool:
    return pace is not None and pace.steps > 0 and pace.seconds > 0


def _seconds_a_step(pace: Pace) -> float:
    return pace.seconds / pace.steps


def _epochs(steps: Sequence[int]) -> str:
    return f"{len(steps)} epoch(s) of {', '.join(map(str, steps)) or 'no'} steps"


_ADAPTER = TypeAdapter(GroupSpeedup)
"""JSON of an answer."""
