"""Runs one group on one card and observes it, from the first look at the card to the record.

The order of a group: preflight, background until it is ready, foreground for one epoch, stop, settle, record. Every
way through it ends in a record; what that means is `colocate.verdict.rules`'s business.
"""

import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations
from pathlib import Path

from colocate.device.base import Device
from colocate.device.cpu_energy import CpuEnergyMeter
from colocate.device.quarantine import Quarantine
from colocate.errors import ColocateError, TrainingError
from colocate.harness import environment
from colocate.harness.demand import wanted_alone
from colocate.harness.device_state import Occupancy
from colocate.harness.sampler import Monitor
from colocate.harness.throttling import throttling
from colocate.harness.training_monitor import Watch
from colocate.plan.catalog import Training
from colocate.plan.plan import Group
from colocate.plan.roles import Role
from colocate.process.keep_alive import Looping, Restarts
from colocate.process.runner import Command, Process, start, stop_all
from colocate.results.layout import GroupDirectory
from colocate.results.progress_file import Heartbeat
from colocate.results.record import write_record
from colocate.results.versions import packages
from colocate.verdict.evidence import Evidence, Limits, Mark, Member
from colocate.verdict.rules import Verdict, judge

TICK_S = 0.05

# How long to wait, after the foreground's end, for the end of the background step that was under way then: without it
# nothing proves that the background was training. At least this long, and twice the longest step so far.
CLOSING_S = 1.0

# How long a list of processes may take: no two are read within a second.
LISTED_WITHIN_S = 1.5

# On the virtual card, how long a training that tells of no epochs must have made steps to count as one that goes on.
GOES_ON_S = 5.0

TERMINATION_GRACE_S = 10.0

# How often a run that may end early looks whether it may.
DECISION_EVERY_S = 1.0

# With less room than this a training may fail for want of a place to write, which says nothing about the card.
LEAST_ROOM_BYTES = 1024**2

REPEATS = "every phase was seen and memory repeats"

_log = logging.getLogger("colocate")


