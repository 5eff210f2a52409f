# SPDX-License-Identifier: Apache-2.0
"""The question that ``colocate predict`` is asked: which trainings, on which GPU, below which limit."""

import argparse
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from colocate.cli import common as command
from colocate.cli.arguments import default_plan
from colocate.cli.progress import Progress
from colocate.errors import PlanError

if TYPE_CHECKING:
    from colocate.advice import Predictor
    from colocate.harness import Program, SimulatedRun
    from colocate.plan import GpuModel, Group, Plan, Training


@dataclass
class PredictRequest:
    """What is asked: about a plan's groups, one of its trainings, or a command; on which GPU, below which limit."""

    options: argparse.Namespace
    gpu: "GpuModel"
    limit_bytes: int
    plan: "Plan | None"
    command: "Program | None"
    predictors: "dict[GpuModel, Predictor]" = field(default_factory=dict)

    @classmethod
    def of(cls, options: argparse.Namespace) -> "PredictRequest":
        """The question behind the options.

        Raises:
            PlanError: plan, GPU or command cannot be used.
        """
        from colocate.plan import gpu_model, load_plan, model_of_size

        given = options.words
        is_plan = not given or (len(given) == 1 and given[0].endswith(".json"))
        path = Path(given[0]) if given and is_plan else default_plan()
        plan = load_plan(path) if is_plan else None
        program = None if is_plan else _program(given)
        gpu = model_of_size(plan.limits.gpu_bytes) if plan and not options.gpu else gpu_model(options.gpu or "8GB")
        of_plan = plan is not None and gpu.total_bytes == plan.limits.gpu_bytes
        limit_bytes = plan.limits.peak_bytes if plan and of_plan else gpu.total_bytes
        return cls(options, gpu, limit_bytes, plan, program)

    def gpu_for(self, group: "Group") -> "GpuModel | None":
        """The GPU that a run on virtual ones has for a group; None where that is refused."""
        from colocate.device import FoundGpu, as_asked

        own = FoundGpu("virtual", total_bytes=self.gpu.total_bytes, name=self.gpu.name, given=bool(self.options.gpu))
        found = as_asked(own, group.gpu)
        return None if found is None else found.figures

    def limit_for(self, group: "Group") -> int:
        """The group's own limit, as in a run; the whole of a GPU that ``--gpu`` puts in the place of the plan's."""
        assert self.plan is not None
        own = group.gpu is not None or self.gpu.total_bytes == self.plan.limits.gpu_bytes
        return group.limits.peak_bytes if own else self.limit_bytes

    def why_not(self, group: "Group") -> str:
        """Why there is no GPU for a group."""
        if self.options.gpu:
            return f"is for a GPU {group.gpu!r} and not for a {self.gpu.name}"
        return f"is for a GPU {group.gpu!r}, which is not in settings/gpu_models.json"

    def simulated(self, programs: "Iterable[Program]", gpu: "GpuModel | None" = None) -> "list[SimulatedRun]":
        """The programs' dry runs on a GPU, that of the question without one; run now unless they are known."""
        from colocate.advice import Predictor

        gpu, wanted = gpu or self.gpu, list(programs)
        new = Predictor(gpu, cache=command.cache(self.options), timeout_s=self.options.timeout)
        predictor = self.predictors.setdefault(gpu, new)
        with Progress(len(predictor.new(wanted)), sys.stderr) as progress:
            predictor.simulated(wanted, progress.tell)
        return [predictor.known[program] for program in wanted]

    def training(self, name: str) -> "Training":
        """The training of the plan that a name means.

        Raises:
            PlanError: none, or several different ones.
        """
        assert self.plan is not None
        trainings = {one.argv: one for group in self.plan.groups for one in group.trainings}
        found = [one for one in trainings.values() if name in (one.name, one.model)]
        found = found or [one for one in trainings.values() if name.lower() in one.name.lower()]
        if len(found) != 1:
            names = ", ".join(sorted({one.name for one in found or trainings.values()}))
            raise PlanError(f"training: expected one of {names}, got {name!r}")
        return found[0]

    def groups(self, names: Sequence[str] | None) -> "list[Group]":
        """The plan's groups of these ids or trainings; all without names.

        Raises:
            PlanError: a name means none.
        """
        assert self.plan is not None
        if not names:
            return list(self.plan.groups)
        found: list[Group] = []
        for name in (word for text in names for word in text.split(",")):
            matching = [group for group in self.plan.groups if _means(name, group)]
            if not matching:
                raise PlanError(f"-k: expected a group or training of {self.plan.name}, got {name!r}")
            found += [group for group in matching if group not in found]
        return found


def _means(name: str, group: "Group") -> bool:
    number = name.removeprefix("group").lstrip("_-0")
    if number.isdecimal():
        return group.number == int(number)
    trainings = [word for one in group.trainings for word in (one.name, one.model or one.name)]
    return name in (group.id, group.tier, *trainings)


def _program(words: Sequence[str]) -> "Program":
    from colocate.harness import Program

    executable = shutil.which(words[0])
    if executable is None:
        raise PlanError(f"command: expected a program, got {words[0]!r}; is it installed?")
    return Program(shlex.join(words), (executable, *words[1:]), Path.cwd())
