"""A fake ``libnvidia-ml.so.1`` and the simulated machine behind it; see README.md in this folder.

Here is its state file, from Python: GPUs, processes and faults. Standard library only.

`FakeNvml` is the test's handle on the simulated machine. Programs that pretend to train open the same file and take
memory on a GPU with :meth:`FakeNvml.allocate`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import time
import uuid as uuids
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIB = 1024**2
STATE_VARIABLE = "FAKE_NVML_STATE"
UNSUPPORTED = 2**32 - 1
"""In a GPU's field: this GPU cannot tell, as NVML's "not supported"."""
NOT_AVAILABLE = 2**64 - 1
"""NVML's own mark of a 64-bit number that it does not have, such as the memory of a process under WSL."""

UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 1, 2, 3, 4, 6
INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, TIMEOUT, FUNCTION_NOT_FOUND, GPU_IS_LOST = 7, 9, 10, 13, 15
RESET_REQUIRED, LIBRARY_MISMATCH, UNKNOWN = 16, 18, 999
"""Return codes of nvml.h."""

MAGIC = 0x4E564D4C
MAX_GPUS, MAX_PROCESSES, MAX_FAULTS, MAX_FUNCTIONS = 16, 256, 32, 96
CHECKED, LEAKS, HIDDEN, GRAPHICS, BOTH = 1, 2, 4, 8, 16
RETURN, VALUE, BLOCK = 1, 2, 3
SHUFFLED, WITHOUT_V3 = 1, 2
"""In a GPU's ``lists``: rows of the third list of processes that have another layout; no third list at all."""

_U32, _I32, _U64 = ctypes.c_uint32, ctypes.c_int32, ctypes.c_uint64


class FoundGpu(ctypes.Structure):
    """One simulated GPU; tests set its fields directly. `UNSUPPORTED` in a 32-bit field means that it cannot tell."""

    _fields_ = [
        ("uuid", ctypes.c_char * 80),
        ("name", ctypes.c_char * 96),
        *((name, _U64) for name in ("total_bytes", "reserved_bytes", "baseline_bytes", "context_bytes")),
        *((name, _U64) for name in ("energy_mj", "energy_since_ns", "throttle_reasons")),
        *((name, _U32) for name in ("temperature_c", "memory_temperature_c", "power_mw")),
        *((name, _U32) for name in ("utilization_percent", "memory_utilization_percent")),
        *((name, _U32) for name in ("energy_supported", "accounting", "mig", "compute_mode", "persistence")),
        *((name, _U32) for name in ("lists", "pad")),
        *((name, _U32) for name in ("parent", "instance")),
    ]


class Process(ctypes.Structure):
    """A process that holds memory on a GPU. It counts only while the process lives, unless it leaks."""

    _fields_ = [
        *((name, _U32) for name in ("gpu", "pid", "flags", "ended")),
        *((name, _U64) for name in ("start_ticks", "used_bytes", "peak_bytes")),
    ]


class Fault(ctypes.Structure):
    """What goes wrong in a function: a return code, an impossible value, or a wait."""

    _fields_ = [
        ("function", ctypes.c_char * 56),
        *((name, _I32) for name in ("gpu", "kind", "code", "after", "times")),
        ("pad", _U32),
        ("value", _U64),
        ("block_ns", _U64),
    ]


class Counter(ctypes.Structure):
    """How often a function was called, by whichever process."""

    _fields_ = [("function", ctypes.c_char * 56), ("calls", _U64)]


class State(ctypes.Structure):
    """The whole file; fake_nvml.c has the same structure and refuses a file of another size."""

    _fields_ = [
        *((name, _U32) for name in ("magic", "size", "num_gpus", "num_processes", "num_faults", "num_functions")),
        ("cuda_version", _U32),
        ("pad", _U32),
        ("driver_version", ctypes.c_char * 80),
        ("nvml_version", ctypes.c_char * 80),
        ("gpus", FoundGpu * MAX_GPUS),
        ("processes", Process * MAX_PROCESSES),
        ("faults", Fault * MAX_FAULTS),
        ("functions", Counter * MAX_FUNCTIONS),
    ]


class GpuFull(Exception):
    """More was asked of a GPU than it has left."""

    def __init__(self, requested_bytes: int, free_bytes: int) -> None:
        super().__init__(f"fake GPU: expected room for {requested_bytes} bytes, found {free_bytes}")
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes


