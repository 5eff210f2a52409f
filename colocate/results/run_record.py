# SPDX-License-Identifier: Apache-2.0
"""``run.json``: what was asked for. What of it is damaged or missing when it is read back is empty or None."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from colocate.errors import ColocateError
from colocate.files import read_json
from colocate.plan import Plan
from colocate.results.layout import RunDirectory
from colocate.results.lenient import read_leniently


@dataclass(frozen=True, slots=True)
class AskedGroup:
    """The hash of a group's settings, and how often it is to be run."""

    content_hash: str
    runs: int


@dataclass(frozen=True, slots=True)
class PlannedLimits:
    """The limit of the peak, and the size of the GPU that the plan is made for."""

    peak_bytes: int | None = None
    gpu_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """The plan of the latest session. ``asked`` has its groups by id, ``document`` is its settings file."""

    name: str | None = None
    path: str | None = None
    content_hash: str | None = None
    groups: tuple[str, ...] = ()
    asked: Mapping[str, AskedGroup] = field(default_factory=dict)
    needed: int | None = None
    success_rate: float | None = None
    limits: PlannedLimits = PlannedLimits()
    tiers: Mapping[str, float] = field(default_factory=dict)
    catalog: str | None = None
    document: Any = None

    @classmethod
    def of(cls, plan: Plan) -> "PlanRecord":
        """What is stored of a plan, with its values of ``env`` left out."""
        return cls(
            name=plan.name,
            path=os.path.abspath(plan.path),  # noqa: PTH100 - keeps links
            content_hash=plan.content_hash,
            groups=plan.ids,
            asked={group.id: AskedGroup(group.content_hash, group.runs) for group in plan.groups},
            needed=plan.needed(len(plan.groups)),
            success_rate=plan.limits.success_rate,
            limits=PlannedLimits(plan.limits.peak_bytes, plan.limits.gpu_bytes),
            tiers=dict(plan.tiers),
            catalog=None if plan.catalog is None else os.path.abspath(plan.catalog),  # noqa: PTH100 - keeps links
            document=plan.published(),
        )

    def has_outdated(self, group: str, content_hash: str | None) -> bool:
        """Return whether a group was run with other settings than the plan has now."""
        return content_hash is not None and group in self.asked and content_hash != self.asked[group].content_hash


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that resumed the run: the groups that it took over, and those that it was to run again, with why."""

    boot_id: str | None = None
    reused: tuple[str, ...] = ()
    again: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What was asked for, and with what the run was made."""

    boot_id: str | None = None
    started_at: str | None = None
    plan: PlanRecord = PlanRecord()
    arguments: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    sessions: tuple[SessionRecord, ...] = ()

    @classmethod
    def of(cls, run: RunDirectory) -> "RunRecord":
        """Read the record of a run; an empty one where there is none."""
        try:
            return read_leniently(read_json(run.record), cls)
        except ColocateError:
            return cls()

    @property
    def latest(self) -> SessionRecord:
        """The latest session."""
        return self.sessions[-1] if self.sessions else SessionRecord(self.boot_id)
