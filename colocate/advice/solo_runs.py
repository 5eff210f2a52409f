# SPDX-License-Identifier: Apache-2.0
"""Trainings run alone, to be compared with a group. One that was run alone in the same run already is not run again.

Owns the runs and how they are shortened; what follows from them is `colocate.advice.speedup`'s business.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from colocate.advice.speedup import GroupSpeedup, SoloRun, group_speedup, paces, solo_run_of, why_not
from colocate.device import Device
from colocate.errors import ColocateError
from colocate.files import content, write_json
from colocate.harness import GroupRun, new_directory, observing
from colocate.plan import ROLES, Group, Role, solo_group
from colocate.results import (
    EnergyReading,
    GroupDirectory,
    GroupResult,
    RunDirectory,
    read_attempt,
    read_energy,
    read_evidence,
)
from colocate.verdict import Evidence, foreground_window

SIDE_RUN = "solo"
FILE = "speedup.json"


def settle(group: Group, group_result: GroupResult, device: Device) -> GroupSpeedup:
    """Measure a group's speedup: run its trainings alone unless that was done, and write ``speedup.json``.

    Args:
        group: as the plan has it.
        group_result: its runs.
        device: the GPU that it ran on, open and locked.

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
    comparison = _Comparison(group, group_result.folder.run, pairs, device)
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
        """A run of one member alone: an earlier one of this run if it shows enough, else a new one."""
        training = self.group.training(role)
        assert training is not None
        work = self._work() if role == "background" else {}
        single = replace(solo_group(training, self.group), id=f"{self.group.id}-{training.name}"[:100])
        for known in self._earlier(single):
            if known.finished if role == "foreground" else _is_enough(known.paces, work):
                return known
        new = self._run_alone(single, work)
        if not isinstance(new, str) and role == "background" and not _is_enough(new.paces, work):
            beside = self.group.foreground.name
            return f"{training.name} alone did not show every phase that it showed beside {beside}"
        return new

    def _earlier(self, single: Group) -> Iterator[SoloRun]:
        """Runs alone of the same command on the same GPU with the same versions, as far as they can be read."""
        wanted = (single.content_hash, *_made_with(self.pairs[0][0]))
        for directory in self.run.side_run(SIDE_RUN).groups():
            try:
                attempt = read_attempt(directory)
                if (attempt.group.content_hash, *_made_with(attempt.evidence)) != wanted:
                    continue
                found = solo_run_of(*_recorded(directory), str(directory.path))
            except ColocateError:
                continue
            if isinstance(found, SoloRun):
                yield found

    def _work(self) -> dict[str, float]:
        """The steps of the background by phase, of the run in which it made the most."""
        most: dict[str, float] = {}
        for evidence, _ in self.pairs:
            window = foreground_window(evidence)
            if evidence.background is not None and window is not None:
                for phase, pace in paces(evidence.background.progress_events, window).items():
                    most[phase] = max(most.get(phase, 0.0), pace.steps)
        return most

    def _run_alone(self, single: Group, work: Mapping[str, float]) -> SoloRun | str:
        """Run a training alone; with ``work``, until it has made as many steps of every phase, or its own epochs."""
        directory = new_directory(self.run.side_run(SIDE_RUN), single)
        with observing(single, self.device, directory, plan=SIDE_RUN, asks=False) as observation:
            observation.preflight()
            observation.run_foreground(enough=lambda: bool(work) and _has_done(observation, work))
            observation.conclude()
        evidence, energy = _recorded(directory)
        return solo_run_of(evidence, energy, str(directory.path))


def _made_with(evidence: Evidence) -> tuple[Any, ...]:
    return evidence.device.uuid, evidence.device.total_bytes, evidence.device.driver_version, evidence.versions


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
