# SPDX-License-Identifier: Apache-2.0
"""The documents of a run as a report expects them: what does not fit is left out, see `colocate.results.lenient`."""

from collections.abc import Mapping
from typing import Any, TypedDict

from colocate.results.lenient import read_leniently
from colocate.verdict import Evidence, PeakReading


class Settings(TypedDict):
    """One training in the format of the study's records."""

    repository: str | None
    model: str | None
    hyperparameters: dict[str, int | float | str]


class Asked(TypedDict):
    """A group's settings."""

    id: str
    number: int
    tier: str | None
    expected_bytes: int | None
    budget_bytes: int | None
    risk: str | None
    note: str | None
    content_hash: str
    runs: int


class Experiment(TypedDict):
    """``experiment.json``."""

    experiment_id: str
    timestamp: str | None
    foreground: Settings
    background: Settings
    group: Asked
    samples: int
    peaks: tuple[PeakReading, ...]
    evidence: Evidence


class GroupRecord(TypedDict):
    """The outcome of a group in builtin types, as a case gives it to pytest and as the journal stores it.

    What is not known is None.
    """

    group: str
    reused: str | None
    margin_pass_bytes: int | None
    speedup: str | None
    number: int | None
    tier: str | None
    foreground: str | None
    background: str | None
    expected_bytes: int | None
    budget_bytes: int | None
    peak_bytes: int | None
    peak_low_bytes: int | None
    peak_high_bytes: int | None
    limit_bytes: int | None
    headroom_bytes: int | None
    basis: str | None
    outcome: str | None
    memory_class: str | None
    overlap: float | None
    codes: tuple[str, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    directory: str | None
    duration_s: float | None
    device_name: str | None
    device_uuid: str | None


RECORD_FIELDS = tuple(GroupRecord.__annotations__)


class _Limits(TypedDict):
    peak_bytes: int
    gpu_bytes: int


class _Plan(TypedDict):
    name: str | None
    path: str | None
    content_hash: str | None
    groups: tuple[str, ...]
    needed: int | None
    success_rate: float | None
    limits: _Limits
    tiers: dict[str, float]
    expected_minutes: dict[str, float | None]
    catalog: str | None
    document: Any


class _Gpu(TypedDict):
    choice: Any
    gpus: tuple[dict[str, Any], ...]


class Run(TypedDict):
    """``run.json``."""

    boot_id: str | None
    started_at: str | None
    plan: _Plan
    gpu: _Gpu
    arguments: tuple[str, ...]
    versions: dict[str, str]
    sessions: tuple[dict[str, Any], ...]


def fitted(experiment: Any) -> dict[str, Any]:
    """Read whatever of ``experiment.json`` fits."""
    return read_leniently(experiment, Experiment)


Record = Mapping[str, Any]
