# SPDX-License-Identifier: Apache-2.0
"""Derive a GPU's figures from evidence: its context, its baseline, and how far predictions were from measurements.

`scripts/gpu-evidence calibrate FOLDER...` reads the documents that this package writes. It proposes rows of
`settings/gpu_models.json` and error bars, each with its source.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from colocate.errors import ColocateError
from colocate.files import read_json, write_text
from colocate.plan import TABLE, GpuModelsFile
from colocate.units import MIB, format_mib
from colocate.verdict import LESS, MORE

# With fewer programs the smallest and the largest say nothing about the next one.
LEAST_PROGRAMS = 3

# Somebody else's memory in the reading, or a GPU that was not read: no figure of this GPU.
DISTURBED = frozenset(
    {
        *("foreign_process", "record_damaged", "interrupted"),
        *("sensor_lost", "sensor_gap", "sensor_contradicted", "probe_lost", "no_samples"),
    }
)

# What a run may be called and its peak is still that of the whole programs.
WHOLE = frozenset({"peak_over_limit", "peak_between_samples", "epoch_cut"})

# PyTorch, CublasHandlePool.cpp: 32 MiB on compute capability 9, 10 and 12, else :4096:2:16:8.
LARGE_WORKSPACE = (9, 10, 12)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A prediction beside its measurement, both beyond the GPU's baseline; sizes in bytes."""

    kind: str
    name: str
    low_bytes: int
    expected_bytes: int
    high_bytes: int
    measured_bytes: int

    @property
    def held(self) -> str:
        """Say whether the measurement lies in the range, ``above`` or ``below`` it."""
        if self.measured_bytes > self.high_bytes:
            return "above"
        return "below" if self.measured_bytes < self.low_bytes else "yes"

    @property
    def error(self) -> float:
        """Return the error of the expected value relative to the measured one."""
        return self.expected_bytes / self.measured_bytes - 1


@dataclass(frozen=True)
class Calibration:
    """The figures that the evidence of one GPU gives, in bytes.

    ``rests`` are what each program held beside PyTorch's allocator: its context, and what libraries take by
    themselves. ``less`` and ``more`` are the shares of the reserved memory that would have held for every program;
    None without predictions beside the measurements.
    """

    gpu: str
    total_bytes: int
    source: str
    rests: Mapping[str, int]
    baseline_bytes: int
    capability: str | None
    less: float | None
    more: float | None
    comparisons: tuple[Comparison, ...]

    @property
    def context_bytes(self) -> tuple[int, int, int]:
        """Least, middle and most of the rests."""
        found = sorted(self.rests.values())
        return found[0], int(statistics.median(found)), found[-1]


def read_evidence(folder: Path) -> dict[str, Any]:
    """The document of an evidence folder.

    Raises:
        ColocateError: there is none, it is of another version, or nothing in it was measured.
    """
    if not (folder / "evidence.json").exists():
        raise ColocateError(f"{folder}: expected a folder of scripts/gpu-evidence, found no evidence.json in it")
    document: dict[str, Any] = read_json(folder / "evidence.json")
    if document.get("schema") != 1 or not isinstance(document.get("units"), dict):
        raise ColocateError(f"{folder}: expected evidence of this version, found schema {document.get('schema')!r}")
    if document.get("basis") != "measured":
        raise ColocateError(f"{folder}: expected figures measured on a GPU, found {document.get('basis')!r} ones")
    return document


def calibrate(folders: Sequence[Path]) -> Calibration:
    """Combine the evidence of several folders.

    Raises:
        ColocateError: they are not of one GPU, or too few programs were measured.
    """
    documents = {folder: read_evidence(folder) for folder in folders}
    gpus = {document["gpu"] for document in documents.values()}
    if len(gpus) != 1:
        raise ColocateError(f"calibrate: expected evidence of one kind of GPU, found {', '.join(sorted(gpus))}")
    solos = {name: solo for document in documents.values() for name, solo in _solos(document)}
    rests = {name: rest for name, solo in solos.items() if (rest := _rest_bytes(solo)) is not None}
    if len(rests) < LEAST_PROGRAMS:
        raise ColocateError(
            f"calibrate: expected at least {LEAST_PROGRAMS} trainings measured alone, found {len(rests)}; "
            "run scripts/gpu-evidence --only solo"
        )
    shares = [share for document in documents.values() for share in _shares(document)]
    last = list(documents.values())[-1]
    return Calibration(
        gpu=gpus.pop(),
        total_bytes=last["total_bytes"],
        source=_source(documents, len(rests)),
        rests=rests,
        baseline_bytes=int(statistics.median(solo["baseline_bytes"] for solo in solos.values())),
        capability=_machine(last).get("capability"),
        less=max((less for less, _ in shares), default=None),
        more=max((more for _, more in shares), default=None),
        comparisons=tuple(one for document in documents.values() for one in comparisons(document)),
    )


