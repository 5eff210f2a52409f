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
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from itertools import islice
from typing import Any, Literal

from pydantic import TypeAdapter

from colocate.device import Basis
from colocate.units import format_mib
from colocate.verdict.coverage import MOST_PLACES
from colocate.verdict.ended_by import killed_from_outside
from colocate.verdict.evidence import Evidence, Member, MemoryWords, OutOfMemory
from colocate.verdict.leak import steady_growth_bytes
from colocate.verdict.measured_peak import SPIKE_BYTES, PeakReading, left_no_trace, measured_peak, readings
from colocate.verdict.memory_words import Weight, of_weight
from colocate.verdict.overlap import (
    PhasePairs,
    foreground_window,
    memory_missing_beside,
    overlap,
    phases_met,
    steps_beside,
)
from colocate.verdict.predicted_peak import PeakRange, predicted_peak, takes_what_it_gets
from colocate.verdict.reasons import Reason, ReasonCode
from colocate.verdict.remarks import remarks
from colocate.verdict.witnesses import contradictions
from colocate.verdict.worst_case_peak import WorstCasePeak, worst_case_peak

# The study's classes change at 3000 and 4000 MiB of its limit of 7500 MiB; another limit has the same shares.
STABLE_BELOW = Fraction(3000, 7500)
USABLE_UP_TO = Fraction(4000, 7500)

# What a balloon leaves as it is.
NOT_IMITATED = "speed, size of the contexts, workspaces and choice of kernels"

MemoryClass = Literal["stable", "usable", "high-risk"]


class Outcome(StrEnum):
    """The three answers."""

    FEASIBLE = "FEASIBLE"
    INFEASIBLE = "INFEASIBLE"
    INCONCLUSIVE = "INCONCLUSIVE"


def memory_class(peak_bytes: int, limit_bytes: int) -> MemoryClass:
    """Classify a peak by its share of the limit: stable below 40 %, usable up to 53.3 %, high-risk above."""
    if peak_bytes < STABLE_BELOW * limit_bytes:
        return "stable"
    return "usable" if peak_bytes <= USABLE_UP_TO * limit_bytes else "high-risk"


