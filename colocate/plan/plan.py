# SPDX-License-Identifier: Apache-2.0
"""Settings become a `Plan` of `Group`s of `Training`s, or are refused with every mistake and its place.

What a file may contain stands in `colocate.plan.schema`. Starts nothing and knows no GPU.
``python -m colocate.plan`` writes the JSON Schemas of the settings files.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

from colocate.errors import PlanError
from colocate.plan import gpu_models
from colocate.plan.catalog import Catalog, Training, default_catalog, load_catalog
from colocate.plan.catalog_schema import CatalogFile
from colocate.plan.executables import filled, script_of, what_is_missing
from colocate.plan.gpu_models import asked_bytes
from colocate.plan.roles import ROLES, Role
from colocate.plan.schema import (
    KEYS_OF_COMMANDS,
    MODES,
    TIERS,
    Entry,
    Limits,
    PlanFile,
    TrainingSpec,
)
from colocate.plan.validation import (
    MUTATION,
    Mistakes,
    Place,
    Settings,
    checked_size,
    display_name,
    one_of,
    read_json,
    size_text,
    unknown,
    validated,
)
from colocate.process import MAX_PROCESSES

__all__ = ["Group", "Limits", "Plan", "Training", "load_plan", "write_schemas"]

# --- what the rest of colocate works with ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """The trainings that are to share one GPU in one case; ``background`` is None for a training alone.

    ``limits`` are the plan's, with the group's own peak and GPU where it has them; ``gpu`` is what it asks for, by
    size or name, and it is run on no other. ``content_hash`` changes whenever something
    changes that decides how the group runs: commands, hyperparameters, environment, limits.
    """

    id: str
    number: int
    foreground: Training
    background: Training | None
    limits: Limits
    tier: str | None = None
    expected_bytes: int | None = None
    tolerance_bytes: int | None = None
    risk: str | None = None
    note: str = ""
    runs: int = 1
    expected_minutes: float | None = None
    gpu: str | None = None

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Foreground first, then the background if there is one."""
        return (self.foreground,) if self.background is None else (self.foreground, self.background)

    def training(self, role: Role) -> Training | None:
        """The training of a role; None for the background of a group that has none."""
        return self.foreground if role == "foreground" else self.background

    @property
    def budget_bytes(self) -> int | None:
        """Return the peak that the plan's expectation and tolerance allow, or None without one of the two."""
        if self.expected_bytes is None or self.tolerance_bytes is None:
            return None
        return self.expected_bytes + self.tolerance_bytes

    @property
    def missing(self) -> str | None:
        """Say why the group cannot be run yet, or None if it can."""
        reasons = dict.fromkeys(training.missing for training in self.trainings if training.missing)
        return "; ".join(reasons) or None

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over what decides the group's run on this machine, as hexadecimal digits."""
        return self._hash([_known(training) for training in self.trainings])

    @cached_property
    def settings_hash(self) -> str:
        """The same over what stands in the settings: equal on all machines, wherever these keep the programs."""
        return self._hash([training.settings for training in self.trainings])

    def _hash(self, trainings: list[dict[str, Any]]) -> str:
        limits = self.limits.model_dump(exclude={"success_rate"})
        if self.limits.max_processes == MAX_PROCESSES:
            del limits["max_processes"]  # runs from before this limit existed hold as they are
        asked = {} if self.gpu is None else {"gpu": self.gpu}
        return _sha256({"trainings": trainings, "limits": limits, **asked})


