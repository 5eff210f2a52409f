# SPDX-License-Identifier: Apache-2.0
"""The plan that follows from a run: its recommended pairs as they stood in its plan, with full epochs."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import read_json
from colocate.plan import ROLES, Catalog, load_catalog
from colocate.results import GroupResult, Part, StoredRun, parts, peak_text
from colocate.units import to_mib
from colocate.verdict import Outcome

LEFT_OUT = ("$schema", "catalog", "description", "not_run")  # of the plan that was run


@dataclass(frozen=True)
class FollowUp:
    """A settings file that `colocate.plan.plan.load_plan` accepts, and what its reader should know."""

    document: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def follow_up(run: StoredRun, folder: Path, classes: tuple[str, ...], epochs: int | None = None) -> FollowUp:
    """The plan of a run's recommended pairs.

    Args:
        run: The run that recommends.
        folder: Where the plan will lie; its paths start there.
        classes: Of ``stable``, ``usable`` and ``high-risk``, those to take.
        epochs: Epochs of every training; None takes the catalog's default, and where it has none leaves them out, which
            is the program's own default.

    Raises:
        ColocateError: the run's plan cannot be read any more.
    """
    document, home = _plan_of(run)
    feasible = {row.group: row for part in parts([run]) for row in what_next(part).feasible}
    taken = {name: row for name, row in feasible.items() if row.memory_class in classes}
    entries = list(_Entries(run, _catalog_of(run), home, folder, epochs).of(document, taken))
    document = {key: value for key, value in document.items() if key not in LEFT_OUT}
    document |= {
        "experiment_name": f"{run.plan_name}_next"[:100],
        "description": f"Pairs that {run.name} recommends for long runs, with full epochs.",
        "experiments": entries,
    }
    if run.plan.catalog:
        document["catalog"] = os.path.relpath(run.plan.catalog, folder)
    return FollowUp(document, list(_notes(parts([run]), taken, entries)))


def _notes(found: list[Part], taken: Mapping[str, GroupResult], entries: list[dict[str, Any]]) -> Iterator[str]:
    if any(row.basis == "predicted" for row in taken.values()):
        yield "these pairs are predicted to fit, on a simulated allocator; measure them with one epoch first"
    if any("command" in one for entry in entries for one in (entry, *(entry.get(role) or {} for role in ROLES))):
        yield "commands of your own are taken as they are; set their epochs yourself"
    left = [name for part in found for row in part.counting if (name := row.group) not in taken]
    if left:
        yield f"left out: {', '.join(left)}"


def _plan_of(run: StoredRun) -> tuple[dict[str, Any], Path]:
    """The run's plan as a settings file, and the folder in which its paths start."""
    path, document = Path(run.plan.path or ""), run.plan.document
    if document is None:
        document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("experiments"), list):
        raise ColocateError(f"{run.path / 'run.json'}: expected the plan of the run, found none")
    return _with_env(document, path), path.parent


def _with_env(document: Any, path: Path) -> Any:
    """The stored plan with the values of ``env``, which no run keeps, from its settings file where that still is."""
    try:
        return _filled(document, read_json(path))
    except ColocateError:
        return document


def _filled(stored: Any, written: Any) -> Any:
    if isinstance(stored, dict) and isinstance(written, dict):
        return {
            key: dict(written[key]) | {name: value for name, value in child.items() if value is not None}
            if key == "env" and isinstance(child, dict) and isinstance(written.get(key), dict)
            else _filled(child, written.get(key))
            for key, child in stored.items()
        }
    if isinstance(stored, list) and isinstance(written, list):
        return [_filled(child, written[place] if place < len(written) else None) for place, child in enumerate(stored)]
    return stored


def _catalog_of(run: StoredRun) -> Catalog | None:
    """The catalog that the run was made with, where it still can be read."""
    try:
        return load_catalog(Path(run.plan.catalog)) if run.plan.catalog else None
    except (ColocateError, OSError):
        return None