class Observation:
    """One group on one card while it runs. A context manager: leaving it ends whatever still runs.

    Args:
        group: What is to share the card.
        device: The card, locked by the caller.
        monitor: Samples the card, running already.
        directory: Where the record goes, made already. The name of its run is part of the cookie that marks our
            processes, and in the run's quarantine goes a card that nothing may be measured on after this.
        plan: Name of the plan.
        cpu_energy: Runs since the monitor was started; None where nobody wants to know.
        until_decided: End the foreground as soon as nothing can change the verdict any more.
        asks: After an out-of-memory on the virtual card, find out what the training wanted.
    """

    def __init__(
        self,
        group: Group,
        device: Device,
        monitor: Monitor,
        directory: GroupDirectory,
        *,
        plan: str,
        cpu_energy: CpuEnergyMeter | None = None,
        asks: bool = True,
        until_decided: bool = False,
    ) -> None:
        self.group = group
        self.directory = directory
        self._device = device
        self._monitor = monitor
        virtual = device.info.kind == "virtual"
        self._run = directory.run
        self._plan = plan
        self._virtual_card = directory.virtual_card if virtual else None
        self._foreground = Watch("foreground", group.foreground, directory)
        self._background = Watch("background", group.background, directory) if group.background else None
        self._looping: Looping | None = None
        self._card = Occupancy(
            device, monitor, run=self._run.name, group=group.id, place=directory.path, virtual=virtual
        )
        self._faults: list[tuple[str, str]] = []
        self._asks = asks
        self._until_decided = until_decided
        self._decided: str | None = None
        self._decision_due_t = 0.0
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

    def __enter__(self) -> "Observation":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # What happens, in order.

    def preflight(self, wait_s: float = 0.0) -> None:
        """Look at the card before anything starts: who uses it, and what it holds.

        A card that somebody else uses, still after ``wait_s`` seconds, or that does not answer is a fault: then
        nothing is started.
        """
        with self._fixed_time():
            self._card.look(wait_s, self._wait_until)

    def start_background(self) -> None:
        """Start the background and wait until it demonstrably trains, or never will.

        Ready means evidence: it holds memory on the card and its steps advance. On the virtual card it has moreover
        been through a whole cut epoch, or program, so that its peak is known before the foreground starts, and trains
        on; where that takes another life, that one's passes over the data are not cut, so that it lasts.
        """
        watch = self._background
        if watch is None or self._card.faults:
            return
        deadline = time.monotonic() + watch.training.ready_timeout_s
        try:
            self._looping = Looping(
                lambda life: self._start(watch, self.directory.background_log(life + 1)), self._restarts
            )
        except TrainingError as error:
            watch.gave_up = str(error)
            return
        self._wait_until(lambda: self._is_ready(watch) or self._is_hopeless(watch) or self._must_end(), deadline)
        if self._is_ready(watch):
            watch.ready_t = time.monotonic()

    def run_foreground(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Run the foreground to its end: its own, a stall, or the plan's time limit. Not without a background.

        ``enough`` ends it early, for runs that are no verdict's; it is asked at every tick.
        """
        if self._card.faults or self._must_end() or (self._background is not None and self._background.ready_t is None):
            return
        watch = self._foreground
        try:
            process = self._start(watch, self.directory.foreground_log)
        except TrainingError as error:
            self._faults.append(("not_started", str(error)))
            return
        deadline = process.started_t + self._timeout_s
        self._wait_until(
            lambda: (
                process.poll() is not None
                or self._is_stalled(watch)
                or self._must_end()
                or enough()
                or self._is_decided()
            ),
            deadline,
        )
        ended_t = time.monotonic()
        self._monitor.ask_for_vitals()
        if process.poll() is None and (enough() or self._decided is not None):
            process.stop(TERMINATION_GRACE_S)
            if self._background is not None and self._decided is not None:
                self._wait_for_closing_step(self._background, ended_t)
        elif process.poll() is None:
            self._end_foreground(process, ended_t)
        elif self._background is not None:
            self._wait_for_closing_step(self._background, ended_t)

    def stop(self) -> None:
        """End both trainings with all their processes. May be called again, also after an interruption."""
        with self._fixed_time():
            looping = [] if self._looping is None else [self._looping]
            stop_all([*looping, *self._foreground.processes], TERMINATION_GRACE_S)

    def settle(self) -> None:
        """Wait until the card is back at its baseline, at most the plan's settle time."""
        with self._fixed_time():
            self._card.wait_for_baseline(self.group.limits.settle_s, self._wait_until)

    def conclude(self) -> Verdict:
        """Stop, settle, and write the record with the verdict that follows from it.

        Raises:
            ColocateError: the record cannot be written.
        """
        self._see_who_else_is_there()
        self.stop()
        self.settle()
        self._learn_what_was_wanted()
        return self._write()

    def _see_who_else_is_there(self) -> None:
        """After a failure: a stranger who came since the last list of processes may be the reason."""
        ends = [process.exit for watch in self._members for process in watch.processes]
        failed = any(end is not None and not end.ok for end in ends)
        if not self._card.listed_s or not (failed or any(watch.ran_out_of_memory for watch in self._members)):
            return
        since_s = time.monotonic() - self._monitor.started_s
        self._monitor.ask_for_processes()
        with self._fixed_time():
            self._wait_until(lambda: self._card.listed_s >= since_s, time.monotonic() + LISTED_WITHIN_S)

    def _learn_what_was_wanted(self) -> None:
        """How far a training got on a full virtual card says little about what it wanted."""
        if self._virtual_card is None or not self._asks:
            return
        for watch in self._members:
            if not watch.ran_out_of_memory:
                continue
            try:
                watch.wanted = wanted_alone(
                    watch.training,
                    self._virtual_card,
                    self.directory.path / f"alone_{watch.role}",
                    cookie=self._card.holders.cookie(watch.role),
                    timeout_s=watch.training.ready_timeout_s,
                )
            except TrainingError as error:  # the group stays undecided, and its record must still be written
                _log.warning("%s: what it wanted alone is not known: %s", watch.training.name, error)

    def interrupt(self, text: str) -> Verdict:
        """End at once and write what there is; no verdict but INCONCLUSIVE can come of it.

        Raises:
            ColocateError: the record cannot be written.
        """
        self._faults.append(("interrupted", text))
        self.stop()
        return self._write()

    @property
    def started(self) -> bool:
        """A training of the group was started."""
        return any(watch.processes for watch in self._members)

    @property
    def foreground_marks(self) -> tuple[Mark, ...]:
        """The foreground's signs of progress so far, in monotonic seconds."""
        return self._foreground.marks

    @property
    def card_fault(self) -> str | None:
        """Why nothing may be measured on this card any more; None as long as it may."""
        if self._monitor.lost is not None or self._card.mute is not None:
            return self._monitor.lost or self._card.mute
        if any(process.unkillable for watch in self._members for process in watch.processes):
            return "a process on it could not be ended"
        if self._card.returned is False and self._virtual_card is None:  # a virtual card ends with its group
            return f"it did not come back to its baseline after {self.group.id}"
        return None

    def _write(self) -> Verdict:
        """Without its record nothing of the group is known, whatever was seen."""
        try:
            return self._written()
        except OSError as error:
            text = f"{self.directory.path}: expected to write the record of {self.group.id}, got {error.strerror}"
            raise ColocateError(f"{text}; nothing is concluded without it") from error

    def _written(self) -> Verdict:
        if self.card_fault is not None:
            Quarantine(self._run.quarantine).add(self._device.info.uuid, self.card_fault)
        if shutil.disk_usage(self.directory.path).free < LEAST_ROOM_BYTES:
            text = f"{self.directory.path}: expected room on the disk, found it full, which a training may have met too"
            self._faults.append(("disk_full", text))
        evidence = self.evidence()
        self.verdict = write_record(self.directory, self.group, evidence, self._monitor.vitals(), self._run.name)
        return self.verdict

    def evidence(self) -> Evidence:
        """Everything that was seen, as a record."""
        origin_t = self._monitor.started_s
        self._attribute()
        for watch in self._members:
            watch.ask_for_peaks(self._card.holders.pids(watch.role), self._card.process_peak_bytes)
            watch.listed = self._card.holders.listed(watch.role)
        foreground = self._foreground.member(origin_t)
        background = None if self._background is None else self._background.member(origin_t)
        limits = self.group.limits
        return Evidence(
            group=self.group.id,
            plan=self._plan,
            device=self._device.info,
            limits=Limits(limits.peak_bytes, limits.card_bytes, limits.overlap, limits.longest_gap_s, limits.stall_s),
            baseline_bytes=self._card.baseline_bytes,
            trace=self._monitor.trace(),
            foreground=foreground,
            background=background,
            holders=self._card.holders.seen,
            returned_to_baseline=self._card.returned,
            final_bytes=self._card.final_bytes,
            faults=(*self._card.faults, *self._faults, *self._process_faults()),
            started_at=self._started_at.isoformat(timespec="seconds"),
            duration_s=time.monotonic() - self._started_t,
            fixed_s=self._fixed_s,
            gpu_energy_j=self._monitor.gpu_energy_j(),
            cpu_energy_j=None if self._cpu_energy is None else self._cpu_energy.energy_j(),
            versions={**packages(), "kernel": platform.release()},
            attempt=self.directory.attempt,
            run=self.directory.repeat,
            notes=(*self._card.notes, *self._notes(foreground)),
            host=environment.host(),
            decided_early=self._decided_early(foreground),
        )

    @property
    def _timeout_s(self) -> float:
        epochs = self.group.foreground.hyperparameters.get("epochs", 1)
        return self.group.limits.epoch_timeout_s * (epochs if isinstance(epochs, int) else 1)

    @property
    def _restarts(self) -> Restarts:
        """A rehearsed epoch takes seconds: on the virtual card a short clean life is no sign of a stub."""
        return Restarts() if self._virtual_card is None else Restarts(min_lifetime_s=0.0)

    @property
    def _members(self) -> tuple[Watch, ...]:
        return (self._foreground,) if self._background is None else (self._foreground, self._background)

    # Starting.

    def _start(self, watch: Watch, log: Path) -> Process:
        # What a short pass over its data has to show is known then; a background that ends has to last.
        whole = watch.role == "background" and watch.rehearsed_t is not None
        process = start(
            self._command(watch.role, watch.training, whole=whole),
            log=log,
            cookie=self._card.holders.cookie(watch.role),
            patterns=watch.patterns,
            max_processes=self.group.limits.max_processes,
        )
        watch.processes.append(process)
        return process

    def _command(self, role: Role, training: Training, *, whole: bool) -> Command:
        virtual = self._virtual_card is not None
        env = environment.for_training(
            {**os.environ, **training.env},
            cookie=self._card.holders.cookie(role),
            events=self.directory.events(role),
            probe=self.directory.probe(role),
            uuid=None if virtual else self._device.info.uuid,
            virtual_card=self._virtual_card,
            whole=whole,
        )
        argv = training.command(repeat=role == "background", rehearsal=virtual)
        return Command(tuple(argv), training.cwd, env)

    # Waiting.

    def _wait_until(self, condition: Callable[[], bool], deadline: float) -> bool:
        """Keep everything going until the condition holds or the time is up; whether it holds."""
        while not condition():
            if time.monotonic() >= deadline:
                return False
            time.sleep(TICK_S)
            self._tend()
        return True

    def _tend(self) -> None:
        if self._looping is not None and self._background is not None:
            self._looping.ready = self._background.ready_t is not None
            self._looping.tend()
            self._background.gave_up = self._looping.gave_up
            self._background.poll()
        self._foreground.poll()
        self._attribute()
        self._beat()

    def _beat(self) -> None:
        """Tell whoever looks on what is going on."""
        foreground = self._foreground.processes
        stage = "preflight" if self._looping is None else "background"
        if foreground:
            stage = "foreground" if foreground[-1].exit is None else "ending"
        if not self._heartbeat.is_due(stage):
            return
        latest, peak = self._monitor.latest(), self._monitor.peak()
        self._heartbeat.beat(
            stage,
            used_bytes=None if latest is None else latest.used_bytes,
            peak_bytes=None if peak is None else peak.used_bytes,
            held_bytes={watch.role: watch.held_bytes for watch in self._members},
            foreground_at=time.time() - (time.monotonic() - foreground[0].started_t) if foreground else None,
        )

    def _attribute(self) -> None:
        """Who holds memory on the card, as far as the driver tells."""
        members = self._members
        if self._wants_list():
            self._monitor.ask_for_processes()
        self._card.update({watch.role: watch.processes for watch in members})
        for watch in members:
            watch.held_bytes = self._card.holders.held_bytes(watch.role)
            watch.held_card = watch.held_card or bool(self._card.holders.pids(watch.role))

    def _wants_list(self) -> bool:
        """However short the foreground is, the driver is asked once who is on which card while it trains."""
        if not self._foreground.num_steps:
            return False
        self._stepping_s = self._stepping_s or time.monotonic() - self._monitor.started_s
        return self._card.listed_s < self._stepping_s

    def _process_faults(self) -> Iterator[tuple[str, str]]:
        """What went wrong around the trainings, not in them."""
        for watch in self._members:
            yield from watch.process_faults()
        yield from self._mixed_faults()

    def _notes(self, foreground: Member) -> Iterator[tuple[str, str]]:
        """What is worth saying of the trainings and of the card while the foreground ran."""
        for watch in self._members:
            yield from watch.notes()
        if not foreground.lives:
            return
        end = foreground.last_exit
        ended_s = float("inf") if end is None else end.ended_s
        found = throttling(self._monitor.vitals(), foreground.lives[0].started_s, ended_s)
        if found is not None:
            text = f"the card was slowed down while the foreground ran, {found}: its times are of such a card"
            yield "throttled", text

    def _mixed_faults(self) -> Iterator[tuple[str, str]]:
        """Events of one training that a process of the other wrote prove nothing of either."""
        for watch, other in permutations(self._members, 2):
            strange = watch.told_by & (other.pids - watch.pids)
            if strange:
                text = f"processes of {other.training.name}, {sorted(strange)}, wrote events of {watch.training.name}"
                yield "events_mixed_up", text

    def _is_ready(self, watch: Watch) -> bool:
        if watch.num_steps == 0:
            return False
        if watch.training.uses_gpu and not self._holds_card(watch):
            self._monitor.ask_for_processes()
            return False
        return self._virtual_card is None or self._goes_on(watch)

    def _goes_on(self, watch: Watch) -> bool:
        """Its peak is known, and it trains on: after its first epoch or life, or for long enough where it tells none.

        A second attempt asks for more: the first may have met the pause after a short life.
        """
        if watch.rehearsed_t is not None:
            return watch.stepped_since(watch.rehearsed_t)
        return not watch.tells_events and watch.stepping_s >= GOES_ON_S * self.directory.attempt**2

    def _holds_card(self, watch: Watch) -> bool:
        """By the driver's list; where that does not tell, by the card's level while the background is alone.

        The probe tells that a program holds memory, but not on which card.
        """
        if watch.role == "background" and not self._card.holders.attributed:
            watch.held_card = self._card.has_grown()
        return watch.held_card

    def _is_hopeless(self, watch: Watch) -> bool:
        """It will not be ready: given up, or out of memory, which another start would only repeat."""
        return watch.gave_up is not None or watch.ran_out_of_memory

    def _is_stalled(self, watch: Watch) -> bool:
        latest = watch.latest_t
        quiet_s = 0.0 if latest is None else time.monotonic() - latest
        return quiet_s > self.group.limits.stall_s

    def _is_lost(self) -> bool:
        return self._monitor.lost is not None

    def _is_decided(self) -> bool:
        """By what was seen so far the verdict stands; asked once in a while, for it takes the whole evidence."""
        if not self._until_decided or self._decided is not None or time.monotonic() < self._decision_due_t:
            return self._decided is not None
        self._decision_due_t = time.monotonic() + DECISION_EVERY_S
        so_far = replace(self.evidence(), returned_to_baseline=True, decided_early="asked")
        verdict = judge(so_far)
        if verdict.out_of_memory or verdict.over_limit:
            self._decided = "it is proven that they do not fit; the rest was not run"
        elif verdict.feasible:
            self._decided = REPEATS
        return self._decided is not None

    def _decided_early(self, foreground: Member) -> str | None:
        """Why it was ended, with the epochs in the end: one may have been finished since the decision."""
        if self._decided != REPEATS:
            return self._decided
        asked, done = self.group.foreground.hyperparameters.get("epochs", 1), len(foreground.epochs)
        return f"{REPEATS}; {done} of {asked} epochs were finished, and what comes later was not seen"

    def _must_end(self) -> bool:
        """The card is lost, or a log cannot be written any more: without one nobody can tell what a training did."""
        return self._is_lost() or any(process.log_failed for watch in self._members for process in watch.processes)

    def _end_foreground(self, process: Process, ended_t: float) -> None:
        if self._is_lost():
            # The card is gone for us, not for the training: it may finish what it has begun.
            self._wait_until(lambda: process.poll() is not None, ended_t + self.group.limits.settle_s)
        elif self._must_end():
            pass
        elif self._is_stalled(self._foreground):
            self._foreground.stalled_after_s = self.group.limits.stall_s
        else:
            self._foreground.timed_out_after_s = self._timeout_s
        process.stop(TERMINATION_GRACE_S)

    def _wait_for_closing_step(self, watch: Watch, ended_t: float) -> None:
        with self._fixed_time():
            self._wait_until(
                lambda: watch.stepped_since(ended_t) or watch.gave_up is not None or self._must_end(),
                ended_t + max(CLOSING_S, 2 * watch.longest_pause_s),
            )

    @contextmanager
    def _fixed_time(self) -> Iterator[None]:
        """Counts time that the harness takes and the trainings do not need."""
        began_t = time.monotonic()
        try:
            yield
        finally:
            self._fixed_s += time.monotonic() - began_t
