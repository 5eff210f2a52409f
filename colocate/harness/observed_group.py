# SPDX-License-Identifier: Apache-2.0
"""Collect what is seen of one group on one GPU, and make the record of it.

Every way through a group ends in a record; what it means is `colocate.verdict.rules`'s business.
"""

import platform
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import permutations
from tempfile import TemporaryDirectory

from colocate.device import CpuEnergyMeter, Device, Quarantine
from colocate.errors import ColocateError
from colocate.harness import environment
from colocate.harness.device_state import DeviceState
from colocate.harness.dry_runs import DryRuns, is_sound
from colocate.harness.sampler import Sampler
from colocate.harness.throttling import throttling
from colocate.harness.training_monitor import TrainingMonitor
from colocate.plan import Group
from colocate.process import KeepAlive, Process
from colocate.results import GroupDirectory, Heartbeat, packages, write_record
from colocate.verdict import Evidence, JudgedLimits, Member, ProgressEvent, Verdict

# With less room than this a training may fail for want of a place to write, which says nothing about the GPU.
LEAST_ROOM_BYTES = 1024**2


class ObservedGroup:
    """One group on one GPU with everything that is seen of it, and the record that is made of that.

    Args:
        group: What is to share the GPU.
        device: The GPU, locked by the caller.
        monitor: Samples the GPU, running already.
        directory: Where the record goes, made already. The name of its run is part of the cookie that marks our
            processes, and in the run's quarantine goes a GPU that nothing may be measured on after this.
        plan: Name of the plan.
        cpu_energy: Runs since the monitor was started; None where nobody wants to know.
        asks: After an out-of-memory on the virtual GPU, find out what the training wanted.
        dry_runs: On the virtual GPU, what earlier groups have shown of their programs; None runs each of them.
    """

    def __init__(
        self,
        group: Group,
        device: Device,
        monitor: Sampler,
        directory: GroupDirectory,
        *,
        plan: str,
        cpu_energy: CpuEnergyMeter | None = None,
        asks: bool = True,
        whole: bool = False,
        dry_runs: DryRuns | None = None,
    ) -> None:
        self.group = group
        self.directory = directory
        self._device = device
        self._monitor = monitor
        virtual = device.info.kind == "virtual"
        self._run = directory.run
        self._plan = plan
        self._virtual_gpu = directory.virtual_gpu if virtual else None
        self._foreground = TrainingMonitor("foreground", group.foreground, directory)
        self._background = TrainingMonitor("background", group.background, directory) if group.background else None
        self._keep_alive: KeepAlive | None = None
        self._early: Process | None = None
        self._scratch_folder: TemporaryDirectory[str] | None = None
        self._gpu = DeviceState(
            device, monitor, run=self._run.name, group=group.id, place=directory.path, virtual=virtual
        )
        self._faults: list[tuple[str, str]] = []
        self._asks = asks
        self._whole = whole
        self._dry_runs = dry_runs
        self.was_cut = False
        self._stepping_s: float | None = None
        self.verdict: Verdict | None = None
        self._cpu_energy = cpu_energy
        self._started_at = datetime.now(UTC)
        self._started_t = time.monotonic()
        self._heartbeat = Heartbeat(
            directory.path,
            group=group.id,
            background=group.background is not None,
            limit_bytes=group.limits.peak_bytes,
            epochs=group.foreground.hyperparameters.get("epochs", 1),
            started_at=time.time(),
        )
        self._fixed_s = 0.0

    @property
    def started(self) -> bool:
        """A training of the group was started."""
        return any(training.processes for training in self._members)

    @property
    def foreground_progress(self) -> tuple[ProgressEvent, ...]:
        """The foreground's signs of progress so far, in monotonic seconds."""
        return self._foreground.progress_events

    @property
    def gpu_fault(self) -> str | None:
        """Return why nothing more may be measured on this GPU, or None as long as it may."""
        if (silent := self._monitor.lost or self._gpu.unresponsive) is not None:
            return silent
        if any(process.unkillable for training in self._members for process in training.processes):
            return "a process on it could not be ended"
        if self._gpu.returned is False and self._virtual_gpu is None:  # a virtual GPU ends with its group
            return f"it did not come back to its baseline after {self.group.id}"
        return None

    def _write(self) -> Verdict:
        """Without its record nothing of the group is known, whatever was seen."""
        path = self.directory.path
        try:
            if self.gpu_fault is not None:
                Quarantine(self._run.quarantine).add(self._device.info.uuid, self.gpu_fault)
            if shutil.disk_usage(path).free < LEAST_ROOM_BYTES:
                text = f"{path}: expected room on the disk, found it full, which a training may have met too"
                self._faults.append(("disk_full", text))
            evidence = self.evidence()
            self.was_cut = any(one.passes_cut for one in evidence.foreground.allocators)
            self.verdict = write_record(self.directory, self.group, evidence, self._monitor.vitals(), self._run.name)
        except OSError as error:
            text = f"could not write the record of {self.group.id} to {path}: {error.strerror}"
            raise ColocateError(f"{text}; nothing is concluded without it") from error
        return self.verdict

    def _keep_dry_runs(self, verdict: Verdict) -> None:
        """Let later groups of the session replay what was run to its end here, and is sound but for its size."""
        if self._dry_runs is None or self._virtual_gpu is None or not is_sound(verdict, self.group):
            return
        for training in self._members:
            ends = [process.exit for process in training.processes]
            finished = training.ready_t is not None or all(end is not None and end.ok for end in ends)
            if finished and not training.replayed:
                self._dry_runs.keep(training, self.directory, self.group.id)

    def evidence(self) -> Evidence:
        """Everything that was seen, as a record."""
        origin_t = self._monitor.started_s
        self._attribute()
        for training in self._members:
            training.ask_for_peaks(self._gpu.gpu_processes.pids(training.role), self._gpu.process_peak_bytes)
            training.listed = self._gpu.gpu_processes.listed(training.role)
        foreground = self._foreground.member(origin_t)
        background = None if self._background is None else self._background.member(origin_t)
        limits = self.group.limits
        judged = limits.peak_bytes, limits.gpu_bytes, limits.overlap, limits.longest_gap_s, limits.stall_s
        return Evidence(
            group=self.group.id,
            plan=self._plan,
            device=self._device.info,
            limits=JudgedLimits(*judged),
            baseline_bytes=self._gpu.baseline_bytes,
            trace=self._monitor.trace(),
            foreground=foreground,
            background=background,
            gpu_processes=self._gpu.gpu_processes.seen,
            listings=tuple(self._gpu.gpu_processes.listings),
            returned_to_baseline=self._gpu.returned,
            final_bytes=self._gpu.final_bytes,
            faults=(*self._gpu.faults, *self._faults, *self._process_faults()),
            started_at=self._started_at.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self._started_t,
            fixed_s=self._fixed_s,
            gpu_energy_j=self._monitor.gpu_energy_j(),
            cpu_energy_j=None if self._cpu_energy is None else self._cpu_energy.energy_j(),
            versions={**packages(), "kernel": platform.release()},
            attempt=self.directory.attempt,
            run=self.directory.repeat,
            notes=(*self._gpu.notes, *self._notes(foreground)),
            host=environment.host(),
        )

    @property
    def _members(self) -> tuple[TrainingMonitor, ...]:
        return (self._foreground,) if self._background is None else (self._foreground, self._background)

    def _attribute(self) -> None:
        """Return who holds memory on the GPU, as far as the driver reports it."""
        members = self._members
        if self._wants_list():
            self._monitor.ask_for_processes()
        self._gpu.update({training.role: training.processes for training in members})
        for training in members:
            training.held_bytes = self._gpu.gpu_processes.held_bytes(training.role)
            on_gpu = self._gpu.gpu_processes.pids(training.role)
            training.held_gpu = training.held_gpu or bool(on_gpu)
            if self._virtual_gpu is None:
                training.look_for_probe(on_gpu)
            elif training.training.uses_gpu:
                training.look_for_environment()

    def _wants_list(self) -> bool:
        """However short the foreground is, the driver is asked once who is on which GPU while it trains."""
        if not self._foreground.num_steps:
            return False
        self._stepping_s = self._stepping_s or time.monotonic() - self._monitor.started_s
        return self._gpu.listed_s < self._stepping_s

    def _process_faults(self) -> Iterator[tuple[str, str]]:
        """Yield the faults around the trainings, not in them."""
        for training in self._members:
            yield from training.process_faults()
        # Events of one training that a process of the other wrote prove nothing of either.
        for training, other in permutations(self._members, 2):
            if strange := training.reported_by & (other.pids - training.pids):
                theirs = f"processes of {other.training.name}, {sorted(strange)}"
                yield "events_mixed_up", f"{theirs}, wrote events of {training.training.name}"

    def _notes(self, foreground: Member) -> Iterator[tuple[str, str]]:
        """Yield remarks about the trainings and the GPU while the foreground ran."""
        for training in self._members:
            yield from training.notes()
        if not foreground.process_runs:
            return
        started_s, ended_s = foreground.process_runs[0].started_s, foreground.process_runs[-1].span[1]
        found = throttling(self._monitor.vitals(), started_s, ended_s)
        if found is not None:
            text = f"the GPU was slowed down while the foreground ran, {found}: its times are of such a GPU"
            yield "throttled", text
