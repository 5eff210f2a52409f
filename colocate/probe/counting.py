# SPDX-License-Identifier: Apache-2.0
"""The counting probe: reads the counters of PyTorch's allocator on a real GPU, and counts optimizer steps.

It never initialises CUDA itself and keeps its maxima apart from those that the program resets.
"""

from __future__ import annotations

import functools
from typing import Any, Callable  # noqa: UP035  this module runs on Python 3.8

import torch

from .record import Record

LIFETIME_PEAKS = {
    "max_allocated_bytes": "allocated_bytes.all.peak",
    "max_reserved_bytes": "reserved_bytes.all.peak",
}
CURRENT = {"allocated_bytes": "allocated_bytes.all.current", "reserved_bytes": "reserved_bytes.all.current"}
COUNTERS = ("num_ooms", "num_alloc_retries")

# All that was ever reserved: with it nothing can come and go between two readings unseen.
GROWN = "reserved_bytes.all.allocated"

# Every way to reset the counters ends in one of these functions of torch's C module.
RESETS = (
    "_cuda_resetPeakMemoryStats",
    "_cuda_resetAccumulatedMemoryStats",
    "_accelerator_resetPeakStats",
    "_accelerator_resetAccumulatedStats",
)


def count(record: Record) -> None:
    """Let the record follow the allocator and the optimizers of this process."""
    count_steps(record)
    counters = Counters(torch.cuda, record.note)
    torch.cuda._lazy_call(record.claim)  # a child that was forked before the first use of CUDA
    for name in RESETS:
        if hasattr(torch._C, name):
            setattr(torch._C, name, counters.safe_from(getattr(torch._C, name)))
    torch.cuda._lazy_call(lambda: _observe_out_of_memory(record, counters))
    count_raised(record)
    record.read = counters.read
    record.keep_writing()


def count_steps(record: Record) -> None:
    """Count the steps of all optimizers, built before or after; before PyTorch 2.0 those that are built from now on."""
    try:
        from torch.optim.optimizer import register_optimizer_step_post_hook
    except ImportError:
        _count_steps_of_new(torch.optim.Optimizer, record.step)
    else:
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: record.step())


def _count_steps_of_new(optimizer: Any, stepped: Callable[[], None]) -> None:
    """Wrap the class's ``step`` of every optimizer that is built, once: an old PyTorch has no hook of its own."""
    build = optimizer.__init__

    @functools.wraps(build)
    def build_and_follow(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        step = type(self).step
        if not getattr(step, "colocate_counts", False):
            type(self).step = _counting(step, stepped)

    optimizer.__init__ = build_and_follow


def _counting(step: Callable[..., Any], stepped: Callable[[], None]) -> Callable[..., Any]:
    @functools.wraps(step)
    def step_and_count(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        stepped()
        return result

    step_and_count.colocate_counts = True  # type: ignore[attr-defined]
    return step_and_count


def count_raised(record: Record) -> None:
    """Count the out-of-memory errors that reach Python.

    The allocator counts one in ``num_ooms``, and calls its observers, before it throws. Some are caught in C++ and
    never seen by the program: PyTorch's convolutions let cuDNN try a smaller workspace, or another algorithm
    (ATen/native/cudnn, Conv_v7.cpp and Conv_v8.cpp). A PyTorch without a class for the error tells nothing here.
    """
    error: Any = getattr(torch, "OutOfMemoryError", None) or getattr(torch.cuda, "OutOfMemoryError", None)
    if not isinstance(error, type) or error is RuntimeError:
        return
    original = getattr(error, "__init__")  # noqa: B009

    def made(self: BaseException, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        record.raised()

    try:
        setattr(error, "__init__", made)  # noqa: B010, mypy knows no other way
    except TypeError as refused:
        record.note(f"out-of-memory errors are not counted: {refused}")
        return
    record.fields["ooms_raised"] = 0


class Counters:
    """The allocator's counters over the life of the process, whatever the program resets.

    Args:
        cuda: ``torch.cuda``, or something with its ``is_initialized``, ``device_count`` and ``memory_stats``.
        note: called with why there are no counters, such as an allocator of the program's own that keeps none.
    """

    def __init__(self, cuda: Any, note: Callable[[str], None] = lambda text: None) -> None:
        self._cuda = cuda
        self._note = note
        self._highest: dict[str, int] = {}
        self._before_resets = dict.fromkeys((*COUNTERS, GROWN), 0)

    def read(self) -> dict[str, Any]:
        """The fields of the record; empty as long as the program has not initialised CUDA."""
        if not self._cuda.is_initialized():
            return {}
        statistics = self._statistics()
        if not statistics:
            return {}
        readings = {field: statistics.get(key) for field, key in CURRENT.items()}
        for field, key in LIFETIME_PEAKS.items():
            self._highest[field] = max(self._highest.get(field, 0), statistics.get(key, 0))
        counts = {field: self._before_resets[field] + statistics.get(field, 0) for field in COUNTERS}
        grown = statistics.get(GROWN)
        all_grown = None if grown is None else self._before_resets[GROWN] + grown
        return {**readings, **self._highest, **counts, "reserved_grown_bytes": all_grown}

    def safe_from(self, reset: Callable[..., Any]) -> Callable[..., Any]:
        """The same reset function, after the counters have been read and what it forgets has been kept."""

        def read_then_reset(*args: Any, **kwargs: Any) -> Any:
            before = self._counts()
            self.read()
            result = reset(*args, **kwargs)
            after = self._counts()
            for field in self._before_resets:
                self._before_resets[field] += max(0, before[field] - after[field])
            return result

        return read_then_reset

    def _counts(self) -> dict[str, int]:
        statistics = self._statistics() if self._cuda.is_initialized() else {}
        return {field: statistics.get(field, 0) for field in self._before_resets}

    def _statistics(self) -> dict[str, int]:
        """The sum over the visible devices: a training of ours sees one. Empty where the allocator does not tell."""
        total: dict[str, int] = {}
        try:
            for index in range(self._cuda.device_count()):
                for key, value in self._cuda.memory_stats(index).items():
                    total[key] = total.get(key, 0) + value
        except Exception as error:  # torch.cuda.memory.change_current_allocator: "does not yet support getDeviceStats"
            self._note(f"the allocator tells nothing: {str(error).splitlines()[0]}")
            return {}
        return total


def _observe_out_of_memory(record: Record, counters: Counters) -> None:
    """Called by torch when the program initialises CUDA: from then on a failed allocation is written at once."""

    def observe(device: int, requested_bytes: int, total_bytes: int, free_bytes: int) -> None:
        readings = counters.read()
        record.out_of_memory(
            f"tried to allocate {requested_bytes} bytes on device {device} of {total_bytes} bytes, {free_bytes} free",
            requested_bytes=requested_bytes,
            allocated_bytes=readings.get("allocated_bytes"),
            reserved_bytes=readings.get("reserved_bytes"),
        )

    try:
        torch._C._cuda_attach_out_of_memory_observer(observe)
    except Exception as error:  # an undocumented function: without it num_ooms still tells
        record.note(f"out-of-memory observer not attached: {type(error).__name__}: {error}")
