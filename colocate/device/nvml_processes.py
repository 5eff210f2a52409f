# SPDX-License-Identifier: Apache-2.0
"""Processes on an NVIDIA GPU, by the driver's lists and its accounting.

Knows how drivers differ: which of NVML's functions they have, and which of them fill the rows wrongly.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pynvml

from colocate.device.base import DeviceProcess
from colocate.device.nvml_library import NOT_ESSENTIAL, NOT_REPORTED, reported, within

# What a row has in place of an instance's number where there are no instances (nvml.h), and the most that there are.
_NO_INSTANCE = 0xFFFFFFFF
_MOST_INSTANCES = 16

# linux/threads.h, PID_MAX_LIMIT: no process has a higher number.
_HIGHEST_PID = 2**22

# How far the driver's clock and ours may be apart: both are the machine's, read at different moments of a start.
_CLOCK_S = 5.0

SHUFFLED = (
    "the driver's list of processes is not believed: it names processes that cannot exist, as drivers 535.43 to 535.8x "
    "do, whose rows have another layout than their NVML says"
)

# The newest first: drivers before R510 have no third version.
_COMPUTING = ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2")
_DRAWING = ("nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2")

Ask = Callable[..., Any]
"""Asks a function about one GPU: its answer, or None where NVML says that it has none."""


def processes(ask: Ask, total_bytes: int, instance: int | None) -> tuple[DeviceProcess, ...] | None:
    """Everybody on a GPU, programs that draw included; None where the driver does not tell, or not credibly.

    ``instance`` is the number of a MIG instance, None for a whole GPU.
    """
    computing = _rows(ask, _COMPUTING, NOT_REPORTED)
    if computing is None:
        return None
    drawing = _rows(ask, _DRAWING, NOT_ESSENTIAL) or []
    # A program that computes and draws is in both lists with the same number.
    found = {row.pid: _process(row, total_bytes, draws=True) for row in drawing if _is_of(row, instance)}
    found |= {row.pid: _process(row, total_bytes) for row in computing if _is_of(row, instance)}
    return tuple(found[pid] for pid in sorted(found))


def computing_pids(handle: Any) -> tuple[int, ...]:
    """List who computes on a GPU; empty if that is not reported.

    Raises:
        pynvml.NVMLError: the GPU did not answer.
    """

    def ask(what: str, function: Any, *, not_reported: frozenset[int]) -> Any:
        return reported(handle, function, not_reported)

    return tuple(row.pid for row in _rows(ask, _COMPUTING, NOT_REPORTED) or ())


def is_shuffled(ask: Ask) -> bool:
    """The driver has a list now, and in none of its versions one that can be true."""
    found = [*_lists(ask, _COMPUTING, NOT_REPORTED)]
    return any(rows is not None for rows in found) and not any(rows is not None and _credible(rows) for rows in found)


def peak_bytes(ask: Ask, pid: int, total_bytes: int, since: float | None) -> int | None:
    """The maximum of a process that began at ``since`` (Unix time); None where the driver has none of that process.

    The driver keeps what it counted after a process has ended, and its number may be given out again: a record that
    began earlier than the process is that of another. One without a start is believed only of a process that runs.
    """
    stats = ask(
        f"accounting of pid {pid}",
        pynvml.nvmlDeviceGetAccountingStats,
        pid,
        not_reported=NOT_REPORTED | {pynvml.NVML_ERROR_NOT_FOUND},
    )
    if stats is None:
        return None
    is_its = stats.startTime / 1e6 >= (since or 0.0) - _CLOCK_S if stats.startTime else stats.isRunning
    # A process on the list has a context, so none can have held nothing.
    return within(1, total_bytes, stats.maxMemoryUsage) if since is None or is_its else None


def _rows(ask: Ask, names: Iterable[str], not_reported: frozenset[int]) -> Sequence[Any] | None:
    """The first list that is told and can be true."""
    answers = _lists(ask, names, not_reported)
    return next((rows for rows in answers if rows is not None and _credible(rows)), None)


def _lists(ask: Ask, names: Iterable[str], not_reported: frozenset[int]) -> Iterator[Sequence[Any] | None]:
    return (ask("processes", getattr(pynvml, name), not_reported=not_reported) for name in names)


def _credible(rows: Sequence[Any]) -> bool:
    """No row without a process, beyond all numbers, or twice: there a list has been read with another layout."""
    pids = [(row.pid, _instance(row)) for row in rows]
    known = all(number is None or number < _MOST_INSTANCES for _, number in pids)
    return known and all(0 < pid < _HIGHEST_PID for pid, _ in pids) and len({*pids}) == len(pids)


def _instance(row: Any) -> int | None:
    number: int | None = getattr(row, "gpuInstanceId", None)
    return None if number == _NO_INSTANCE else number


def _is_of(row: Any, instance: int | None) -> bool:
    """A process of the list is not one of another instance, whatever the driver lists for this one."""
    return instance is None or _instance(row) in (instance, None)


def _process(row: Any, total_bytes: int, draws: bool = False) -> DeviceProcess:
    # pynvml makes None of NVML's "not available". Nobody is on the list with nothing: 0 is what newer drivers show
    # inside containers.
    return DeviceProcess(row.pid, within(1, total_bytes, row.usedGpuMemory), draws)
