# SPDX-License-Identifier: Apache-2.0
"""``experiment.json`` and ``verdict.json``: what is kept of an attempt at a group, and reading it back.

The keys of the study's records stand at the top, so that its tools still read the file; everything that a verdict
needs stands below ``evidence``. ``experiment.json`` is written when all evidence is in, ``verdict.json`` last.
"""

import errno
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from colocate.device import Vitals
from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.plan import Group, Training
from colocate.results.layout import GroupDirectory
from colocate.results.lenient import read_leniently
from colocate.results.trace_files import VitalsReading, read_trace, write_trace, write_vitals
from colocate.verdict import SCHEMA, Evidence, Member, Verdict, judge


@dataclass(frozen=True, slots=True)
class Settings:
    """Repository and model of one training."""

    repository: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A group as the plan had it."""

    id: str
    number: int
    tier: str | None = None
    expected_bytes: int | None = None
    budget_bytes: int | None = None
    content_hash: str | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is read back of ``experiment.json``. The evidence has no samples; ``samples`` says how many there were."""

    group: Asked
    evidence: Evidence
    samples: int
    foreground: Settings = Settings()
    background: Settings | None = None


@dataclass(frozen=True)
class Attempt:
    """One finished attempt at a group, as it is on disk.

    A run is what the plan asks for, one or several. An attempt is a run that was begun: when a foreign process, a blind
    sensor or an interruption spoiled it, the next attempt stands beside it, and the last one counts.
    """

    directory: GroupDirectory
    experiment: Experiment
    verdict: Verdict
    is_light: bool = False
    """Progress events and copied lines of logs were left out."""

    @property
    def group(self) -> Asked:
        """Return the group's settings at that time."""
        return self.experiment.group

    @property
    def evidence(self) -> Evidence:
        """Return the evidence without the samples."""
        return self.experiment.evidence

    @property
    def place(self) -> tuple[int, int]:
        """The number of the run and of the attempt at it, both from 1."""
        return (self.evidence.run or 1, self.evidence.attempt or 1)


def write_record(
    directory: GroupDirectory, group: Group, evidence: Evidence, vitals: list[VitalsReading], run: str
) -> Verdict:
    """Write everything that was seen, then the verdict that follows from it.

    On a full disk the room that the run has kept for this is used.

    Raises:
        OSError: the disk is full or gone; no half-written file is left.
    """
    try:
        return _write(directory, group, evidence, vitals, run)
    except OSError as error:
        if error.errno != errno.ENOSPC or not directory.run.release():
            raise
        return _write(directory, group, evidence, vitals, run)


def _write(
    directory: GroupDirectory, group: Group, evidence: Evidence, vitals: list[VitalsReading], run: str
) -> Verdict:
    write_trace(directory.trace, evidence.trace)
    write_vitals(directory.energy, vitals)
    verdict = judge(evidence)
    write_json(directory.experiment, _document(directory, group, evidence, verdict, vitals, run))
    write_json(directory.verdict, verdict.to_json())
    return verdict


def read_attempt(directory: GroupDirectory) -> Attempt:
    """Read an attempt back, without its samples.

    Raises:
        ColocateError: its record is missing, cut short or of another schema.
    """
    experiment, verdict = _experiment(directory), read_json(directory.verdict)
    try:
        return Attempt(directory, experiment, Verdict.from_json(verdict))
    except ValueError as error:
        raise ColocateError(f"{directory.path}: expected a verdict of this version, got {error}") from error


def read_evidence(directory: GroupDirectory) -> Evidence:
    """Read the evidence with its samples. Missing ones become a fault: a short trace would look like a low peak.

    Raises:
        ColocateError: ``experiment.json`` or ``trace.csv`` is missing, cut short or of another schema.
    """
    experiment = _experiment(directory)
    try:
        trace = read_trace(directory.trace)
    except (OSError, ValueError) as error:
        raise ColocateError(f"{directory.path}: expected a record of this version, got {error}") from error
    evidence = experiment.evidence
    evidence = replace(evidence, trace=replace(evidence.trace, samples=trace.samples))
    missing = experiment.samples - len(trace.samples)
    if missing or trace.torn is not None:
        fault = ("record_damaged", f"{directory.trace.name}: {missing} of its samples are missing")
        evidence = replace(evidence, faults=(*evidence.faults, fault))
    return evidence


def _experiment(directory: GroupDirectory) -> Experiment:
    document = read_json(directory.experiment)
    try:
        found = _ADAPTER.validate_python(document)
        if found.evidence.schema != SCHEMA or not found.group.id:
            raise ValueError(f"schema {found.evidence.schema!r} of {found.group.id!r}")
    except ValueError as error:
        raise ColocateError(f"{directory.path}: expected a record of this version, got {error}") from error
    return found


