"""Whether memory repeats so that a run may end before its foreground does: the rule of ``--until-decided``.

Pure, over stored evidence, so that a verdict that was decided early can be judged again. What comes after the end of
such a run was not seen, and no rule can know it: see docs/known-limitations.md.
"""

from collections.abc import Iterator
from itertools import pairwise

from colocate.units import MIB
from colocate.verdict.evidence import Evidence, Interval, Member, ProgressEvent

# PyTorch's allocator takes its larger segments in steps of this size (c10/cuda/CUDACachingAllocator: kLargeBuffer).
GRANULE_BYTES = 20 * MIB

CYCLES = 2


def repeats(evidence: Evidence) -> bool:
    """Two whole cycles of the foreground were seen with the same phases, and the second took no more memory.

    A cycle goes from the begin of training through every other phase to the next begin of training. Since the first
    of the two ended, no sample was more than a granule above the highest before. The background, where it uses the
    GPU, has been through a whole cycle too. A member that tells no phases never counts as seen.
    """
    ours = cycles(evidence.foreground)
    background = evidence.background
    if len(ours) < CYCLES or phases(evidence.foreground, ours[-1]) != phases(evidence.foreground, ours[-2]):
        return False
    if background is not None and background.uses_gpu and not cycles(background):
        return False
    turn_s = ours[-1][0]
    before = [sample.used_bytes for sample in evidence.trace.samples if sample.elapsed_s <= turn_s]
    since = [sample.used_bytes for sample in evidence.trace.samples if sample.elapsed_s > turn_s]
    return bool(before and since) and max(since) <= max(before) + GRANULE_BYTES


def cycles(member: Member) -> list[Interval]:
    """The whole cycles of the last process that told phases, in order."""
    return list(pairwise(_begins(_phase_events(member))))


def phases(member: Member, cycle: Interval) -> frozenset[str]:
    """The phases that began in a cycle."""
    reported = _phase_events(member)
    return frozenset(str(event.phase) for event in reported if cycle[0] <= event.elapsed_s < cycle[1])


def _phase_events(member: Member) -> list[ProgressEvent]:
    reported = [event for event in member.progress_events if event.kind == "phase" and event.phase]
    return [event for event in reported if event.pid == reported[-1].pid]


def _begins(reported: list[ProgressEvent]) -> Iterator[float]:
    """When training began after another phase; the first time too."""
    other = True
    for event in reported:
        if event.phase == "train" and other:
            yield event.elapsed_s
        other = event.phase != "train"
