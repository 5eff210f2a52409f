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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colocate.advice import Stress, read_speedup
from colocate.files import write_text
from colocate.plan import Group
from colocate.results import (
    GroupDirectory,
    GroupResult,
    RunDirectory,
    asked_of,
    fitted,
    group_result_of,
    group_results,
    is_outdated,
    journal,
    reused_groups,
)
from colocate.units import to_mib
from colocate.verdict import Outcome

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
    """Return one row per ended group in the plan's order; a damaged record that no journal knows is left out."""
    return [cells for _, cells in sorted(_numbered(run), key=lambda row: (row[0], row[1]["group"]))]


def _numbered(run: RunDirectory) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows in no order, each with its group's number. What the latest session told outweighs an older record."""
    groups, reused, asked = group_results(run), reused_groups(run), asked_of(run)
    for name, record in journal.read(run.path).records.items():
        if is_outdated(name, record, asked):
            continue
        if not _is_judged(record):
            groups.pop(name, None)
        if name not in groups and record["outcome"] != journal.NOT_RUN:
            yield record["number"] or 0, _row_reported(record)
    for name, group_result in groups.items():
        yield group_result.deciding.group["number"], _row_of(group_result, run, reused=name in reused)


def _is_judged(record: Mapping[str, Any]) -> bool:
    return record["outcome"] in set(Outcome)


def _row_reported(record: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a group that left no verdict on disk, from the record that the run told."""
    sizes = ("expected", "limit")
    names = ("group", "tier", "foreground", "background", "outcome", "device_name", "device_uuid")
    return {
        **dict.fromkeys(COLUMNS),
        **{name: record[name] for name in names},
        **{f"{name}_mib": _mib(record[f"{name}_bytes"]) for name in sizes},
        "codes": " ".join(record["codes"]) or None,
        "reason": "; ".join(record["reasons"]) or None,
    }


def _row_of(group_result: GroupResult, run: RunDirectory, *, reused: bool) -> dict[str, Any]:
    return {
        **row(
            group_result.deciding.directory, fitted(group_result.deciding.experiment), group_result.verdict.to_json()
        ),
        "attempts": len(group_result.attempts),
        "reused": f"reused from {run.name}" if reused else None,
        **_breaking_point(group_result.deciding.directory),
    }


def _breaking_point(directory: GroupDirectory) -> dict[str, Any]:
    found = Stress.read(directory)
    if found is None:
        return dict.fromkeys(("margin_pass_mib", "margin_fail_mib", "effective_memory_class"))
    return {
        "margin_pass_mib": _mib(found.holds_bytes),
        "margin_fail_mib": _mib(found.breaks_bytes),
        "effective_memory_class": found.memory_class,
    }


class Summary:
    """The file of a run that goes on: of each group that ends only its own record is read."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._lines: dict[str, tuple[int, str]] | None = None
        self._kept: frozenset[str] = frozenset()

    def take(self, group: Group, reported: Mapping[str, Any] | None = None) -> None:
        """Add the row of a group that has ended, or put it in the place of its former one.

        ``reported`` is the record that the run told of it, for a group without a verdict on disk. One that was not run
        has no row, also none of an earlier session.

        Raises:
            OSError: it cannot be written.
        """
        is_first = self._lines is None
        if self._lines is None:
            self._lines = {one["group"]: (number, _line(one)) for number, one in _numbered(self._run)}
            self._kept = reused_groups(self._run)
        known, line = self._lines.pop(group.id, None), self._line_of(group, reported)
        if line is not None:
            self._lines[group.id] = line
        if is_first or known != line:  # of a group that was kept it stands there already
            with _alone(self._run.path):
                write_text(self._run.summary, HEAD + "".join(text for _, text in sorted(self._lines.values())))

    def _line_of(self, group: Group, reported: Mapping[str, Any] | None) -> tuple[int, str] | None:
        group_result = group_result_of(self._run, group) if reported is None or _is_judged(reported) else None
        if group_result is not None:
            return group.number, _line(_row_of(group_result, self._run, reused=group.id in self._kept))
        if reported is None or reported["outcome"] == journal.NOT_RUN:
            return None
        return group.number, _line(_row_reported(reported))


def _line(cells: Mapping[str, Any]) -> str:
    """Format one row as pandas writes it."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([cells[name] for name in COLUMNS])
    return text.getvalue()


def row(directory: GroupDirectory, experiment: dict[str, Any], verdict: dict[str, Any]) -> dict[str, Any]:
    """The cells of one group."""
    group, evidence = experiment["group"], experiment["evidence"]
    foreground, device = experiment["foreground"], evidence["device"]
    return {
        "group": group["id"],
        "experiment_id": experiment["experiment_id"],
        "timestamp": experiment["timestamp"],
        "repository": foreground["repository"],
        "model": foreground["model"],
        "tier": group["tier"],
        "foreground": evidence["foreground"]["name"],
        "background": (evidence["background"] or {}).get("name"),
        "expected_mib": _mib(group["expected_bytes"]),
        "budget_mib": _mib(group.get("budget_bytes")),
        **{f"{name}_mib": _mib(verdict[f"{name}_bytes"]) for name in ("peak", "peak_low", "peak_high", "limit")},
        "worst_case_mib": _mib((verdict.get("worst_case") or {}).get("peak_bytes")),
        "headroom_mib": _mib(verdict["headroom_bytes"]),
        **{name: verdict[name] for name in ("memory_class", "basis", "outcome", "epoch_cut")},
        "overlap": _rounded(verdict["overlap"], 4),
        "codes": " ".join(reason["code"] for reason in verdict["reasons"]) or None,
        "reason": "; ".join(reason["text"] for reason in verdict["reasons"]) or None,
        "duration_seconds": _rounded(evidence["duration_s"], 3),
        "gpu_energy_joules": _rounded(evidence["gpu_energy_j"], 3),
        "cpu_energy_joules": _rounded(evidence["cpu_energy_j"], 3),
        **_speedup(directory),
        "device_name": device["name"],
        "device_uuid": device["uuid"],
        "device_total_mib": _mib(device["total_bytes"]),
        "driver_version": device["driver_version"],
        "directory": directory.path.name,
        "host": evidence.get("host"),
    }


def _speedup(directory: GroupDirectory) -> dict[str, float | None]:
    """Return what sharing saved, the least and the most of all runs; empty if it was not measured."""
    found = read_speedup(directory)
    runs = found.runs if found else ()
    time = [run.time_saved for run in runs]
    energy = [run.energy_saved for run in runs if run.energy_saved is not None]
    return {
        "time_saved_low": _rounded(min(time, default=None), 4),
        "time_saved_high": _rounded(max(time, default=None), 4),
        "energy_saved_low": _rounded(min(energy, default=None), 4),
        "energy_saved_high": _rounded(max(energy, default=None), 4),
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
