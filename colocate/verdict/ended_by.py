# SPDX-License-Identifier: Apache-2.0
"""Who ended a training: itself, this harness, the kernel for want of memory, or somebody outside. Pure.

A signal that neither this harness nor the kernel's out-of-memory killer sent says nothing about sharing a GPU: an
administrator, a daemon such as earlyoom, the end of a job. Neither do a fault of the GPU and a full disk.
"""

import re
import signal
from pathlib import PurePath

from colocate.process import Exit
from colocate.verdict.evidence import Member, ProcessRun

# Signals that no failure of a program itself sends, as SIGSEGV, SIGABRT or SIGBUS are; SIGXCPU and SIGXFSZ come from
# limits that its user has (`ulimit`).
FROM_OUTSIDE = frozenset(
    {"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGXFSZ", "SIGUSR1", "SIGUSR2", "SIGPWR"}
)

# What a shell around the program makes of a signal.
_SHELL = 128
_TIMED_OUT = 124  # timeout(1)

# What schedulers write beside the output of a job that they end.
_SCHEDULER = re.compile(
    r"slurmstepd: error:.*(CANCELLED|TIME LIMIT|PREEMPT)|PBS: job killed|TERM_(RUNLIMIT|OWNER|PREEMPT)"
)

# What programs print that lost a process of their own to SIGKILL: PyTorch's data loader (torch/utils/data/_utils/
# signal_handling.py: "DataLoader worker (pid 7) is killed by signal: Killed.") and joblib's loky ("{SIGKILL(-9)}").
_WORKER_KILLED = re.compile(r"killed by signal: Killed|SIGKILL\(-9\)")
_SCHEDULER_OOM = re.compile(r"slurmstepd: error: .*oom.kill event", re.IGNORECASE)  # its own control group's, not ours

# Faults of a GPU or its driver (driver_types.h: cudaErrorECCUncorrectable and its neighbours), and of a disk.
_FAULTS = {
    "a fault of the GPU or its driver": re.compile(
        r"uncorrectable (?:ECC|NVLink) error|(?:ECC|Nvlink)Uncorrectable|GPU is lost|fallen off the bus"
        r"|unsupported display driver|[Dd]river/library version mismatch"
    ),
    "a full disk": re.compile(r"\[Errno (?:28|122)\]|PytorchStreamWriter failed writing|Disk quota exceeded"),
}

# The last line of a traceback, such as `torch.OutOfMemoryError: CUDA out of memory.`, and how much of it is quoted.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)\b")
_WORD_CHARS = 200

# What PyTorch's data loader prints that lost one of its processes.
_WORKER = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\)? (?:is killed by signal: (Killed|Terminated)|exited)")


def last_word(run: ProcessRun) -> str:
    """The line of its log that best tells why it failed: the last that names an exception, else the last of all."""
    said = [line.strip() for line in run.last_lines if line.strip()]
    return next((line for line in reversed(said) if _EXCEPTION.match(line)), said[-1] if said else "")[:_WORD_CHARS]


def killed_from_outside(member: Member) -> str | None:
    """Who outside ended the last run of a member, in words; None where it ended otherwise."""
    run = member.process_runs[-1] if member.process_runs else None
    if run is None or run.exit is None or not run.failed or run.exit.unkillable or _kernel_kills_of(run):
        return None
    sent = _signal(run.exit)
    if run.exit.code == _TIMED_OUT and any(PurePath(word).name == "timeout" for word in member.argv[:2]):
        return "by timeout, in its own command"
    if any(_SCHEDULER.search(line) for line in run.last_lines):
        return f"by its scheduler, with {sent or run.exit}"
    if sent is not None:
        if run.exit.host_oom_kills is None:
            return f"by {sent}; whether the kernel sent it for want of host memory cannot be read here"
        return f"by {sent}, which neither this harness nor the kernel's out-of-memory killer sent"
    fault = next((name for name, words in _FAULTS.items() if words.search(last_word(run))), None)
    if fault is not None:
        return f"by {fault}: {last_word(run)}"
    worker = next((match[1] for line in run.last_lines if (match := _WORKER.search(line)) and match[1]), None)
    return None if worker is None else f"by the loss of a data-loader worker, which somebody outside ended ({worker})"


def kernel_kills(member: Member) -> int:
    """Count the processes of a member that the kernel is known to have killed for host memory."""
    return sum(map(_kernel_kills_of, member.process_runs))


def _kernel_kills_of(run: ProcessRun) -> int:
    """Kills for host memory that hit this process run.

    The kernel counts per control group, which others share: the count alone accuses nobody, and a SIGKILL alone may
    come from anybody. Together with an end by SIGKILL, or a worker's, it is this process run's own.
    """
    if run.exit is None or not run.failed:
        return 0
    counted = run.exit.host_oom_kills or 0
    killed = run.exit.signal == "SIGKILL" or run.exit.code == _SHELL + signal.SIGKILL
    if killed and any(_SCHEDULER_OOM.search(line) for line in run.last_lines):
        return max(1, counted)
    lost_worker = any(_WORKER_KILLED.search(line) for line in run.last_lines)
    return counted if killed or lost_worker else 0


def _signal(end: Exit) -> str | None:
    """The signal from outside that ended a run, also one that a shell has turned into an exit code."""
    name = end.signal
    if name is None and end.code is not None and end.code - _SHELL in {*signal.Signals}:
        name = signal.Signals(end.code - _SHELL).name
    return name if name in FROM_OUTSIDE else None
