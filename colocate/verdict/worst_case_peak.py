# SPDX-License-Identifier: Apache-2.0
"""The worst-case peak: what the GPU would hold if two trainings met at their worst, which the run happened not to show.

Rests on what each member held over time, and only on alignments that can occur:

- the foreground runs once, from its start to its end;
- it begins when the background is ready, or any time later, never while that is still starting;
- the background goes on: what it showed after its first epoch comes again for ever, once there was a second whole
  epoch to tell. What it showed once, such as kernels tried out in its first epoch, can meet only what the foreground
  has reached by then. A background that ends and is started again shows everything again, its start included.

What a member never showed, such as an evaluation that the background did not reach, is in no worst-case peak. Pure.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Literal

from colocate.verdict.evidence import Evidence, Member
from colocate.verdict.measured_peak import end_s, own_steps, unreported_bytes
from colocate.verdict.memory_history import Step, Steps, summed

# The probe reads four times a second: a growth is known to lie in the quarter before it was read.
READ_EVERY_S = 0.25

START = "start"


@dataclass(frozen=True, slots=True)
class WorstCasePeak:
    """The worst-case peak in bytes, the phases that would have to meet; ``reported_by`` is the weaker source."""

    peak_bytes: int
    foreground_phase: str
    background_phase: str
    reported_by: Literal["allocator", "processes"]

    def __str__(self) -> str:
        return f"if {self.foreground_phase} of the foreground met {self.background_phase} of the background"


def worst_case_peak(evidence: Evidence) -> WorstCasePeak | None:
    """The worst-case peak; None unless both members told what they held over time."""
    foreground, background, seen = evidence.foreground, evidence.background, evidence.trace.peak
    if background is None or evidence.baseline_bytes is None or seen is None:
        return None
    if not foreground.held or not background.held or not foreground.process_runs or background.ready_s is None:
        return None
    begun_s, until_s = foreground.process_runs[0].started_s, end_s(evidence)
    front, beside = own_steps(foreground, until_s), own_steps(background, until_s)
    on_own_clock = Steps.of(((at - begun_s, size) for at, size in front.steps), front.end_s - begun_s)
    loops_from_s = _loops_from_s(background, background.ready_s)
    worst = worst_alignment(on_own_clock, beside, earliest_s=background.ready_s, loops_from_s=loops_from_s)
    if worst.front_s is None or worst.beside_s is None:
        return None
    reported_by_both = {foreground.held_by, background.held_by} == {"allocator"}
    # Lists of processes have their contexts in them, and miss what comes between them.
    unreported = unreported_bytes(evidence, summed((front, beside))) if reported_by_both else 0
    return WorstCasePeak(
        max(evidence.baseline_bytes + worst.total_bytes + unreported, seen.used_bytes),  # what was seen is possible
        phase_at(foreground, begun_s + _read_s(on_own_clock, worst.front_s)),
        phase_at(background, _read_s(beside, worst.beside_s)),
        "allocator" if reported_by_both else "processes",
    )


def phase_at(member: Member, elapsed_s: float) -> str:
    """The phase that a member was in, by its own marks; before the first one it starts."""
    begun = [event for event in member.progress_events if event.elapsed_s <= elapsed_s]
    return next((event.phase for event in reversed(begun) if event.phase), "training") if begun else START


def _loops_from_s(background: Member, ready_s: float) -> float:
    """Return from when on everything that it showed may come again."""
    if len(background.process_runs) > 1:
        return background.process_runs[0].started_s
    # Only a second whole epoch tells what of the first one comes again.
    return background.epochs[0].elapsed_s if len(background.epochs) > 1 else ready_s


def _read_s(steps: Steps, begun_s: float) -> float:
    """Return when the level that began at an instant was last read, within its own step."""
    end_s = next(ended for start, ended, _ in steps.spans() if start <= begun_s < ended)
    return begun_s + min(READ_EVERY_S, (end_s - begun_s) / 2)


# Two traces that begin at different times. Knows neither GPUs nor what a training is.


@dataclass(frozen=True, slots=True)
class Alignment:
    """The most that both hold at once, and at which of their own instants; None for one that does not run then."""

    total_bytes: int
    front_s: float | None
    beside_s: float | None


def worst_alignment(front: Steps, beside: Steps, *, earliest_s: float, loops_from_s: float = inf) -> Alignment:
    """The beginning of one training at which both together hold the most. Linear in the number of steps.

    Args:
        front: a training that runs once.
        beside: the other one.
        earliest_s: the instant of ``beside`` at which ``front`` begins, or any time later.
        loops_from_s: from here to its end ``beside`` repeats what it showed, for as long as somebody trains beside it;
            infinite for one that runs once too.

    Returns:
        The first of the worst: with the earliest instant of ``beside``. The instant of one that loops is that of its
        first round.
    """
    found = [Alignment(front.highest, _first(front), None), Alignment(beside.highest, None, _first(beside))]
    rounds = beside.cut(loops_from_s, inf)
    if rounds.steps:
        # Whenever the front begins, the loop comes round to each of its instants later.
        found.append(Alignment(front.highest + rounds.highest, _first(front), _first(rounds)))
    found += _met(front, beside.cut(-inf, loops_from_s), earliest_s)
    return max(found, key=lambda one: (one.total_bytes, one.front_s is not None and one.beside_s is not None))


def _larger(one: Step, other: Step) -> Step:
    return other if other[1] > one[1] else one


def _first(steps: Steps) -> float | None:
    """Return when it first was at its highest."""
    most = steps.highest
    return next((start_s for start_s, size in steps.steps if size == most), None)


def _met(front: Steps, beside: Steps, earliest_s: float) -> Iterator[Alignment]:
    """For every step of ``beside`` the largest step of ``front`` that it can meet, both as early as can be.

    A step meets those of the front that begin before its own end, on the clock of the earliest beginning: the front may
    begin as much later as one likes, so the later the step, the more of the front.
    """
    starts = [start_s for start_s, _ in front.steps]
    largest = list(accumulate(front.steps, _larger))  # up to each
    for begun_s, ended_s, size in beside.spans():
        meets = bisect_left(starts, ended_s - earliest_s)
        if meets:
            start_s, most = largest[meets - 1]
            yield Alignment(most + size, start_s, max(begun_s, start_s + earliest_s))