class FakeNvml:
    """A machine with simulated GPUs. Make one with :meth:`create`, open the one in the environment with :meth:`open`.

    Usable as a context manager. ``environment`` is what a child process needs to see these GPUs; inside a process that
    already runs, LD_LIBRARY_PATH has no effect any more, so the library is loaded by its full path beforehand
    (`fake_nvml.preload`), which glibc then finds by its soname.
    """

    def __init__(self, path: Path, library: Path | None = None) -> None:
        self.path = path
        self.library = library
        self._file = path.open("r+b")
        self._map = mmap.mmap(self._file.fileno(), ctypes.sizeof(State))
        self.state = State.from_buffer(self._map)

    @classmethod
    def create(cls, path: Path, library: Path | None = None) -> FakeNvml:
        """A new machine without GPUs."""
        path.write_bytes(bytes(ctypes.sizeof(State)))
        fake = cls(path, library)
        fake.state.size = ctypes.sizeof(State)
        fake.state.driver_version = b"580.00 (simulated)"
        fake.state.nvml_version = b"13.580.00 (simulated)"
        fake.state.cuda_version = 13000
        fake.state.magic = MAGIC
        return fake

    @classmethod
    def open(cls) -> FakeNvml | None:
        """The machine that the environment names, None without one."""
        path = os.environ.get(STATE_VARIABLE)
        return cls(Path(path)) if path else None

    def close(self) -> None:
        """Forgets the mapping; GPUs taken from it must not be used any more."""
        del self.state
        with contextlib.suppress(BufferError):  # a test still holds a GPU: the mapping ends with it
            self._map.close()
        self._file.close()

    def __enter__(self) -> FakeNvml:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs in its environment to see these GPUs."""
        variables = {STATE_VARIABLE: str(self.path)}
        if self.library is not None:
            others = os.environ.get("LD_LIBRARY_PATH")
            variables["LD_LIBRARY_PATH"] = f"{self.library.parent}:{others}" if others else str(self.library.parent)
        return variables

    def add_gpu(
        self,
        *,
        name: str = "NVIDIA GeForce RTX 2070 (simulated)",
        uuid: str | None = None,
        total_bytes: int = 8192 * MIB,
        reserved_bytes: int = 200 * MIB,
    ) -> FoundGpu:
        """Adds a GPU with healthy vitals and returns it; its index is the order of adding."""
        gpu: FoundGpu = self.state.gpus[self.state.num_gpus]
        gpu.name, gpu.uuid = name.encode(), (uuid or f"GPU-{uuids.uuid4()}").encode()
        gpu.total_bytes, gpu.reserved_bytes, gpu.baseline_bytes = total_bytes, reserved_bytes, 0
        gpu.temperature_c, gpu.memory_temperature_c, gpu.power_mw = 45, UNSUPPORTED, 60_000
        gpu.utilization_percent, gpu.memory_utilization_percent = 30, 10
        gpu.energy_supported, gpu.energy_mj, gpu.energy_since_ns = 1, 1_000_000, time.monotonic_ns()
        gpu.accounting, gpu.mig = 0, UNSUPPORTED
        gpu.context_bytes = 300 * MIB  # what a program of the fake CUDA driver holds before it has taken anything
        gpu.compute_mode, gpu.persistence = 0, 1
        gpu.parent = gpu.instance = UNSUPPORTED
        self.state.num_gpus += 1
        return gpu

    def add_instance(self, profile: str, *, total_bytes: int, parent: int = 0, instance: int | None = None) -> FoundGpu:
        """Cuts a MIG instance out of a GPU, which is in MIG mode from then on; the instance is a GPU here too.

        As on a GPU, it tells no power, temperature, energy or utilisation. Its number, ``instance``, is that of the
        GPU instance: two with the same one are compute instances that share its memory.
        """
        whole = self.state.gpus[parent]
        whole.mig = 1
        number = self.state.num_gpus
        name = f"{whole.name.decode()} MIG {profile}"
        gpu = self.add_gpu(name=name, uuid=f"MIG-{uuids.uuid4()}", total_bytes=total_bytes, reserved_bytes=0)
        gpu.parent, gpu.instance = parent, number if instance is None else instance
        gpu.temperature_c = gpu.power_mw = gpu.throttle_reasons = UNSUPPORTED
        gpu.utilization_percent = gpu.memory_utilization_percent = UNSUPPORTED
        gpu.energy_supported, gpu.accounting, gpu.compute_mode = 0, UNSUPPORTED, UNSUPPORTED
        return gpu

    def uuid(self, gpu: int = 0) -> str:
        """The UUID of a GPU."""
        text: str = self.state.gpus[gpu].uuid.decode()
        return text

    def index(self, selector: str | None) -> int:
        """The GPU that a CUDA_VISIBLE_DEVICES of one entry means: an index or a UUID; without one the first."""
        first = (selector or "0").split(",")[0].strip()
        if first.isdigit():
            return int(first)
        return next(i for i in range(self.state.num_gpus) if self.uuid(i).startswith(first))

    # --- memory

    def used_bytes(self, gpu: int = 0) -> int:
        """What the GPU's processes and its baseline hold now, in bytes."""
        rows = (row for row in self._rows() if row.gpu == gpu and row.pid)
        used: int = sum(row.used_bytes for row in rows if row.flags & LEAKS or _runs(row))
        baseline: int = self.state.gpus[gpu].baseline_bytes
        return baseline + used

    def allocate(
        self, used_bytes: int, *, gpu: int = 0, pid: int | None = None, flags: int = CHECKED, stays: bool = False
    ) -> None:
        """Sets what one process holds on a GPU, in bytes; all its memory, not an addition.

        Args:
            used_bytes: The process's whole use; 0 takes it off the list.
            GPU: Index of the GPU.
            pid: The process; without one, this one.
            flags: `LEAKS` keeps the memory after the process has ended, `HIDDEN` keeps it off the process list,
                `GRAPHICS` puts it on the list of programs that draw instead, `BOTH` on that list too.
            stays: The row is a made-up process that nobody starts and that never ends.

        Raises:
            GpuFull: all processes together would need more than the GPU has.
        """
        pid = os.getpid() if pid is None else pid
        with self._locked():
            row = self._row(gpu, pid)
            free = self._room(gpu) - self.used_bytes(gpu) + (row.used_bytes if row and _runs(row) else 0)
            if used_bytes > free:
                raise GpuFull(used_bytes, free)
            row = row or self._new_row(gpu, pid)
            row.flags = flags & ~CHECKED if stays else flags | CHECKED
            row.start_ticks = 0 if stays else start_ticks(pid) or 0
            row.peak_bytes = max(row.peak_bytes, used_bytes)
            row.used_bytes = used_bytes

    def foreign(self, used_bytes: int, *, pid: int = 4_000_000, gpu: int = 0, flags: int = 0) -> None:
        """Somebody else's process that holds memory until :meth:`release`; its pid is above Linux's default limit."""
        self.allocate(used_bytes, gpu=gpu, pid=pid, flags=flags, stays=True)

    def release(self, pid: int) -> None:
        """Ends what a process holds on the first GPU."""
        with self._locked():
            row = self._row(0, pid)
            if row is not None:
                row.flags &= ~LEAKS
                row.ended = 1

    def _room(self, gpu: int) -> int:
        found = self.state.gpus[gpu]
        room: int = found.total_bytes - found.reserved_bytes
        return room

    def _rows(self) -> list[Process]:
        return list(self.state.processes[: self.state.num_processes])

    def _row(self, gpu: int, pid: int) -> Process | None:
        rows = (row for row in self._rows() if row.gpu == gpu and row.pid == pid)
        return next((row for row in rows if _runs(row)), None)

    def _new_row(self, gpu: int, pid: int) -> Process:
        """An unused row, or the oldest whose process has ended: accounting can ask for the others."""
        if self.state.num_processes < MAX_PROCESSES:
            row: Process = self.state.processes[self.state.num_processes]
            row.gpu, row.pid = gpu, pid
            self.state.num_processes += 1
            return row
        row = next(row for row in self._rows() if not row.flags & LEAKS and not _runs(row))
        row.used_bytes = row.peak_bytes = row.ended = 0
        row.gpu, row.pid = gpu, pid
        return row

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # A descriptor of its own: flock belongs to the open file, which threads of a process would share.
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    # --- faults

    def fail(self, function: str, code: int, **when: Any) -> None:
        """Lets a function return an error code.

        Args:
            function: The exact symbol, such as ``nvmlDeviceGetMemoryInfo_v2``, a prefix with ``*``, or ``*``.
            code: NVML's return code; this module names the usual ones.
            **when: ``gpu`` (index, default all), ``after`` (good calls before it), ``times`` (then good again).
        """
        self._add_fault(function, RETURN, code=code, **when)

    def answer(self, function: str, value: int, **when: Any) -> None:
        """Lets a function answer this number instead of the truth; arguments as in :meth:`fail`."""
        self._add_fault(function, VALUE, value=value, **when)

    def block(self, function: str, seconds: float, **when: Any) -> None:
        """Lets a function wait before it answers; arguments as in :meth:`fail`."""
        self._add_fault(function, BLOCK, block_ns=round(seconds * 1e9), **when)

    def heal(self) -> None:
        """Takes all faults away; a call that is waiting already goes on waiting."""
        self.state.num_faults = 0

    def _add_fault(
        self, function: str, kind: int, *, gpu: int = -1, after: int = 0, times: int = -1, **what: int
    ) -> None:
        fault = Fault(function.encode(), gpu, kind, after=after, times=times, **what)
        self.state.faults[self.state.num_faults] = fault
        self.state.num_faults += 1

    def calls(self, function: str) -> int:
        """How often a function was called so far, by all processes together."""
        rows = self.state.functions[: self.state.num_functions]
        return sum(row.calls for row in rows if row.function.decode() == function)


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None for one that has ended, zombies included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _runs(row: Process) -> bool:
    if row.ended or not row.pid:
        return False
    if not row.flags & CHECKED:
        return True
    started = start_ticks(row.pid)
    return started is not None and row.start_ticks in (0, started)


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
