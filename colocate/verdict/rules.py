# SPDX-License-Identifier: Apache-2.0
"""Judge evidence: a pure function, with a reason code for everything it says.

Read on from `judge`. Three stages are asked in this order, and the first that finds something decides:

1. `_worthless`: nothing can be concluded (interrupted, foreign process, GPU lost, fault of the harness): INCONCLUSIVE;
2. `_proven_infeasible`: it does not fit (out of memory, peak, failed foreground), whatever else is weak: INFEASIBLE;
3. `_unproven`: the proof that it fits has a hole (no overlap, gaps, background that never loaded): INCONCLUSIVE.

Nothing found is FEASIBLE. All reasons of the deciding stage are given, not only the first. docs/design.md has the rules
and which reason codes speak of each, docs/reference.md what each code means; tests compare both with this file.
"""

from collections.abc import Iterator
from itertools import islice

from colocate.units import format_mib
from colocate.verdict.coverage import MOST_PLACES
from colocate.verdict.ended_by import kernel_kills, killed_from_outside, last_word
from colocate.verdict.evidence import STEP_KINDS, Evidence, Member, OutOfMemory
from colocate.verdict.facts import Facts
from colocate.verdict.measured_peak import SPIKE_BYTES
from colocate.verdict.memory_words import words_of
from colocate.verdict.overlap import memory_missing_beside
from colocate.verdict.predicted_peak import takes_what_it_gets
from colocate.verdict.reasons import Finding, Reason, ReasonCode
from colocate.verdict.remarks import remarks
from colocate.verdict.verdict import Outcome, Verdict, class_of
from colocate.verdict.witnesses import contradictions, unaccounted


def judge(evidence: Evidence) -> Verdict:
    """Feasible, infeasible or inconclusive: what the evidence carries, and why."""
    facts = Facts.of(evidence)
    peak, limit = facts.peak, evidence.limits.peak_bytes
    outcome, reasons = _decide(facts)
    return Verdict(
        outcome=outcome,
        basis=evidence.device.basis,
        reasons=reasons,
        warnings=_reasons(remarks(facts)),
        peak_bytes=None if peak is None else peak.expected_bytes,
        peak_low_bytes=None if peak is None else peak.low_bytes,
        peak_high_bytes=None if peak is None else peak.high_bytes,
        limit_bytes=limit,
        headroom_bytes=None if peak is None else limit - peak.high_bytes,
        memory_class=class_of(outcome, None if peak is None else peak.expected_bytes, limit),
        overlap=facts.overlap,
        phases_together=facts.phases_together,
        phases_apart=facts.phases_apart,
        epoch_cut=evidence.foreground.epoch_cut,
        peaks=facts.readings,
        worst_case=facts.worst_case,
    )


def _decide(facts: Facts) -> tuple[Outcome, tuple[Reason, ...]]:
    """The first stage that finds something, with all that it finds."""
    stages = (
        (Outcome.INCONCLUSIVE, _worthless(facts)),
        (Outcome.INFEASIBLE, _proven_infeasible(facts)),
        (Outcome.INCONCLUSIVE, _unproven(facts)),
    )
    for outcome, stage in stages:
        if reasons := _reasons(stage):
            return outcome, reasons
    return Outcome.FEASIBLE, ()


def _reasons(findings: Iterator[Finding]) -> tuple[Reason, ...]:
    return tuple(Reason(ReasonCode(code), text) for code, text in findings)


# Stage 1: nothing can be concluded, in either direction.


def _worthless(facts: Facts) -> Iterator[Finding]:
    evidence = facts.evidence
    yield from evidence.faults
    if evidence.trace.lost:
        yield ReasonCode.SENSOR_LOST, f"the GPU stopped answering: {evidence.trace.lost}"
    foreign = [one for one in evidence.gpu_processes if one.owner == "foreign"]
    if foreign and "foreign_process" not in dict(evidence.faults):
        names = ", ".join(f"{one.name}, from {one.first_s:.1f} to {one.last_s:.1f} s" for one in foreign)
        yield ReasonCode.FOREIGN_PROCESS, f"somebody else used the GPU: {names}"
    elif facts.may_not_fit and (unseen := unaccounted(evidence)) is not None:
        yield ReasonCode.FOREIGN_PROCESS, unseen
    for member in evidence.members:
        unsupported = next((a.unsupported for a in member.allocators if a.unsupported), None)
        if unsupported:
            yield ReasonCode.NOT_EMULATED, f"{member.name} cannot be emulated without a GPU: {unsupported}"
        # A probe that tells more than the GPU has is no witness, neither of what it says nor of what it does not.
        told, total = max(member.reserved_bytes, default=0), evidence.device.total_bytes
        if evidence.device.basis == "measured" and told > total:
            text = f"the record of a process of {member.name} tells {format_mib(told)}, the GPU has {format_mib(total)}"
            yield ReasonCode.IMPLAUSIBLE_RECORD, text