@dataclass(frozen=True)
class Plan:
    """One validated settings file: an ordered list of groups and what is demanded of them.

    ``tiers`` maps each tier to the share of its groups that is expected to be feasible.
    """

    name: str
    path: Path
    groups: tuple[Group, ...]
    limits: Limits
    tiers: Mapping[str, float]
    description: str = ""
    governor: str | None = None
    max_retries: int = 2
    catalog: Path | None = None
    source: PlanFile | None = field(default=None, repr=False, compare=False)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the groups, in the plan's order."""
        return tuple(group.id for group in self.groups)

    @cached_property
    def by_id(self) -> Mapping[str, Group]:
        """The groups by their ids."""
        return {group.id: group for group in self.groups}

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the settings of the groups and the plan's own demands, the same on every machine."""
        groups = {group.id: [group.settings_hash, group.runs] for group in self.groups}
        return _sha256({"groups": groups, "success_rate": self.limits.success_rate, "retries": self.max_retries})

    def needed(self, num_groups: int) -> int:
        """Return how many groups must be feasible: the rate times the groups, rounded down, but at least one.

        The plan's owner writes "95 % (11/12)", and 0.95 x 12 is 11.4. Reckoned in decimals: 0.95 x 20 is 19. Rounding
        down would ask nothing of a plan of one group.
        """
        return needed(self.limits.success_rate, num_groups)

    def to_json(self) -> dict[str, Any]:
        """The plan as a settings file that loads as the same plan from the same folder; every group has its id."""
        assert self.source is not None, "only a loaded plan can be written"
        document = self.source.model_dump(mode="json", by_alias=True, exclude_unset=True)
        for entry, group in zip(document["experiments"], self.groups, strict=True):
            entry["id"] = group.id
        return document

    def published(self) -> dict[str, Any]:
        """The same as it may be kept and shown: of ``env`` the names, for its values may be secrets."""
        document = self.to_json()
        for entry in (*document["experiments"], *document.get("not_run", ())):
            for member in (entry, *(entry.get(role) or {} for role in ROLES)):
                if "env" in member:
                    member["env"] = dict.fromkeys(member["env"])
        return document

    def entry(self, group: Group) -> dict[str, Any]:
        """Return the entry of a group in the settings file, or of the group from which it was made."""
        entry: dict[str, Any] = self.to_json()["experiments"][group.number - 1]
        return entry

    def load_catalog(self) -> Catalog | None:
        """The catalog that its trainings were taken from; None for a plan of commands only.

        Raises:
            PlanError: it cannot be read any more.
        """
        return None if self.catalog is None else load_catalog(self.catalog)


def needed(success_rate: float, num_groups: int) -> int:
    """See :meth:`Plan.needed`."""
    rate = Fraction(Decimal(repr(success_rate)))
    return max(floor(rate * num_groups), min(num_groups, ceil(rate)))


def _known(training: Training) -> dict[str, Any]:
    return {name: value for name, value in asdict(training).items() if name != "written"} | {"missing": None}


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


# --- from one to the other -------------------------------------------------------------------------------------------


def load_plan(path: Path | str, catalog: Path | str | Catalog | None = None, *, epochs: int | None = None) -> Plan:
    """The plan in a file.

    Without a ``catalog`` the one that the plan names is used, else `default_catalog`. ``epochs`` replaces the number of
    epochs of every training that has such a hyperparameter.

    Raises:
        PlanError: the file cannot be read or contains mistakes; all of them, one per line. Or ``epochs`` changes
            nothing, because every training is a command of its own.
    """
    if epochs is not None and epochs < 1:
        raise PlanError(f"epochs: expected at least 1, got {epochs}")
    path = Path(path)
    mistakes = Mistakes(display_name(path))
    document = read_json(path, mistakes)
    file = validated(PlanFile, document, (), mistakes)
    draft = _Draft(document if isinstance(document, dict) else {}, path, mistakes, catalog, epochs)
    draft.entries = file.experiments if file else None
    groups = tuple(draft.groups())
    mistakes.raise_if_any()
    assert file is not None
    if epochs is not None and not draft.epochs_replaced:
        own = "found commands of their own only; set their epochs in the plan"
        raise PlanError(f"--epochs: expected a training of {path.name} that takes epochs from the catalog, {own}")
    return Plan(
        name=_safe(file.experiment_name, "unnamed"),
        path=path,
        groups=groups,
        limits=file.limits,
        tiers={name: tier.expected_success for name, tier in file.tiers.items()},
        description=file.description,
        governor=file.governor,
        max_retries=file.max_retries,
        catalog=draft.catalog.path if draft.catalog else None,
        source=file,
    )