@dataclass(frozen=True)
class _Entries:
    """Makes the entries of the new plan out of those of the run's.

    Args:
        run: The run that recommends.
        catalog: That of its plan.
        home: The folder in which paths of its plan start.
        folder: That in which paths of the new one start.
        epochs: As in `follow_up`.
    """

    run: StoredRun
    catalog: Catalog | None
    home: Path
    folder: Path
    epochs: int | None

    def of(self, document: dict[str, Any], taken: Mapping[str, GroupResult]) -> Iterator[dict[str, Any]]:
        """The entries of the groups that are taken, in the plan's order."""
        ids = self.run.plan.groups
        for place, entry in enumerate(document["experiments"]):
            name = entry.get("id") or (ids[place] if place < len(ids) else None)
            if name in taken:
                yield self._entry({"id": str(name), **entry}, taken[str(name)])

    def _entry(self, entry: dict[str, Any], row: GroupResult) -> dict[str, Any]:
        """Make the entry of one pair; it keeps its id, so that the two runs can be compared."""
        own = self._minutes(entry)
        if own is not None:
            entry["expected_minutes"] = own
        if row.peak_bytes is not None:
            entry["expected_memory"] = f"{to_mib(row.peak_bytes):.0f}MB"
        entry["note"] = f"{row.memory_class}: {row.basis} peak {peak_text(row)} in {self.run.name}"
        for role in ROLES:
            if isinstance(entry.get(role), dict):
                entry[role] = self._member(dict(entry[role]))
        return self._member(entry)

    def _member(self, member: dict[str, Any]) -> dict[str, Any]:
        """A command starts in the folder of its plan unless told otherwise: from the new plan's it must be told."""
        if "command" in member:
            member["cwd"] = os.path.relpath(self.home / str(member.get("cwd") or "."), self.folder)
        return self._at_full_length(member)

    def _minutes(self, entry: Mapping[str, Any]) -> float | None:
        """The plan's minutes for as many epochs as the foreground will have; None where one of them is not known."""
        foreground = entry.get("foreground") or entry
        before = _epochs(foreground)
        after = _epochs(self._at_full_length(dict(foreground)))
        minutes = entry.get("expected_minutes")
        known = all(isinstance(value, int | float) and value > 0 for value in (before, after, minutes))
        return round(minutes * after / before, 2) if known and minutes and before and after else None

    def _at_full_length(self, member: dict[str, Any]) -> dict[str, Any]:
        """The member with all its epochs, where it is one of a catalog."""
        hyperparameters = member.get("hyperparameters")
        if not isinstance(hyperparameters, dict) or "epochs" not in hyperparameters:
            return member
        repository, model = str(member.get("repo")), str(member.get("model"))
        supported = self.catalog.supported(repository, model) if self.catalog else {}
        default = supported["epochs"].default if "epochs" in supported else None
        wanted = self.epochs if self.epochs is not None else default
        reused = {name: value for name, value in hyperparameters.items() if name != "epochs"}
        member["hyperparameters"] = {"epochs": wanted, **reused} if isinstance(wanted, int) else reused
        return member


def _epochs(member: Mapping[str, Any]) -> Any:
    return (member.get("hyperparameters") or {}).get("epochs")


@dataclass(frozen=True)
class Next:
    """The pairs of a part by what to do with them: those that fit by class, those that do not, and those undecided."""

    stable: tuple[GroupResult, ...]
    usable: tuple[GroupResult, ...]
    high_risk: tuple[GroupResult, ...]
    infeasible: tuple[GroupResult, ...]
    undecided: tuple[GroupResult, ...]

    @property
    def feasible(self) -> tuple[GroupResult, ...]:
        """Return all pairs that fit."""
        return (*self.stable, *self.usable, *self.high_risk)

    @property
    def recommended(self) -> tuple[GroupResult, ...]:
        """Return the pairs that a follow-up plan takes by default."""
        return (*self.stable, *self.usable)


def what_next(part: Part) -> Next:
    """Sort the pairs by outcome, and those that fit by class; one that fits is never among those that do not."""
    names = ("stable", "usable", "high_risk", "infeasible", "undecided")
    by_kind: dict[str, list[GroupResult]] = {name: [] for name in names}
    for row in part.counting:
        kind = "infeasible" if row.outcome == Outcome.INFEASIBLE else "undecided"
        if row.outcome == Outcome.FEASIBLE:
            kind = row.memory_class if row.memory_class in ("stable", "usable") else "high_risk"
        by_kind[kind].append(row)
    return Next(**{name: tuple(rows) for name, rows in by_kind.items()})