# Stage 2: it does not fit, and that is proven.


def _proven_infeasible(facts: Facts) -> Iterator[Finding]:
    evidence, peak, limit = facts.evidence, facts.peak, facts.evidence.limits.peak_bytes
    for member in evidence.members:
        if member.out_of_memory and _out_of_memory_is_sound(facts, member):
            yield f"{member.role}_out_of_memory", _out_of_memory_text(member, member.out_of_memory[0])
        if kills := kernel_kills(member):
            text = f"the kernel killed {kills} process(es) of {member.name} for host memory"
            yield f"{member.role}_host_out_of_memory", text
    if peak is not None and peak.low_bytes >= limit:
        yield ReasonCode.PEAK_OVER_LIMIT, f"peak {facts.peak_text(limit)}, limit {format_mib(limit)}"
    end = evidence.foreground.last_exit
    if not facts.predicted and end is not None and (unfinished := _how_unfinished(evidence.foreground)) is not None:
        yield ReasonCode.EPOCH_UNFINISHED if end.ok else ReasonCode.FOREGROUND_FAILED, unfinished


def _how_unfinished(foreground: Member) -> str | None:
    """Say what its end lacks, or None if it finished or its end says nothing about that."""
    end = foreground.last_exit
    if foreground.out_of_memory or end is None or end.stopped or not _started(foreground):
        return None
    if killed_from_outside(foreground) is not None:
        return None
    if not end.ok:
        when = "after the end of its epoch" if foreground.epochs else "before its epoch was done"
        return f"{foreground.name} ended with {end} {when}{_last_word(foreground)}"
    # An exit code of 0 alone is not believed.
    if foreground.epochs or _went_on_without_us(foreground):
        return None
    if foreground.tells_events:
        return f"{foreground.name} ended with {end} but wrote no record of a finished epoch"
    if foreground.tracebacks:
        return f"{foreground.name} ended with {end} but its log holds a Python traceback"
    if foreground.expects_metrics and not foreground.metrics:
        return f"{foreground.name} ended with {end} but its log holds none of the metrics that the catalog looks for"
    return None


# Stage 3: the proof that it fits has a hole.


def _unproven(facts: Facts) -> Iterator[Finding]:
    """Find what is missing, causes first: what a program did before what could not be read for it."""
    evidence = facts.evidence
    yield from _undecided(facts)
    if facts.predicted:
        yield from _not_covered(evidence)
    else:
        yield from _contradicted(facts)
    for member in evidence.members:
        if member.probe_lost:
            why = member.probe_lost_why or "it fell silent"
            text = f"no probe followed {member.name} to its end ({why}): an out-of-memory or a peak is not known"
            yield ReasonCode.PROBE_LOST, text
    for member in evidence.members:
        for words in words_of(member, "doubt")[:1]:
            text = f"{member.name} may have run out of memory, by its log alone: {words.text!r} ({words.framework})"
            yield ReasonCode.OUT_OF_MEMORY_SUSPECTED, text
    if facts.predicted and (unfinished := _how_unfinished(evidence.foreground)) is not None:
        # A program that fails on the virtual GPU, where no value is computed, may fail of that, and not of sharing.
        cut = any(allocator.passes_cut for allocator in evidence.foreground.allocators)
        why = ", or of the cut of its passes over the data; --effort full runs them whole" if cut else ""
        text = f"{unfinished}; it may be the emulation's doing, which computes no values{why}"
        yield ReasonCode.DRY_RUN_FAILED, text
    yield from _foreground_unproven(facts)
    if evidence.background is not None:
        yield from _background_unproven(facts, evidence.background)
    if not evidence.trace.samples:
        yield ReasonCode.NO_SAMPLES, "the GPU's memory was never read"
    elif facts.peak is None and all(one.held_gpu for one in evidence.members if one.uses_gpu and one.process_runs):
        yield ReasonCode.PEAK_UNKNOWN, "the peak of a member is not known"
    yield from _gaps(facts)
    if evidence.baseline_bytes is None:
        yield ReasonCode.NO_BASELINE, "what the GPU held before the group is not known"
    if evidence.returned_to_baseline is not True:
        text = f"after the group the GPU did not come back to its baseline: {format_mib(evidence.final_bytes)} in use"
        yield ReasonCode.GPU_NOT_RETURNED, text


