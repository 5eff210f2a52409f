# SPDX-License-Identifier: Apache-2.0
"""The GPU around one group: clean before it, who holds memory during it, back at its baseline after it.

Says what it finds in words and codes; what follows from that is `colocate.verdict.rules`'s business.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from colocate.device import Deadline, Device, DeviceProcess
from colocate.errors import BalloonError, DeviceError
from colocate.harness.gpu_processes import GpuProcesses, is_being_ended, is_left_behind, unlisted
from colocate.harness.sampler import Sampler
from colocate.plan import Role
from colocate.process import Process, ProcessId, describe, end, identify
from colocate.units import format_mib

# How far above its baseline a GPU may stay: what NVML reads on an idle GPU with a desktop wanders by some tens of
# MiB, and the smallest CUDA context is above 200 MiB.
BASELINE_TOLERANCE_BYTES = 64 * 1024**2

# Memory on a GPU at the start that no listed process accounts for: what a driver keeps for itself is below 300 MiB.
UNEXPLAINED_BYTES = 512 * 1024**2

# A supervisor whose harness was killed ends its trainings within 5 s; a worker's successor may be here before that.
LEFTOVERS_S = 6.0
ORPHAN_GRACE_S = 2.0

WaitUntil = Callable[[Callable[[], bool], float], bool]
"""Waits for a condition up to a deadline in monotonic seconds, and says whether it holds."""

_log = logging.getLogger("colocate")


class DeviceState:
    """The state of a GPU before, during and after one group.

    Attributes:
        gpu_processes: everybody who was seen on the GPU.
        baseline_bytes: in use before anything was started; None until it was read.
        final_bytes: in use at the last look after the group.
        returned: the GPU came back to its baseline; None until it was waited for.
        faults: what forbids a verdict, as code and sentence.
        notes: what is worth saying, likewise.
    """

    def __init__(self, device: Device, monitor: Sampler, *, run: str, group: str, place: Path, virtual: bool) -> None:
        self.gpu_processes = GpuProcesses(run, group, place, lambda: time.monotonic() - monitor.started_s)
        self.baseline_bytes: int | None = None
        self.final_bytes: int | None = None
        self.returned: bool | None = None
        self.faults: list[tuple[str, str]] = []
        self.notes: list[tuple[str, str]] = []
        self._device = device
        self._deadline = Deadline(device.info.uuid)
        self._ask = self._deadline.ask
        self._monitor = monitor
        self._run = run
        self._virtual = virtual

    @property
    def unresponsive(self) -> str | None:
        """Return why the GPU is no longer asked, or None as long as it answers."""
        return self._deadline.unresponsive

    # Before.

    def look(self, wait_s: float, wait_until: WaitUntil) -> None:
        """See whether the GPU is free, still not after ``wait_s`` seconds, and what it holds.

        What an earlier run of ours has left there is ended first, after saying so. A free GPU is then made ready.
        """
        try:
            self._end_orphans()
            wait_s = max(wait_s, LEFTOVERS_S if any(map(is_being_ended, self._foreign_processes())) else 0.0)
            wait_until(lambda: not self._strangers(), time.monotonic() + wait_s)
            foreign_processes = self._strangers()
            if not foreign_processes:
                self._device.prepare()
            self.gpu_processes.begin(time.monotonic() - self._monitor.started_s)
            if self._device.info.balloon is not None:
                self._monitor.ask_for_processes()  # or the balloon of a short group would be on no list
            self.baseline_bytes = self._ask(self._device.memory).used_bytes
            self._note_unexplained(self.baseline_bytes)
        except DeviceError as error:
            self.faults.append(("no_balloon" if isinstance(error, BalloonError) else "sensor_lost", str(error)))
            return
        if foreign_processes:
            text = f"expected a GPU that nobody uses, found {'; '.join(foreign_processes)}"
            self.faults.append(("foreign_process", f"{text}; end them, or wait with --wait=SECONDS"))

    def _listed(self) -> tuple[DeviceProcess, ...]:
        """List who holds memory by the driver's list; empty if it has none."""
        return self._ask(self._device.processes) or ()

    def _foreign_processes(self) -> list[ProcessId]:
        return self.gpu_processes.foreign_processes(self._listed())

    def _strangers(self) -> list[str]:
        """Whoever else computes on the GPU, in words; one who cannot be seen only if two lists in a row have it."""
        listed = self._listed()
        if unseen := self.gpu_processes.unseen(listed):
            unseen &= self.gpu_processes.unseen(self._listed())
        seen = [process for process in self.gpu_processes.foreign_processes(listed) if process.pid not in unseen]
        elsewhere = {pid: uuid for uuid, pid in self._ask(self._device.processes_elsewhere)} if seen else {}
        names = []
        for pid in (process.pid for process in seen):
            cause = "as pin_memory=True does, which opens the first GPU that a program sees"
            there = f", which computes on {elsewhere.get(pid)} and has a context here too, {cause}"
            names.append(describe(pid) + (f"{there}; start it with CUDA_VISIBLE_DEVICES" if pid in elsewhere else ""))
        cause = "of another user or container, or left by a process that has ended"
        return names + [f"pid {pid}, which cannot be seen from here ({cause})" for pid in sorted(unseen)]

    def _end_orphans(self) -> None:
        """Nobody else's process is touched."""
        orphans = [process for process in self._foreign_processes() if is_left_behind(process, self._run)]
        if not orphans:
            return
        text = "ended what an earlier run had left on the GPU: " + "; ".join(describe(one.pid) for one in orphans)
        _log.warning(text)
        self.notes.append(("orphan_ended", text))
        end(orphans, ORPHAN_GRACE_S)

    def _note_unexplained(self, baseline_bytes: int) -> None:
        """Memory that no living process of the list accounts for is never taken for a clean GPU in silence."""
        listed = [process for process in self._listed() if not process.balloon]
        seen = [process for process in listed if identify(process.pid) is not None]
        unexplained = baseline_bytes - sum(process.used_bytes or 0 for process in seen)
        if self._virtual or unexplained <= UNEXPLAINED_BYTES:
            return
        unseen = [str(process.pid) for process in listed if process not in seen]
        pids = ", ".join(unseen)
        by = f"processes that cannot be seen from here, pid {pids}" if unseen else "no process that the driver lists"
        text = f"{format_mib(unexplained)} were in use before the group, by {by}"
        self.notes.append(("unexplained_baseline", text + self._hidden_gpu_processes()))

    # During.

    def update(self, members: Mapping[Role, Sequence[Process]]) -> None:
        """Take in the lists of processes that came since the last call."""
        if self.gpu_processes.take(self._monitor.process_lists(), members):
            self._look_elsewhere()

    @property
    def listed_s(self) -> float:
        """Return when the process list was last read, in seconds since the sampler's start."""
        return self.gpu_processes.listed_s

    def has_grown(self) -> bool:
        """More is in use than before the group; says nothing about by whom."""
        latest = self._monitor.latest()
        if latest is None or self.baseline_bytes is None:
            return False
        return latest.used_bytes > self.baseline_bytes + BASELINE_TOLERANCE_BYTES

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        """The driver's own maximum for a process that began at a Unix time, where it answers."""
        with suppress(DeviceError):
            return self._ask(lambda: self._device.process_peak_bytes(pid, since))
        return None

    def _look_elsewhere(self) -> None:
        """A member on another GPU does not put its whole load on ours."""
        if any(code == "other_gpu" for code, _ in self.faults):
            return
        with suppress(DeviceError):
            for uuid, pid in self._ask(self._device.processes_elsewhere):
                if role := self.gpu_processes.ours(pid):
                    self.faults.append(("other_gpu", f"the {role} used another GPU too, {uuid}"))
                    return

    # After.

    def wait_for_baseline(self, settle_s: float, wait_until: WaitUntil) -> None:
        """Wait up to ``settle_s`` seconds for the GPU to come back; name who keeps it from that."""
        if self.baseline_bytes is None:
            return
        self.returned = wait_until(self._is_back, time.monotonic() + settle_s)
        if not self.returned:
            self._name_gpu_processes()

    def _is_back(self) -> bool:
        try:
            self.final_bytes = self._ask(self._device.memory).used_bytes
        except DeviceError:
            return False
        assert self.baseline_bytes is not None
        return self.final_bytes <= self.baseline_bytes + BASELINE_TOLERANCE_BYTES

    def _name_gpu_processes(self) -> None:
        try:
            listed = [describe(one.pid) for one in self._listed() if not one.balloon]
        except DeviceError:
            listed = []
        names = ("; on the driver's list: " + "; ".join(listed) if listed else "") + self._hidden_gpu_processes()
        if names:
            self.notes.append(("gpu_processes_left", f"after the group{names}"))

    def _hidden_gpu_processes(self) -> str:
        try:
            found = unlisted(self._listed())
        except DeviceError:
            found = unlisted(())
        return "; not on it but with the GPU open: " + "; ".join(describe(one.pid) for one in found) if found else ""
