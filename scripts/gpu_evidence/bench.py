# SPDX-License-Identifier: Apache-2.0
"""What every unit of work needs: the GPU, the plan, the folder of the records, and how much time is left."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colocate.device import Device, DeviceInfo, FoundGpu, NvidiaDevice, is_simulated, new_virtual
from colocate.files import read_json, write_json
from colocate.harness import AttemptRunner
from colocate.plan import Catalog, Group, Plan, Training, model_of_size
from colocate.results import Attempt, RunDirectory
from colocate.units import GIB

# The virtual stand-in for a large GPU.
WHOLE_VIRTUAL_BYTES = 80 * GIB

# What is left after a training was ended: settling, writing the record, the next call's turn.
RESERVE_S = 20.0


@dataclass
class Bench:
    """The place where the units work.

    Args:
        work: Records of all calls.
        plan: The groups.
        catalog: Makes changed command lines; None for a plan of commands.
        GPU: The whole GPU.
        small_bytes: The size of the small one.
        info: What the whole GPU is.
        minutes: How long this call may take.
        options: The command line's.
    """

    work: Path
    plan: Plan
    catalog: Catalog | None
    gpu: FoundGpu
    small_bytes: int
    info: DeviceInfo
    minutes: float
    options: Any
    began_s: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """Seconds until this call must end."""
        return self.minutes * 60 - (time.monotonic() - self.began_s)

    @property
    def basis(self) -> str:
        """``measured`` on a GPU; ``simulated`` by the tests' library, ``predicted`` on a virtual GPU."""
        return "simulated" if is_simulated(self.info) else self.info.basis

    @property
    def small(self) -> FoundGpu:
        """The constrained GPU: a balloon makes it of a GPU."""
        return replace(self.gpu, total_bytes=self.small_bytes)

    def run(self, name: str) -> RunDirectory:
        """The run directory of one kind of units."""
        return RunDirectory(self.work / name)

    def attempt(self, kind: str, group: Group, gpu: FoundGpu) -> Attempt:
        """One attempt at a group, ended in time by the plan's own limit."""
        limits = group.limits
        most_s = min(limits.epoch_timeout_s, max(5.0, self.left_s - limits.settle_s - RESERVE_S))
        timed = replace(group, runs=1, limits=limits.model_copy(update={"epoch_timeout_s": most_s}))
        run = self.run(kind)
        run.path.mkdir(parents=True, exist_ok=True)
        self._describe(run)
        return AttemptRunner(run, self.plan.name, gpu).attempt(timed)

    def _describe(self, run: RunDirectory) -> None:
        """What a page needs to know of the plan."""
        if run.record.exists():
            return
        plan, limits = self.plan, self.plan.limits
        reported = {
            "name": plan.name,
            "groups": list(plan.ids),
            "needed": plan.needed(len(plan.groups)),
            "success_rate": limits.success_rate,
            "limits": {"peak_bytes": limits.peak_bytes, "gpu_bytes": limits.gpu_bytes},
            "tiers": dict(plan.tiers),
        }
        write_json(run.record, {"schema": 1, "plan": reported, "arguments": []})

    def opened(self, folder: Path) -> Device:
        """The whole GPU for reading it, not locked."""
        if self.gpu.uuid is not None:
            return NvidiaDevice(self.gpu.uuid)
        folder.mkdir(parents=True, exist_ok=True)
        return new_virtual(model_of_size(self.gpu.total_bytes or WHOLE_VIRTUAL_BYTES), folder / "virtual_gpu")


def is_ours(training: Training) -> bool:
    """One of `workloads/`, which knows ``--max-steps``."""
    return any(word.startswith("workloads.") for word in training.argv)


def shortened(training: Training, steps: int) -> Training:
    """With every phase, but few steps of each; one that cannot be cut stays whole."""
    if not is_ours(training):
        return training
    return replace(training, argv=(*training.argv, "--max-steps", str(steps)))


def distinct(groups: Sequence[Group]) -> dict[str, tuple[Training, Group]]:
    """The different programs of the groups by a name of their own, each with a group that has it."""
    found: dict[str, tuple[Training, Group]] = {}
    for group in groups:
        for training in group.trainings:
            found.setdefault(key_of(training), (training, group))
    return found


def key_of(training: Training) -> str:
    """Name and what tells it from others of that name; epochs and seed change no memory."""
    reported = {k: v for k, v in training.hyperparameters.items() if k not in ("epochs", "seed")}
    return " ".join([training.name, *(f"{name}={value}" for name, value in sorted(reported.items()))])


def stored(path: Path) -> dict[str, Any] | None:
    """What a unit left."""
    if not path.exists():
        return None
    document: dict[str, Any] = read_json(path)
    return document