def glance(directory: GroupDirectory) -> Attempt:
    """Whatever of a record can be read, for a view; see `colocate.results.lenient` for what the rest becomes."""
    try:
        return read_attempt(directory)
    except ColocateError:
        documents: list[Any] = []
    for path in (directory.experiment, directory.verdict):
        try:
            documents.append(read_json(path))
        except ColocateError:
            documents.append(None)
    return Attempt(directory, read_leniently(documents[0], Experiment), read_leniently(documents[1], Verdict))


def without_bulk(attempt: Attempt) -> Attempt:
    """The same without progress events and copied lines of logs, so that ten thousand fill no memory; see `whole`."""
    evidence = attempt.evidence
    light = replace(
        evidence,
        foreground=_light(evidence.foreground),
        background=None if evidence.background is None else _light(evidence.background),
    )
    return replace(attempt, experiment=replace(attempt.experiment, evidence=light), is_light=True)


def whole(attempt: Attempt) -> Attempt:
    """The same with what was left out, read again."""
    return glance(attempt.directory) if attempt.is_light else attempt


def _light(member: Member) -> Member:
    runs = tuple(replace(run, last_lines=()) for run in member.process_runs)
    return replace(member, progress_events=(), process_runs=runs)


def _document(
    directory: GroupDirectory,
    group: Group,
    evidence: Evidence,
    verdict: Verdict,
    vitals: list[VitalsReading],
    run: str,
) -> dict[str, Any]:
    background = group.background
    return {
        "experiment_id": directory.path.name,
        "timestamp": evidence.started_at,
        "mode": "default" if background is None else "parallel",
        "foreground": _foreground(group.foreground, evidence, verdict, vitals),
        "background": None if background is None else _background(background, group.note),
        "run": run,
        "group": {
            "id": group.id,
            "number": group.number,
            "tier": group.tier,
            "expected_bytes": group.expected_bytes,
            "budget_bytes": group.budget_bytes,
            "risk": group.risk,
            "note": group.note,
            "content_hash": group.content_hash,
            "runs": group.runs,
            "gpu": group.gpu,
        },
        "samples": len(evidence.trace.samples),
        "peaks": [asdict(reading) for reading in verdict.peaks],
        "evidence": evidence.to_json(),
    }


def _foreground(
    training: Training, evidence: Evidence, verdict: Verdict, vitals: list[VitalsReading]
) -> dict[str, Any]:
    member = evidence.foreground
    return {
        **_names(training),
        "duration_seconds": _duration_s(member),
        "energy_metrics": _energy([reading[2] for reading in vitals], evidence),
        "performance_metrics": member.epochs[-1].metrics if member.epochs else member.metrics,
        "training_success": verdict.feasible,
        "retries": evidence.attempt - 1,
        "error_message": "; ".join(map(str, verdict.reasons)),
    }


def _background(training: Training, note: str) -> dict[str, Any]:
    return {**_names(training), "log_directory": "background_logs", "note": note}


def _names(training: Training) -> dict[str, Any]:
    return {
        "repository": training.repository,
        "model": training.model or training.name,
        "hyperparameters": dict(training.hyperparameters),
    }


def _duration_s(member: Member) -> float | None:
    end = member.last_exit
    return None if end is None else end.ended_s - member.process_runs[-1].started_s


def _energy(vitals: list[Vitals], evidence: Evidence) -> dict[str, float | None]:
    """The study's eleven figures; the three of the processors are the whole machine's, not the training's alone."""
    watts = [one.power_mw / 1000 for one in vitals if one.power_mw is not None]
    celsius = [one.temperature_c for one in vitals if one.temperature_c is not None]
    percent = [one.utilization_percent for one in vitals if one.utilization_percent is not None]
    return {
        "cpu_energy_pkg_joules": evidence.cpu_energy_j,
        "cpu_energy_ram_joules": None,
        "cpu_energy_total_joules": evidence.cpu_energy_j,
        "gpu_power_avg_watts": _mean(watts),
        "gpu_power_max_watts": max(watts, default=None),
        "gpu_power_min_watts": min(watts, default=None),
        "gpu_energy_total_joules": evidence.gpu_energy_j,
        "gpu_temp_avg_celsius": _mean(celsius),
        "gpu_temp_max_celsius": max(celsius, default=None),
        "gpu_util_avg_percent": _mean(percent),
        "gpu_util_max_percent": max(percent, default=None),
    }


def _mean(values: list[Any]) -> float | None:
    return statistics.fmean(values) if values else None


_ADAPTER = TypeAdapter(Experiment)
