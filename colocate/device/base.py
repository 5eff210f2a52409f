# SPDX-License-Identifier: Apache-2.0
"""The interface of a GPU to the harness, whichever kind it is.

Two kinds implement :class:`Device`: `colocate.device.nvml` (a GPU, through NVML) and `colocate.device.virtual` (a
GPU of a stated size that emulated trainings share). The rest of the library sees only this protocol.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

Basis = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True)
class Memory:
    """One reading of a GPU's memory, in bytes.

    ``used_bytes`` is what all processes hold and excludes what driver and firmware keep (``reserved_bytes``, None
    where the driver does not tell it apart). ``free_bytes`` is what a program could still take, where it is told.
    """

    used_bytes: int
    total_bytes: int
    reserved_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Vitals:
    """The slow readings of a GPU; None is what the driver does not tell."""

    power_mw: int | None = None
    temperature_c: int | None = None
    memory_temperature_c: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    energy_mj: int | None = None
    throttle_reasons: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceProcess:
    """A process that holds memory on a GPU; ``used_bytes`` is None where the driver does not tell.

    ``draws`` is set for one that only draws, such as the desktop: part of baseline and peak, but no foreign process.
    ``balloon`` is set for the process of ours that constrains a large GPU: part of neither, and not foreign.
    """

    pid: int
    used_bytes: int | None
    draws: bool = False
    balloon: bool = False


@dataclass(frozen=True, slots=True)
class BalloonInfo:
    """The balloon of a constrained GPU: who holds how much of which GPU, its own context included."""

    pid: int | None
    held_bytes: int
    gpu_name: str
    gpu_bytes: int


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """The GPU that a verdict holds for; ``instance_of`` is the UUID of the GPU that a MIG instance is a part of."""

    kind: Literal["nvidia", "virtual"]
    uuid: str
    name: str
    total_bytes: int
    basis: Basis
    memory_source: str
    driver_version: str | None = None
    nvml_version: str | None = None
    cuda_version: str | None = None
    index: int | None = None
    accounting: bool | None = None
    balloon: BalloonInfo | None = None
    instance_of: str | None = None


class Device(Protocol):
    """One GPU, known by its UUID.

    Every reading raises `colocate.errors.DeviceError` when the GPU did not answer or answered nonsense; no reading
    ever returns a stand-in number.
    """

    @property
    def info(self) -> DeviceInfo:
        """Return what this GPU is."""

    def prepare(self) -> None:
        """Called before a group, on a GPU that nobody computes on: make it what :attr:`info` says."""

    def memory(self) -> Memory:
        """Memory in use now. Microseconds on an NVIDIA GPU, so it may be called often."""

    def vitals(self) -> Vitals:
        """Power, temperature, utilisation and the energy counter now."""

    def processes(self) -> tuple[DeviceProcess, ...] | None:
        """List the processes that hold memory, or return None if the driver does not report them.

        Milliseconds on an NVIDIA GPU, under a lock that stalls other programs: call it rarely.
        """

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        """List who computes on the machine's other GPUs: UUID and process id. As slow as :meth:`processes`."""

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        """The driver's own maximum for one process (accounting mode), also after its end; None where it is off.

        ``since`` (Unix time) is when the process began, at the earliest: what the driver still knows of an earlier
        process of the same number does not count.
        """

    def close(self) -> None:
        """Let go of the driver. The device answers no more."""
