"""A fake ``libnvidia-ml.so.1`` and the simulated machine behind it; see README.md in this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path

from fake_nvml.state import (
    BLOCK,
    BOTH,
    CHECKED,
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GPU_IS_LOST,
    GRAPHICS,
    HIDDEN,
    INSUFFICIENT_SIZE,
    LEAKS,
    LIBRARY_MISMATCH,
    MIB,
    NO_PERMISSION,
    NOT_AVAILABLE,
    NOT_FOUND,
    NOT_SUPPORTED,
    RESET_REQUIRED,
    SHUFFLED,
    STATE_VARIABLE,
    TIMEOUT,
    UNINITIALIZED,
    UNKNOWN,
    UNSUPPORTED,
    WITHOUT_V3,
    FakeNvml,
    FoundGpu,
    GpuFull,
    Process,
    State,
    start_ticks,
)

__all__ = [
    "BLOCK",
    "BOTH",
    "CHECKED",
    "DRIVER_NOT_LOADED",
    "FUNCTION_NOT_FOUND",
    "GPU_IS_LOST",
    "GRAPHICS",
    "HIDDEN",
    "INSUFFICIENT_SIZE",
    "LEAKS",
    "LIBRARY_MISMATCH",
    "MIB",
    "NOT_AVAILABLE",
    "NOT_FOUND",
    "NOT_SUPPORTED",
    "NO_PERMISSION",
    "RESET_REQUIRED",
    "SHUFFLED",
    "STATE_VARIABLE",
    "TIMEOUT",
    "UNINITIALIZED",
    "UNKNOWN",
    "UNSUPPORTED",
    "WITHOUT_V3",
    "FakeNvml",
    "FoundGpu",
    "GpuFull",
    "Process",
    "State",
    "preload",
    "start_ticks",
]


def preload(library: Path) -> ctypes.CDLL:
    """Loads the fake into this process, so that pynvml finds it instead of a driver's.

    Raises:
        RuntimeError: another libnvidia-ml is here already; a test would then run against a real GPU.
    """
    others = {path for path in loaded() if path != library.resolve()}
    if others:
        raise RuntimeError(f"fake NVML: expected to be the first libnvidia-ml in this process, found {others}")
    return ctypes.CDLL(str(library))


def loaded() -> set[Path]:
    """The files of every libnvidia-ml in this process."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {Path(line.split(maxsplit=5)[5]) for line in lines if "libnvidia-ml.so" in line}
