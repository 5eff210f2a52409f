# SPDX-License-Identifier: Apache-2.0
"""Do the witnesses of a measured run agree: the memory sensor, the driver's lists and accounting, the allocators?

Each number behind a FEASIBLE has two witnesses at least, and they are compared over the whole run and not at its peak
only. A sensor may stand still, change its unit or be another GPU's; what it says then looks like a low peak. Pure:
every contradiction is a sentence, and what follows is `colocate.verdict.rules`'s business.

The bounds, and why:

- `TOLERANCE_BYTES`, 64 MiB: what an idle GPU with a desktop wanders by, and less than a third of the smallest CUDA
  context (above 200 MiB).
- `AROUND_S`, half a second: lists, samples and allocators are read by different threads of a machine that is busy. Of
  the samples within that time the highest counts, so that memory that comes or goes meanwhile contradicts nothing.
- `RELEASE_S`, 3 s: a driver takes a context down while its process ends, so memory is back before the end is known;
  what takes longer has not been given back.
- A quarter of the baseline may go meanwhile: a desktop closes a window. What is gone for good shows in the last
  reading.
- `UNACCOUNTED_BYTES`, 512 MiB: what is in use beyond the baseline and a list with all of our processes. Contexts are on
  the list; what a driver keeps for itself is below 300 MiB.
- `LEAST_CONTEXT_BYTES`, 16 MiB: no process computes with less. A GPU with less in use than that, between two lists that
  both show a training, tells another unit.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from math import inf

from colocate.units import MIB, format_mib
from colocate.verdict.evidence import Evidence, Member
from colocate.verdict.measured_peak import SPIKE_BYTES, left_no_trace, settled_s
from colocate.verdict.memory_history import Steps, summed

TOLERANCE_BYTES = SPIKE_BYTES
LEAST_CONTEXT_BYTES = 16 * MIB
UNACCOUNTED_BYTES = 512 * MIB
AROUND_S = 0.5
RELEASE_S = 3.0
BASELINE_SHARE = 0.75

# A driver's accounting may leave the context out, which its list counts.
_CONTEXT_BYTES = 512 * MIB

# An allocator's word counts when the sensor had so many chances to see it.
_SAMPLES = 4


def contradictions(evidence: Evidence) -> tuple[str, ...]:
    """Where two witnesses cannot both be right, in words; one sentence of each kind. None for a virtual GPU."""
    if evidence.device.basis != "measured" or not evidence.trace.samples:
        return ()
    kinds: tuple[Callable[[Evidence], Iterator[str]], ...] = (
        _lists_above_level,
        _allocators_above_level,
        _allocators_above_lists,
        _below_baseline,
        _below_contexts,
        _did_not_rise,
        _did_not_fall,
        _accounting_below,
    )
    return tuple(text for kind in kinds if (text := next(kind(evidence), None)) is not None)


def unaccounted(evidence: Evidence) -> str | None:
    """Memory that no process on the driver's lists holds, in words: somebody used the GPU who cannot be seen.

    On two lists in a row on which every training that has memory is, with how much. Where a list leaves ours out, as in
    some containers, or does not tell how much each has, nothing can be said.
    """
    if evidence.device.basis != "measured" or not evidence.trace.samples or evidence.baseline_bytes is None:
        return None
    earlier = None
    for listing in evidence.listings:
        at_s = listing.elapsed_s
        more = min(_around(evidence, at_s, at_s), default=0) - evidence.baseline_bytes - listing.used_bytes
        known = [listing.of(one.role) for one in evidence.members if one.uses_gpu and _runs(one, at_s, at_s)]
        if not known or more <= UNACCOUNTED_BYTES or any(one.processes == 0 or one.used_bytes is None for one in known):
            earlier = None
        elif earlier is None:
            earlier = listing
        else:
            return (
                f"from {earlier.elapsed_s:.1f} to {listing.elapsed_s:.1f} s {format_mib(more)} more were in use than "
                "before the group and by the processes on the driver's list: somebody used the GPU who is not on it"
            )
    return None


def _runs(member: Member, start_s: float, until_s: float) -> bool:
    """One process run of a member lasted from before one instant until after another."""
    return any(run.span[0] <= start_s and until_s <= run.span[1] for run in member.process_runs)


def _around_s(evidence: Evidence) -> float:
    """How far what is read at the same time may be apart."""
    return max(AROUND_S, 2 * evidence.trace.interval_s)


def _around(evidence: Evidence, start_s: float, end_s: float) -> list[int]:
    """What was in use in every sample around a stretch of time."""
    around_s = _around_s(evidence)
    return evidence.trace.used_between(start_s - around_s, end_s + around_s)


def _lists_above_level(evidence: Evidence) -> Iterator[str]:
    """One list alone may have seen a spike between two samples, which `measured_peak` takes into account."""
    above = []
    for listing in evidence.listings:
        highest = max(_around(evidence, listing.elapsed_s, listing.elapsed_s), default=None)
        if highest is not None and listing.used_bytes > highest + TOLERANCE_BYTES:
            above.append((listing, highest))
    if above and above[-1][0].elapsed_s - above[0][0].elapsed_s >= _around_s(evidence):
        listing, highest = above[0]
        yield (
            f"at {listing.elapsed_s:.1f} s, and not only then, the driver's list of processes adds up to "
            f"{format_mib(listing.used_bytes)}, the whole GPU had at most {format_mib(highest)} in use around then"
        )


def _allocators_above_level(evidence: Evidence) -> Iterator[str]:
    """What PyTorch says that it holds must be in use on the GPU, on top of what was there before."""
    if left_no_trace(evidence):  # it trains on another GPU, which is said elsewhere
        return
    base = _base_bytes(evidence)
    for start_s, until_s, held in (span for span in _held(evidence.members).spans() if span[2]):
        highest = max(_around(evidence, start_s, until_s), default=None)
        seen_often = until_s - start_s >= max(_SAMPLES * evidence.trace.interval_s, AROUND_S / 2)
        if seen_often and highest is not None and base + held > highest + TOLERANCE_BYTES:
            yield (
                f"from {start_s:.1f} to {until_s:.1f} s the allocators held {format_mib(held)}, the whole GPU had at "
                f"most {format_mib(highest)} in use ({format_mib(evidence.baseline_bytes)} before the group)"
            )


def _allocators_above_lists(evidence: Evidence) -> Iterator[str]:
    around_s = _around_s(evidence)
    for member in evidence.members:
        held = _held((member,))
        for listing in evidence.listings:
            listed = listing.of(member.role)
            if not listed.processes or listed.used_bytes is None:
                continue
            least = _least(held, listing.elapsed_s - around_s, listing.elapsed_s + around_s)
            if least > listed.used_bytes + TOLERANCE_BYTES:
                yield (
                    f"at {listing.elapsed_s:.1f} s the driver's list has {format_mib(listed.used_bytes)} for the "
                    f"{member.role}, whose allocators held {format_mib(least)}"
                )


def _below_baseline(evidence: Evidence) -> Iterator[str]:
    floor = _base_bytes(evidence) - TOLERANCE_BYTES
    starts = [run.started_s for member in evidence.members for run in member.process_runs]
    lowest = min(evidence.trace.used_between(min(starts), inf), default=None) if starts else None
    if lowest is not None and lowest < floor:
        yield (
            f"the GPU had {format_mib(lowest)} in use while the trainings ran, and "
            f"{format_mib(evidence.baseline_bytes)} before them"
        )


def _below_contexts(evidence: Evidence) -> Iterator[str]:
    for member in evidence.members:
        for earlier, later in pairwise(evidence.listings):
            both = earlier.of(member.role).processes and later.of(member.role).processes
            if not both or not _runs(member, earlier.elapsed_s, later.elapsed_s):
                continue
            lowest = [max(pair) for pair in pairwise(evidence.trace.used_between(earlier.elapsed_s, later.elapsed_s))]
            if lowest and min(lowest) < LEAST_CONTEXT_BYTES:
                yield (
                    f"the GPU had {min(lowest):,} bytes in use between {earlier.elapsed_s:.1f} and "
                    f"{later.elapsed_s:.1f} s, less than the context of one process, while the {member.role} was on it"
                )


def _did_not_rise(evidence: Evidence) -> Iterator[str]:
    """A training came onto the GPU, by the driver's word, and nothing more was in use."""
    foreground, background = evidence.foreground, evidence.background
    if background is not None and background.process_runs and evidence.baseline_bytes is not None:
        until_s = foreground.process_runs[0].started_s if foreground.process_runs else inf
        beside = evidence.trace.used_between(background.process_runs[0].started_s, until_s)
        stood = beside and max(beside) <= evidence.baseline_bytes + TOLERANCE_BYTES
        if stood and _listed(evidence, background, until_s):
            yield _stood_still(max(beside), "background", "came")
    span = foreground.process_run
    if span is None:
        return
    before = evidence.trace.used_between(settled_s(evidence, span[0]), span[0])
    beside = evidence.trace.used_between(*span)
    if before and beside and max(beside) <= min(before) + TOLERANCE_BYTES and _listed(evidence, foreground, inf):
        yield _stood_still(max(beside), "foreground", "came")