def _undecided(facts: Facts) -> Iterator[Finding]:
    evidence, peak, limit = facts.evidence, facts.peak, facts.evidence.limits.peak_bytes
    for member in evidence.members:
        if member.out_of_memory and not takes_what_it_gets(member) and not _out_of_memory_is_sound(facts, member):
            text = f"{member.name} ran out of memory on the virtual GPU, but {facts.peak_text(limit)} may fit; measure"
            yield ReasonCode.UNDECIDED, text
            return
    if peak is None or not peak.low_bytes < limit <= peak.high_bytes:
        return
    if facts.predicted:
        text = f"predicted peak {facts.peak_text(limit)} lies across the limit {format_mib(limit)}; measure"
        yield ReasonCode.UNDECIDED, text
    else:
        text = f"a peak between two samples may have reached the limit {format_mib(limit)}: {facts.peak_text(limit)}"
        yield ReasonCode.PEAK_BETWEEN_SAMPLES, f"{text} ({facts.readings_text})"


def _not_covered(evidence: Evidence) -> Iterator[Finding]:
    """Yield what a dry run left out and what may need more memory."""
    for member in evidence.members:
        coverages = [one.coverage for one in (*member.allocators, *member.wanted) if one.coverage is not None]
        for code, text in dict.fromkeys(doubt for one in coverages for doubt in one.doubts):
            yield code, f"{member.name}: {text}"
        places = dict.fromkeys(place for one in member.allocators for place in one.open_branches)
        if places:
            named = ", ".join(islice(places, MOST_PLACES))
            text = f"{member.name}: decides by values that nobody knows, and its other side was not run: {named}"
            yield ReasonCode.BRANCH_ON_VALUES, f"{text}; `colocate predict` tries it"
        if takes_what_it_gets(member):
            text = f"{member.name} takes what it gets: it went on with what the GPU gave it, so who starts first"
            yield ReasonCode.TAKES_WHAT_IT_GETS, f"{text} decides; measure, or give it a fixed size"


def _gaps(facts: Facts) -> Iterator[Finding]:
    """Find gaps between the foreground's start and its exit: loading and saving count for the peak too."""
    evidence = facts.evidence
    spans = [span for span in (facts.window, evidence.foreground.process_run) if span is not None]
    if not spans or not evidence.trace.samples:
        return
    longest_s = evidence.trace.longest_gap_s(min(start for start, _ in spans), max(end for _, end in spans))
    if longest_s > evidence.limits.longest_gap_s:
        why = {gap.reason for gap in evidence.trace.gaps}
        text = f"no sample for {longest_s:.1f} s while the foreground ran (at most {evidence.limits.longest_gap_s} s)"
        yield ReasonCode.SENSOR_GAP, text + (f": {', '.join(sorted(why))}" if why else "")


def _contradicted(facts: Facts) -> Iterator[Finding]:
    """The GPU cannot have held less than one of the processes on it: one of the driver's answers is wrong, or late."""
    evidence, peak = facts.evidence, facts.peak
    if peak is None:
        return
    for contradiction in contradictions(evidence):
        yield ReasonCode.SENSOR_CONTRADICTED, contradiction
    for gpu_process in evidence.gpu_processes:
        listed = 0 if gpu_process.owner == "balloon" else gpu_process.max_used_bytes or 0
        if listed > peak.expected_bytes + SPIKE_BYTES:
            told = f"the driver's list has {format_mib(listed)} for {gpu_process.name}"
            yield ReasonCode.SENSOR_CONTRADICTED, f"{told}, the whole GPU {facts.peak_text()}"


def _foreground_unproven(facts: Facts) -> Iterator[Finding]:
    foreground, background = facts.evidence.foreground, facts.evidence.background
    end = foreground.last_exit
    if not foreground.process_runs:
        if background is None or background.ready_s is not None:
            yield ReasonCode.FOREGROUND_NOT_STARTED, f"{foreground.name} was never started"
    elif foreground.stalled_after_s is not None:
        after = f"no output and no step for {foreground.stalled_after_s:.0f} s"
        yield ReasonCode.FOREGROUND_HANG, f"{foreground.name} hung and was stopped: {after}"
    elif foreground.timed_out_after_s is not None:
        text = f"{foreground.name} did not end within {foreground.timed_out_after_s:.0f} s and was stopped"
        yield ReasonCode.FOREGROUND_TIMEOUT, text
    elif (by := killed_from_outside(foreground)) is not None:
        yield ReasonCode.KILLED_FROM_OUTSIDE, f"{foreground.name} was ended {by}"
    elif not _started(foreground):
        text = f"{foreground.name} ended with {end} before it trained{_last_word(foreground)}"
        yield ReasonCode.FOREGROUND_NOT_STARTED, text
    elif end is None or end.stopped:
        yield ReasonCode.FOREGROUND_NOT_ENDED, f"{foreground.name} was still running when the group was ended"
    elif _went_on_without_us(foreground):
        names = "; ".join(foreground.process_runs[-1].leftovers)
        text = f"{foreground.name} ended with {end} and left processes that had to be ended: {names}"
        yield ReasonCode.FOREGROUND_DETACHED, text
    elif foreground.uses_gpu and (not foreground.held_gpu or facts.off_gpu):
        yield ReasonCode.FOREGROUND_OFF_GPU, f"{foreground.name} never held memory on the GPU"
    elif not foreground.uses_gpu and not foreground.progress_events:
        yield ReasonCode.FOREGROUND_IDLE, f"{foreground.name} is declared to train on the CPU but showed no step"
    elif not facts.predicted and foreground.epoch_cut:
        steps = ", ".join(f"{epoch.steps} of {epoch.steps_full} steps" for epoch in foreground.epochs)
        yield ReasonCode.EPOCH_CUT, f"{foreground.name} was told to cut its epoch: {steps or 'some passes were cut'}"
    yield from _steps_unconfirmed(facts)


