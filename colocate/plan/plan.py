# SPDX-License-Identifier: Apache-2.0
"""Settings become a `Plan` of `Group`s of `Training`s, or are refused with every mistake and its place.

What a file may contain stands in `colocate.plan.schema`. Starts nothing and knows no GPU.
``python -m colocate.plan`` writes the JSON Schemas of the settings files.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from colocate.errors import PlanError
from colocate.plan import gpu_models
from colocate.plan.catalog import Catalog, Training, default_catalog, load_catalog
from colocate.plan.catalog_schema import CatalogFile
from colocate.plan.executables import filled, script_of, what_is_missing
from colocate.plan.gpu_models import asked_bytes
from colocate.plan.groups import Group, Plan, needed
from colocate.plan.reading import display_name, read_json
from colocate.plan.roles import ROLES
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
    one_of,
    size_text,
    unknown,
    validated,
)

__all__ = ["Group", "Limits", "Plan", "Training", "load_plan", "needed", "write_schemas"]


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
