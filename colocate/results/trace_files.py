# SPDX-License-Identifier: Apache-2.0
"""The files that a monitor's readings are kept in: ``trace.csv`` and those of the energy folder.

Knows the formats, neither GPUs nor run directories. What is unknown is an empty field, never 0.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from colocate.device import Vitals
from colocate.files import content, finite, write_text
from colocate.verdict import Sample, Trace

VitalsReading = tuple[float, float, Vitals]
"""Seconds since the monitor's start, Unix time, values."""

_MOST_BYTES = 2**63

Field = Callable[[Vitals], float | None]

_VITALS_FILES: dict[str, dict[str, Field]] = {
    "gpu_power.csv": {"power_draw_w": lambda vitals: None if vitals.power_mw is None else vitals.power_mw / 1000},
    "gpu_temperature.csv": {
        "gpu_temp_c": lambda vitals: vitals.temperature_c,
        "memory_temp_c": lambda vitals: vitals.memory_temperature_c,
    },
    "gpu_utilization.csv": {
        "gpu_util_percent": lambda vitals: vitals.utilization_percent,
        "memory_util_percent": lambda vitals: vitals.memory_utilization_percent,
    },
    "gpu_throttling.csv": {"throttle_reasons": lambda vitals: vitals.throttle_reasons},
}

_ENERGY_FILE = "gpu_energy.csv"


class EnergyReading(NamedTuple):
    """The GPU's own counter at one time, and what it drew; None is what it does not tell."""

    elapsed_s: float
    energy_j: float | None
    power_w: float | None


class StoredTrace(NamedTuple):
    """The samples of a trace file, and the line that could not be read at its end (None when there was none)."""

    samples: tuple[Sample, ...]
    torn: str | None


def write_trace(path: Path, trace: Trace) -> None:
    """Writes all samples as ``elapsed_s,used_bytes``, in one step: a reader sees the old file or the whole new one."""
    rows = ((f"{sample.elapsed_s:.6f}", sample.used_bytes) for sample in trace.samples)
    _write(path, ["elapsed_s", "used_bytes"], rows)


def read_trace(path: Path) -> StoredTrace:
    """Reads a file of :func:`write_trace`. A torn last line, left by a crash or a full disk, is dropped and told.

    Raises:
        ValueError: the file is no trace, or a line before its last is damaged. Names the line.
    """
    header, *lines = content(path).decode("utf-8", errors="replace").split("\n")
    if header.strip() != "elapsed_s,used_bytes":
        raise ValueError(f"{path}: expected the columns elapsed_s,used_bytes, got {header!r}")
    # A whole file ends with a line end, so its last piece is empty; a last line without one may lack digits.
    *whole, rest = lines or [""]
    return StoredTrace(_samples(path, whole), rest or None)


def _samples(path: Path, lines: list[str]) -> tuple[Sample, ...]:
    """The samples of whole lines: all at once, which is three times as fast, or one by one to name the damaged line."""
    if all(line.count(",") == 1 for line in lines):
        cells = ",".join(lines).split(",") if lines else []
        try:
            samples = tuple(map(Sample, map(float, cells[::2]), map(int, cells[1::2])))
        except ValueError:
            samples = ()
        if samples and all(map(_is_plausible, samples)):
            return samples
    return tuple(_sample(path, number, line) for number, line in enumerate(lines, start=2))


def write_vitals(folder: Path, vitals: Sequence[VitalsReading]) -> None:
    """Writes a file for each of power, temperature, utilisation and throttling; ``timestamp`` is Unix seconds.

    The reasons for throttling are the bits of NVML's ``nvmlClocksEventReason``. ``gpu_energy.csv`` has the
    GPU's counter beside the seconds since the monitor's start.
    """
    for name, fields in _VITALS_FILES.items():
        rows = ([f"{unix:.3f}", *(_text(field(values)) for field in fields.values())] for _, unix, values in vitals)
        _write(folder / name, ["timestamp", *fields], rows)
    readings = (
        [f"{elapsed_s:.6f}", f"{unix:.3f}", _text(_thousandth(values.energy_mj)), _text(_thousandth(values.power_mw))]
        for elapsed_s, unix, values in vitals
    )
    _write(folder / _ENERGY_FILE, ["elapsed_s", "timestamp", "energy_j", "power_draw_w"], readings)


def read_energy(folder: Path) -> tuple[EnergyReading, ...]:
    """Reads ``gpu_energy.csv``; empty where there is none, as in older records, or it is damaged."""
    try:
        with io.StringIO(content(folder / _ENERGY_FILE).decode("utf-8"), newline="") as file:
            return tuple(
                EnergyReading(finite(row["elapsed_s"]), _number(row["energy_j"]), _number(row["power_draw_w"]))
                for row in csv.DictReader(file)
            )
    except (OSError, KeyError, TypeError, ValueError):
        return ()


def _thousandth(value: int | None) -> float | None:
    return None if value is None else value / 1000


def _number(text: str) -> float | None:
    return finite(text) if text else None


def _is_plausible(sample: Sample) -> bool:
    return math.isfinite(sample.elapsed_s) and 0 <= sample.used_bytes < _MOST_BYTES


def _sample(path: Path, number: int, line: str) -> Sample:
    elapsed_s, _, used_bytes = line.partition(",")
    try:
        sample = Sample(float(elapsed_s), int(used_bytes))
        if not _is_plausible(sample):
            raise ValueError("no reading of a GPU")
        return sample
    except ValueError as error:
        raise ValueError(f"{path}: line {number}: expected elapsed_s,used_bytes, got {line!r}") from error


def _text(value: float | None) -> str:
    return "" if value is None else str(value)


def _write(path: Path, header: list[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
