# SPDX-License-Identifier: Apache-2.0
"""Runs one group on one GPU and observes it, from the first look at the GPU to the record.

The order of a group: preflight, background until it is ready, foreground for one epoch, stop, settle, record. Every
way through it ends in a record; what that means is `colocate.verdict.rules`'s business.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from colocate.errors import TrainingError
from colocate.harness import environment
from colocate.harness.demand import wanted_alone
from colocate.harness.device_state import BASELINE_TOLERANCE_BYTES
from colocate.harness.observed_group import ObservedGroup
from colocate.harness.training_monitor import TrainingMonitor
from colocate.plan import Role, Training
from colocate.process import Command, KeepAlive, Process, RestartPolicy, start, stop_all
from colocate.verdict import Verdict

TICK_S = 0.05

# How long to wait, after the foreground's end, for the end of the background step that was under way then: without it
# nothing proves that the background was training. At least this long, and twice the longest step so far.
CLOSING_S = 1.0

# How long after its end a foreground's memory may still be in use before the sensor is doubted. The driver takes a
# context down while its process ends, so usually the first sample shows it.
RELEASE_S = 3.0

# How long a list of processes may take: no two are read within a second.
LISTED_WITHIN_S = 1.5

# On the virtual GPU, how long a training that tells of no epochs must have made steps to count as one that goes on.
GOES_ON_S = 5.0

TERMINATION_GRACE_S = 10.0


_log = logging.getLogger("colocate")


class GroupRun(ObservedGroup):
    """Runs one group on one GPU. A context manager: leaving it ends whatever still runs.

    Its arguments are those of `ObservedGroup`.
    """

    def __enter__(self) -> "GroupRun":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    # What happens, in order.

    def preflight(self, wait_s: float = 0.0) -> None:
        """Look at the GPU before anything starts: who uses it, and what it holds.

        A GPU that somebody else uses, still after ``wait_s`` seconds, or that does not answer is a fault: then
        nothing is started.
        """
        with self._fixed_time():
            self._gpu.look(wait_s, self._wait_until)

    def start_background(self) -> None:
        """Start the background and wait until it demonstrably trains, or never will.

        Ready means evidence: it holds memory on the GPU and its steps advance; of one that is declared to use no GPU
        the steps are enough. On the virtual GPU one that uses it has moreover been through a whole cut epoch, or
        program, so that its peak is known before the foreground starts, and trains on; where that takes another
        process run, that one's passes over the data are not cut, so that it lasts.
        """
        training = self._background
        if training is None or self._gpu.faults:
            return
        deadline = time.monotonic() + training.training.ready_timeout_s
        try:
            self._keep_alive = KeepAlive(
                lambda process_run: self._start(training, self.directory.background_log(process_run + 1)),
                self._restart_policy,
            )
        except TrainingError as error:
            training.gave_up = str(error)
            return
        if self._virtual_gpu is not None and self._foreground.training.uses_gpu:
            with suppress(TrainingError):  # tried again, and told, once it is its turn
                self._early = self._launch(self._foreground, self.directory.foreground_log)
        self._wait_until(lambda: self._is_ready(training) or self._is_hopeless(training) or self._must_end(), deadline)
        if self._is_ready(training):
            training.ready_t = time.monotonic()
            if self._virtual_gpu is not None:
                self._ready_file.touch()

    def run_foreground(self, enough: Callable[[], bool] = lambda: False) -> None:
        """Run the foreground to its end: its own, a stall, or the plan's time limit. Not without a background.

        ``enough`` ends it early, for runs that are no verdict's; it is asked at every tick.
        """
        if self._gpu.faults or self._must_end() or (self._background is not None and self._background.ready_t is None):
            return
        training = self._foreground
        try:
            process = self._early or self._launch(training, self.directory.foreground_log)
        except TrainingError as error:
            self._faults.append(("not_started", str(error)))
            return
        if process.poll() is None:  # until now it was kept from the GPU
            process.started_t = time.monotonic()
        training.processes.append(process)
        deadline = process.started_t + self._timeout_s
        self._wait_until(
            lambda: process.poll() is not None or self._is_stalled(training) or self._must_end() or enough(),
            deadline,
        )
        ended_t = time.monotonic()
        if self._virtual_gpu is not None:
            self._ready_file.write_text("the foreground has ended")
        self._monitor.ask_for_vitals()
        if process.poll() is None and enough():
            process.stop(TERMINATION_GRACE_S)
        elif process.poll() is None:
            self._end_foreground(process, ended_t)
        elif self._background is not None:
            self._wait_for_closing_step(self._background, ended_t)

    def stop(self) -> None:
        """End both trainings with all their processes. May be called again, also after an interruption."""
        with self._fixed_time():
            looping = [] if self._keep_alive is None else [self._keep_alive]
            early = [] if self._early is None else [self._early]
            stop_all([*looping, *early, *self._foreground.processes], TERMINATION_GRACE_S)
            if self._scratch_folder is not None:
                self._scratch_folder.cleanup()
                self._scratch_folder = None

    def settle(self) -> None:
        """Wait until the GPU is back at its baseline, at most the plan's settle time."""
        with self._fixed_time():
            self._gpu.wait_for_baseline(self.group.limits.settle_s, self._wait_until)

    def conclude(self) -> Verdict:
        """Stop, settle, and write the record with the verdict that follows from it.

        Raises:
            ColocateError: the record cannot be written.
        """
        self._see_who_else_is_there()
        self.stop()
        self.settle()
        self._learn_what_was_wanted()
        self._keep_dry_runs(verdict := self._write())
        return verdict

    def _see_who_else_is_there(self) -> None:
        """After a failure: a foreign process who came since the last list of processes may be the reason."""
        ends = [process.exit for training in self._members for process in training.processes]
        failed = any(end is not None and not end.ok for end in ends)
        if not self._gpu.listed_s or not (failed or any(training.ran_out_of_memory for training in self._members)):
            return
        since_s = time.monotonic() - self._monitor.started_s
        self._monitor.ask_for_processes()
        with self._fixed_time():
            self._wait_until(lambda: self._gpu.listed_s >= since_s, time.monotonic() + LISTED_WITHIN_S)

    def _learn_what_was_wanted(self) -> None:
        """Learn what each training wanted: how far it got on a full virtual GPU says little about that."""
        if self._virtual_gpu is None or not self._asks:
            return
        for training in self._members:
            if not training.ran_out_of_memory:
                continue
            known = self._dry_runs and self._dry_runs.allocator(training.training, training.role, self._virtual_gpu)
            if known:
                training.wanted = (known,)
                continue
            try:
                training.wanted = wanted_alone(
                    training.training,
                    self._virtual_gpu,
                    self.directory.path / f"alone_{training.role}",
                    cookie=self._gpu.gpu_processes.cookie(training.role),
                    timeout_s=training.training.ready_timeout_s,
                )
            except TrainingError as error:  # the group stays undecided, and its record must still be written
                _log.warning("%s: what it wanted alone is not known: %s", training.training.name, error)

    def interrupt(self, text: str) -> Verdict:
        """End at once and write what there is; no verdict but INCONCLUSIVE can come of it.

        Raises:
            ColocateError: the record cannot be written.
        """
        self._faults.append(("interrupted", text))
        self.stop()
        return self._write()

    @property
    def _timeout_s(self) -> float:
        epochs = self.group.foreground.hyperparameters.get("epochs", 1)
        return self.group.limits.epoch_timeout_s * (epochs if isinstance(epochs, int) else 1)

    @property
    def _restart_policy(self) -> RestartPolicy:
        """A dry-run epoch takes seconds: on the virtual GPU a short clean process run is no sign of a stub."""
        return RestartPolicy() if self._virtual_gpu is None else RestartPolicy(min_lifetime_s=0.0)

    # Starting.

    def _start(self, training: TrainingMonitor, log: Path) -> Process:
        process = self._launch(training, log)
        training.processes.append(process)
        return process

    def _launch(self, training: TrainingMonitor, log: Path) -> Process:
        # What a short pass over its data has to show is known then; a background that ends has to last.
        whole = self._whole or (training.role == "background" and training.simulated_t is not None)
        command = self._command(training.role, training.training, whole=whole)
        known = self._known(training)
        training.replayed = training.replayed or known is not None
        return start(
            command if known is None else replace(command, argv=known),
            log=log,
            cookie=self._gpu.gpu_processes.cookie(training.role),
            patterns=training.patterns,
            max_processes=self.group.limits.max_processes,
        )

    def _known(self, training: TrainingMonitor) -> tuple[str, ...] | None:
        """The command that replays an earlier dry run of the training; None if it has to be run."""
        if self._dry_runs is None or self._virtual_gpu is None or self._whole or self.directory.attempt > 1:
            return None
        return self._dry_runs.replayed(training.training, training.role, len(training.processes), self._virtual_gpu)

    def _command(self, role: Role, training: Training, *, whole: bool) -> Command:
        virtual = self._virtual_gpu is not None
        other: Role = "foreground" if role == "background" else "background"
        env = environment.for_training(
            {**os.environ, **training.env},
            program=training.argv[0],
            cookie=self._gpu.gpu_processes.cookie(role),
            events=self.directory.events(role),
            probe=self.directory.probe(role),
            uuid=None if virtual else self._device.info.uuid,
            virtual_gpu=self._virtual_gpu,
            scratch=self._scratch(role) if virtual else None,
            whole=whole,
            beside=self.directory.probe(other) if virtual and self._background else None,
            ready=self._ready_file if virtual and role == "background" else None,
            awaited=self._ready_file if virtual and role == "foreground" and self._background else None,
            stall_s=self.group.limits.stall_s,
        )
        argv = training.command(repeat=role == "background", dry_run=virtual)
        return Command(tuple(argv), training.cwd, env)

    def _scratch(self, name: str) -> Path:
        """Return a place that goes with the group; every process run of a training finds the last one's files there."""
        if self._scratch_folder is None:
            self._scratch_folder = TemporaryDirectory(prefix="colocate-", ignore_cleanup_errors=True)
        return Path(self._scratch_folder.name, name)

    @property
    def _ready_file(self) -> Path:
        """On the virtual GPU, tells the background that its peak is known and its foreground has not ended."""
        return self._scratch("ready")

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
        if self._keep_alive is not None and self._background is not None:
            self._keep_alive.ready = self._background.ready_t is not None
            self._keep_alive.tend()
            self._background.gave_up = self._keep_alive.gave_up
            self._background.poll()
        self._foreground.poll()
        self._attribute()
        self._beat()

    def _beat(self) -> None:
        """Tell whoever looks on what is going on."""
        foreground = self._foreground.processes
        stage = "preflight" if self._keep_alive is None else "background"
        if foreground:
            stage = "foreground" if foreground[-1].exit is None else "ending"
        if not self._heartbeat.is_due(stage):
            return
        latest, peak = self._monitor.latest(), self._monitor.peak()
        self._heartbeat.beat(
            stage,
            used_bytes=None if latest is None else latest.used_bytes,
            peak_bytes=None if peak is None else peak.used_bytes,
            held_bytes={training.role: training.held_bytes for training in self._members},
            foreground_at=time.time() - (time.monotonic() - foreground[0].started_t) if foreground else None,
        )

    def _is_ready(self, training: TrainingMonitor) -> bool:
        if training.num_steps == 0:
            return False
        if training.training.uses_gpu and not self._holds_gpu(training):
            self._monitor.ask_for_processes()
            return False
        on_cpu = not training.training.uses_gpu and not training.held_gpu
        return self._virtual_gpu is None or on_cpu or self._goes_on(training)

    def _goes_on(self, training: TrainingMonitor) -> bool:
        """Return whether its peak is known and it trains on, after its first epoch or process run, or long enough.

        A second attempt asks for more: the first may have met the pause after a short process run.
        """
        if training.simulated_t is not None:
            return training.stepped_since(training.simulated_t)
        return not training.tells_events and training.stepping_s >= GOES_ON_S * self.directory.attempt**2

    def _holds_gpu(self, training: TrainingMonitor) -> bool:
        """Check by the driver's list, or else by the GPU's level while the background is alone.

        The probe tells that a program holds memory, but not on which GPU.
        """
        if training.role == "background" and not self._gpu.gpu_processes.attributed:
            training.held_gpu = self._gpu.has_grown()
        return training.held_gpu

    def _is_hopeless(self, training: TrainingMonitor) -> bool:
        """It will not be ready: given up, not to be followed, or out of memory, which another start would repeat."""
        return training.gave_up is not None or training.unobservable or training.ran_out_of_memory

    def _is_stalled(self, training: TrainingMonitor) -> bool:
        latest = training.latest_t
        quiet_s = 0.0 if latest is None else time.monotonic() - latest
        return quiet_s > self.group.limits.stall_s

    def _is_lost(self) -> bool:
        return self._monitor.lost is not None

    def _must_end(self) -> bool:
        """The GPU is lost, or a training cannot be followed: nobody could tell what it did, so it may as well end."""
        return self._is_lost() or any(
            training.unobservable or any(process.log_failed for process in training.processes)
            for training in self._members
        )

    def _end_foreground(self, process: Process, ended_t: float) -> None:
        if self._is_lost():
            # The GPU is gone for us, not for the training: it may finish what it has begun.
            self._wait_until(lambda: process.poll() is not None, ended_t + self.group.limits.settle_s)
        elif self._must_end():
            pass
        elif self._is_stalled(self._foreground):
            self._foreground.stalled_after_s = self.group.limits.stall_s
        else:
            self._foreground.timed_out_after_s = self._timeout_s
        process.stop(TERMINATION_GRACE_S)

    def _wait_for_closing_step(self, training: TrainingMonitor, ended_t: float) -> None:
        """See the background's step that was under way to its end, and the foreground's memory given back beside it."""
        self._monitor.ask_for_processes()
        with self._fixed_time():
            self._wait_until(
                lambda: training.stepped_since(ended_t) or training.gave_up is not None or self._must_end(),
                ended_t + max(CLOSING_S, 2 * training.longest_pause_s),
            )
            if self._virtual_gpu is None and self._foreground.held_gpu:
                self._wait_until(
                    lambda: self._has_given_back() or training.gave_up is not None or self._must_end(),
                    ended_t + RELEASE_S,
                )

    def _has_given_back(self) -> bool:
        """Less is in use than before the foreground ended; true as well where that cannot be seen."""
        end, held_bytes = self._foreground.processes[-1].exit, self._foreground.held_bytes
        if end is None or (held_bytes is not None and held_bytes <= 2 * BASELINE_TOLERANCE_BYTES):
            return True
        ended_s = end.ended_s - self._monitor.started_s
        before = self._monitor.used_between(ended_s - CLOSING_S, ended_s)
        after = self._monitor.used_between(ended_s, time.monotonic() - self._monitor.started_s)
        return before is None or (after is not None and after[0] <= before[1] - BASELINE_TOLERANCE_BYTES)

    @contextmanager
    def _fixed_time(self) -> Iterator[None]:
        """Counts time that the harness takes and the trainings do not need."""
        began_t = time.monotonic()
        try:
            yield
        finally:
            self._fixed_s += time.monotonic() - began_t
