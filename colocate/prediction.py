"""How far a peak seen on the virtual card may be from a real one.

The simulated allocator is exact for what it models; a real card adds convolution workspaces, and its CUDA context has
another size. The ranges below come from comparisons with published measurements (docs/virtual-gpu.md).
"""

from dataclasses import dataclass

from colocate.evidence import Allocator, Evidence, Member
from colocate.units import MIB

# Share of the allocator's reserved memory. 119 published whole-card readings of timm models: 91 % within 10 %, nearly
# all misses too low because cuDNN chose larger convolution workspaces; without convolutions, errors stayed below 4 %.
WITHOUT_CONVOLUTIONS = (-0.06, 0.06)
WITH_CONVOLUTIONS = (-0.05, 0.20)

# A CUDA context beyond the estimate written into the card: 256 MiB (RTX 3090, CUDA 12.8) to 426 MiB (RTX 6000 Ada,
# CUDA 13.0) were reported, and it grows with the kernels that a program loads.
CONTEXT_LESS_BYTES = 100 * MIB
CONTEXT_MORE_BYTES = 150 * MIB


@dataclass(frozen=True, slots=True)
class PeakRange:
    """A peak of the card in bytes: the expected value and the ends of the interval it may lie in."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int


def predicted_peak(evidence: Evidence) -> PeakRange | None:
    """The card's peak when both members are at their own peaks at once; None when nothing was simulated.

    Peaks of endless loops meet sooner or later, so no time shift is counted on. A background that was restarted
    counts with its largest life.
    """
    if evidence.baseline_bytes is None or not evidence.trace.samples:
        return None
    ranges = [member_range(member) for member in evidence.members if member.uses_gpu]
    if any(range_ is None for range_ in ranges):
        return None
    known = [range_ for range_ in ranges if range_ is not None]
    base = evidence.baseline_bytes
    sampled = max(sample.used_bytes for sample in evidence.trace.samples)
    expected = max(sampled, base + sum(range_.expected_bytes for range_ in known))
    return PeakRange(
        base + sum(range_.low_bytes for range_ in known),
        expected,
        max(expected, base + sum(range_.high_bytes for range_ in known)),
    )


def member_range(member: Member) -> PeakRange | None:
    """What one training holds at most, context included: the demand, also where it did not fit any more."""
    ranges = [_allocator_range(allocator) for allocator in member.allocators]
    known = [range_ for range_ in ranges if range_ is not None]
    if not known:
        return None
    largest = max(known, key=lambda range_: range_.expected_bytes)
    unmet = max((event.requested_bytes or 0 for event in member.out_of_memory), default=0)
    return PeakRange(largest.low_bytes + unmet, largest.expected_bytes + unmet, largest.high_bytes + unmet)


def _allocator_range(allocator: Allocator) -> PeakRange | None:
    reserved, context = allocator.max_reserved_bytes, allocator.context_bytes
    if reserved is None or context is None:
        return None
    less, more = WITH_CONVOLUTIONS if allocator.convolutions else WITHOUT_CONVOLUTIONS
    return PeakRange(
        round(reserved * (1 + less)) + max(0, context - CONTEXT_LESS_BYTES),
        reserved + context,
        round(reserved * (1 + more)) + context + CONTEXT_MORE_BYTES,
    )
