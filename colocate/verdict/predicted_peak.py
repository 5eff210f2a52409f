# SPDX-License-Identifier: Apache-2.0
"""Bound how far a predicted peak may be from a real one.

Pure arithmetic on what the probe recorded; docs/prediction-accuracy.md has the comparisons from which the margins
come, and how often the intervals held.
"""

from dataclasses import dataclass

from colocate.units import MIB
from colocate.verdict.evidence import Allocator, Evidence, Member

# Shares of the allocator's reserved memory; docs/prediction-accuracy.md says how often ranges with them held. Upwards
# they are what workspaces do not explain, and more where a program computes in half precision. Of what is cached beyond
# the live memory, which is a matter of the order of all requests, a GPU did without up to a share of CACHED_LESS, or
# took CACHED_MORE on top.
LESS = 0.02
MORE = 0.03
MORE_IN_HALF = 0.05
CACHED_LESS = 0.65
CACHED_MORE = 0.15

# Of compiled programs, whose memory plan is not known: measured between a third less and a twentieth more than eager.
COMPILED_LESS = 0.5
COMPILED_MORE = 0.06

# Of a record without a bound for the workspaces of convolutions, or without the live memory, as older ones are.
MORE_WITHOUT_BOUND = 0.20
LESS_WITHOUT_LIVE = 0.12
CACHED_MORE_WITHOUT_LIVE = 0.02

# A CUDA context beyond the estimate written into the GPU, where a record does not say: see settings/gpu_models.json.
CONTEXT_LESS_BYTES = 100 * MIB
CONTEXT_MORE_BYTES = 150 * MIB


@dataclass(frozen=True, slots=True)
class PeakRange:
    """A peak of the GPU in bytes: the expected value and the ends of the interval it may lie in."""

    low_bytes: int
    expected_bytes: int
    high_bytes: int

    def __add__(self, other: "PeakRange") -> "PeakRange":
        """Both at once. The ends are added too: contexts and versions err in one direction for both."""
        return PeakRange(
            self.low_bytes + other.low_bytes,
            self.expected_bytes + other.expected_bytes,
            self.high_bytes + other.high_bytes,
        )


def predicted_peak(evidence: Evidence) -> PeakRange | None:
    """The GPU's peak when both members are at their own peaks at once; None when nothing was simulated.

    Peaks of endless loops meet sooner or later, so no time shift is counted on. A background that was restarted
    counts with its largest life. A member that was never started counts with nothing: what the other one alone wants
    may be too much already.
    """
    if evidence.baseline_bytes is None or not evidence.trace.samples:
        return None
    ranges = [member_range(member) for member in evidence.members if member.uses_gpu and member.process_runs]
    if any(range_ is None for range_ in ranges):
        return None
    base = evidence.baseline_bytes
    total = sum((range_ for range_ in ranges if range_ is not None), start=PeakRange(base, base, base))
    sampled = max(sample.used_bytes for sample in evidence.trace.samples)
    expected = max(sampled, total.expected_bytes)
    return PeakRange(total.low_bytes, expected, max(expected, total.high_bytes))


def member_range(member: Member) -> PeakRange | None:
    """Return the peak of one training, context included, even if it did not fit."""
    ranges = [allocator_range(allocator) for allocator in (*member.allocators, *member.wanted)]
    known = [range_ for range_ in ranges if range_ is not None]
    if not known:
        return None
    if takes_what_it_gets(member):
        known = [one for one in map(allocator_range, member.allocators) if one is not None] or known
        largest = max(known, key=lambda range_: range_.expected_bytes)
        least = max(_context_range(one, one.context_bytes or 0)[0] for one in member.allocators)
        return PeakRange(least, largest.expected_bytes, largest.high_bytes)
    largest = max(known, key=lambda range_: range_.expected_bytes)
    if member.wanted:
        return largest
    together = max((size for _, size in member.held), default=0) if member.held_by == "allocator" else 0
    largest += PeakRange(0, 0, max(0, together - largest.expected_bytes))  # its other processes, which may have met it
    unmet = max((event.requested_bytes or 0 for event in member.out_of_memory), default=0)
    return largest + PeakRange(unmet, unmet, unmet)


def takes_what_it_gets(member: Member) -> bool:
    """Tell whether its demand is whatever the GPU gives.

    Such a member goes on after it was refused memory, alone on a GPU of several times the size too; or it asked how
    much is free and took most of that. Known of simulated members only: how a real GPU was filled is measured.
    """
    if any(one.mode != "virtual" for one in member.allocators):
        return False
    failed = any(run.exit is not None and not run.exit.ok and not run.exit.stopped for run in member.process_runs)
    if member.out_of_memory and not failed and any(one.num_ooms for one in member.wanted):
        return True
    return any(one.sized_by_free for one in member.allocators)


def allocator_range(allocator: Allocator) -> PeakRange | None:
    """What one process holds at most, context included; None where it was not simulated, or never used the GPU.

    Memory that grows from step to step is counted with the steps that were left out: once in the expected value, twice
    in the upper end, because what is collected is often joined at last, and in the lower end only where it is certain
    (``certain_reserved_bytes``), because it may stop growing.
    """
    grown = 0 if allocator.coverage is None else allocator.coverage.growth_bytes
    reserved, context = allocator.max_reserved_bytes, allocator.context_bytes
    if not reserved or context is None:
        return None
    low, high = _context_range(allocator, context)
    certain = reserved if allocator.certain_reserved_bytes is None else allocator.certain_reserved_bytes
    least = round(certain * _least_share(allocator, reserved))
    return PeakRange(least + low, reserved + context + grown, _bound(allocator, reserved) + high + 2 * grown)


def _least_share(allocator: Allocator, reserved: int) -> float:
    """The share of its reserved memory that a program takes at least."""
    cached = _cached_share(allocator, reserved)
    share = 1 - LESS_WITHOUT_LIVE if cached is None else (1 - CACHED_LESS * cached) * (1 - LESS)
    return share * (1 - COMPILED_LESS) if allocator.compiled else share


def _cached_share(allocator: Allocator, reserved: int) -> float | None:
    """The share of its reserved memory that lay unused at the fullest instant; None where a record does not say."""
    live = allocator.max_allocated_bytes
    return None if live is None else max(0, reserved - live) / reserved


def _context_range(allocator: Allocator, context_bytes: int) -> tuple[int, int]:
    """From what to what the context of a process may be."""
    return allocator.context_range_bytes or (
        max(0, context_bytes - CONTEXT_LESS_BYTES),
        context_bytes + CONTEXT_MORE_BYTES,
    )


def _bound(allocator: Allocator, reserved: int) -> int:
    """The most that the allocator may reserve, with the workspaces that convolutions could take."""
    cached = _cached_share(allocator, reserved)
    more = (MORE_IN_HALF if allocator.half else MORE) + (COMPILED_MORE if allocator.compiled else 0)
    more += CACHED_MORE_WITHOUT_LIVE if cached is None else CACHED_MORE * cached
    if allocator.max_reserved_bound_bytes is not None:
        return round(max(reserved, allocator.max_reserved_bound_bytes) * (1 + more))
    return round(reserved * (1 + (MORE_WITHOUT_BOUND if allocator.convolutions else more)))
