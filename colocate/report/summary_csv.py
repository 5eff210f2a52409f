# SPDX-License-Identifier: Apache-2.0
"""``summary.csv``: one row per group of a run that ended, made of the records; what is unknown stays empty.

A group that was refused, interrupted or lost with its process leaves no verdict on disk: its row is what the journal
tells of it.

While a run goes on it is written anew with each group that ends.
"""

import csv
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from colocate.advice import Stress, read_speedup
from colocate.files import write_text
from colocate.plan import Group
from colocate.results import GroupDirectory, GroupResult, RunDirectory, RunRecord, group_result_of, journal, read_run
from colocate.units import to_mib

COLUMNS = (
    "group",
    "experiment_id",
    "timestamp",
    "repository",
    "model",
    "tier",
    "foreground",
    "background",
    "expected_mib",
    "budget_mib",
    "peak_mib",
    "peak_low_mib",
    "peak_high_mib",
    "worst_case_mib",
    "limit_mib",
    "headroom_mib",
    "memory_class",
    "basis",
    "outcome",
    "codes",
    "reason",
    "overlap",
    "duration_seconds",
    "epoch_cut",
    "gpu_energy_joules",
    "cpu_energy_joules",
    "time_saved_low",
    "time_saved_high",
    "energy_saved_low",
    "energy_saved_high",
    "device_name",
    "device_uuid",
    "device_total_mib",
    "driver_version",
    "directory",
    "attempts",
    "reused",
    "margin_pass_mib",
    "margin_fail_mib",
    "effective_memory_class",
    "host",
)
HEAD = ",".join(COLUMNS) + "\n"


def write_summary(run: RunDirectory) -> Path:
    """Rebuild the file from all records of the run; several processes may do so at once.

    Raises:
        OSError: it cannot be written; the former one, if any, is still there.
    """
    import pandas  # costs half a second, which no worker needs to pay

    with _alone(run.path):  # else one could write what it read before another added a row
        frame = pandas.DataFrame(rows(run), columns=list(COLUMNS), dtype=object)
        write_text(run.summary, frame.to_csv(index=False, lineterminator="\n"))
    return run.summary


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    """Return one row per group that ended, in the plan's order."""
    return [cells for _, cells in _numbered(run)]


def _numbered(run: RunDirectory) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows in the plan's order, each with its group's number."""
    if not run.path.is_dir():
        return
    reused = RunRecord.of(run).latest.reused
    for result in read_run(run.path).results:
        if result.outcome != journal.NOT_RUN:
            yield result.number or 0, row(result, reused=result.group in reused)


class Summary:
    """The file of a run that goes on: of each group that ends only its own record is read."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._lines: dict[str, tuple[int, str]] | None = None
        self._kept: tuple[str, ...] = ()

    def take(self, group: Group, told: GroupResult | None = None) -> None:
        """Add the row of a group that has ended, or put it in the place of its former one.

        ``told`` is what the run told of it, for a group without a verdict on disk. One that was not run has no row,
        also none of an earlier session.

        Raises:
            OSError: it cannot be written.
        """
        is_first = self._lines is None
        if self._lines is None:
            self._lines = {one["group"]: (number, _line(one)) for number, one in _numbered(self._run)}
            self._kept = RunRecord.of(self._run).latest.reused
        known, result = self._lines.pop(group.id, None), self._result_of(group, told)
        line = None if result is None else (group.number, _line(row(result, reused=group.id in self._kept)))
        if line is not None:
            self._lines[group.id] = line
        if is_first or known != line:  # of a group that was kept it stands there already
            with _alone(self._run.path):
                write_text(self._run.summary, HEAD + "".join(text for _, text in sorted(self._lines.values())))

    def _result_of(self, group: Group, told: GroupResult | None) -> GroupResult | None:
        on_disk = group_result_of(self._run, group) if told is None or told.is_judged else None
        if on_disk is not None:
            return replace(on_disk, run=self._run.name)
        return None if told is None or told.outcome == journal.NOT_RUN else told


def _line(cells: dict[str, Any]) -> str:
    """Format one row as pandas writes it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([cells[name] for name in COLUMNS])
    return text.getvalue()


def row(result: GroupResult, *, reused: bool) -> dict[str, Any]:
    """The cells of one group; of one without a verdict what the run told of it."""
    if not result.is_judged:
        result = replace(result, deciding=None, verdict=None, attempts=())
    evidence, attempt, verdict = result.evidence, result.deciding, result.verdict
    settings = None if attempt is None else attempt.experiment.foreground
    directory = None if attempt is None else attempt.directory
    worst_case = None if verdict is None else verdict.worst_case
    reasons = result.reasons if verdict is None else [reason.text for reason in verdict.reasons]
    sizes = ("expected", "budget", "peak", "peak_low", "peak_high", "limit", "headroom")
    alike = ("group", "tier", "foreground", "background", "memory_class", "basis", "outcome")
    return {
        **{name: getattr(result, name) for name in (*alike, "device_name", "device_uuid")},
        **{f"{name}_mib": _mib(getattr(result, f"{name}_bytes")) for name in sizes},
        "experiment_id": None if directory is None else directory.path.name,
        "timestamp": evidence.started_at,
        "repository": None if settings is None else settings.repository,
        "model": None if settings is None else settings.model,
        "worst_case_mib": None if worst_case is None else _mib(worst_case.peak_bytes),
        "epoch_cut": None if verdict is None else verdict.epoch_cut,
        "overlap": _rounded(result.overlap, 4),
        "codes": " ".join(result.codes) or None,
        "reason": "; ".join(reasons) or None,
        "duration_seconds": _rounded(evidence.duration_s, 3),
        "gpu_energy_joules": _rounded(evidence.gpu_energy_j, 3),
        "cpu_energy_joules": _rounded(evidence.cpu_energy_j, 3),
        "device_total_mib": _mib(evidence.device.total_bytes),
        "driver_version": evidence.device.driver_version,
        "directory": None if directory is None else directory.path.name,
        "attempts": len(result.attempts) or None,
        "reused": f"reused from {result.run}" if reused and result.attempts else None,
        "host": evidence.host,
        **_speedup(directory),
        **_breaking_point(directory),
    }


def _speedup(directory: GroupDirectory | None) -> dict[str, float | None]:
    """Return what sharing saved, the least and the most of all runs; empty if it was not measured."""
    found = None if directory is None else read_speedup(directory)
    runs = found.runs if found else ()
    time = [run.time_saved for run in runs]
    energy = [run.energy_saved for run in runs if run.energy_saved is not None]
    return {
        "time_saved_low": _rounded(min(time, default=None), 4),
        "time_saved_high": _rounded(max(time, default=None), 4),
        "energy_saved_low": _rounded(min(energy, default=None), 4),
        "energy_saved_high": _rounded(max(energy, default=None), 4),
    }


def _breaking_point(directory: GroupDirectory | None) -> dict[str, Any]:
    found = None if directory is None else Stress.read(directory)
    return {
        "margin_pass_mib": None if found is None else _mib(found.holds_bytes),
        "margin_fail_mib": None if found is None else _mib(found.breaks_bytes),
        "effective_memory_class": None if found is None else found.memory_class,
    }


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else to_mib(num_bytes)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else rebuilds the same file meanwhile; the kernel lets go of the lock when its holder dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
