# SPDX-License-Identifier: Apache-2.0
"""What is worth saying beside a verdict, although it does not decide: in words and, where there is one, with a cure.

Pure. Everything here becomes a warning of the verdict.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from colocate.units import format_mib
from colocate.verdict.evidence import Evidence, GpuProcess, Member
from colocate.verdict.facts import Facts
from colocate.verdict.measured_peak import SPIKE_BYTES, own_peak_bytes
from colocate.verdict.memory_history import Step, Steps
from colocate.verdict.memory_words import words_of
from colocate.verdict.reasons import Finding, ReasonCode

# What a balloon leaves as it is.
NOT_IMITATED = "speed, size of the contexts, workspaces and choice of kernels"

# Frameworks that take memory when they start, and the variables that turn that off. JAX takes a share of the whole GPU
# (since jaxlib 0.4.1; docs.jax.dev, GPU memory allocation), TensorFlow all that is free.
PREALLOCATORS = {
    "JAX": "XLA_PYTHON_CLIENT_PREALLOCATE=false, or take less with XLA_CLIENT_MEM_FRACTION=.30",
    "TensorFlow": "TF_FORCE_GPU_ALLOW_GROWTH=true",
}
JAX_SHARE = 0.75

# A healthy training rises in its first steps and then stays; an allocator's cache rises now and then. A leak rises
# through the whole time, at one rate. The time is divided into equal parts; the first ones are for warming up.
PARTS = 10
WARMING_UP = 4
STEADY = 3.0  # the largest rise from one part to the next is at most so many times the smallest
LEAST_BYTES = 64 << 20  # an allocator's segments are up to 20 MiB, of which any program may want one more

# So many processes of one training with a context at the same time are no accident of its start.
_MANY = 3


def remarks(facts: Facts) -> Iterator[Finding]:
    """Everything that is worth saying about a group."""
    evidence = facts.evidence
    for member in evidence.members:
        yield from _of_member(member)
    if facts.phases_apart:
        pairs = ", ".join(f"{ours} beside {theirs}" for ours, theirs in facts.phases_apart)
        yield ReasonCode.PHASES_NOT_SEEN_TOGETHER, f"not seen together (foreground beside background): {pairs}"
    end = evidence.foreground.last_exit
    if end is not None and end.ok and not evidence.foreground.tells_events:
        text = f"{evidence.foreground.name} writes no events: that it finished rests on its exit code"
        yield ReasonCode.COMPLETION_BY_EXIT_CODE, text
    if not facts.predicted:
        yield from _of_measured_memory(facts)
    if evidence.device.balloon is not None:
        text = f"{evidence.device.name}: only the memory is that of a smaller GPU; {NOT_IMITATED} are the large one's"
        yield ReasonCode.CONSTRAINED_DEVICE, text
    for note in dict.fromkeys(f"{m.name}: {note}" for m in evidence.members for a in m.allocators for note in a.notes):
        yield ReasonCode.ASSUMPTION, note
    known = [(m.name, a.coverage) for m in evidence.members for a in m.allocators if a.coverage is not None]
    for text in dict.fromkeys(f"{name}: {text}" for name, coverage in known for text in coverage.sentences):
        yield ReasonCode.COVERAGE, text
    yield from evidence.notes


def _of_member(member: Member) -> Iterator[Finding]:
    retries = sum(allocator.num_alloc_retries for allocator in member.allocators)
    if retries and not any(allocator.num_ooms for allocator in member.allocators):
        yield ReasonCode.TIGHT, f"{member.name} got through only by flushing its allocator's cache {retries} time(s)"
    smaller = sum(allocator.num_ooms for allocator in member.allocators if allocator.ooms_raised == 0)
    if smaller and not member.out_of_memory:
        text = f"PyTorch tried {smaller} smaller workspace(s) for {member.name}, which the GPU had no room for"
        yield ReasonCode.TIGHT, f"{text}; no error reached the program, its convolutions may be slower"
    for words in words_of(member, "warning")[:1]:
        text = f"the log of {member.name} has words of an out-of-memory that nothing else speaks for: {words.text!r}"
        yield ReasonCode.OUT_OF_MEMORY_MENTIONED, text
    left = [name for run in member.process_runs for name in run.leftovers]
    if left:
        yield ReasonCode.LEFTOVERS, f"{member.name} left processes that had to be ended: {'; '.join(left)}"
    failed = [run.exit for run in member.process_runs if run.failed]
    if member.role == "background" and failed:
        yield ReasonCode.BACKGROUND_RESTARTED, f"{member.name} failed {len(failed)} time(s), last with {failed[-1]}"


# Of a measured run only: a dry run is cut, and its verdict rests on other bounds.


def _of_measured_memory(facts: Facts) -> Iterator[Finding]:
    yield from _spike(facts)
    yield from _leaks(facts)
    yield from _worst_case(facts)
    for member in facts.evidence.members:
        yield from _start_order(facts.evidence, member)
        yield from _many_contexts(facts.evidence, member)
        yield from _peak_at_start(member)


def _spike(facts: Facts) -> Iterator[Finding]:
    """The gap between the samples and the sources that miss nothing."""
    sampled, peak = facts.evidence.trace.peak, facts.peak
    if sampled is None or peak is None:
        return
    gap_bytes = peak.expected_bytes - sampled.used_bytes
    if gap_bytes > SPIKE_BYTES:
        yield ReasonCode.SPIKE, f"the samples missed {format_mib(gap_bytes)} of the peak ({facts.readings_text})"


def _leaks(facts: Facts) -> Iterator[Finding]:
    """A training whose memory grew through all of its time: a longer one would need more."""
    if facts.peak is None:
        return
    headroom_bytes = max(0, facts.evidence.limits.peak_bytes - facts.peak.expected_bytes)
    for member in facts.evidence.members:
        events = member.progress_events
        if member.held_by != "allocator" or len(member.process_runs) != 1 or not events:
            continue
        more = steady_growth_bytes(member.held, events[0].elapsed_s, events[-1].elapsed_s)
        if more is not None:
            times = 1 + headroom_bytes / more
            run = f"{times * len(member.epochs):.1f} epochs" if member.epochs else f"{times:.1f} times as long a run"
            text = f"{member.name} grew by {format_mib(more)} through all of its time; at this rate"
            yield ReasonCode.MEMORY_GREW, f"{text} the limit is reached after {run}"


def steady_growth_bytes(held: Sequence[Step], start_s: float, end_s: float) -> int | None:
    """What a training would go on to add in as much time again, in bytes; None where it does not grow steadily.

    Args:
        held: from each second on, so many bytes; never below what was held.
        start_s: the first step of the training.
        end_s: its last.
    """
    if end_s <= start_s or not held:
        return None
    part_s = (end_s - start_s) / PARTS
    instants = (start_s + part * part_s for part in range(WARMING_UP, PARTS + 1))
    levels = [next((size for since_s, size in reversed(held) if since_s <= at_s), 0) for at_s in instants]
    rises = [after - before for before, after in pairwise(levels)]
    if min(rises) <= 0 or max(rises) > STEADY * min(rises) or sum(rises) < LEAST_BYTES:
        return None
    return round(sum(rises) * PARTS / len(rises))


def _worst_case(facts: Facts) -> Iterator[Finding]:
    """Warn of a worst-case peak over the limit; on the virtual GPU the verdict itself rests on it."""
    seen, worst_case, limit = facts.peak, facts.worst_case, facts.evidence.limits.peak_bytes
    if seen is not None and worst_case is not None and seen.high_bytes < limit <= worst_case.peak_bytes:
        possible = format_mib(worst_case.peak_bytes, beside=limit)
        text = f"{possible} are possible, limit {format_mib(limit)}, {worst_case}"
        most = format_mib(seen.high_bytes, beside=limit)
        yield ReasonCode.WORST_CASE_OVER_LIMIT, f"{text}; at once at most {most} were seen"


def _start_order(evidence: Evidence, member: Member) -> Iterator[Finding]:
    """What it holds is not what it needs, and in the other order of starting both would get other amounts.

    In the order that was run the background started first.
    """
    ahead = next((one for one in evidence.gpu_processes if one.owner == member.role and one.framework), None)
    if ahead is None or ahead.framework is None:
        return
    text = f"{member.name} takes memory in advance ({ahead.framework}), so what it holds is not what it needs"
    other = evidence.background if member.role == "foreground" else evidence.foreground
    if other is not None:
        text += f"; who starts first decides who gets how much: {_other_order(evidence, member, other, ahead)}"
    yield ReasonCode.START_ORDER, f"{text}; turn it off with {PREALLOCATORS[ahead.framework]}"


def _other_order(evidence: Evidence, member: Member, other: Member, ahead: GpuProcess) -> str:
    """Work out what would be left to whom if the foreground had started first."""
    free_bytes = evidence.limits.gpu_bytes - (evidence.baseline_bytes or 0)
    share = JAX_SHARE if ahead.share is None else ahead.share
    wanted = round(share * evidence.limits.gpu_bytes) if ahead.framework == "JAX" else free_bytes
    needed = own_peak_bytes(other) or other.held_bytes
    enough = {True: "enough", False: "too little"}
    if member.role == "foreground":
        left = max(0, free_bytes - wanted)
        text = f"started first, the foreground would leave about {format_mib(left)} to the background"
        return text if needed is None else f"{text}, which held {format_mib(needed)}: {enough[needed < left]}"
    if needed is None:
        return "started second, the background would get what the foreground leaves"
    left = max(0, free_bytes - needed)
    text = f"started second, the background would find about {format_mib(left)} beside the foreground"
    if ahead.framework != "JAX":
        return f"{text}, and take all of it"
    return f"{text}, and want {format_mib(wanted)}: {enough[wanted < left]}"


def _many_contexts(evidence: Evidence, member: Member) -> Iterator[Finding]:
    own = [one for one in evidence.gpu_processes if one.owner == member.role]
    # Of each that came, those that were there.
    together = ([other for other in own if other.first_s <= one.first_s <= other.last_s] for one in own)
    at_once = max(together, key=len, default=[])
    if len(at_once) < _MANY:
        return
    sizes = [one.max_used_bytes for one in at_once if one.max_used_bytes is not None]
    size = f", {format_mib(sum(sizes))} together" if sizes else ""
    text = f"{len(at_once)} processes of {member.name} are on the GPU at once{size}: each has a CUDA context of its own"
    cause = "data-loader workers that touch CUDA are the usual cause; let them return tensors of the CPU"
    yield ReasonCode.MANY_CONTEXTS, f"{text}; {cause}"


def _peak_at_start(member: Member) -> Iterator[Finding]:
    """Resuming costs more than training: a checkpoint is loaded onto the GPU while the model lives there already."""
    steps = [event.elapsed_s for event in member.progress_events if event.kind != "ready"]
    if not steps or not member.held or member.held_by != "allocator":
        return
    held = Steps.of(member.held, member.held[-1][0] + 1)
    before, after = held.cut(0.0, steps[0]).highest, held.cut(steps[0], held.end_s).highest
    if after and before > after + SPIKE_BYTES:
        text = f"{member.name} held {format_mib(before)} before its first step and at most {format_mib(after)} after"
        cure = "a checkpoint that is loaded onto the GPU beside the model does that; load it with map_location='cpu'"
        yield ReasonCode.PEAK_AT_START, f"{text}: {cure}"
