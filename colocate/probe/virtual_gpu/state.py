# SPDX-License-Identifier: Apache-2.0
"""The state file of a virtual GPU, which the processes of a group share.

Every emulated process writes what it holds, and the monitor reads the sum: so two trainings meet the same full GPU.
Standard library only; knows no torch. The file is small JSON, replaced as a whole while a lock file beside it is held:
a process that is killed at any instant leaves a readable state and no lock.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 1024**2

# What a process holds on a GPU before its first tensor (CUDA context and kernels loaded on demand). Published
# figures for PyTorch 2.7 to 2.10 on recent drivers: 256 MiB (RTX 3090; InvokeAI issue 9413), 426 MiB (RTX 6000 Ada;
# unsloth-zoo PR 1053), "300-400 MB" since CUDA 11.7 loads kernels lazily (PyTorch issues 107667 and 109888); 344 MiB
# was read on an RTX 3080 beside a freshly started MNIST training (records of the Green-deep-learning study).
CONTEXT_BYTES = 344 * MIB

# From a T4 to beyond those above: it grows with the kernels that a program loads. settings/gpu_models.json has sources.
CONTEXT_RANGE_BYTES = (104 * MIB, 494 * MIB)

# Names the file until whose appearance this process is kept from the GPU: its background is to be on it first.
AWAIT = "COLOCATE_AWAIT"
LOOK_S = 0.05

# How many times its size a GPU gives that does not refuse: so that a program which asks until it is refused ends.
GENEROUS = 4


class GpuFull(Exception):
    """A claim would make all processes together exceed the GPU."""

    def __init__(self, requested_bytes: int, free_bytes: int) -> None:
        super().__init__(f"virtual GPU: expected {requested_bytes} more bytes, found {free_bytes} free")
        self.requested_bytes = requested_bytes
        self.free_bytes = free_bytes


@dataclass(frozen=True, slots=True)
class Holding:
    """The memory of one process on the GPU, and its maximum. ``started`` tells reused process ids apart."""

    pid: int
    started: str
    used_bytes: int
    max_used_bytes: int

    @property
    def alive(self) -> bool:
        """The process still runs: its memory counts."""
        return _start_of(self.pid) == self.started


class VirtualGpu:
    """A GPU of a stated size; open it by path from as many processes as needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        state = self._state()
        self.name: str = state["name"]
        self.uuid: str = state["uuid"]
        self.total_bytes: int = state["total_bytes"]
        self.baseline_bytes: int = state["baseline_bytes"]
        self.context_bytes: int = state["context_bytes"]
        low, high = state.get("context_range_bytes", CONTEXT_RANGE_BYTES)
        self.context_range_bytes: tuple[int, int] = (low, high)
        self.cudnn_context_bytes: int = state.get("cudnn_context_bytes") or self.context_bytes
        low, high = state.get("cudnn_context_range_bytes") or self.context_range_bytes
        self.cudnn_context_range_bytes: tuple[int, int] = (low, high)
        capability = state.get("capability")
        self.capability: tuple[int, int] | None = tuple(capability) if capability else None
        self.workspace_bytes: int | None = state.get("workspace_bytes")
        self._refuses: bool = state.get("refuses", True)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        name: str,
        total_bytes: int,
        baseline_bytes: int = 0,
        context_bytes: int = CONTEXT_BYTES,
        context_range_bytes: tuple[int, int] = CONTEXT_RANGE_BYTES,
        cudnn_context_bytes: int | None = None,
        cudnn_context_range_bytes: tuple[int, int] | None = None,
        capability: tuple[int, int] | None = None,
        workspace_bytes: int | None = None,
        refuses: bool = True,
    ) -> "VirtualGpu":
        """A new, empty GPU.

        Args:
            path: the state file; an existing one is replaced.
            name: what programs read as the device's name; without ``capability``, a name that contains that of a
                known GPU also decides the compute capability that they see.
            total_bytes: memory of the GPU.
            baseline_bytes: what the desktop and others hold all the time.
            context_bytes: what each process holds besides its tensors.
            context_range_bytes: from what to what that may be on a real GPU; passed on to the records.
            cudnn_context_bytes: what a process holds that has used cuDNN; without it, as any other.
            cudnn_context_range_bytes: from what to what that may be.
            capability: compute capability.
            workspace_bytes: of one cuBLAS handle; without it, what PyTorch takes at this compute capability.
            refuses: False lets processes hold several times what there is, so that a prediction sees how much they
                want.
        """
        state = {
            "name": name,
            "uuid": f"VIRTUAL-{uuid.uuid4()}",
            "total_bytes": total_bytes,
            "baseline_bytes": baseline_bytes,
            "context_bytes": context_bytes,
            "context_range_bytes": context_range_bytes,
            "cudnn_context_bytes": cudnn_context_bytes,
            "cudnn_context_range_bytes": cudnn_context_range_bytes,
            "capability": capability,
            "workspace_bytes": workspace_bytes,
            "refuses": refuses,
            "max_used_bytes": baseline_bytes,
            "holdings": [],
        }
        _replace(Path(path), state)
        return cls(Path(path))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "VirtualGpu":
        """The GPU behind a state file.

        Raises:
            OSError: there is no such file.
            ValueError: the file is no virtual GPU.
        """
        return cls(Path(path))

    def copy(self, path: str | os.PathLike[str], *, refuses: bool) -> "VirtualGpu":
        """A new, empty GPU of the same figures."""
        return self.create(
            path,
            name=self.name,
            total_bytes=self.total_bytes,
            baseline_bytes=self.baseline_bytes,
            context_bytes=self.context_bytes,
            context_range_bytes=self.context_range_bytes,
            cudnn_context_bytes=self.cudnn_context_bytes,
            cudnn_context_range_bytes=self.cudnn_context_range_bytes,
            capability=self.capability,
            workspace_bytes=self.workspace_bytes,
            refuses=refuses,
        )

    @property
    def free_bytes(self) -> int:
        """Return the free memory."""
        return max(0, self.total_bytes - self.used_bytes())

    def used_bytes(self) -> int:
        """Return what baseline and living processes hold together."""
        return self.baseline_bytes + sum(holding.used_bytes for holding in self.holdings() if holding.alive)

    def max_used_bytes(self) -> int:
        """The most that was ever in use at one time: exact, unlike the peak of a sampled trace."""
        return int(self._state()["max_used_bytes"])

    def processes(self) -> list[tuple[int, int]]:
        """Living processes with memory on the GPU: pid and bytes."""
        return [(one.pid, one.used_bytes) for one in self.holdings() if one.used_bytes and one.alive]

    def process_max_bytes(self, pid: int) -> int | None:
        """The most that a process ever held, also after its end; None for one that never held anything."""
        return max((one.max_used_bytes for one in self.holdings() if one.pid == pid), default=None)

    def holdings(self) -> list[Holding]:
        """Every process that ever held memory, the dead ones included."""
        _wait_for_turn()
        return [Holding(*row) for row in self._state()["holdings"]]

    def claim(self, used_bytes: int) -> None:
        """Say what this process holds from now on, its context included.

        Raises:
            GpuFull: the GPU has not that much; nothing is changed then.
        """
        _wait_for_turn()
        pid = os.getpid()
        started = _start_of(pid) or ""
        with self._locked():
            state = self._state()
            holdings = [Holding(*row) for row in state["holdings"]]
            mine = next((one for one in holdings if (one.pid, one.started) == (pid, started)), None)
            others = [one for one in holdings if one is not mine]
            others_bytes = self.baseline_bytes + sum(one.used_bytes for one in others if one.alive)
            held_bytes = mine.used_bytes if mine else 0
            room_bytes = self.total_bytes if self._refuses else GENEROUS * self.total_bytes
            if used_bytes > held_bytes and others_bytes + used_bytes > room_bytes:
                raise GpuFull(used_bytes - held_bytes, room_bytes - others_bytes - held_bytes)
            highest = max(used_bytes, mine.max_used_bytes if mine else 0)
            state["holdings"] = [
                [one.pid, one.started, one.used_bytes, one.max_used_bytes]
                for one in (*others, Holding(pid, started, used_bytes, highest))
            ]
            state["max_used_bytes"] = max(state["max_used_bytes"], others_bytes + used_bytes)
            _replace(self.path, state)

    def _state(self) -> dict[str, Any]:
        state = json.loads(self.path.read_bytes())
        if not isinstance(state, dict) or "holdings" not in state:
            raise ValueError(f"{self.path}: expected the state of a virtual GPU, found other JSON")
        return state

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when the process dies
            yield
        finally:
            os.close(lock)


def _wait_for_turn() -> None:
    awaited = os.environ.get(AWAIT)
    while awaited and not Path(awaited).exists():
        time.sleep(LOOK_S)


def _start_of(pid: int) -> str | None:
    """Return when a process started, in the kernel's clock ticks, or None if it has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *rest = stat.rpartition(")")[2].split()
    return None if state in "ZX" else rest[18]  # field 22 of proc(5); a zombie holds no device memory


def _replace(path: Path, state: dict[str, Any]) -> None:
    """Write aside and rename, so that nobody reads half a file. Callers hold the lock, or own the path alone."""
    aside = path.with_name(f"{path.name}.new")
    aside.write_text(json.dumps(state))
    aside.replace(path)