def _steps_unconfirmed(facts: Facts) -> Iterator[Finding]:
    """An epoch without a step, or of which its events or PyTorch in the same training show none."""
    foreground = facts.evidence.foreground
    reported = max((epoch.steps for epoch in foreground.epochs), default=0)
    counted = any(allocator.optimizer_steps for allocator in foreground.allocators)
    seen = any(event.kind in STEP_KINDS for event in foreground.progress_events)
    why = None
    if foreground.epochs and not reported:
        why = "and made no step in it"
    elif reported and not facts.predicted and not (seen and (counted or not foreground.allocators)):
        why = "PyTorch counted none of its steps" if seen else "and none of its steps was seen"
    if why is not None:
        yield ReasonCode.EPOCH_CONTRADICTED, f"{foreground.name} tells of an epoch of {reported} steps, {why}"


def _background_unproven(facts: Facts, background: Member) -> Iterator[Finding]:
    if background.gave_up is not None:
        yield ReasonCode.BACKGROUND_GAVE_UP, f"{background.name}: {background.gave_up}{_last_word(background)}"
    if background.ready_s is None:
        text = f"{background.name} never was ready ({len(background.process_runs)} start(s))"
        yield ReasonCode.BACKGROUND_NEVER_READY, f"{text}: {_what_it_lacked(background)}"
    if background.uses_gpu and not background.held_gpu:
        yield ReasonCode.BACKGROUND_OFF_GPU, f"{background.name} never held memory on the GPU"
    elif (missing := memory_missing_beside(facts.evidence)) is not None:
        yield ReasonCode.BACKGROUND_OFF_GPU, f"{background.name} was no load on memory: {missing}"
    if facts.window is None:
        return
    share, floor = facts.overlap, facts.evidence.limits.overlap
    if share is None or share < floor:
        seen = "unknown" if share is None else f"{share:.0%}"
        text = f"{background.name} trained beside the foreground for {seen} of its time (at least {floor:.0%} needed)"
        yield ReasonCode.TOO_LITTLE_OVERLAP, text
    if facts.steps_beside == 0:
        yield ReasonCode.BACKGROUND_NO_STEP, f"{background.name} made no step while the foreground trained"


def _what_it_lacked(background: Member) -> str:
    """Name the first missing sign that the background is ready."""
    if background.uses_gpu and not background.held_gpu:
        return "it held no memory on the GPU"
    if not background.progress_events and not any(allocator.optimizer_steps for allocator in background.allocators):
        return "it made no step"
    return "its first epoch was not over"


def _last_word(member: Member) -> str:
    """Quote the last line of its log about a failure, as the end of a sentence."""
    failed = [last_word(run) for run in member.process_runs if run.failed]
    return f": {failed[-1]}" if failed and failed[-1] else ""


def _out_of_memory_is_sound(facts: Facts, member: Member) -> bool:
    """A real GPU's out-of-memory is a fact; a virtual one only when even the low end of the demand does not fit."""
    too_much = facts.peak is not None and facts.peak.low_bytes >= facts.evidence.limits.peak_bytes
    return not facts.predicted or (too_much and not takes_what_it_gets(member))


def _out_of_memory_text(member: Member, event: OutOfMemory) -> str:
    asked = "" if event.requested_bytes is None else f", asking for {format_mib(event.requested_bytes)}"
    ending = " and went on" if member.last_exit is not None and member.last_exit.ok else ""
    return f"{member.name} ran out of memory{asked}{ending} (seen in: {event.source})"


def _started(member: Member) -> bool:
    """Return whether it trained or at least reached the GPU: only then does its end say something about sharing."""
    return bool(member.progress_events) or member.held_gpu or bool(member.epochs)


def _went_on_without_us(member: Member) -> bool:
    """Its first process ended without an epoch while others of it still ran, as in a program that daemonises."""
    left = bool(member.process_runs and member.process_runs[-1].leftovers)
    return left and not any(epoch.steps for epoch in member.epochs)