def _did_not_fall(evidence: Evidence) -> Iterator[str]:
    """The foreground has ended, and as much is in use as before; the background goes on, so it is not that."""
    foreground, background, span = evidence.foreground, evidence.background, evidence.foreground.process_run
    if span is None or background is None or foreground.process_runs[-1].leftovers:
        return
    around_s = _around_s(evidence)
    stopped_s = background.process_runs[-1].span[1] if background.process_runs else inf
    until_s = min(span[1] + RELEASE_S, stopped_s - around_s / 2)
    before = evidence.trace.used_between(span[1] - 2 * around_s, span[1])
    after = evidence.trace.used_between(span[1], until_s)
    grew = any(at >= span[1] - 2 * around_s for at, _ in background.held)
    stood = before and after and min(after) > max(before) - TOLERANCE_BYTES
    if stood and not grew and _listed(evidence, foreground, inf):
        yield _stood_still(min(after), "foreground", "went")


def _accounting_below(evidence: Evidence) -> Iterator[str]:
    listed = {process.pid: process.max_used_bytes or 0 for process in evidence.gpu_processes}
    for member in evidence.members:
        reserved = {one.pid: one.max_reserved_bytes or 0 for one in member.allocators}
        for peak in member.process_peaks:
            known = max(listed.get(peak.pid, 0) - _CONTEXT_BYTES, reserved.get(peak.pid, 0))
            if known > peak.used_bytes + TOLERANCE_BYTES:
                yield (
                    f"the driver accounted {format_mib(peak.used_bytes)} for process {peak.pid} of the {member.role}, "
                    f"which held {format_mib(max(listed.get(peak.pid, 0), reserved.get(peak.pid, 0)))}"
                )


