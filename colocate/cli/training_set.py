# SPDX-License-Identifier: Apache-2.0
"""Shared by the subcommands about many trainings: their source, their GPU, and their form in a plan."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.arguments import size, whole
from colocate.errors import PlanError
from colocate.units import format_mib, format_size, mib_text, span_text, to_mib

if TYPE_CHECKING:
    from colocate.advice import SoloProfile
    from colocate.plan import Catalog, GpuModel, Limits, Plan, Training

DEFAULT_CATALOG = Path("settings/models.json")


def default_catalog() -> Path:
    """The catalog where none is named: that of the current folder, else the one that colocate brings along."""
    from colocate.files import shipped

    return DEFAULT_CATALOG if DEFAULT_CATALOG.is_file() else shipped(str(DEFAULT_CATALOG))


def takes_gpu(parser: argparse.ArgumentParser) -> None:
    """Declare ``--gpu`` and ``--limit``."""
    what = "a size, or a name of settings/gpu_models.json (8GB)"
    parser.add_argument("--gpu", metavar="GPU", help=what)
    parser.add_argument("--limit", type=size, metavar="SIZE", help="a GPU's use stays below this (the plan's)")


def takes_epochs(parser: argparse.ArgumentParser) -> None:
    """Declare ``--epochs``."""
    parser.add_argument("--epochs", type=whole, default=1, metavar="N", help="epochs of a catalog's models (1)")


@dataclass
class Task:
    """Trainings that are to share GPUs, and which GPUs.

    ``asked`` is the GPU that all groups of their plan ask for, and that those of a new plan are to ask for.
    """

    name: str
    trainings: "list[Training]"
    catalog: "Catalog | None"
    gpu: "GpuModel"
    limits: "Limits"
    asked: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Task":
        """The task behind the options.

        Raises:
            PlanError: catalog, plan or GPU cannot be used, or the plan is for several GPUs and no option names one.
        """
        from colocate.advice import of_catalog, of_plan
        from colocate.plan import Limits, gpu_model, load_catalog, load_plan

        if options.plan and options.catalog:
            raise PlanError("--from: expected a catalog or a plan, got both")
        _check_kind(options.plan, "plan", "experiments", "models")
        _check_kind(options.catalog, "catalog", "models", "experiments", f"; write --from={options.catalog}")
        plan = load_plan(options.plan) if options.plan else None
        limits, asked = plan.limits if plan else Limits(), None
        if plan and not options.gpu:
            asked, limits = _agreed(plan, options)
        gpu = gpu_model(asked) if asked else command.gpu_model(options, limits.gpu_bytes)
        if gpu.total_bytes != limits.gpu_bytes:  # as for `colocate predict`: another GPU may be used as a whole
            limits = limits.model_copy(update={"gpu_bytes": gpu.total_bytes, "peak_bytes": gpu.total_bytes})
        if options.limit:
            limits = limits.model_copy(update={"peak_bytes": options.limit})
        if plan:
            return cls(plan.name, of_plan(plan), plan.load_catalog(), gpu, limits, asked)
        catalog = load_catalog(options.catalog or default_catalog())
        return cls(catalog.path.stem, of_catalog(catalog, options.epochs), catalog, gpu, limits)

    def predicted(self, options: argparse.Namespace) -> "list[SoloProfile]":
        """Dry-run each training alone, and show the progress in a line.

        Raises:
            TrainingError: a program could not be started.
        """
        from colocate.advice import predicted
        from colocate.cli.progress import Progress

        cache = command.cache(options)
        with Progress(len(self.trainings), sys.stderr) as progress:
            return predicted(self.trainings, self.gpu, cache=cache, timeout_s=options.timeout, tell=progress.tell)

    def document(self, kind: str, description: str, entries: Iterable[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """A plan of these entries for a file in a folder, with the limits of the task."""
        asked = self.limits.model_dump(mode="json", by_alias=True, exclude_unset=True)
        sizes = {"gpu": self.limits.gpu_bytes, "peak": self.limits.peak_bytes}
        document = {
            "experiment_name": f"{kind}_{self.name}"[:100],
            "description": description,
            "limits": asked | {name: f"{to_mib(size):.0f}MB" for name, size in sizes.items()},
            "experiments": list(entries),
        }
        if self.catalog is not None:
            document["catalog"] = os.path.relpath(self.catalog.path.resolve(), folder)
        return document

    @property
    def wish(self) -> dict[str, str]:
        """Return the GPU setting of an entry of a new plan."""
        return {"gpu": self.asked} if self.asked else {}

    def member(self, training: "Training", folder: Path) -> dict[str, Any]:
        """The training as it stands in a plan in this folder."""
        if training.repository is None:
            return _own(training, folder)
        given = dict(training.hyperparameters)
        entry = {"repo": training.repository, "model": training.model, "hyperparameters": given}
        of_catalog = self.catalog.repositories[training.repository].env if self.catalog else {}
        added = {name: value for name, value in training.env.items() if of_catalog.get(name) != value}
        return {**entry, "env": added} if added else entry


def _check_kind(path: Path | None, kind: str, key: str, other: str, hint: str = "") -> None:
    """A plan in the place of a catalog, or the other way round, would be a list of wrong keys."""
    try:
        document = {} if path is None else json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return  # whoever reads it in earnest says why
    if isinstance(document, dict) and other in document and key not in document:
        found = {"models": "catalog", "experiments": "plan"}[other]
        raise PlanError(f"{path}: expected a {kind}, found a {found}{hint}")


def _agreed(plan: "Plan", options: argparse.Namespace) -> "tuple[str | None, Limits]":
    """The GPU that every group of a plan asks for, with their limits; None with the plan's where none asks.

    Raises:
        PlanError: they are for several GPUs, or have different limits and no option names one.
    """
    first: dict[str | None, str] = {}
    for group in plan.groups:
        first.setdefault(group.gpu, group.id)
    if len(first) > 1:
        found = ", ".join(f"{name} for {repr(gpu) if gpu else 'that of the plan'}" for gpu, name in first.items())
        raise PlanError(f"{plan.path}: expected groups for one GPU, found {found}; name the GPU with --gpu")
    if None in first:
        return None, plan.limits
    limits = dict.fromkeys(group.limits.peak_bytes for group in plan.groups)
    if len(limits) > 1 and not options.limit:
        sizes = ", ".join(map(format_mib, limits))
        raise PlanError(f"{plan.path}: expected groups with one limit, found {sizes}; name it with --limit")
    return plan.groups[0].gpu, plan.groups[0].limits


def _own(training: "Training", folder: Path) -> dict[str, Any]:
    reported = {
        "command": ["{python}" if word == sys.executable else word for word in training.argv],
        "name": training.name,
        "cwd": os.path.relpath(training.cwd, folder),
        "env": dict(training.env),
        "uses_gpu": training.uses_gpu,
        "repeat_args": list(training.repeat_args),
        "dry_run_args": list(training.dry_run_args),
        "ready_timeout_s": training.ready_timeout_s,
        "progress_pattern": training.progress_pattern,
        "metric_patterns": dict(training.metric_patterns),
    }
    return {name: value for name, value in reported.items() if value not in (None, {}, [])}


# --- words ------------------------------------------------------------------------------------------------------------


def head_lines(task: Task, solos: "Sequence[SoloProfile]") -> Iterator[str]:
    """The first lines of an answer: the trainings, the GPU, its limit, and what each training takes alone."""
    yield f"{task.name}: {len(solos)} trainings on {format_size(task.gpu.total_bytes)} GPUs, predicted"
    in_use = format_mib(task.gpu.baseline_bytes)
    yield f"limit {format_mib(task.limits.peak_bytes)}, {in_use} in use before anything starts"
    yield from ("", f"{'solo':44} {'peak':>6} {'range':>11}  MiB", *map(_solo_line, solos), "")


def _solo_line(solo: "SoloProfile") -> str:
    name = solo.training.name if len(solo.training.name) <= 44 else solo.training.name[:43] + "…"
    if solo.peak is None:
        return f"{name:44} not known: {solo.why}"
    if not solo.training.uses_gpu:
        return f"{name:44} uses no GPU"
    peak = solo.peak
    return f"{name:44} {mib_text(peak.expected_bytes):>6} {span_text(peak.low_bytes, peak.high_bytes):>11}"