def class_of(outcome: "Outcome", peak_bytes: int | None, limit_bytes: int) -> MemoryClass | None:
    """Classify what carries a verdict; a group without an answer has no class."""
    if peak_bytes is None or outcome is Outcome.INCONCLUSIVE:
        return None
    return memory_class(peak_bytes, limit_bytes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one group with the numbers it rests on.

    ``peak_bytes`` is the highest that the sources carry together or, predicted, the expected value of
    ``peak_low_bytes`` to ``peak_high_bytes``; None when nothing was read. ``peaks`` has what each source told.
    ``overlap`` is the share of the foreground's training time during which the background trained too. ``worst_case``
    is the peak of another meeting of the same two, which this run did not show.
    """

    outcome: Outcome
    basis: Basis
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    peak_bytes: int | None
    peak_low_bytes: int | None
    peak_high_bytes: int | None
    limit_bytes: int
    headroom_bytes: int | None
    memory_class: MemoryClass | None
    overlap: float | None
    phases_together: PhasePairs
    phases_apart: PhasePairs
    epoch_cut: bool
    peaks: tuple[PeakReading, ...] = ()
    worst_case: WorstCasePeak | None = None

    @property
    def feasible(self) -> bool:
        """Every rule holds on trustworthy evidence."""
        return self.outcome is Outcome.FEASIBLE

    @property
    def codes(self) -> tuple[str, ...]:
        """The reason codes, most decisive first."""
        return tuple(reason.code for reason in self.reasons)

    @property
    def out_of_memory(self) -> bool:
        """Return whether one of the trainings ran out of memory, on the GPU or on the host."""
        return any(code.endswith("out_of_memory") for code in self.codes)

    @property
    def over_limit(self) -> bool:
        """The GPU's peak reached the limit."""
        return "peak_over_limit" in self.codes

    @property
    def epoch_finished(self) -> bool:
        """The foreground did not fail, and nothing speaks against the end of its epoch."""
        return not {"foreground_failed", "epoch_unfinished", "dry_run_failed", "killed_from_outside"} & set(self.codes)

    def __str__(self) -> str:
        reasons = "; ".join(map(str, self.reasons))
        return f"{self.outcome} ({self.basis})" + (f": {reasons}" if reasons else "")

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON types."""
        document: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return document

    @classmethod
    def from_json(cls, document: Any) -> "Verdict":
        """The inverse of :meth:`to_json`.

        Raises:
            pydantic.ValidationError: the document is no verdict.
        """
        return _ADAPTER.validate_python(document)


def judge(evidence: Evidence) -> Verdict:
    """Feasible, infeasible or inconclusive: what the evidence carries, and why."""
    peak, limit = _peak_range(evidence), evidence.limits.peak_bytes
    outcome, reasons = _decide(evidence, peak)
    together, apart = phases_met(evidence)
    return Verdict(
        outcome=outcome,
        basis=evidence.device.basis,
        reasons=reasons,
        warnings=tuple(_warnings(evidence, apart)),
        peak_bytes=None if peak is None else peak.expected_bytes,
        peak_low_bytes=None if peak is None else peak.low_bytes,
        peak_high_bytes=None if peak is None else peak.high_bytes,
        limit_bytes=limit,
        headroom_bytes=None if peak is None else limit - peak.high_bytes,
        memory_class=class_of(outcome, None if peak is None else peak.expected_bytes, limit),
        overlap=overlap(evidence),
        phases_together=together,
        phases_apart=apart,
        epoch_cut=evidence.foreground.epoch_cut,
        peaks=readings(evidence),
        worst_case=worst_case_peak(evidence),
    )


def _decide(evidence: Evidence, peak: PeakRange | None) -> tuple[Outcome, tuple[Reason, ...]]:
    """The first stage that finds something, with all that it finds."""
    stages = (
        (Outcome.INCONCLUSIVE, _worthless(evidence)),
        (Outcome.INFEASIBLE, _proven_infeasible(evidence, peak)),
        (Outcome.INCONCLUSIVE, _unproven(evidence, peak)),
    )
    for outcome, stage in stages:
        reasons = tuple(stage)
        if reasons:
            return outcome, reasons
    return Outcome.FEASIBLE, ()


# Stage 1: nothing can be concluded, in either direction.


def _worthless(evidence: Evidence) -> Iterator[Reason]:
    for code, text in evidence.faults:
        yield Reason(ReasonCode(code), text)
    if evidence.trace.lost:
        yield Reason(ReasonCode.SENSOR_LOST, f"the GPU stopped answering: {evidence.trace.lost}")
    foreign = [gpu_process for gpu_process in evidence.gpu_processes if gpu_process.owner == "foreign"]
    if foreign and "foreign_process" not in dict(evidence.faults):
        names = ", ".join(
            f"{gpu_process.name}, from {gpu_process.first_s:.1f} to {gpu_process.last_s:.1f} s"
            for gpu_process in foreign
        )
        yield Reason(ReasonCode.FOREIGN_PROCESS, f"somebody else used the GPU: {names}")
    for member in evidence.members:
        unsupported = next((a.unsupported for a in member.allocators if a.unsupported), None)
        if unsupported:
            yield Reason(ReasonCode.NOT_EMULATED, f"{member.name} cannot be emulated without a GPU: {unsupported}")
    yield from _implausible(evidence)


def _implausible(evidence: Evidence) -> Iterator[Reason]:
    """A probe that tells more than the GPU has is no witness, neither of what it says nor of what it does not."""
    if evidence.device.basis != "measured":
        return
    total = evidence.device.total_bytes
    for member in evidence.members:
        reported = max((allocator.max_reserved_bytes or 0 for allocator in member.allocators), default=0)
        if reported > total:
            told = f"the record of a process of {member.name} tells {format_mib(reported)}"
            text = f"{told}, the GPU has {format_mib(total)}"
            yield Reason(ReasonCode.IMPLAUSIBLE_RECORD, text)


# Stage 2: it does not fit, and that is proven.


def _proven_infeasible(evidence: Evidence, peak: PeakRange | None) -> Iterator[Reason]:
    limit = evidence.limits.peak_bytes
    for member in evidence.members:
        if member.out_of_memory and _out_of_memory_is_sound(evidence, peak, member):
            yield Reason(
                ReasonCode(f"{member.role}_out_of_memory"), _out_of_memory_text(member, member.out_of_memory[0])
            )
        if member.host_oom_kills:
            text = f"the kernel killed {member.host_oom_kills} process(es) of {member.name} for host memory"
            yield Reason(ReasonCode(f"{member.role}_host_out_of_memory"), text)
    if peak is not None and peak.low_bytes >= limit:
        yield Reason(ReasonCode.PEAK_OVER_LIMIT, f"peak {_peak_text(peak, limit)}, limit {format_mib(limit)}")
    if evidence.device.basis == "measured":
        yield from _foreground_unfinished(evidence)


def _foreground_unfinished(evidence: Evidence) -> Iterator[Reason]:
    text, end = _how_unfinished(evidence.foreground), evidence.foreground.last_exit
    if text is None or end is None:
        return
    if end.ok:
        yield Reason(ReasonCode.EPOCH_UNFINISHED, text)
    else:
        yield Reason(ReasonCode.FOREGROUND_FAILED, text)


def _how_unfinished(foreground: Member) -> str | None:
    """Say what its end lacks, or None if it finished or its end says nothing about that."""
    end = foreground.last_exit
    if foreground.out_of_memory or end is None or not _started(foreground):
        return None
    if killed_from_outside(foreground) is not None:
        return None
    if not end.ok:
        text = f"{foreground.name} ended with {end} before its epoch was done{_last_word(foreground)}"
        return None if end.stopped else text
    if any(epoch.steps for epoch in foreground.epochs) or _went_on_without_us(foreground):
        return None
    missing = _missing_completion(foreground)
    return None if missing is None else f"{foreground.name} ended with {end} but {missing}"


def _missing_completion(member: Member) -> str | None:
    """Say why an exit code of 0 is not believed, or None if it is."""
    if member.tells_events:
        return "wrote no record of a finished epoch"
    if member.tracebacks:
        return "its log holds a Python traceback"
    if member.expects_metrics and not member.metrics:
        return "its log holds none of the metrics that the catalog looks for"
    return None


# Stage 3: the proof that it fits has a hole.


def _unproven(evidence: Evidence, peak: PeakRange | None) -> Iterator[Reason]:
    """Find what is missing, causes first: what a program did before what could not be read for it."""
    yield from _undecided(evidence, peak)
    yield from _not_covered(evidence)
    yield from _contradicted(evidence, peak)
    yield from _probe_lost(evidence)
    yield from _out_of_memory_suspected(evidence)
    yield from _dry_run_failed(evidence)
    yield from _foreground_unproven(evidence)
    yield from _steps_unconfirmed(evidence)
    if evidence.background is not None:
        yield from _background_unproven(evidence, evidence.background)
    if not evidence.trace.samples:
        yield Reason(ReasonCode.NO_SAMPLES, "the GPU's memory was never read")
    elif peak is None and all(one.held_gpu for one in evidence.members if one.uses_gpu and one.process_runs):
        yield Reason(ReasonCode.PEAK_UNKNOWN, "the peak of a member is not known")
    yield from _gaps(evidence)
    if evidence.baseline_bytes is None:
        yield Reason(ReasonCode.NO_BASELINE, "what the GPU held before the group is not known")
    if evidence.returned_to_baseline is not True:
        held = format_mib(evidence.final_bytes)
        yield Reason(
            ReasonCode.GPU_NOT_RETURNED, f"after the group the GPU did not come back to its baseline: {held} in use"
        )


def _undecided(evidence: Evidence, peak: PeakRange | None) -> Iterator[Reason]:
    limit = evidence.limits.peak_bytes
    for member in evidence.members:
        if takes_what_it_gets(member):
            continue
        if member.out_of_memory and not _out_of_memory_is_sound(evidence, peak, member):
            text = f"{member.name} ran out of memory on the virtual GPU, but {_peak_text(peak, limit)} may fit; measure"
            yield Reason(ReasonCode.UNDECIDED, text)
            return
    if peak is None or not peak.low_bytes < limit <= peak.high_bytes:
        return
    if evidence.device.basis == "predicted":
        text = f"predicted peak {_peak_text(peak, limit)} lies across the limit {format_mib(limit)}; measure"
        yield Reason(ReasonCode.UNDECIDED, text)
    else:
        own = ", ".join(_reading_text(reading) for reading in readings(evidence))
        seen = _peak_text(peak, limit)
        text = f"a peak between two samples may have reached the limit {format_mib(limit)}: {seen} ({own})"
        yield Reason(ReasonCode.PEAK_BETWEEN_SAMPLES, text)


def _not_covered(evidence: Evidence) -> Iterator[Reason]:
    """Yield what a dry run left out and what may need more memory."""
    if evidence.device.basis != "predicted":
        return
    for member in evidence.members:
        coverages = [one.coverage for one in (*member.allocators, *member.wanted) if one.coverage is not None]
        for code, text in dict.fromkeys(doubt for one in coverages for doubt in one.doubts):
            yield Reason(ReasonCode(code), f"{member.name}: {text}")
        yield from _by_values(member)


def _by_values(member: Member) -> Iterator[Reason]:
    """A member whose demand depends on what nobody knows before the run."""
    places = dict.fromkeys(place for one in member.allocators for place in one.open_branches)
    if places:
        text = f"{member.name}: decides by values that nobody knows, and its other side was not run"
        yield Reason(
            ReasonCode.BRANCH_ON_VALUES,
            f"{text}: {', '.join(islice(places, MOST_PLACES))}; `colocate predict` tries it",
        )
    if takes_what_it_gets(member):
        text = f"{member.name} takes what it gets: it went on with what the GPU gave it, so who starts first decides"
        yield Reason(ReasonCode.TAKES_WHAT_IT_GETS, f"{text}; measure, or give it a fixed size")


def _gaps(evidence: Evidence) -> Iterator[Reason]:
    """Return the window from the foreground's start to its exit: loading and saving count for the peak too."""
    spans = [span for span in (foreground_window(evidence), evidence.foreground.process_run) if span is not None]
    if not spans or not evidence.trace.samples:
        return
    longest_s = evidence.trace.longest_gap_s(min(start for start, _ in spans), max(end for _, end in spans))
    if longest_s > evidence.limits.longest_gap_s:
        why = {gap.reason for gap in evidence.trace.gaps}
        text = f"no sample for {longest_s:.1f} s while the foreground ran (at most {evidence.limits.longest_gap_s} s)"
        yield Reason(ReasonCode.SENSOR_GAP, text + (f": {', '.join(sorted(why))}" if why else ""))


def _contradicted(evidence: Evidence, peak: PeakRange | None) -> Iterator[Reason]:
    """The GPU cannot have held less than one of the processes on it: one of the driver's answers is wrong, or late."""
    if peak is None or evidence.device.basis != "measured":
        return
    for contradiction in contradictions(evidence):
        yield Reason(ReasonCode.SENSOR_CONTRADICTED, contradiction)
    for gpu_process in evidence.gpu_processes:
        listed = 0 if gpu_process.owner == "balloon" else gpu_process.max_used_bytes or 0
        if listed > peak.expected_bytes + SPIKE_BYTES:
            text = (
                f"the driver's list has {format_mib(listed)} for {gpu_process.name}, the whole GPU {_peak_text(peak)}"
            )
            yield Reason(ReasonCode.SENSOR_CONTRADICTED, text)


def _probe_lost(evidence: Evidence) -> Iterator[Reason]:
    for member in evidence.members:
        if member.probe_lost:
            why = member.probe_lost_why or "it fell silent"
            text = f"no probe followed {member.name} to its end ({why}): an out-of-memory or a peak is not known"
            yield Reason(ReasonCode.PROBE_LOST, text)


def _out_of_memory_suspected(evidence: Evidence) -> Iterator[Reason]:
    for member in evidence.members:
        for words in _words_of(member, "doubt")[:1]:
            text = f"{member.name} may have run out of memory, by its log alone: {words.text!r} ({words.framework})"
            yield Reason(ReasonCode.OUT_OF_MEMORY_SUSPECTED, text)


def _dry_run_failed(evidence: Evidence) -> Iterator[Reason]:
    """No value is computed on the virtual GPU: a program that fails there may fail of that, and not of sharing."""
    text = _how_unfinished(evidence.foreground)
    if text is not None and evidence.device.basis == "predicted":
        cut = any(allocator.passes_cut for allocator in evidence.foreground.allocators)
        why = ", or of the cut of its passes over the data; --effort full runs them whole" if cut else ""
        yield Reason(
            ReasonCode.DRY_RUN_FAILED, f"{text}; it may be the emulation's doing, which computes no values{why}"
        )


def _foreground_unproven(evidence: Evidence) -> Iterator[Reason]:
    foreground, background = evidence.foreground, evidence.background
    end = foreground.last_exit
    if not foreground.process_runs:
        if background is None or background.ready_s is not None:
            yield Reason(ReasonCode.FOREGROUND_NOT_STARTED, f"{foreground.name} was never started")
    elif foreground.stalled_after_s is not None:
        after = f"no output and no step for {foreground.stalled_after_s:.0f} s"
        yield Reason(ReasonCode.FOREGROUND_HANG, f"{foreground.name} hung and was stopped: {after}")
    elif foreground.timed_out_after_s is not None:
        text = f"{foreground.name} did not end within {foreground.timed_out_after_s:.0f} s and was stopped"
        yield Reason(ReasonCode.FOREGROUND_TIMEOUT, text)
    elif (by := killed_from_outside(foreground)) is not None:
        yield Reason(ReasonCode.KILLED_FROM_OUTSIDE, f"{foreground.name} was ended {by}")
    elif not _started(foreground):
        text = f"{foreground.name} ended with {end} before it trained{_last_word(foreground)}"
        yield Reason(ReasonCode.FOREGROUND_NOT_STARTED, text)
    elif end is None or end.stopped:
        yield Reason(ReasonCode.FOREGROUND_NOT_ENDED, f"{foreground.name} was still running when the group was ended")
    elif _went_on_without_us(foreground):
        names = "; ".join(foreground.process_runs[-1].leftovers)
        text = f"{foreground.name} ended with {end} and left processes that had to be ended: {names}"
        yield Reason(ReasonCode.FOREGROUND_DETACHED, text)
    elif foreground.uses_gpu and (not foreground.held_gpu or left_no_trace(evidence)):
        yield Reason(ReasonCode.FOREGROUND_OFF_GPU, f"{foreground.name} never held memory on the GPU")
    elif not foreground.uses_gpu and not foreground.progress_events:
        yield Reason(
            ReasonCode.FOREGROUND_IDLE, f"{foreground.name} is declared to train on the CPU but showed no step"
        )
    elif evidence.device.basis == "measured" and foreground.epoch_cut:
        yield Reason(ReasonCode.EPOCH_CUT, f"{foreground.name} was told to cut its epoch: {_epoch_text(foreground)}")


def _steps_unconfirmed(evidence: Evidence) -> Iterator[Reason]:
    """An epoch of which PyTorch, loaded in the same training, saw not one step of an optimizer."""
    member = evidence.foreground
    reported = max((epoch.steps for epoch in member.epochs), default=0)
    silent = member.allocators and not any(allocator.optimizer_steps for allocator in member.allocators)
    if evidence.device.basis == "measured" and reported and silent:
        text = f"{member.name} tells of an epoch of {reported} steps, PyTorch counted none of them"
        yield Reason(ReasonCode.EPOCH_CONTRADICTED, text)


def _background_unproven(evidence: Evidence, background: Member) -> Iterator[Reason]:
    process_runs = len(background.process_runs)
    if background.gave_up is not None:
        yield Reason(ReasonCode.BACKGROUND_GAVE_UP, f"{background.name}: {background.gave_up}{_last_word(background)}")
    if background.ready_s is None:
        text = f"{background.name} never was ready ({process_runs} start(s)): {_what_it_lacked(background)}"
        yield Reason(ReasonCode.BACKGROUND_NEVER_READY, text)
    if background.uses_gpu and not background.held_gpu:
        yield Reason(ReasonCode.BACKGROUND_OFF_GPU, f"{background.name} never held memory on the GPU")
    elif (missing := memory_missing_beside(evidence)) is not None:
        yield Reason(ReasonCode.BACKGROUND_OFF_GPU, f"{background.name} was no load on memory: {missing}")
    if foreground_window(evidence) is None:
        return
    share, floor = overlap(evidence), evidence.limits.overlap
    if share is None or share < floor:
        seen = "unknown" if share is None else f"{share:.0%}"
        text = f"{background.name} trained beside the foreground for {seen} of its time (at least {floor:.0%} needed)"
        yield Reason(ReasonCode.TOO_LITTLE_OVERLAP, text)
    if steps_beside(evidence) == 0:
        yield Reason(ReasonCode.BACKGROUND_NO_STEP, f"{background.name} made no step while the foreground trained")


def _what_it_lacked(background: Member) -> str:
    """Name the first missing sign that the background is ready."""
    if background.uses_gpu and not background.held_gpu:
        return "it held no memory on the GPU"
    if not background.progress_events and not any(allocator.optimizer_steps for allocator in background.allocators):
        return "it made no step"
    return "its first epoch was not over"


def _last_word(member: Member) -> str:
    """Quote the last line of its log about a failure, as the end of a sentence."""
    failed = [
        process_run
        for process_run in member.process_runs
        if process_run.exit and not process_run.exit.ok and not process_run.exit.stopped
    ]
    return f": {failed[-1].last_word}" if failed and failed[-1].last_word else ""


# What is worth saying although it does not decide.


def _warnings(evidence: Evidence, apart: PhasePairs) -> Iterator[Reason]:
    for member in evidence.members:
        yield from _warnings_of(member)
    if apart:
        pairs = ", ".join(f"{ours} beside {theirs}" for ours, theirs in apart)
        yield Reason(ReasonCode.PHASES_NOT_SEEN_TOGETHER, f"not seen together (foreground beside background): {pairs}")
    end = evidence.foreground.last_exit
    if end is not None and end.ok and not evidence.foreground.tells_events:
        text = f"{evidence.foreground.name} writes no events: that it finished rests on its exit code"
        yield Reason(ReasonCode.COMPLETION_BY_EXIT_CODE, text)
    yield from _spike(evidence)
    yield from _leaks(evidence)
    yield from _worst_case(evidence)
    yield from remarks(evidence)
    if evidence.device.balloon is not None:
        text = f"{evidence.device.name}: only the memory is that of a smaller GPU; {NOT_IMITATED} are the large one's"
        yield Reason(ReasonCode.CONSTRAINED_DEVICE, text)
    for note in _notes(evidence):
        yield Reason(ReasonCode.ASSUMPTION, note)
    for text in _coverages(evidence):
        yield Reason(ReasonCode.COVERAGE, text)
    for code, text in evidence.notes:
        yield Reason(ReasonCode(code), text)


def _warnings_of(member: Member) -> Iterator[Reason]:
    retries = sum(allocator.num_alloc_retries for allocator in member.allocators)
    if retries and not any(allocator.num_ooms for allocator in member.allocators):
        text = f"{member.name} got through only by flushing its allocator's cache {retries} time(s)"
        yield Reason(ReasonCode.TIGHT, text)
    smaller = sum(allocator.num_ooms for allocator in member.allocators if allocator.ooms_raised == 0)
    if smaller and not member.out_of_memory:
        text = f"PyTorch tried {smaller} smaller workspace(s) for {member.name}, which the GPU had no room for"
        yield Reason(ReasonCode.TIGHT, f"{text}; no error reached the program, its convolutions may be slower")
    for words in _words_of(member, "warning")[:1]:
        text = f"the log of {member.name} has words of an out-of-memory that nothing else speaks for: {words.text!r}"
        yield Reason(ReasonCode.OUT_OF_MEMORY_MENTIONED, text)
    left = [name for process_run in member.process_runs for name in process_run.leftovers]
    if left:
        yield Reason(ReasonCode.LEFTOVERS, f"{member.name} left processes that had to be ended: {'; '.join(left)}")
    failed = [
        process_run.exit
        for process_run in member.process_runs
        if process_run.exit and not process_run.exit.ok and not process_run.exit.stopped
    ]
    if member.role == "background" and failed:
        yield Reason(
            ReasonCode.BACKGROUND_RESTARTED, f"{member.name} failed {len(failed)} time(s), last with {failed[-1]}"
        )


def _spike(evidence: Evidence) -> Iterator[Reason]:
    """The gap between the samples and the sources that miss nothing."""
    sampled, peak = evidence.trace.peak, _peak_range(evidence)
    if evidence.device.basis == "predicted" or sampled is None or peak is None:
        return
    gap_bytes = peak.expected_bytes - sampled.used_bytes
    if gap_bytes > SPIKE_BYTES:
        own = ", ".join(_reading_text(reading) for reading in readings(evidence))
        yield Reason(ReasonCode.SPIKE, f"the samples missed {format_mib(gap_bytes)} of the peak ({own})")


def _leaks(evidence: Evidence) -> Iterator[Reason]:
    """A training whose memory grew through all of its time: a longer one would need more."""
    seen = _peak_range(evidence)
    if evidence.device.basis == "predicted" or seen is None:
        return
    for member in evidence.members:
        events = member.progress_events
        if member.held_by != "allocator" or len(member.process_runs) != 1 or not events:
            continue
        more = steady_growth_bytes(member.held, events[0].elapsed_s, events[-1].elapsed_s)
        if more is not None:
            times = 1 + max(0, evidence.limits.peak_bytes - seen.expected_bytes) / more
            run = f"{times * len(member.epochs):.1f} epochs" if member.epochs else f"{times:.1f} times as long a run"
            text = f"{member.name} grew by {format_mib(more)} through all of its time; at this rate"
            yield Reason(ReasonCode.MEMORY_GREW, f"{text} the limit is reached after {run}")


def _worst_case(evidence: Evidence) -> Iterator[Reason]:
    """Warn of a worst-case peak over the limit; on the virtual GPU the verdict itself rests on it."""
    seen, worst_case, limit = _peak_range(evidence), worst_case_peak(evidence), evidence.limits.peak_bytes
    if evidence.device.basis == "predicted" or seen is None or worst_case is None:
        return
    if seen.high_bytes < limit <= worst_case.peak_bytes:
        text = (
            f"{format_mib(worst_case.peak_bytes, beside=limit)} are possible, limit {format_mib(limit)}, {worst_case}"
        )
        most = format_mib(seen.high_bytes, beside=limit)
        yield Reason(ReasonCode.WORST_CASE_OVER_LIMIT, f"{text}; at once at most {most} were seen")


def _coverages(evidence: Evidence) -> tuple[str, ...]:
    """How many batches of how many a dry run ran, and what grows."""
    known = [(m.name, a.coverage) for m in evidence.members for a in m.allocators if a.coverage is not None]
    return tuple(dict.fromkeys(f"{name}: {text}" for name, coverage in known for text in coverage.sentences))


def _notes(evidence: Evidence) -> tuple[str, ...]:
    notes = [f"{m.name}: {note}" for m in evidence.members for a in m.allocators for note in a.notes]
    return tuple(dict.fromkeys(notes))


# What several stages ask.


def _peak_range(evidence: Evidence) -> PeakRange | None:
    """The GPU's peak: bounds that meet in one number where the sources agree; None when nothing was read."""
    return predicted_peak(evidence) if evidence.device.basis == "predicted" else measured_peak(evidence)


def _out_of_memory_is_sound(evidence: Evidence, peak: PeakRange | None, member: Member) -> bool:
    """A real GPU's out-of-memory is a fact; a virtual one only when even the low end of the demand does not fit."""
    if evidence.device.basis == "measured":
        return True
    if takes_what_it_gets(member):
        return False
    return peak is not None and peak.low_bytes >= evidence.limits.peak_bytes


def _words_of(member: Member, weight: Weight) -> tuple[MemoryWords, ...]:
    """Lines of its log that weigh so much; none where an out-of-memory is known anyway."""
    if member.out_of_memory:
        return ()
    found = of_weight(weight, member.memory_words, member.process_runs, member.allocators, probe_lost=member.probe_lost)
    return tuple(found)


def _out_of_memory_text(member: Member, event: OutOfMemory) -> str:
    asked = "" if event.requested_bytes is None else f", asking for {format_mib(event.requested_bytes)}"
    exit_ = member.last_exit
    ending = " and went on" if exit_ is not None and exit_.ok else ""
    return f"{member.name} ran out of memory{asked}{ending} (seen in: {event.source})"


def _reading_text(reading: PeakReading) -> str:
    return f"{reading.source} of the {reading.of}: {format_mib(reading.used_bytes)}"


def _peak_text(peak: PeakRange | None, limit_bytes: int | None = None) -> str:
    if peak is None:
        return "unknown"
    sizes = (peak.expected_bytes, peak.low_bytes, peak.high_bytes)
    expected, low, high = (format_mib(size, beside=limit_bytes) for size in sizes)
    return expected if peak.low_bytes == peak.high_bytes else f"{expected} ({low} to {high})"


def _started(member: Member) -> bool:
    """Return whether it trained or at least reached the GPU: only then does its end say something about sharing."""
    return bool(member.progress_events) or member.held_gpu or bool(member.epochs)


def _went_on_without_us(member: Member) -> bool:
    """Its first process ended without an epoch while others of it still ran, as in a program that daemonises."""
    return bool(member.process_runs and member.process_runs[-1].leftovers) and not any(
        epoch.steps for epoch in member.epochs
    )


def _epoch_text(member: Member) -> str:
    return ", ".join(f"{epoch.steps} of {epoch.steps_full} steps" for epoch in member.epochs) or "some passes were cut"


_ADAPTER = TypeAdapter(Verdict)
