"""What the two trainings of a group did beside each other: when, for how long, how many steps, and in which phases.

Pure, over stored evidence. How much of it is enough is `colocate.verdict.rules`'s business.
"""

from colocate.verdict.evidence import STEP_KINDS, Evidence, Interval, Member, common_s, merged

PhasePairs = tuple[tuple[str, str], ...]
"""Pairs of a phase of the foreground and one of the background."""


def foreground_window(evidence: Evidence) -> Interval | None:
    """From the foreground's first sign of training to the end of its last epoch, its exit, or its last sign."""
    member = evidence.foreground
    if not member.progress_events:
        return member.process_run if member.held_gpu else None
    ends = [epoch.elapsed_s for epoch in member.epochs] or [member.progress_events[-1].elapsed_s]
    return (member.progress_events[0].elapsed_s, max(ends[-1], member.progress_events[0].elapsed_s))


def overlap(evidence: Evidence) -> float | None:
    """Share of the foreground's window in which the background trained too; None without a background or window."""
    window = foreground_window(evidence)
    if evidence.background is None or window is None or window[1] <= window[0]:
        return None
    beside = evidence.background.training_intervals(evidence.limits.stall_s)
    return common_s([window], beside) / (window[1] - window[0])


def steps_beside(evidence: Evidence) -> int:
    """Steps of the background that lay, at least in part, inside the foreground's window."""
    window = foreground_window(evidence)
    if evidence.background is None or window is None:
        return 0
    strides = evidence.background.strides(evidence.limits.stall_s)
    steps = [(before.elapsed_s, step.elapsed_s) for before, step in strides if step.kind in STEP_KINDS]
    return sum(start <= window[1] and end >= window[0] for start, end in steps)


def phases_met(evidence: Evidence) -> tuple[PhasePairs, PhasePairs]:
    """Which phases of foreground and background were seen at the same time, and which pairs were not."""
    if evidence.background is None:
        return (), ()
    ours, theirs = _phase_spans(evidence.foreground), _phase_spans(evidence.background)
    pairs = {(a, b): common_s(ours[a], theirs[b]) > 0 for a in ours for b in theirs}
    together = tuple(pair for pair, seen in pairs.items() if seen)
    return together, tuple(pair for pair, seen in pairs.items() if not seen)


def _phase_spans(member: Member) -> dict[str, tuple[Interval, ...]]:
    spans: dict[str, list[Interval]] = {}
    for event, following in zip(member.progress_events, member.progress_events[1:], strict=False):
        if event.phase and event.pid == following.pid:
            spans.setdefault(event.phase, []).append((event.elapsed_s, following.elapsed_s))
    return {phase: merged(intervals) for phase, intervals in spans.items()}
