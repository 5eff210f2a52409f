"""``summary.csv``: one row per finished group of a run, rebuilt from the records; what is unknown stays empty."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colocate.run_directory import GroupDirectory, RunDirectory, write_text
from colocate.series import kept_groups, settled_groups
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
    "peak_mib",
    "peak_low_mib",
    "peak_high_mib",
    "limit_mib",
    "headroom_mib",
    "stability",
    "basis",
    "outcome",
    "codes",
    "reason",
    "overlap",
    "duration_seconds",
    "epoch_cut",
    "gpu_energy_joules",
    "cpu_energy_joules",
    "device_name",
    "device_uuid",
    "device_total_mib",
    "driver_version",
    "directory",
    "attempts",
    "kept",
)


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
    """One row per group that has a verdict, in the plan's order; a damaged record is left out."""
    groups, kept = settled_groups(run), kept_groups(run)
    found = sorted(groups.items(), key=lambda group: (group[1].deciding.group["number"], group[0]))
    return [
        {
            **row(settled.deciding.directory, settled.deciding.experiment, settled.verdict.to_json()),
            "attempts": len(settled.attempts),
            "kept": f"kept from {run.name}" if name in kept else None,
        }
        for name, settled in found
    ]


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
        **{f"{name}_mib": _mib(verdict[f"{name}_bytes"]) for name in ("peak", "peak_low", "peak_high", "limit")},
        "headroom_mib": _mib(verdict["headroom_bytes"]),
        **{name: verdict[name] for name in ("stability", "basis", "outcome", "epoch_cut")},
        "overlap": _rounded(verdict["overlap"], 4),
        "codes": " ".join(reason["code"] for reason in verdict["reasons"]) or None,
        "reason": "; ".join(reason["text"] for reason in verdict["reasons"]) or None,
        "duration_seconds": _rounded(evidence["duration_s"], 3),
        "gpu_energy_joules": _rounded(evidence["gpu_energy_j"], 3),
        "cpu_energy_joules": _rounded(evidence["cpu_energy_j"], 3),
        "device_name": device["name"],
        "device_uuid": device["uuid"],
        "device_total_mib": _mib(device["total_bytes"]),
        "driver_version": device["driver_version"],
        "directory": directory.path.name,
    }


def _mib(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else round(to_mib(num_bytes), 1)


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
