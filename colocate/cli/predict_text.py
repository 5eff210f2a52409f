# SPDX-License-Identifier: Apache-2.0
"""What ``colocate predict`` says: its tables, its sentences and its JSON."""

import textwrap
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from colocate.cli import common as command
from colocate.cli.progress import short
from colocate.units import format_mib, format_size, mib_text, span_text

if TYPE_CHECKING:
    from colocate.advice import Forecast
    from colocate.harness import SimulatedRun
    from colocate.plan import GpuModel
    from colocate.verdict import PeakRange

PARTS = ("parameters", "gradients", "optimizer", "activations", "workspaces", "fragmentation", "context")
INDENT = "    "


class Predicted(NamedTuple):
    """What is predicted for one GPU."""

    gpu: "GpuModel"
    dry_runs: "Sequence[SimulatedRun]"
    forecasts: "Sequence[Forecast]"


def title(gpu: "GpuModel", limit_bytes: int, name: str) -> str:
    """What is predicted, on which GPU, below which limit."""
    text = f"{name}: predicted for a {gpu.name} of {format_size(gpu.total_bytes)}"
    if format_size(gpu.total_bytes) in gpu.name:
        text = f"{name}: predicted for a {gpu.name}"
    return f"{text}, limit {format_mib(limit_bytes)}; nothing was measured"


def training_table(dry_runs: "Sequence[SimulatedRun]") -> list[str]:
    """What every training needs, in MiB, and what of."""
    head = f"{'training, MiB':22}{'param':>6}{'grad':>6}{'optim':>6}{'activ':>6}{'work':>5}{'frag':>5}{'ctx':>4}"
    return [f"{head}{'peak':>6} {'range':>10}", *map(line_of, dry_runs)]


def line_of(one: "SimulatedRun") -> str:
    """A row of that table."""
    name = f"{short(one.name, 22):22}"
    if one.peak is None or one.parts is None:
        return f"{name} {one.failure}" if one.peak is None else f"{name} {mib_text(one.peak.expected_bytes)}"
    figures = [getattr(one.parts, part) for part in PARTS]
    columns = "".join(
        f"{mib_text(value):>{width}}" for value, width in zip(figures, (6, 6, 6, 6, 5, 5, 4), strict=True)
    )
    return f"{name}{columns}{mib_text(one.peak.expected_bytes):>6} {_range(one.peak):>10}"


def _range(peak: "PeakRange", limit_bytes: int | None = None) -> str:
    return span_text(peak.low_bytes, peak.high_bytes, beside=limit_bytes)


def group_table(forecasts: "Iterable[Forecast]", names: dict[str, str]) -> list[str]:
    """What every group needs, and whether it fits."""
    lines = [f"{'group':8} {'members':37}{'peak':>6} {'range':>11} answer"]
    for one in forecasts:
        head = f"{one.name:8} {short(names[one.name], 37):37}"
        lines.append(
            f"{head}{'':>6} {'':>11} {one.answer}"
            if one.peak is None
            else f"{head}{mib_text(one.peak.expected_bytes):>6} {_range(one.peak, one.limit_bytes):>11} {one.answer}"
        )
    return lines


def other_limits(forecasts: "Iterable[Forecast]", limit_bytes: int) -> list[str]:
    """The groups whose limit is not the one that the title names."""
    found: dict[int, list[str]] = {}
    for one in forecasts:
        if one.limit_bytes != limit_bytes and one.refused is None:
            found.setdefault(one.limit_bytes, []).append(one.name)
    return [
        line
        for limit, names in found.items()
        for line in command.wrapped(f"limit {format_mib(limit)}: {', '.join(names)}", INDENT)
    ]


def curve_table(curve: "dict[int, Forecast]") -> list[str]:
    """What every batch size needs, and whether it fits."""
    lines = [f"{'batch':>8} {'activations':>12} {'peak':>8} {'range':>13}  answer"]
    for size, one in curve.items():
        parts, peak = one.members[0].parts, one.peak
        if parts is None or peak is None:
            lines.append(f"{size:>8} {'':>12} {'':>8} {'':>13}  {one.answer}")
            continue
        figures = (
            f"{mib_text(parts.activations):>12} {mib_text(peak.expected_bytes):>8} {_range(peak, one.limit_bytes):>13}"
        )
        lines.append(f"{size:>8} {figures}  {one.answer}")
    return lines


