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
from colocate.results import GroupResult, RunDirectory, RunRecord, group_result_of, journal, read_run
from colocate.units import to_mib


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
    if run.path.is_dir():
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
    csv.writer(text, lineterminator="\n").writerow(cells.values())
    return text.getvalue()


def row(result: GroupResult, *, reused: bool) -> dict[str, Any]:
    """The cells of one group by column, in their order; of a group without a verdict what the run told of it."""
    if not result.is_judged:
        result = replace(result, deciding=None, verdict=None, attempts=())
    evidence, attempt, verdict = result.evidence, result.deciding, result.verdict
    settings = None if attempt is None else attempt.experiment.foreground
    directory = None if attempt is None else attempt.directory
    name = None if directory is None else directory.path.name
    worst_case = None if verdict is None else verdict.worst_case
    reasons = result.reasons if verdict is None else [reason.text for reason in verdict.reasons]
    speedup = None if directory is None else read_speedup(directory)
    time_saved = [run.time_saved for run in (speedup.runs if speedup else ())]
    energy_saved = [run.energy_saved for run in (speedup.runs if speedup else ()) if run.energy_saved is not None]
    stress = None if directory is None else Stress.read(directory)
    return {
        "group": result.group,
        "experiment_id": name,
        "timestamp": evidence.started_at,
        "repository": None if settings is None else settings.repository,
        "model": None if settings is None else settings.model,
        "tier": result.tier,
        "foreground": result.foreground,
        "background": result.background,
        "expected_mib": _mib(result.expected_bytes),
        "budget_mib": _mib(result.budget_bytes),
        "peak_mib": _mib(result.peak_bytes),
        "peak_low_mib": _mib(result.peak_low_bytes),
        "peak_high_mib": _mib(result.peak_high_bytes),
        "worst_case_mib": None if worst_case is None else _mib(worst_case.peak_bytes),
        "limit_mib": _mib(result.limit_bytes),
        "headroom_mib": _mib(result.headroom_bytes),
        "memory_class": result.memory_class,
        "basis": result.basis,
        "outcome": result.outcome,
        "codes": " ".join(result.codes) or None,
        "reason": "; ".join(reasons) or None,
        "overlap": _rounded(result.overlap, 4),
        "duration_seconds": _rounded(evidence.duration_s, 3),
        "epoch_cut": None if verdict is None else verdict.epoch_cut,
        "gpu_energy_joules": _rounded(evidence.gpu_energy_j, 3),
        "cpu_energy_joules": _rounded(evidence.cpu_energy_j, 3),
        "time_saved_low": _rounded(min(time_saved, default=None), 4),
        "time_saved_high": _rounded(max(time_saved, default=None), 4),
        "energy_saved_low": _rounded(min(energy_saved, default=None), 4),
        "energy_saved_high": _rounded(max(energy_saved, default=None), 4),
        "device_name": result.device_name,
        "device_uuid": result.device_uuid,
        "device_total_mib": _mib(evidence.device.total_bytes),
        "driver_version": evidence.device.driver_version,
        "directory": name,
        "attempts": len(result.attempts) or None,
        "reused": f"reused from {result.run}" if reused and result.attempts else None,
        "margin_pass_mib": None if stress is None else _mib(stress.holds_bytes),
        "margin_fail_mib": None if stress is None else _mib(stress.breaks_bytes),
        "effective_memory_class": None if stress is None else stress.memory_class,
        "host": evidence.host,
    }


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else to_mib(num_bytes)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


COLUMNS = tuple(row(GroupResult("", ""), reused=False))
HEAD = ",".join(COLUMNS) + "\n"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else rebuilds the same file meanwhile; the kernel lets go of the lock when its holder dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
