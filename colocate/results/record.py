# SPDX-License-Identifier: Apache-2.0
"""``experiment.json`` and ``verdict.json``: what is kept of a group, and reading it back to judge again.

The keys of the study's records stand at the top, so that its tools still read the file; everything that a verdict
needs stands below ``evidence``. ``experiment.json`` is written when all evidence is in, ``verdict.json`` last.
"""

import errno
import statistics
from dataclasses import asdict, dataclass, replace
from typing import Any

from colocate.device import Vitals
from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.plan import Group, Training
from colocate.results.layout import GroupDirectory
from colocate.results.trace_files import VitalsReading, read_trace, write_trace, write_vitals
from colocate.verdict import Evidence, Member, Verdict, judge


@dataclass(frozen=True)
class StoredRecord:
    """A record read back: what was seen, and the verdict given then (None when the run ended before it)."""

    evidence: Evidence
    verdict: Verdict | None
    document: dict[str, Any]


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


def read_record(directory: GroupDirectory) -> StoredRecord:
    """Read a record back. Missing samples become a fault: a short trace would look like a low peak.

    Raises:
        ColocateError: ``experiment.json`` or ``trace.csv`` is missing, cut short or of another schema.
    """
    document = read_json(directory.experiment)
    verdict = read_json(directory.verdict) if directory.verdict.exists() else None
    try:
        trace = read_trace(directory.trace)
        evidence = Evidence.from_json(document["evidence"], trace.samples)
        missing = int(document["samples"]) - len(trace.samples)
        if missing or trace.torn is not None:
            fault = ("record_damaged", f"{directory.trace.name}: {missing} of its samples are missing")
            evidence = replace(evidence, faults=(*evidence.faults, fault))
        return StoredRecord(evidence, None if verdict is None else Verdict.from_json(verdict), document)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ColocateError(f"{directory.path}: expected a record of this version, got {error}") from error


def read_bare_evidence(directory: GroupDirectory) -> Evidence | None:
    """Read the evidence without the samples (so it cannot be judged), or None if it cannot be read."""
    try:
        return Evidence.from_json(read_json(directory.experiment)["evidence"], ())
    except (ColocateError, KeyError, TypeError, ValueError):
        return None


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
