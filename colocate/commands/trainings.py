"""What the subcommands about many trainings share: where these are from, on which card, and how a plan holds them."""

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate import commands as command
from colocate.arguments import size, whole
from colocate.errors import PlanError
from colocate.units import to_mib

if TYPE_CHECKING:
    from colocate.advice.sharing import Solo
    from colocate.cards import KnownCard
    from colocate.catalog import Catalog, Training
    from colocate.plan import Limits

DEFAULT_CATALOG = Path("settings/models.json")
CARD = "a size, or a name of settings/cards.json (8GB)"


def takes_limit(parser: argparse.ArgumentParser) -> None:
    """Declare ``--limit``."""
    parser.add_argument("--limit", type=size, metavar="SIZE", help="a card's use stays below this (the plan's)")


def takes_epochs(parser: argparse.ArgumentParser) -> None:
    """Declare ``--epochs``."""
    parser.add_argument("--epochs", type=whole, default=1, metavar="N", help="epochs of a catalog's models (1)")


@dataclass
class Task:
    """Trainings that are to share cards, and which cards."""

    name: str
    trainings: "list[Training]"
    catalog: "Catalog | None"
    card: "KnownCard"
    limits: "Limits"

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Task":
        """The task behind the options.

        Raises:
            PlanError: catalog, plan or card cannot be used.
        """
        from colocate.advice.sharing import of_catalog, of_plan
        from colocate.catalog import load_catalog
        from colocate.plan import Limits, load_plan

        if options.plan and options.catalog:
            raise PlanError("--from: expected a catalog or a plan, got both")
        plan = load_plan(options.plan) if options.plan else None
        limits = plan.limits if plan else Limits()
        card = command.known_card(options, limits.card_bytes)
        if card.total_bytes != limits.card_bytes:  # as for `colocate predict`: another card may be used as a whole
            limits = limits.model_copy(update={"card_bytes": card.total_bytes, "peak_bytes": card.total_bytes})
        if options.limit:
            limits = limits.model_copy(update={"peak_bytes": options.limit})
        if plan:
            return cls(plan.name, of_plan(plan), plan.load_catalog(), card, limits)
        catalog = load_catalog(options.catalog or DEFAULT_CATALOG)
        return cls(catalog.path.stem, of_catalog(catalog, options.epochs), catalog, card, limits)

    def predicted(self, options: argparse.Namespace) -> "list[Solo]":
        """What rehearsals say of each training alone, with a line that tells how far they are.

        Raises:
            TrainingError: a program could not be started.
        """
        from colocate.advice.sharing import predicted
        from colocate.commands.progress import Progress

        cache = command.cache(options)
        with Progress(len(self.trainings), sys.stderr) as progress:
            return predicted(self.trainings, self.card, cache=cache, timeout_s=options.timeout, tell=progress.tell)

    def document(self, kind: str, description: str, entries: Iterable[dict[str, Any]], folder: Path) -> dict[str, Any]:
        """A plan of these entries for a file in a folder, with the limits of the task."""
        asked = self.limits.model_dump(mode="json", by_alias=True, exclude_unset=True)
        sizes = {"card": self.limits.card_bytes, "peak": self.limits.peak_bytes}
        document = {
            "experiment_name": f"{kind}_{self.name}"[:100],
            "description": description,
            "limits": asked | {name: f"{to_mib(size):.0f}MB" for name, size in sizes.items()},
            "experiments": list(entries),
        }
        if self.catalog is not None:
            document["catalog"] = os.path.relpath(self.catalog.path.resolve(), folder)
        return document

    def member(self, training: "Training", folder: Path) -> dict[str, Any]:
        """The training as it stands in a plan in this folder."""
        if training.repository is None:
            return _own(training, folder)
        given = dict(training.hyperparameters)
        entry = {"repo": training.repository, "model": training.model, "hyperparameters": given}
        of_catalog = self.catalog.repositories[training.repository].env if self.catalog else {}
        added = {name: value for name, value in training.env.items() if of_catalog.get(name) != value}
        return {**entry, "env": added} if added else entry


def _own(training: "Training", folder: Path) -> dict[str, Any]:
    told = {
        "command": ["{python}" if word == sys.executable else word for word in training.argv],
        "name": training.name,
        "cwd": os.path.relpath(training.cwd, folder),
        "env": dict(training.env),
        "uses_gpu": training.uses_gpu,
        "repeat_args": list(training.repeat_args),
        "rehearsal_args": list(training.rehearsal_args),
        "ready_timeout_s": training.ready_timeout_s,
        "ready_pattern": training.ready_pattern,
        "progress_pattern": training.progress_pattern,
        "metric_patterns": dict(training.metric_patterns),
    }
    return {name: value for name, value in told.items() if value not in (None, {}, [])}


def save(document: dict[str, Any], out: Path) -> int:
    """Write a plan, load it as a check; how many groups it has.

    Raises:
        ColocateError: it cannot be written.
        PlanError: it does not load.
    """
    from colocate.plan import load_plan
    from colocate.run_directory import make_folder, write_json

    make_folder(out.resolve().parent)
    with command.writing(out):
        write_json(out, document)
    return len(load_plan(out).groups)


# --- words ------------------------------------------------------------------------------------------------------------

SOLO_HEAD = f"{'alone':44} {'peak':>6} {'range':>11}  MiB"


def solo_line(solo: "Solo") -> str:
    """What a training takes alone, as a line of a table below `SOLO_HEAD`."""
    name = solo.training.name if len(solo.training.name) <= 44 else solo.training.name[:43] + "…"
    if solo.load is None:
        return f"{name:44} not known: {solo.why}"
    if not solo.training.uses_gpu:
        return f"{name:44} uses no card"
    load = solo.load
    return f"{name:44} {command.mib(load.expected_bytes):>6} {command.span(load.low_bytes, load.high_bytes):>11}"
