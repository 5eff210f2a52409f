# SPDX-License-Identifier: Apache-2.0
"""The worst-case peak: what the GPU would hold if two trainings met at their worst, which the run happened not to show.

Rests on what each member held over time, and only on alignments that can occur:

- the foreground runs once, from its start to its end;
- it begins when the background is ready, or any time later, never while that is still starting;
- the background goes on: what it showed after its first epoch comes again for ever, once there was a second whole
  epoch to tell. What it showed once, such as kernels tried out in its first epoch, can meet only what the foreground
  has reached by then. A background that ends and is started again shows everything again, its start included.

What a member never showed, such as an evaluation that the background did not reach, is in no worst-case peak. Pure;
`colocate.verdict.rules` says what follows.
"""

from dataclasses import dataclass
from typing import Literal

from colocate.verdict.evidence import Evidence, Member
from colocate.verdict.measured_peak import end_s, own_steps, unreported_bytes
from colocate.verdict.step_function import Steps, summed, worst_alignment

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
    foreground, background = evidence.foreground, evidence.background
    if background is None or evidence.baseline_bytes is None or not evidence.trace.samples:
        return None
    if not foreground.held or not background.held or not foreground.process_runs or background.ready_s is None:
        return None
    begun_s, until_s = foreground.process_runs[0].started_s, end_s(evidence)
    front = _on_own_clock(own_steps(foreground, until_s), begun_s)
    beside = own_steps(background, until_s)
    worst = worst_alignment(front, beside, earliest_s=background.ready_s, loops_from_s=_loops_from_s(background))
    if worst.front_s is None or worst.beside_s is None:
        return None
    reported_by_both = {foreground.held_by, background.held_by} == {"allocator"}
    # Lists of processes have their contexts in them, and miss what comes between them.
    unreported = unreported_bytes(evidence, summed((own_steps(foreground, until_s), beside))) if reported_by_both else 0
    seen = evidence.trace.peak
    assert seen is not None, "there are samples"
    return WorstCasePeak(
        max(evidence.baseline_bytes + worst.total_bytes + unreported, seen.used_bytes),  # what was seen is possible
        phase_at(foreground, begun_s + _read_s(front, worst.front_s)),
        phase_at(background, _read_s(beside, worst.beside_s)),
        "allocator" if reported_by_both else "processes",
    )


def phase_at(member: Member, elapsed_s: float) -> str:
    """The phase that a member was in, by its own marks; before the first one it starts."""
    begun = [event for event in member.progress_events if event.elapsed_s <= elapsed_s]
    if not begun:
        return START
    return next((event.phase for event in reversed(begun) if event.phase), "training")


def _loops_from_s(background: Member) -> float:
    """Return from when on everything that it showed may come again."""
    if len(background.process_runs) > 1:
        return background.process_runs[0].started_s
    assert background.ready_s is not None
    ends = [epoch.elapsed_s for epoch in background.epochs]
    # Only a second whole epoch tells what of the first one comes again.
    return ends[0] if len(ends) > 1 else background.ready_s


def _on_own_clock(steps: Steps, begun_s: float) -> Steps:
    return Steps.of(((at - begun_s, size) for at, size in steps.steps), steps.end_s - begun_s)


def _read_s(steps: Steps, begun_s: float) -> float:
    """Return when the level that began at an instant was last read, within its own step."""
    end_s = next(ended for start, ended, _ in steps.spans() if start <= begun_s < ended)
    return begun_s + min(READ_EVERY_S, (end_s - begun_s) / 2)
