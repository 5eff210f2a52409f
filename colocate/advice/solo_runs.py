# SPDX-License-Identifier: Apache-2.0
"""Trainings run alone, to be compared with a group: remembered by everything that decides their speed.

Owns the runs, how they are shortened, and their cache; what follows from them is `colocate.advice.speedup`'s business.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from colocate.advice.speedup import GroupSpeedup, SoloRun, group_speedup, paces, solo_run_of, why_not
from colocate.device import Device, DeviceInfo
from colocate.files import content, write_json
from colocate.harness import GroupRun, new_directory, observing
from colocate.plan import ROLES, Group, Role, Training, solo_group
from colocate.results import (
    EnergyReading,
    GroupDirectory,
    GroupResult,
    RunDirectory,
    packages,
    read_energy,
    read_evidence,
)
from colocate.verdict import Evidence, foreground_window

SIDE_RUN = "solo"
FILE = "speedup.json"

# What of the caller's environment changes speed.
SETTINGS = ("PYTORCH_", "CUBLAS", "CUDNN", "TORCH_", "OMP_", "MKL_", "CUDA_", "NVIDIA_")


class SoloRunCache:
    """Runs alone of earlier calls, in the user's folder for caches.

    One counts as long as the command line, the environment, the sources beside the program, the packages, the GPU and
    its driver are the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> "SoloRunCache":
        """The one in the user's folder."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home, "colocate", "solo"))

    def find(self, training: Training, device: DeviceInfo) -> SoloRun | None:
        """Return the latest solo run; None if there is none or something has changed since."""
        try:
            return _ADAPTER.validate_json(self._path(training, device).read_bytes())
        except (OSError, ValueError, ValidationError):
            return None

    def keep(self, training: Training, device: DeviceInfo, found: SoloRun) -> None:
        """Remember a run; a cache that cannot be written is no failure of the comparison."""
        path = self._path(training, device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _ADAPTER.dump_python(found, mode="json"))
        except OSError:
            return

    def _path(self, training: Training, device: DeviceInfo) -> Path:
        known = asdict(training) | {"missing": None, "cwd": str(training.cwd)}
        settings = sorted(
            (k, v) for k, v in os.environ.items() if k.startswith(SETTINGS) and k != "CUDA_VISIBLE_DEVICES"
        )
        gpu = [device.uuid, device.name, device.total_bytes, device.driver_version]
        identity = [known, settings, gpu, sorted(packages().items()), sorted(_sources(training))]
        digest = hashlib.sha256(json.dumps(identity, default=str, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{digest[:32]}.json"


def _sources(training: Training) -> Iterator[tuple[str, str]]:
    """The Python files beside the script or module that a command line names, each with the digest of its content."""
    for word in training.argv[1:]:
        for path in (training.cwd / word, training.cwd / f"{word.replace('.', '/')}.py"):
            if len(str(path)) < 4096 and path.is_file():
                for source in {path, *path.parent.glob("*.py")}:
                    yield str(source), hashlib.sha256(source.read_bytes()).hexdigest()


def settle(
    group: Group,
    group_result: GroupResult,
    device: Device,
    *,
    cache: SoloRunCache | None,
    tell: Callable[[str], None] = lambda text: None,
) -> GroupSpeedup:
    """Measure a group's speedup: run its trainings alone unless that is known, and write ``speedup.json``.

    Args:
        group: as the plan has it.
        group_result: its runs.
        device: the GPU that it ran on, open and locked.
        cache: where runs alone are remembered; None runs them, and remembers nothing.
        tell: called with a sentence about each run alone.

    Raises:
        DeviceError: the GPU does not answer.
        OSError: a record cannot be written.
        ColocateError: a record of the group cannot be read, or there is no room for one.
    """
    pairs = [_recorded(attempt.directory) for attempt in group_result.last]
    why = next(filter(None, (why_not(evidence) for evidence, _ in pairs)), None)
    if why is None and device.info.uuid != pairs[0][0].device.uuid:
        why = f"the group ran on {pairs[0][0].device.uuid}, this GPU is {device.info.uuid}"
    assert group_result.folder is not None, "it was run"
    comparison = _Comparison(group, group_result.folder.run, pairs, device, cache, tell)
    found = GroupSpeedup(unknown=why) if why else comparison.speedup()
    write_json(group_result.folder.path / FILE, found.to_json())
    return found


Pairs = Sequence[tuple[Evidence, Sequence[EnergyReading]]]


def _recorded(directory: GroupDirectory) -> tuple[Evidence, Sequence[EnergyReading]]:
    return read_evidence(directory), read_energy(directory.energy)


@dataclass(frozen=True)
class _Comparison:
    """A group beside its members alone; what it has is as in `settle`.

    Args:
        run: Where the group was run; runs alone go into a side run of it.
        pairs: The group's runs.
    """

    group: Group
    run: RunDirectory
    pairs: Pairs
    device: Device
    cache: SoloRunCache | None
    tell: Callable[[str], None]

    def speedup(self) -> GroupSpeedup:
        """Every run of the group against its members alone."""
        sides: list[SoloRun] = []
        for role in ROLES:
            side = self._solo_run(role)
            if isinstance(side, str):
                return GroupSpeedup(unknown=side)
            sides.append(side)
        return group_speedup(self.pairs, *sides)

    def _solo_run(self, role: Role) -> SoloRun | str:
        """A run of one member alone: the remembered one if it shows enough, else a new one."""
        training = self.group.training(role)
        assert training is not None
        work = self._work() if role == "background" else {}
        known = self.cache.find(training, self.device.info) if self.cache else None
        if known and (known.finished if role == "foreground" else _is_enough(known.paces, work)):
            return known
        self.tell(f"{training.name} alone, to compare")
        new = self._run_solo(training, work)
        if isinstance(new, str):
            return new
        if role == "background" and not _is_enough(new.paces, work):
            beside = self.group.foreground.name
            return f"{training.name} alone did not show every phase that it showed beside {beside}"
        if self.cache:
            self.cache.keep(training, self.device.info, new)
        return new

    def _work(self) -> dict[str, float]:
        """The steps of the background by phase, of the run in which it made the most."""
        most: dict[str, float] = {}
        for evidence, _ in self.pairs:
            window = foreground_window(evidence)
            if evidence.background is not None and window is not None:
                for phase, pace in paces(evidence.background.progress_events, window).items():
                    most[phase] = max(most.get(phase, 0.0), pace.steps)
        return most

    def _run_solo(self, training: Training, work: Mapping[str, float]) -> SoloRun | str:
        """Run a training alone; with ``work``, until it has made as many steps of every phase, or its own epochs."""
        single = replace(solo_group(training, self.group), id=f"{self.group.id}-{training.name}"[:100])
        directory = new_directory(self.run.side_run(SIDE_RUN), single)
        with observing(single, self.device, directory, plan=SIDE_RUN, asks=False) as observation:
            observation.preflight()
            observation.run_foreground(enough=lambda: bool(work) and _has_done(observation, work))
            observation.conclude()
        evidence, energy = _recorded(directory)
        return solo_run_of(evidence, energy, str(directory.path))


def _is_enough(shown: Mapping[str, Any], work: Mapping[str, float]) -> bool:
    """Every phase was shown; how many steps of it decides only when to stop."""
    return all(phase in shown and shown[phase].steps > 0 for phase, steps in work.items() if steps)


def _has_done(observation: GroupRun, work: Mapping[str, float]) -> bool:
    shown = paces(observation.foreground_progress, (0.0, float("inf")))
    return all(phase in shown and shown[phase].steps >= steps for phase, steps in work.items())


def read_speedup(directory: GroupDirectory) -> GroupSpeedup | None:
    """Read the speedup of a group, or None if there is none that can be read."""
    try:
        return GroupSpeedup.from_json(json.loads(content(directory.path / FILE)))
    except (OSError, ValueError, ValidationError):
        return None


_ADAPTER = TypeAdapter(SoloRun)
