# SPDX-License-Identifier: Apache-2.0
"""The virtual GPU as a device: reads the state file that emulated trainings write.

What it reports is a prediction: the memory is that of a simulated allocator, and nothing is ever computed on it.
"""

import os
from pathlib import Path

from colocate.device.base import DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.errors import DeviceError
from colocate.probe.virtual_gpu import VirtualGpu


class VirtualDevice:
    """A `colocate.device.base.Device` over a virtual GPU's state file.

    Raises:
        DeviceError: the state file is missing or no virtual GPU.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._gpu = VirtualGpu.open(self.path)
        except (OSError, ValueError, KeyError) as error:
            raise self._unreadable(error) from error

    @property
    def info(self) -> DeviceInfo:
        """The GPU's name and size; its basis is always ``predicted``."""
        return DeviceInfo(
            kind="virtual",
            uuid=self._gpu.uuid,
            name=self._gpu.name,
            total_bytes=self._gpu.total_bytes,
            basis="predicted",
            memory_source="virtual GPU",
            accounting=True,
        )

    def prepare(self) -> None:
        """Nothing: the GPU was made for its group."""

    def memory(self) -> Memory:
        """Return what the baseline and all living processes hold, their contexts included.

        Check by hand: ``python -m json.tool STATE_FILE``.
        """
        try:
            return Memory(self._gpu.used_bytes(), self._gpu.total_bytes)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def vitals(self) -> Vitals:
        """Nothing: no GPU draws power here."""
        return Vitals()

    def processes(self) -> tuple[DeviceProcess, ...]:
        """The living processes with memory on the GPU."""
        try:
            return tuple(DeviceProcess(pid, used_bytes) for pid, used_bytes in self._gpu.processes())
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        """Nobody: a group sees no GPU but its virtual one."""
        return ()

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        """The most that a process ever held, also after its end; None for one that never held anything."""
        try:
            return self._gpu.process_max_bytes(pid)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def close(self) -> None:
        """Nothing is open between two readings."""

    def _unreadable(self, error: Exception) -> DeviceError:
        return DeviceError(f"virtual GPU {str(self.path)!r}: expected its state file, found {error}")