def _safe(name: str, otherwise: str) -> str:
    """A name that may be the name of a folder: the results lie in one that bears it."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._-")[:100] or otherwise


def _own_limits(entry: Entry) -> dict[str, int]:
    """Return the limits of an entry, which may replace the plan's."""
    gpu = None if entry.gpu is None else asked_bytes(entry.gpu)
    return {name: size for name, size in (("peak_bytes", entry.limit_bytes), ("gpu_bytes", gpu)) if size is not None}


def _size_of(raw: Mapping[str, Any], key: str) -> int | None:
    """The size under a key of an object that may be full of mistakes, or None where there is no size."""
    try:
        return checked_size(raw[key])
    except (KeyError, ValueError):
        return None


class _Draft:
    """The groups of a document that may still be full of mistakes.

    Every part is read for itself, so that a mistake in one does not hide those in the others.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        path: Path,
        mistakes: Mistakes,
        catalog: Path | str | Catalog | None,
        epochs: int | None,
    ) -> None:
        self.document = document
        self.path = path
        self.folder = Path(os.path.normpath(Path.cwd() / path.parent))
        self.mistakes = mistakes
        self.epochs = epochs
        self.epochs_replaced = False
        limits = document.get("limits")
        self._raw_limits = limits if isinstance(limits, dict) else {}
        self.limits = validated(Limits, self._raw_limits, (), None)
        self.catalog = catalog if isinstance(catalog, Catalog) else None
        self._given = None if isinstance(catalog, Catalog) else catalog
        self._tried = False
        self.entries: list[Entry] | None = None  # already sound, where the whole document is
        self._known: dict[str, Training] = {}

    def groups(self) -> Iterator[Group]:
        """Every group that is sound; the mistakes of the others are noted."""
        self._check_size({"peak": self._peak_text} | self._raw_limits, "peak", ("limits",), self._gpu_bytes)
        entries = self.document.get("experiments")
        entries = entries if isinstance(entries, list) else []
        ids = self._ids(entries)
        for index, raw in enumerate(entries):
            if isinstance(raw, dict):
                group = self._group(index, raw, ids[index])
                if group is not None:
                    yield group

    @cached_property
    def _gpu_bytes(self) -> int:
        """The GPU that the plan is for."""
        return _size_of(self._raw_limits, "gpu") or Limits().gpu_bytes

    @cached_property
    def _peak_text(self) -> str:
        return size_text(Limits().peak_bytes)

    def _check_size(self, raw: Mapping[str, Any], key: str, place: Place, gpu: int | None) -> None:
        """A size above the GPU's is a mistake; what is no size at all is noted by the types."""
        size = _size_of(raw, key)
        if size is not None and gpu is not None and size > gpu:
            found = f"expected at most the GPU's {size_text(gpu)}, got {size_text(size)!r}"
            self.mistakes.add((*place, key), found)

    def _ids(self, entries: list[Any]) -> list[str]:
        width = max(2, len(str(len(entries))))
        ids = [
            raw["id"] if isinstance(raw, dict) and isinstance(raw.get("id"), str) else f"group{number:0{width}}"
            for number, raw in enumerate(entries, start=1)
        ]
        seen: dict[str, int] = {}
        for index, identifier in enumerate(ids):
            first = seen.setdefault(identifier, index)
            if first != index:
                found = f"{identifier!r} is that of $.experiments[{first}]"
                self.mistakes.add(("experiments", index, "id"), f"expected an id of its own, {found}")
        return ids

    def _group(self, index: int, raw: dict[str, Any], identifier: str) -> Group | None:
        place: Place = ("experiments", index)
        mode = self._mode(raw, place)
        foreground, background = self._members(mode, raw, place) if mode else (None, None)
        self._check_entry(raw, place)
        entry = validated(Entry, raw, place, None) if self.entries is None else self.entries[index]
        if entry is None or foreground is None or self.limits is None:
            return None
        return Group(
            id=identifier,
            number=index + 1,
            foreground=foreground,
            background=background,
            limits=self.limits.model_copy(update=_own_limits(entry)),
            tier=entry.tier,
            expected_bytes=entry.expected_bytes,
            tolerance_bytes=self._tolerance(entry),
            risk=entry.risk,
            note=entry.note or "",
            runs=self._runs(entry),
            expected_minutes=entry.expected_minutes,
            gpu=entry.gpu,
        )

    def _tolerance(self, entry: Entry) -> int | None:
        """The entry's own, else the plan's."""
        return _size_of(self.document, "tolerance") if entry.tolerance_bytes is None else entry.tolerance_bytes

    def _mode(self, raw: dict[str, Any], place: Place) -> str | None:
        """The mode of an entry, or None where it has none that we know; wrong words are noted by the types."""
        mode = raw.get("mode") or self.document.get("mode")
        if mode in MODES:
            return str(mode)
        if mode in (None, "mixed") and "foreground" in raw:
            return "parallel"
        if mode in (None, "mixed"):
            found = "there is none, here or at the top, which the study reads as mutation"
            self.mistakes.add((*place, "mode"), f"{one_of(MODES)}, {found}; {MUTATION}")
        return None

    def _members(self, mode: str, raw: dict[str, Any], place: Place) -> tuple[Training | None, Training | None]:
        if mode == "default":
            self._refuse(raw, ("foreground", "background"), place, "mode 'parallel' only, this entry's is 'default'")
            return self._member(raw, place), None
        misplaced = (*KEYS_OF_COMMANDS, "hyperparameters")
        self._refuse(raw, misplaced, place, "it inside foreground or background, got it beside them")
        self._check_foreground_mode(raw.get("foreground"), (*place, "foreground", "mode"))
        members = [self._required(raw, role, place) for role in ROLES]
        return members[0], members[1]

    def _refuse(self, raw: dict[str, Any], keys: tuple[str, ...], place: Place, reason: str) -> None:
        for key in keys:
            if key in raw:
                self.mistakes.add((*place, key), f"expected {reason}")

    def _required(self, raw: dict[str, Any], role: str, place: Place) -> Training | None:
        member = raw.get(role)
        if member is None:
            self.mistakes.add((*place, role), "expected a training in an entry of mode 'parallel', there is none")
        return self._member(member, (*place, role)) if isinstance(member, dict) else None

    def _check_foreground_mode(self, raw: Any, place: Place) -> None:
        """A foreground without a mode means mutation to the study; hyperparameters or a command leave no doubt."""
        if not isinstance(raw, dict) or raw.get("mode") is not None:
            return
        if raw.get("mutate") or not (raw.get("hyperparameters") or raw.get("command")):
            found = "there is none, which the study reads as mutation"
            self.mistakes.add(place, f"expected 'default', {found}; {MUTATION}")

    def _check_entry(self, raw: dict[str, Any], place: Place) -> None:
        gpu = asked_bytes(raw["gpu"]) if isinstance(raw.get("gpu"), str) else self._gpu_bytes
        for key in ("expected_memory", "limit"):
            self._check_size(raw, key, place, gpu)
        self._check_gpu(raw, place, gpu)
        tier, tiers = raw.get("tier"), self.document.get("tiers", TIERS)
        if isinstance(tier, str) and isinstance(tiers, dict) and tier not in tiers:
            self.mistakes.add((*place, "tier"), unknown(tier, tiers))

    def _check_gpu(self, raw: dict[str, Any], place: Place, gpu: int | None) -> None:
        """The plan's peak is that of its own GPU, and may be more than another has."""
        peak = {"peak": self._peak_text} | self._raw_limits
        size = _size_of(peak, "peak")
        if "gpu" in raw and "limit" not in raw and gpu is not None and size is not None and size > gpu:
            found = f"expected a limit beside a GPU below the plan's peak of {size_text(size)}, there is none"
            self.mistakes.add((*place, "limit"), found)

    def _runs(self, entry: Entry) -> int:
        """The study's order: entry, then foreground, then top level."""
        inner = entry.foreground.runs_per_config if entry.foreground else None
        runs = entry.runs_per_config or inner or self.document.get("runs_per_config", 1)
        return runs if isinstance(runs, int) else 1

    # --- one training

    def _member(self, raw: dict[str, Any], place: Place) -> Training | None:
        if "command" in raw:
            self._refuse(raw, ("repo", "model", "hyperparameters"), place, "either command or repo and model, got both")
            member = validated(
                TrainingSpec,
                {key: raw[key] for key in raw if key in TrainingSpec.model_fields and key != "mode"},
                (),
                None,
            )
            return self._own(member, place) if member is not None and member.command else None
        only = tuple(key for key in KEYS_OF_COMMANDS if key != "env")
        self._refuse(raw, only, place, "this key with command only; for repo and model it stands in the catalog")
        if "repo" not in raw and "model" not in raw:
            self.mistakes.add(place, "expected repo and model, or command, got neither")
            return None
        for key in ("repo", "model"):
            if key not in raw:
                self.mistakes.add((*place, key), "expected this key, it is missing")
        found, added = self._of_catalog(raw, place), raw.get("env")  # one that is no object is noted by the types
        return replace(found, env={**found.env, **added}) if found and isinstance(added, dict) else found

    def _of_catalog(self, raw: dict[str, Any], place: Place) -> Training | None:
        repository, model, given = raw.get("repo"), raw.get("model"), raw.get("hyperparameters", {})
        if not isinstance(repository, str) or not isinstance(model, str) or not isinstance(given, dict):
            return None
        catalog = self._loaded_catalog()
        if catalog is None:
            return None
        if self.epochs is not None and "epochs" in catalog.supported(repository, model):
            given = {**given, "epochs": self.epochs}
            self.epochs_replaced = True
        # A plan of all pairs names each of its trainings a hundred times.
        key = json.dumps([repository, model, given], sort_keys=True)
        if key not in self._known:
            training = catalog.training(repository, model, given, place, self.mistakes)
            if training is None:
                return None
            self._known[key] = training
        return self._known[key]

    def _loaded_catalog(self) -> Catalog | None:
        """The catalog, read when the first entry needs it and once; its mistakes count as the plan's."""
        if self.catalog is None and not self._tried:
            self._tried = True
            named = self.document.get("catalog")
            beside = self.folder / named if isinstance(named, str) else default_catalog(self.path)
            try:
                self.catalog = load_catalog(self._given or beside)
            except PlanError as error:
                self.mistakes.include(error)
        return self.catalog

    def _own(self, member: TrainingSpec, place: Place) -> Training | None:
        """The training of a command that stands in the plan itself; that it cannot be started is a mistake."""
        assert member.command is not None
        cwd = Path(os.path.normpath(self.folder / (member.cwd or ".")))
        argv = [filled(word) for word in member.command]
        if "/" in argv[0]:
            argv[0] = os.path.normpath(cwd / argv[0])
        missing = what_is_missing(argv, cwd, member.env, self.folder)
        if missing is not None:
            self.mistakes.add((*place, "command"), f"expected a command that can be started, {missing}")
            return None
        return Training(
            name=member.name or _safe(script_of(argv), "training"),
            argv=tuple(argv),
            cwd=cwd,
            env=dict(member.env),
            uses_gpu=member.uses_gpu,
            repeat_args=tuple(member.repeat_args),
            dry_run_args=tuple(member.dry_run_args),
            ready_timeout_s=member.ready_timeout_s,
            progress_pattern=member.progress_pattern,
            metric_patterns=dict(member.metric_patterns),
            written={**dict(zip(argv, member.command, strict=True)), str(cwd): member.cwd or "."},
        )


# --- schemas ---------------------------------------------------------------------------------------------------------


def schemas() -> dict[str, str]:
    """The JSON Schemas of the settings files by file name."""
    files: dict[str, type[Settings]] = {"plan.schema.json": PlanFile, "models.schema.json": CatalogFile}
    return {name: json.dumps(model.model_json_schema(), indent=2) + "\n" for name, model in files.items()}


def write_schemas(folder: Path | str) -> None:
    """Write the JSON Schemas that the settings files point their editors to."""
    for name, text in {**schemas(), gpu_models.SCHEMA: gpu_models.schema()}.items():
        Path(folder, name).write_text(text, encoding="utf-8")
