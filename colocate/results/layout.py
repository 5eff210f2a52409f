# SPDX-License-Identifier: Apache-2.0
"""All file names of a run directory.

::

    results/run_20261124_053000/        RunDirectory
      run.json                          what was asked for: plan, options, GPU, versions; one entry per session
      .lock .reserve                    held by the session that runs; room for its records on a full disk
      .dry_runs/                        while a session runs, what its groups have shown on the virtual GPU
      quarantine/                       GPUs that nothing more is measured on
      summary.csv                       one row per group, rebuilt after each
      proposals.json                    what could be tried for groups that do not fit, with predicted peaks
      remedies.json                     what was tried of it, before and after
      examples_mnist_parallel_002/      GroupDirectory
        experiment.json                 the record: settings, evidence, results
        verdict.json
        training.log                    the foreground's output
        trace.csv                       the GPU's memory
        events/ probe/                  what the trainings told
        energy/                         gpu_power.csv, gpu_temperature.csv, gpu_utilization.csv, gpu_throttling.csv
        background_logs/                training_1.log, training_2.log ... one per start
      examples_mnist_parallel_002_attempt2/   the same group again, after an interruption or a foreign process
      examples_mnist_parallel_002_run2/       its second run, where the plan asks for several
      run_20261124_053000_remedies/           a side run: tried beside the groups, never counted among them
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from colocate.errors import ColocateError
from colocate.files import make_folder, safe_name

# The record of an hour-long group with 20 samples a second is 2 MiB, that of a group of the plan below 1 MiB.
RESERVE_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class GroupDirectory:
    """The files of one attempt at one run of a group, both counted from 1."""

    path: Path
    repeat: int = 1
    attempt: int = 1

    @property
    def run(self) -> "RunDirectory":
        """The run that it belongs to."""
        return RunDirectory(self.path.parent)

    @property
    def experiment(self) -> Path:
        """The record of the run; written last but for the verdict."""
        return self.path / "experiment.json"

    @property
    def verdict(self) -> Path:
        """The verdict; a group without this file is not finished."""
        return self.path / "verdict.json"

    @property
    def trace(self) -> Path:
        """The samples of the GPU's memory."""
        return self.path / "trace.csv"

    @property
    def energy(self) -> Path:
        """Power, temperature and utilisation, one file each."""
        return self.path / "energy"

    @property
    def foreground_log(self) -> Path:
        """Output of the foreground training."""
        return self.path / "training.log"

    def background_log(self, process_run: int) -> Path:
        """Output of the background's n-th start, counted from 1."""
        return self.path / "background_logs" / f"training_{process_run}.log"

    def events(self, role: str) -> Path:
        """Events that a training writes by itself, JSON lines."""
        return self.path / "events" / f"{role}.jsonl"

    def probe(self, role: str) -> Path:
        """Folder of the probe's records, one per process."""
        return self.path / "probe" / role

    @property
    def stress(self) -> Path:
        """Return the file with the memory margin, if that was asked for."""
        return self.path / "stress.json"

    @property
    def virtual_gpu(self) -> Path:
        """State of the virtual GPU that the trainings share."""
        return self.path / "virtual_gpu"

    def create(self) -> "GroupDirectory":
        """Make the folders.

        Raises:
            ColocateError: this group already has a record here, or the folder cannot be written.
        """
        if self.experiment.exists():
            raise ColocateError(f"{self.path}: expected a new folder, found the record of an earlier run")
        folders = [self.energy, self.path / "background_logs", self.path / "events"]
        folders += [self.probe("foreground"), self.probe("background")]
        for folder in folders:
            make_folder(folder)
        return self

    def discard(self) -> None:
        """Leave nothing of an attempt that recorded nothing: its empty folders would look as if something had begun."""
        with suppress(OSError):
            for folder, _, files in os.walk(self.path, topdown=False):
                if files:
                    return
                Path(folder).rmdir()


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run of a plan."""

    path: Path

    @classmethod
    def new(cls, results: Path, now: datetime, kind: str = "run", reports: Path | None = None) -> "RunDirectory":
        """A fresh ``run_YYYYMMDD_HHMMSS`` below ``results``; a second one in the same second gets a suffix.

        Another ``kind`` begins its name, where what is run is no plan: nobody takes it for the latest run then.
        With ``reports`` the name is free there too, and a folder of it made: runs with other results may share them.

        Raises:
            ColocateError: the folder cannot be written.
        """
        for folder in filter(None, (reports, results)):
            make_folder(folder)
        _release_abandoned(results)
        name = f"{kind}_{now:%Y%m%d_%H%M%S}"
        for suffix in ("", *(f"_{number}" for number in range(2, 100))):
            path = results / (name + suffix)
            if _is_new(path):
                if reports is None or _is_new(reports / path.name):
                    return cls(path)
                path.rmdir()
        raise ColocateError(f"{results}: expected a free name, found 99 runs named {name}")

    @property
    def name(self) -> str:
        """Return the run's name, such as ``run_20261124_053000``."""
        return self.path.name

    def side_run(self, kind: str) -> "RunDirectory":
        """A run inside this one, such as the remedies that were tried: never counted among its groups."""
        return RunDirectory(self.path / f"{self.name}_{kind}")

    @property
    def record(self) -> Path:
        """Return the file with what was asked for: plan, options, GPU, versions."""
        return self.path / "run.json"

    @property
    def summary(self) -> Path:
        """Return the file with one row per finished group."""
        return self.path / "summary.csv"

    @property
    def proposals(self) -> Path:
        """Return the file with proposals for the groups that do not fit, with predicted peaks."""
        return self.path / "proposals.json"

    @property
    def remedies(self) -> Path:
        """Return the file with the proposals that were tried, before and after."""
        return self.path / "remedies.json"

    def group(
        self, foreground: str, number: int, *, parallel: bool, repeat: int = 1, attempt: int = 1
    ) -> GroupDirectory:
        """The folder of one group: ``<foreground>_parallel_001`` where the number is the group's place in the plan."""
        middle = "_parallel" if parallel else ""
        again = ("" if repeat == 1 else f"_run{repeat}") + ("" if attempt == 1 else f"_attempt{attempt}")
        return GroupDirectory(self.path / f"{safe_name(foreground)}{middle}_{number:03d}{again}", repeat, attempt)

    def groups(self) -> Iterator[GroupDirectory]:
        """The groups that have a verdict, by name."""
        for verdict in sorted(self.path.glob("*/verdict.json")):
            yield GroupDirectory(verdict.parent)

    @property
    def quarantine(self) -> Path:
        """Notes about GPUs that must not be used any more."""
        return self.path / "quarantine"

    @property
    def dry_runs(self) -> Path:
        """Folder of what the groups of the session that runs have shown on the virtual GPU."""
        return self.path / ".dry_runs"

    @property
    def _reserve(self) -> Path:
        return self.path / ".reserve"

    def reserve(self) -> None:
        """Keep room on the disk for the records that are to come; does nothing where it is kept already.

        Raises:
            ColocateError: there is no such room.
        """
        if self._reserve.exists():
            return
        try:
            with self._reserve.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError as error:
            self.release()
            room = f"expected room for {RESERVE_BYTES // 1024**2} MiB of records, got {error.strerror}"
            raise ColocateError(f"{self.path}: {room}; make room, or choose another folder with --results") from error

    def release(self) -> bool:
        """Give the kept room back, that of side runs too; whether there was any."""
        found = [self._reserve, *self.path.glob(f"*/{self._reserve.name}")]
        return any([_removed(reserve) for reserve in found])

    @property
    def is_held(self) -> bool:
        """A session is at this run at this moment."""
        try:
            handle = os.open(self._lock, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # whoever is at a run makes the file first
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else runs or resumes this run meanwhile; the kernel lets go of it when its holder dies.

        Raises:
            ColocateError: somebody else does, by their number.
        """
        handle = self._take_lock()
        try:
            yield
        finally:
            self._lock.unlink(missing_ok=True)
            os.close(handle)

    def _take_lock(self) -> int:
        while True:
            try:
                handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except OSError as error:
                raise ColocateError(f"{self._lock}: expected a lock file, got {error.strerror}") from error
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                gpu_process = os.pread(handle, 20, 0).decode(errors="replace") or "unknown"
                os.close(handle)
                text = f"{self.path}: expected a run that nobody else is at, found it held by pid {gpu_process}"
                raise ColocateError(f"{text}; wait for its end") from None
            if self._lock.exists() and self._lock.stat().st_ino == os.fstat(handle).st_ino:
                os.ftruncate(handle, 0)
                os.pwrite(handle, str(os.getpid()).encode(), 0)
                return handle
            os.close(handle)  # its last holder took it away meanwhile

    def discard(self) -> None:
        """Leave nothing of a run that recorded nothing; one with anything else in it, such as a resumed one, stays."""
        own = (self._reserve, self.record, self._lock)
        with suppress(OSError):
            if all(entry in own for entry in self.path.iterdir()):
                for file in own:
                    file.unlink(missing_ok=True)
                self.path.rmdir()


def _is_new(path: Path) -> bool:
    """Make a folder; whether it was not there before.

    Raises:
        ColocateError: it cannot be made.
    """
    try:
        path.mkdir()
    except FileExistsError:
        return False
    except OSError as error:
        with suppress(OSError):
            path.parent.rmdir()  # nothing may look as if something had been run
        raise ColocateError(f"could not write the folder {path}: {error.strerror}") from error
    return True


def _release_abandoned(results: Path) -> None:
    """Give back the room of runs whose session was killed: the next one is what may need it."""
    for run in {RunDirectory(reserve.parent) for reserve in results.glob("*/.reserve")}:
        if not run.is_held:
            run.release()


def _removed(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True
