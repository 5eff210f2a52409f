"""Evidence for tests: a sound, feasible group, of which each test changes one thing."""

from dataclasses import replace
from typing import Any

from colocate.device.base import DeviceInfo
from colocate.plan.roles import Role
from colocate.process.exit_status import Exit
from colocate.units import MIB
from colocate.verdict.evidence import (
    Allocator,
    Epoch,
    Evidence,
    JudgedLimits,
    Member,
    OutOfMemory,
    ProcessRun,
    ProgressEvent,
    Sample,
    Trace,
)

GPU_BYTES = 8192 * MIB
LIMIT_BYTES = 7500 * MIB
BASELINE_BYTES = 230 * MIB


def device_info(**changes: Any) -> DeviceInfo:
    known = {"kind": "nvidia", "uuid": "GPU-test", "name": "Test 8 GB", "total_bytes": GPU_BYTES, "basis": "measured"}
    return DeviceInfo(**{**known, "memory_source": "nvml memory v2", **changes})


def trace(*used_mib: float, interval_s: float = 1.0) -> Trace:
    samples = tuple(Sample(place * interval_s, round(used * MIB)) for place, used in enumerate(used_mib))
    return Trace(samples, interval_s)


def steps(pid: int, start_s: float, end_s: float) -> tuple[ProgressEvent, ...]:
    """Signs of progress of a training that makes a step a second."""
    count = int(end_s - start_s)
    progress_events = [ProgressEvent(start_s + number, pid, "step", "train", number) for number in range(1, count + 1)]
    return (ProgressEvent(start_s, pid, "ready"), ProgressEvent(start_s, pid, "phase", "train"), *progress_events)


def member(role: Role, name: str, pid: int, start_s: float, end_s: float, **changes: Any) -> Member:
    known: dict[str, Any] = {
        "role": role,
        "name": name,
        "argv": ("python", "-m", name),
        "ready_s": start_s,
        "held_gpu": True,
        "progress_events": steps(pid, start_s, end_s),
    }
    return Member(**{**known, **changes})


def foreground(**changes: Any) -> Member:
    epoch = Epoch(20.0, 1, steps=10, steps_full=10, cut=False, metrics={"accuracy": 0.9})
    known = {"process_runs": (ProcessRun("training.log", 8.0, Exit(0, None, 21.0)),), "epochs": (epoch,)}
    return member("foreground", "examples_mnist", 200, 10.0, 20.0, **{**known, **changes})


def background(**changes: Any) -> Member:
    stopped = Exit(None, "SIGTERM", 23.0, stopped=True)
    known = {"process_runs": (ProcessRun("background_logs/training_1.log", 1.0, stopped),)}
    return member("background", "resnet20", 100, 3.0, 22.0, **{**known, **changes})


def evidence(**changes: Any) -> Evidence:
    """Group 1 as it should be: both trained together, the peak was 3200 MiB, the GPU came back."""
    known: dict[str, Any] = {
        "group": "group01",
        "plan": "test",
        "device": device_info(),
        "limits": JudgedLimits(LIMIT_BYTES, GPU_BYTES),
        "baseline_bytes": BASELINE_BYTES,
        "trace": trace(*[230] * 3, *[1800] * 7, *[3200] * 11, *[1800] * 2, 230),
        "foreground": foreground(),
        "background": background(),
        "returned_to_baseline": True,
        "final_bytes": BASELINE_BYTES,
    }
    return Evidence(**{**known, **changes})


def simulated(reserved_mib: float, pid: int = 200, **changes: Any) -> Allocator:
    known = {"max_reserved_bytes": round(reserved_mib * MIB), "context_bytes": 350 * MIB, "batches_per_pass": 4}
    return Allocator(pid, "virtual", passes_cut=2, **{**known, **changes})


def predicted_evidence(foreground_mib: float, background_mib: float, **changes: Any) -> Evidence:
    """The same group on a virtual GPU, with the two members' simulated reserved peaks."""
    sound = evidence(
        device=device_info(kind="virtual", basis="predicted", memory_source="virtual GPU"),
        trace=trace(*[230] * 10, *[1200] * 13, 230),
        foreground=foreground(allocators=(simulated(foreground_mib),)),
        background=background(allocators=(simulated(background_mib, 100),)),
    )
    return replace(sound, **changes)


def out_of_memory(source: str = "event") -> OutOfMemory:
    return OutOfMemory(source, "CUDA out of memory. Tried to allocate 192.00 MiB", requested_bytes=192 * MIB)  # type: ignore[arg-type]


def too_large(**changes: Any) -> Evidence:
    """The same group, whose foreground ran out of memory."""
    return evidence(foreground=foreground(out_of_memory=(out_of_memory(),)), **changes)
