# SPDX-License-Identifier: Apache-2.0
"""Reason codes: the machine-readable names of everything that a verdict says, each with its meaning."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class ReasonCode(StrEnum):
    """The name of a reason for a verdict, or of a remark beside it; ``meaning`` explains it in one sentence."""

    meaning: str

    def __new__(cls, code: str, meaning: str = "") -> Self:
        """Make a member that is equal to its code."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    # Nothing can be concluded (INCONCLUSIVE), whatever else was seen.
    INTERRUPTED = ("interrupted", "the run was ended before the group was")
    FOREIGN_PROCESS = ("foreign_process", "a process that does not belong to the group used the GPU")
    SENSOR_LOST = ("sensor_lost", "the GPU stopped answering")
    NOT_EMULATED = ("not_emulated", "the program cannot run on the virtual GPU")
    NOT_STARTED = ("not_started", "the foreground's process could not be started")
    OTHER_GPU = ("other_gpu", "a training used another GPU too")
    UNKILLABLE = ("unkillable", "a process could not be ended")
    TOO_MANY_PROCESSES = (
        "too_many_processes",
        "a training had more processes at once than max_processes and was ended",
    )
    SUPERVISOR_LOST = ("supervisor_lost", "the process that keeps a training died")
    LOG_FAILED = ("log_failed", "a log could not be written, or somebody put something else in its place")
    SLOW_PATTERN = ("slow_pattern", "a pattern of the plan or the catalog takes too long to search a log for")
    DISK_FULL = ("disk_full", "there was no room left for what a training may write")
    RECORD_DAMAGED = ("record_damaged", "samples are missing from the record")
    NO_BALLOON = ("no_balloon", "a smaller GPU could not be made of this one")
    EVENTS_UNREADABLE = ("events_unreadable", "what a training wrote about itself cannot be read, or has no end")
    EVENTS_MIXED_UP = ("events_mixed_up", "a process of one training wrote events of the other")
    IMPLAUSIBLE_RECORD = ("implausible_record", "the record of a process tells more memory than the GPU has")
    GPU_QUARANTINED = ("gpu_quarantined", "an earlier group has left the GPU in a bad state")
    NO_SUCH_GPU = ("no_such_gpu", "the group asks for a GPU (gpu of its entry) that is not here; nothing was started")

    # It does not fit, and that is proven (INFEASIBLE).
    FOREGROUND_OUT_OF_MEMORY = (
        "foreground_out_of_memory",
        "the foreground ran out of GPU memory, even if it caught the error and went on",
    )
    BACKGROUND_OUT_OF_MEMORY = (
        "background_out_of_memory",
        "the background ran out of GPU memory, even if it caught the error and went on",
    )
    FOREGROUND_HOST_OUT_OF_MEMORY = (
        "foreground_host_out_of_memory",
        "the kernel killed the foreground for lack of host memory",
    )
    BACKGROUND_HOST_OUT_OF_MEMORY = (
        "background_host_out_of_memory",
        "the kernel killed the background for lack of host memory",
    )
    PEAK_OVER_LIMIT = ("peak_over_limit", "the peak reached the limit")
    FOREGROUND_FAILED = ("foreground_failed", "the foreground ended with an error")
    EPOCH_UNFINISHED = ("epoch_unfinished", "the foreground ended without a finished epoch")

    # The proof that it fits has a gap (INCONCLUSIVE).
    UNDECIDED = ("undecided", "the predicted range lies across the limit: measure")
    MEMORY_GROWS = (
        "memory_grows",
        "on the virtual GPU memory grows with every step, and how many steps there will be is not known",
    )
    LONGEST_BATCH_UNSEEN = (
        "longest_batch_unseen",
        "batches differ in shape, and the largest one may not have been run; or what a cut pass collected is too short",
    )
    PHASE_NOT_REACHED = (
        "phase_not_reached",
        "a condition on the number of the step comes true later than the dry run went",
    )
    NO_OPTIMIZER_STEP = ("no_optimizer_step", "the dry run made backward passes, but no optimizer step")
    ERROR_CAUGHT = (
        "error_caught",
        "on the virtual GPU an operator raised an error that the CPU would not raise, and the program caught it: "
        "a GPU may have done more",
    )
    ENDED_EARLY = ("ended_early", "the dry run ended the program before code that may use the GPU")
    PEAK_BETWEEN_SAMPLES = ("peak_between_samples", "a peak between two samples may have reached the limit")
    NO_SAMPLES = ("no_samples", "the GPU's memory was never read")
    PEAK_UNKNOWN = ("peak_unknown", "the peak of a training is not known")
    NO_BASELINE = ("no_baseline", "what the GPU held before the group is not known")
    SENSOR_GAP = ("sensor_gap", "too long without a sample while the foreground ran, from its start to its exit")
    SENSOR_CONTRADICTED = ("sensor_contradicted", "two sources contradict each other about the GPU's memory")
    PROBE_LOST = (
        "probe_lost",
        "the probe in a training is missing, could not start or go on: what its allocator did is not known",
    )
    OUT_OF_MEMORY_SUSPECTED = (
        "out_of_memory_suspected",
        "by its log alone a training may have run out of memory, and nothing that counts can say so",
    )
    TOO_LITTLE_OVERLAP = (
        "too_little_overlap",
        "the background trained beside the foreground for too little of its time",
    )
    BACKGROUND_NO_STEP = ("background_no_step", "the background made no step while the foreground trained")
    BACKGROUND_NEVER_READY = ("background_never_ready", "the background did not train in time")
    BACKGROUND_GAVE_UP = ("background_gave_up", "the background failed or ended too often")
    BACKGROUND_OFF_GPU = (
        "background_off_gpu",
        "the background held no memory on the GPU, or gave it back before the foreground trained",
    )
    FOREGROUND_NOT_STARTED = ("foreground_not_started", "the foreground was not started, or ended before it trained")
    FOREGROUND_NOT_ENDED = ("foreground_not_ended", "the foreground was still running when the group was ended")
    FOREGROUND_HANG = ("foreground_hang", "the foreground made no progress and was stopped")
    FOREGROUND_TIMEOUT = ("foreground_timeout", "the foreground reached its time limit and was stopped")
    FOREGROUND_OFF_GPU = ("foreground_off_gpu", "the foreground never held memory on the GPU")
    FOREGROUND_IDLE = ("foreground_idle", "a foreground declared to train on the CPU showed no step")
    FOREGROUND_DETACHED = ("foreground_detached", "the foreground went on as another process, which had to be ended")
    KILLED_FROM_OUTSIDE = (
        "killed_from_outside",
        "the foreground was ended by somebody else, a fault of the GPU or a full disk, and not for want of memory",
    )
    DRY_RUN_FAILED = (
        "dry_run_failed",
        "the foreground failed on the virtual GPU, which computes no values: that may be why",
    )
    EPOCH_CONTRADICTED = (
        "epoch_contradicted",
        "the foreground reported an epoch of which no step was seen, or none by PyTorch",
    )
    EPOCH_CUT = ("epoch_cut", "the epoch was cut, on a real GPU")
    GPU_NOT_RETURNED = ("gpu_not_returned", "the GPU did not come back to its baseline")
    RUNS_MISSING = ("runs_missing", "the group fitted in fewer runs than the plan asks for")
    SPREAD = ("spread", "several runs of the group differ by more than the headroom")
    BRANCH_ON_VALUES = (
        "branch_on_values",
        "on the virtual GPU, the program decides by a value that nobody knows, and its other side was not run",
    )
    TAKES_WHAT_IT_GETS = (
        "takes_what_it_gets",
        "on the virtual GPU, a training takes what the GPU gives it: who starts first decides",
    )
    GPU_NOT_USED = ("gpu_not_used", "a program that was to be predicted has not used the GPU")
    EMULATION_NOT_STARTED = (
        "emulation_not_started",
        "a program that was to be predicted imported no torch that could be emulated",
    )
    DRY_RUN_TIMEOUT = ("dry_run_timeout", "a program that was to be predicted was ended by --timeout")

    # Worth knowing beside any verdict.
    TIGHT = ("tight", "a training got through only by flushing its allocator's cache, or with smaller workspaces")
    START_ORDER = ("start_order", "a training takes memory in advance: what fits depends on who starts first")
    MANY_CONTEXTS = ("many_contexts", "several processes of a training hold a CUDA context each")
    PEAK_AT_START = (
        "peak_at_start",
        "a training held the most before its first step, such as while it loads a checkpoint",
    )
    OUT_OF_MEMORY_MENTIONED = (
        "out_of_memory_mentioned",
        "a log has words of an out-of-memory that nothing else speaks for",
    )
    SPIKE = ("spike", "the samples missed a part of the peak")
    MEMORY_GREW = ("memory_grew", "a training's memory grew for as long as it ran: a longer one may not fit")
    WORST_CASE_OVER_LIMIT = (
        "worst_case_over_limit",
        "this run stayed below the limit; another alignment of the two traces may not",
    )
    PHASES_NOT_SEEN_TOGETHER = ("phases_not_seen_together", "pairs of phases of the two trainings that never met")
    COMPLETION_BY_EXIT_CODE = ("completion_by_exit_code", "only the exit code says that the foreground finished")
    BACKGROUND_RESTARTED = ("background_restarted", "the background failed and was started again")
    LEFTOVERS = ("leftovers", "processes that a training left had to be ended")
    ASSUMPTION = ("assumption", "what the emulation had to assume")
    COVERAGE = ("coverage", "how many batches of how many the dry run ran, and what grew")
    CONSTRAINED_DEVICE = (
        "constrained_device",
        "the GPU was a larger one with a balloon: only its memory is that of the small one",
    )
    THROTTLED = (
        "throttled",
        "heat or a power limit slowed the GPU down while the foreground ran; its times are affected, its memory is not",
    )
    BAD_EVENTS = ("bad_events", "lines of a training's events that are no events, or of another time")
    REPEATED = ("repeated", "earlier attempts, and how they ended")
    ORPHAN_ENDED = ("orphan_ended", "a training left behind by an earlier run was ended")
    UNEXPLAINED_BASELINE = ("unexplained_baseline", "the GPU held memory before the group that no process explains")
    GPU_PROCESSES_LEFT = ("gpu_processes_left", "processes held GPU memory after the group")
    REUSED = ("reused", "the verdict was taken over from an earlier session of the same run")


@dataclass(frozen=True, slots=True)
class Reason:
    """A reason: a code for machines and a sentence for people."""

    code: ReasonCode
    text: str

    def __str__(self) -> str:
        return f"{self.text} [{self.code}]"


Finding = tuple[str, str]
"""A reason before it is one: the value of a `ReasonCode`, and the sentence."""
