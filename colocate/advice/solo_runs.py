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

from colocate.advice.speedup import Alone, GroupWorth, alone_of, group_worth, paces, why_not
from colocate.device.base import Device, DeviceInfo
from colocate.files import write_json
from colocate.harness.attempt import new_directory, observing
from colocate.harness.group_run import Observation
from colocate.plan.catalog import Training
from colocate.plan.overrides import alone
from colocate.plan.plan import Group
from colocate.plan.roles import ROLES, Role
from colocate.results.attempts import Settled
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import read_record
from colocate.results.trace_files import EnergyReading, read_energy
from colocate.results.versions import packages
from colocate.verdict.evidence import Evidence
from colocate.verdict.overlap import foreground_window

SIDE_RUN = "alone"
FILE = "worth.json"

# What of the caller's environment changes speed.
SETTINGS = ("PYTORCH_", "CUBLAS", "CUDNN", "TORCH_", "OMP_", "MKL_", "CUDA_", "NVIDIA_")


class Cache:
    """Runs alone of earlier calls, in the user's folder for caches.

    One counts as long as the command line, the environment, the sources beside the program, the packages, the card and
    its driver are the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> "Cache":
        """The one in the user's folder."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home, "colocate", "alone"))

    def find(self, training: Training, device: DeviceInfo) -> tuple[Alone, ...]:
        """What is known, the latest last; empty where nothing is, or something has changed since."""
        try:
            return _SEVERAL.validate_json(self._path(training, device).read_bytes())
        except (OSError, ValueError, ValidationError):
            return ()

    def keep(self, training: Training, device: DeviceInfo, found: Sequence[Alone]) -> None:
        """Remember runs; a cache that cannot be written is no failure of the comparison."""
        path = self._path(training, device)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, _SEVERAL.dump_python(tuple(found), mode="json"))
        except OSError:
            return

    def _path(self, training: Training, device: DeviceInfo) -> Path:
        known = asdict(training) | {"missing": None, "cwd": str(training.cwd)}
        settings = sorted(
            (k, v) for k, v in os.environ.items() if k.startswith(SETTINGS) and k != "CUDA_VISIBLE_DEVICES"
        )
        card = [device.uuid, device.name, device.total_bytes, device.driver_version]
        identity = [known, settings, card, sorted(packages().items()), sorted(_sources(training))]
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
    settled: Settled,
    device: Device,
    *,
    cache: Cache | None,
    times: int = 1,
    tell: Callable[[str], None] = lambda text: None,
) -> GroupWorth:
    """Whether a group was worth it: its members are run alone unless that is known, and ``worth.json`` is written.

    Args:
        group: as the plan has it.
        settled: its runs.
        device: the card that it ran on, open and locked.
        cache: where runs alone are remembered; None runs them, and remembers nothing.
        times: how many runs of each member alone there are to be.
        tell: called with a sentence about each run alone.

    Raises:
        DeviceError: the card does not answer.
        OSError: a record cannot be written.
        ColocateError: a record of the group cannot be read, or there is no room for one.
    """
    pairs = [_recorded(attempt.directory) for attempt in settled.last]
    why = refused(settled)
    if why is None and device.info.uuid != pairs[0][0].device.uuid:
        why = f"the group ran on {pairs[0][0].device.uuid}, this card is {device.info.uuid}"
    comparison = _Comparison(group, settled.deciding.directory.run, pairs, device, cache, times, tell)
    found = GroupWorth(unknown=why) if why else comparison.worth()
    write_json(settled.deciding.directory.path / FILE, found.to_json())
    return found


def refused(settled: Settled) -> str | None:
    """Why nothing can be said of a group whatever is run; None where something may.

    Raises:
        ColocateError: a record of the group cannot be read.
    """
    evidences = [read_record(attempt.directory).evidence for attempt in settled.last]
    return next(filter(None, map(why_not, evidences)), None)


Pairs = Sequence[tuple[Evidence, Sequence[EnergyReading]]]


def _recorded(directory: GroupDirectory) -> tuple[Evidence, Sequence[EnergyReading]]:
    return read_record(directory).evidence, read_energy(directory.energy)


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
    cache: Cache | None
    times: int
    tell: Callable[[str], None]

    def worth(self) -> GroupWorth:
        """Every run of the group against every run of its members alone."""
        sides: list[tuple[Alone, ...]] = []
        for role in ROLES:
            side = self._alone(role)
            if isinstance(side, str):
                return GroupWorth(unknown=side)
            sides.append(side)
        return group_worth(self.pairs, *sides)

    def _alone(self, role: Role) -> tuple[Alone, ...] | str:
        """Runs of one member alone: those that are known and show enough, and new ones up to so many."""
        training = self.group.training(role)
        assert training is not None
        work = self._work() if role == "background" else {}
        known = self.cache.find(training, self.device.info) if self.cache else ()
        found = [one for one in known if (one.finished if role == "foreground" else _is_enough(one.paces, work))]
        while len(found) < self.times:
            self.tell(f"{training.name} alone, to compare")
            new = self._run_alone(training, work)
            if isinstance(new, str):
                return new
            if role == "background" and not _is_enough(new.paces, work):
                beside = self.group.foreground.name
                return f"{training.name} alone did not show every phase that it showed beside {beside}"
            found.append(new)
            if self.cache:
                self.cache.keep(training, self.device.info, [*known, *found][-10:])
        return tuple(found)

    def _work(self) -> dict[str, float]:
        """The steps of the background by phase, of the run in which it made the most."""
        most: dict[str, float] = {}
        for evidence, _ in self.pairs:
            window = foreground_window(evidence)
            if evidence.background is not None and window is not None:
                for phase, pace in paces(evidence.background.marks, window).items():
                    most[phase] = max(most.get(phase, 0.0), pace.steps)
        return most

    def _run_alone(self, training: Training, work: Mapping[str, float]) -> Alone | str:
        """One run alone; with ``work`` it is ended once it has done as many steps of every phase, or its own epochs."""
        single = replace(alone(training, self.group), id=f"{self.group.id}-{training.name}"[:100])
        directory = new_directory(self.run.side_run(SIDE_RUN), single)
        with observing(single, self.device, directory, plan=SIDE_RUN, asks=False) as observation:
            observation.preflight()
            observation.run_foreground(enough=lambda: bool(work) and _has_done(observation, work))
            observation.conclude()
        evidence, energy = _recorded(directory)
        return alone_of(evidence, energy, str(directory.path))


def _is_enough(shown: Mapping[str, Any], work: Mapping[str, float]) -> bool:
    """Every phase was shown; how many steps of it decides only when to stop."""
    return all(phase in shown and shown[phase].steps > 0 for phase, steps in work.items() if steps)


def _has_done(observation: Observation, work: Mapping[str, float]) -> bool:
    shown = paces(observation.foreground_marks, (0.0, float("inf")))
    return all(phase in shown and shown[phase].steps >= steps for phase, steps in work.items())


def read_worth(directory: GroupDirectory) -> GroupWorth | None:
    """What is written of a group; None where nothing is, or nothing that can be read."""
    try:
        return GroupWorth.from_json(json.loads((directory.path / FILE).read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None


_SEVERAL: TypeAdapter[tuple[Alone, ...]] = TypeAdapter(tuple[Alone, ...])