def _held(members: tuple[Member, ...]) -> Steps:
    """What the allocators of some members held at least."""
    return summed(Steps.of(member.held_at_least, inf) for member in members if member.held_at_least)


def _least(steps: Steps, start_s: float, until_s: float) -> int:
    """The least of a stretch of time; 0 where it reaches beyond the steps."""
    if not steps.steps or steps.steps[0][0] > start_s or steps.end_s < until_s:
        return 0
    return min(size for begun_s, ended_s, size in steps.spans() if begun_s <= until_s and ended_s >= start_s)


def _base_bytes(evidence: Evidence) -> float:
    """What others hold at least all the time."""
    known = [one for one in (evidence.baseline_bytes, evidence.final_bytes) if one is not None]
    return BASELINE_SHARE * min(known, default=0)


def _listed(evidence: Evidence, member: Member, until_s: float) -> bool:
    """The driver lists a member, with enough memory to be seen or without saying how much."""
    found = [one.of(member.role) for one in evidence.listings if one.elapsed_s <= until_s]
    found = [one for one in found if one.processes]
    return bool(found) and all(one.used_bytes is None or one.used_bytes > 2 * TOLERANCE_BYTES for one in found)


def _stood_still(used_bytes: int, role: str, did: str) -> str:
    return f"the GPU's memory stood at {format_mib(used_bytes)} when the {role}, which the driver lists, {did}"
