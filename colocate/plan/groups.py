# SPDX-License-Identifier: Apache-2.0
"""A plan as the rest of colocate works with it: groups of trainings, and what is demanded of them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
from pathlib import Path
from typing import Any

from colocate.plan.catalog import Catalog, Training, load_catalog
from colocate.plan.roles import ROLES, Role
from colocate.plan.schema import Limits, PlanFile


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
