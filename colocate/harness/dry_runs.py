# SPDX-License-Identifier: Apache-2.0
"""What the groups of a session have shown of their programs on the virtual GPU, to be replayed in later groups.

What a program does there depends on nothing but itself, unless it asks how much is free or is refused memory. So one
whose dry run is known is not run again: `colocate.probe.virtual_gpu.replay` does in its place what it did.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import content, parse, read_json, write_json
from colocate.harness.prediction_cache import digest, identity
from colocate.harness.probe_records import allocator_of
from colocate.harness.simulated_run import Program
from colocate.harness.training_monitor import TrainingMonitor
from colocate.plan import Group, Training
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.process import Process
from colocate.results import GroupDirectory
from colocate.verdict import Allocator, ReasonCode, Verdict

# All that may be wrong with a group whose programs are replayed elsewhere: together they need too much.
TOO_LARGE = frozenset({ReasonCode.UNDECIDED, ReasonCode.PEAK_OVER_LIMIT, ReasonCode.FOREGROUND_OUT_OF_MEMORY})

_BOOT = "from colocate_probe.virtual_gpu.replay import main; main()"


@dataclass(frozen=True)
class DryRuns:
    """Recordings of a session, shared by its workers.

    Args:
        folder: Where they are; made when the first is kept, and removed when the session ends.
    """

    folder: Path

    def replayed(self, training: Training, role: str, process_run: int, gpu: Path) -> tuple[str, ...] | None:
        """The command that replays a training, or None if it has to be run.

        Args:
            training: What would be started.
            role: As what.
            process_run: How many of its processes were started before.
            gpu: State file of the virtual GPU.
        """
        path = self._path(training, role, process_run, gpu)
        return (sys.executable, "-c", _BOOT, os.fspath(path.absolute())) if _known(path) else None

    def allocator(self, training: Training, role: str, gpu: Path) -> Allocator | None:
        """What the first process of a training wanted where it was run to its end; None if that is not known."""
        recording = _known(self._path(training, role, 0, gpu))
        if recording is None:
            return None
        record = recording["record"]
        return allocator_of(record["pid"], record["optimizer_steps"], record)

    def keep(self, monitor: TrainingMonitor, directory: GroupDirectory, group: str) -> None:
        """Record what a training of a group has shown, if each of its process runs can be replayed.

        A replay prints what was printed and no more, so one that is followed by its output is run each time.
        """
        if monitor.training.progress_pattern:
            return
        try:
            recordings = _recordings(monitor, directory)
            self.folder.mkdir(exist_ok=True)
            for process_run, one in enumerate(recordings):
                path = self._path(monitor.training, monitor.role, process_run, directory.virtual_gpu)
                write_json(path, {**one, "note": f"not run again: this is what it showed in {group}, replayed"})
        except (OSError, ColocateError, LookupError, TypeError, ValueError, AttributeError):
            return  # nobody's records but a probe's are like this; then it is run again

    def _path(self, training: Training, role: str, process_run: int, gpu: Path) -> Path:
        argv = tuple(training.command(repeat=role == "background", dry_run=True))
        figures = {name: value for name, value in vars(VirtualGpu.open(gpu)).items() if name not in ("path", "uuid")}
        name = identity(Program(training.name, argv, training.cwd, training.env), repr(figures))
        return self.folder / f"{name}_{process_run}.json"


def is_sound(verdict: Verdict, group: Group) -> bool:
    """Whether the programs of a group trained beside each other as they should: a replay makes steps without end."""
    overlaps = group.background is None or (verdict.overlap or 0.0) >= group.limits.overlap
    return overlaps and TOO_LARGE.issuperset(verdict.codes)


def _known(path: Path) -> dict[str, Any] | None:
    """Read a recording; None if there is none, or the program's files have changed since."""
    if not path.exists():
        return None
    recording: dict[str, Any] = read_json(path)
    same = all(digest(Path(name)) == was for name, was in recording["files"].items())
    return recording if same else None


def _recordings(monitor: TrainingMonitor, directory: GroupDirectory) -> list[dict[str, Any]]:
    """What each process run of a training showed; none where that is not all of it, or may depend on others."""
    events_path, probe = directory.events(monitor.role), directory.probe(monitor.role)
    events = [parse(line) for line in content(events_path).splitlines()] if events_path.exists() else []
    found = [_recording(process, probe, events) for process in monitor.processes]
    known = [one for one in found if one is not None]
    is_whole = len(known) == len(found) and sum(len(one["events"]) for one in known) == len(events)
    return known if is_whole else []


def _recording(process: Process, probe: Path, events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What one process run showed; None if more than one of its processes used PyTorch, or it ended badly."""
    records = [read_json(probe / f"{pid}.json") for pid in process.pids if (probe / f"{pid}.json").exists()]
    end = process.exit
    if len(records) != 1 or end is None or not (end.ok or end.stopped) or not _is_its_own(records[0]):
        return None
    (record,) = records
    return {
        "argv": process.command.argv,
        "began_t": process.started_t,
        "ended_t": end.ended_s,
        "ends": not end.stopped,
        "record": record,
        "events": [one for one in events if one["pid"] == record["pid"]],
        "output": content(process.log).decode(errors="replace").splitlines(),
        "files": {name: digest(Path(name)) for name in record["files"]},
    }


def _is_its_own(record: dict[str, Any]) -> bool:
    """Whether the process used the virtual GPU, and in a way that depends on nobody else there."""
    depends = any(record.get(name) for name in ("num_ooms", "unsupported", "lost", "asked_free_bytes", "last_oom"))
    return (
        record.get("mode") == "virtual" and bool(record.get("max_reserved_bytes")) and "files" in record and not depends
    )