def parts_of(one: "SimulatedRun") -> list[str]:
    """One training at length."""
    if one.peak is None:
        return []
    lines = []
    if one.parts is not None:
        lines += [f"  {part:16}{mib_text(getattr(one.parts, part)):>7} MiB" for part in PARTS]
    lines.append(f"  {'peak':16}{mib_text(one.peak.expected_bytes):>7} MiB, range {_range(one.peak)}")
    if one.floor_bytes is not None:
        lines.append(f"  {'floor':16}{mib_text(one.floor_bytes):>7} MiB: the least it runs in, giving back its cache")
    return lines


def total(one: "Forecast") -> list[str]:
    """The GPU with all of them on it."""
    peak = one.peak
    if peak is None:
        return []
    base = f"  {'rest of the GPU':16}{mib_text(one.base_bytes):>7} MiB before anything starts"
    return [
        base,
        f"  {'gpu':16}{mib_text(peak.expected_bytes):>7} MiB, range {_range(peak, one.limit_bytes)}: {one.answer}",
    ]


def explained(dry_runs: "Sequence[SimulatedRun]", forecasts: "Collection[Forecast]") -> list[str]:
    """Why something is not predicted or undecided, what the ranges rest on, and what was assumed."""
    lines: list[str] = []
    failures = dict.fromkeys(text for one in forecasts for text in one.failures)
    for text in failures:
        lines += command.wrapped("not predicted: " + text, INDENT)
    for one in (one for one in dry_runs if one.failure and one.last_lines):
        *earlier, last = one.last_lines
        lines += [f"    | {line[: command.WIDTH - 6]}" for line in earlier]
        lines += [f"    | {part}" for part in textwrap.wrap(last, command.WIDTH - 6)]  # of an error the reason
    for text in dict.fromkeys(text for one in forecasts for text in one.doubts):
        lines += command.wrapped("undecided: " + text, INDENT)
    workspaces = {one.name: one.workspace_bytes for one in dry_runs if one.workspace_bytes}
    listed = ", ".join(f"{name} +{format_mib(size)}" for name, size in workspaces.items())
    for text in dict.fromkeys(text for one in dry_runs for text in one.rests_on):
        whose = f": {listed}" if listed and text.startswith("workspaces") else ""
        lines += command.wrapped("range: " + text + whose, INDENT)
    for one in dry_runs:
        for text in dict.fromkeys(text for process in one.coverage for text in process.sentences):
            lines += command.wrapped(f"covered: {text if len(dry_runs) == 1 else f'{one.name}: {text}'}", INDENT)
    notes: dict[str, list[str]] = {}
    for one in dry_runs:
        for text in one.notes:
            notes.setdefault(text, []).append(one.name)
    for text, names in notes.items():
        whose = "" if len(names) == len(dry_runs) else f" ({', '.join(dict.fromkeys(names))})"
        lines += command.wrapped("assumed: " + text + whose, INDENT)
    return lines


def not_modelled(forecasts: "Iterable[Forecast]") -> list[str]:
    """What no prediction knows of, where there is one."""
    from colocate.harness import NOT_MODELLED

    if all(one.failures for one in forecasts):
        return []
    return [line for text in NOT_MODELLED for line in command.wrapped("not modelled: " + text, INDENT)]


def document(predictions: "Sequence[Predicted]") -> dict[str, Any]:
    """Everything as JSON types; every training and every forecast names its GPU."""
    from colocate.harness import NOT_MODELLED

    return {
        "schema": 1,
        "basis": "predicted",
        "gpus": [asdict(one.gpu) | {"sources": dict(one.gpu.sources)} for one in predictions],
        "not_modelled": list(NOT_MODELLED),
        "trainings": [
            asdict(training) | {"argv": list(training.argv), "gpu": one.gpu.name}
            for one in predictions
            for training in dict.fromkeys(one.dry_runs)
        ],
        "forecasts": [_forecast(forecast, one.gpu) for one in predictions for forecast in one.forecasts],
    }


def _forecast(one: "Forecast", gpu: "GpuModel") -> dict[str, Any]:
    return {
        "name": one.name,
        "gpu": gpu.name,
        "members": [member.name for member in one.members],
        "base_bytes": one.base_bytes,
        "limit_bytes": one.limit_bytes,
        "peak": None if one.peak is None else asdict(one.peak),
        "parts": None if one.parts is None else asdict(one.parts),
        "answer": str(one.answer),
        "failures": list(one.failures),
        "doubts": list(one.doubts),
    }