def _machine(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document["units"].get("machine") or {}
    return found


def _source(documents: Mapping[Path, Mapping[str, Any]], num_programs: int) -> str:
    reported = []
    for folder, document in documents.items():
        torch = (_machine(document).get("versions") or {}).get("torch", "unknown")
        reported.append(f"measured: {folder.name} (driver {document['driver']}, torch {torch})")
    return f"{'; '.join(reported)}, {num_programs} programs alone"


def _solos(document: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The trainings that ran alone and of which memory was read."""
    for name, unit in document["units"].items():
        read = unit.get("sampled_bytes") is not None and unit.get("baseline_bytes") is not None
        if name.startswith("solo ") and read and DISTURBED.isdisjoint(unit.get("codes") or ()):
            yield name.removeprefix("solo "), unit


def _rest_bytes(solo: Mapping[str, Any]) -> int | None:
    """Return what a process held beside PyTorch's allocator at its peak, or None if that is not known."""
    member = solo["members"]["foreground"]
    reserved = member.get("reserved_bytes")
    if reserved is None or member.get("out_of_memory"):
        return None
    rest: int = solo["sampled_bytes"] - solo["baseline_bytes"] - reserved
    return rest if rest > 0 else None


def comparisons(document: Mapping[str, Any]) -> Iterator[Comparison]:
    """Every training and every group that was both predicted and measured."""
    predicted = document["units"].get("predictions") or {}
    for kind, prefixes in (("training", ("solo ",)), ("group", ("small ", "whole "))):
        known = predicted.get("programs" if kind == "training" else "groups") or {}
        for name, unit in document["units"].items():
            prefix = next((one for one in prefixes if name.startswith(one)), None)
            peak = None if prefix is None else (known.get(name.removeprefix(prefix)) or {}).get("peak")
            measured = _own_bytes(unit)
            whole = WHOLE.issuperset(unit.get("codes") or ())
            if peak is not None and measured and whole and not _ran_out(unit):
                low, expected, high = peak
                yield Comparison(kind, name, low, expected, high, measured)


def _own_bytes(unit: Mapping[str, Any]) -> int | None:
    peak, baseline = unit.get("peak_bytes"), unit.get("baseline_bytes")
    return None if peak is None or baseline is None else peak - baseline


def _ran_out(unit: Mapping[str, Any]) -> bool:
    """Check that a training did not run out of memory: what it held then is not what it wanted."""
    return any(member.get("out_of_memory") for member in unit.get("members", {}).values())


def _shares(document: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """For every program, by which share of its predicted reserved memory the real one fell short or went beyond."""
    predicted = document["units"].get("predictions") or {}
    context, high = predicted.get("context_bytes"), (predicted.get("context_range_bytes") or [None, None])[1]
    if context is None or high is None:
        return
    for name, solo in _solos(document):
        peak = (predicted.get("programs", {}).get(name) or {}).get("peak")
        reserved = solo["members"]["foreground"].get("reserved_bytes")
        whole = WHOLE.issuperset(solo.get("codes") or ())
        if peak is None or reserved is None or peak[1] <= context or _ran_out(solo) or not whole:
            continue
        bound = (peak[2] - high) / (1 + MORE)
        yield max(0.0, 1 - reserved / (peak[1] - context)), max(0.0, reserved / bound - 1)


def proposal(found: Calibration) -> Iterator[str]:
    """Describe the proposed table row in lines of text."""
    low, middle, high = found.context_bytes
    yield f"GPU      {found.gpu}, {format_mib(found.total_bytes)}"
    yield f"context   {format_mib(middle)} ({format_mib(low)} to {format_mib(high)})"
    yield f"baseline  {format_mib(found.baseline_bytes)}"
    yield f"source    {found.source}"
    if found.less is not None and found.more is not None:
        yield (
            f"margins   {found.less:.1%} down and {found.more:.1%} up would have held for every program; "
            f"{LESS:.0%} and {MORE:.0%} are used (colocate/verdict/predicted_peak.py)"
        )
    held = [one.held for one in found.comparisons]
    if held:
        missed = f"{held.count('above')} above, {held.count('below')} below"
        yield f"intervals {held.count('yes')} of {len(held)} held, {missed}"
    worst = sorted(found.comparisons, key=lambda one: -abs(one.error))[:3]
    for one in worst:
        yield f"residual  {one.name}: {one.error:+.1%} ({format_mib(one.measured_bytes)} measured)"


def update_table(found: Calibration, path: Path = TABLE) -> str:
    """Put the figures into the table of GPUs; what was done, in a sentence.

    Raises:
        ColocateError: the GPU is new to the table and its compute capability is not known.
        OSError: the table cannot be written.
    """
    document = read_json(path)
    row = next((row for row in document["gpus"] if same_gpu(row["name"], found.gpu)), None)
    known = row is not None
    if row is None:
        row = _new_row(found)
        document["gpus"].append(row)
    low, middle, high = (f"{-(-size // MIB)}MB" for size in found.context_bytes)
    row["context"] = {"expected": middle, "low": low, "high": high}
    row["baseline"] = f"{-(-found.baseline_bytes // MIB)}MB"
    row["sources"] |= {"context": found.source, "baseline": found.source}
    for split in (row, row["sources"]):
        split.pop("context_with_cudnn", None)  # what was read is of all kinds of programs
    try:
        GpuModelsFile.model_validate(document)
    except ValidationError as error:
        raise ColocateError(f"{path}: expected a table that holds with the new figures, got {error}") from error
    write_text(path, _as_written(document))
    return f"{path}: {'changed' if known else 'added'} {row['name']}"


def same_gpu(name: str, found: str) -> bool:
    """Every word of the table's name is in the GPU's own."""
    words = [word for word in name.lower().split() if word != "nvidia"]
    return bool(words) and all(word in found.lower().split() for word in words)


def _new_row(found: Calibration) -> dict[str, Any]:
    if found.capability is None:
        raise ColocateError(f"{found.gpu}: expected its compute capability among the evidence, found none")
    large = int(found.capability.split(".")[0]) in LARGE_WORKSPACE
    return {
        "name": found.gpu,
        "total": f"{found.total_bytes // MIB}MB",
        "compute_capability": found.capability,
        "context": {},
        "cublas_workspace": "32MB" if large else "8.125MB",
        "baseline": "",
        "sources": {
            "total": found.source,
            "compute_capability": found.source,
            "context": "",
            "cublas_workspace": "PyTorch, CublasHandlePool.cpp",
            "baseline": "",
        },
    }


def _as_written(document: Mapping[str, Any]) -> str:
    """Format a row of the table as a person would write it, with the context on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    context = r'("context(?:_with_cudnn)?": \{)\s+("expected": "[^"]+",)\s+("low": "[^"]+",)\s+("high": "[^"]+")\s+\}'
    return re.sub(context, r"\1\2 \3 \4}", text) + "\n"


def table_of(found: Iterable[Comparison]) -> Iterator[str]:
    """Predicted beside measured, as a table of Markdown."""
    yield "| what | predicted, MiB | measured, MiB | error | held |"
    yield "| --- | --- | --- | --- | --- |"
    for one in found:
        low, expected, high, measured = (
            round(size / MIB) for size in (one.low_bytes, one.expected_bytes, one.high_bytes, one.measured_bytes)
        )
        yield f"| {one.name} | {expected} ({low} to {high}) | {measured} | {one.error:+.1%} | {one.held} |"


def main(arguments: Sequence[str]) -> int:
    """Print what the evidence proposes; change the table where that is asked for."""
    parser = argparse.ArgumentParser(prog="scripts/gpu-evidence calibrate", description="Derive a GPU's figures.")
    parser.add_argument("folder", type=Path, nargs="+", help="a folder that scripts/gpu-evidence has written")
    parser.add_argument("--update", action="store_true", help="put context and baseline into the table of GPUs")
    parser.add_argument("--table", type=Path, default=TABLE, help="another table than settings/gpu_models.json")
    options = parser.parse_args(arguments)
    try:
        found = calibrate(options.folder)
        for line in proposal(found):
            print(line)
        if options.update:
            print(update_table(found, options.table))
    except (ColocateError, OSError) as error:
        print(f"gpu-evidence: {error}", file=sys.stderr)
        return 2
    return 0
