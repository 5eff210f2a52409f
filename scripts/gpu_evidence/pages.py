# SPDX-License-Identifier: Apache-2.0
"""The evidence as files: a summary to read, one document for machines, traces, and the page of the runs.

What was not measured on a GPU never goes to docs/evidence, and says in every file what it is.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import write_json, write_text
from colocate.report import Report, document, downsampled
from colocate.results import read_run, read_trace
from colocate.units import format_mib
from gpu_evidence.bench import Bench
from gpu_evidence.units import file_name

SCHEMA = 1
TRACE_POINTS = 2000

Results = Mapping[str, dict[str, Any] | None]

WARNINGS = {
    "simulated": "NOT EVIDENCE: made on the make-believe GPU of the tests. No number here is real.",
    "predicted": "NOT EVIDENCE: predicted on a virtual GPU. No number here was measured on a GPU.",
}


def place(basis: str, name: str, root: Path, asked: Path | None) -> Path | None:
    """Where the evidence goes; None for a folder that is for measurements alone."""
    measured = root / "docs" / "evidence"
    if basis == "measured":
        return asked or measured / name
    if asked is None:
        return root / "results" / "not-evidence" / name
    return None if asked.resolve().is_relative_to(measured.resolve()) else asked


def write(bench: Bench, results: Results, out: Path) -> None:
    """Write everything anew from what is done."""
    if out.exists():
        shutil.rmtree(out / "traces", ignore_errors=True)
    (out / "traces").mkdir(parents=True, exist_ok=True)
    warning = WARNINGS.get(bench.basis)
    done = {name: result for name, result in results.items() if result is not None}
    write_json(
        out / "evidence.json",
        {
            "schema": SCHEMA,
            "warning": warning,
            "basis": bench.basis,
            "gpu": bench.info.name,
            "total_bytes": bench.info.total_bytes,
            "small_bytes": bench.small_bytes,
            "driver": bench.info.driver_version,
            "plan": bench.plan.name,
            "units": done,
        },
    )
    for name, result in done.items():
        _write_trace(bench, name, result, out, warning)
    _write_page(bench, out, warning)
    write_text(out / "summary.md", "\n".join(_summary(bench, results, warning)) + "\n")


def _write_trace(bench: Bench, name: str, result: dict[str, Any], out: Path, warning: str | None) -> None:
    """The GPU's memory over time, thinned so that lowest and highest of every stretch stay."""
    record = result.get("record")
    if record is None:
        return
    try:
        samples = downsampled(read_trace(bench.work / record / "trace.csv").samples, TRACE_POINTS)
    except (OSError, ValueError):
        return
    lines = [f"# {warning}"] if warning else []
    lines += ["elapsed_s,used_bytes", *(f"{one.elapsed_s:.3f},{one.used_bytes}" for one in samples)]
    write_text(out / "traces" / f"{file_name(name)}.csv", "\n".join(lines) + "\n")


def _write_page(bench: Bench, out: Path, warning: str | None) -> None:
    """Our own page of all groups, constrained GPU and whole GPU apart."""
    runs = []
    for kind in ("small", "whole", "solo"):
        try:
            runs.append(read_run(bench.work / kind))
        except ColocateError:
            continue
    if runs:
        text = document(Report.of(runs, out))
        write_text(out / "report.html", f"<!-- {warning} -->\n{text}" if warning else text)


# --- the summary


def _summary(bench: Bench, results: Results, warning: str | None) -> Iterator[str]:
    yield f"# {bench.info.name}"
    yield ""
    if warning:
        yield f"**{warning}**"
        yield ""
    machine = results.get("machine") or {}
    versions = ", ".join(f"{name} {number}" for name, number in machine.get("versions", {}).items())
    driver = bench.info.driver_version
    yield f"Basis: {bench.basis}. Driver {driver or 'none'}. {versions or 'Versions not read'}."
    yield f"Memory is read by {bench.info.memory_source}; MB means MiB. Written by `scripts/gpu-evidence`."
    yield from _solo(results)
    yield from _groups(bench, results, "small", f"The groups on {format_mib(bench.small_bytes)} of it")
    yield from _groups(bench, results, "whole", "The groups on the whole GPU")
    yield from _overhead(results)
    yield from _kill(results)
    yield from _smi(results)
    yield from _left_out(results)


def _solo(results: Results) -> Iterator[str]:
    found = {name.removeprefix("solo "): r for name, r in results.items() if name.startswith("solo ") and r}
    reported = {name: result for name, result in found.items() if result.get("peak_bytes") is not None}
    if not reported:
        return
    yield from ("", "## Trainings alone", "")
    yield "Rest is what a process holds beside PyTorch's allocator, its context above all; held: in the range."
    yield ""
    heads = ("training", "peak", "reserved by PyTorch", "rest", "predicted", "held", "phases", "cut to steps")
    yield from _table(heads, (_solo_row(name, result, results) for name, result in reported.items()))


def _solo_row(name: str, result: dict[str, Any], results: Results) -> list[str]:
    member = result["members"]["foreground"]
    peak = own_peak(result)
    reserved = member["reserved_bytes"]
    rest = None if peak is None or reserved is None else peak - reserved
    predicted = _predicted(results, "programs", name)
    phases = ", ".join(member["phases"])
    cut = result.get("cut_to_steps")
    interval, held = _interval(predicted), _held(predicted, peak)
    return [name, format_mib(peak), format_mib(reserved), format_mib(rest), interval, held, phases, str(cut or "")]


def own_peak(result: Mapping[str, Any]) -> int | None:
    """What the trainings held at most, without what the GPU held before."""
    peak, baseline = result.get("peak_bytes"), result.get("baseline_bytes")
    return None if peak is None or baseline is None else peak - baseline


def _predicted(results: Results, kind: str, name: str) -> list[int] | None:
    found: dict[str, Any] = ((results.get("predictions") or {}).get(kind) or {}).get(name) or {}
    peak: list[int] | None = found.get("peak")
    return peak


def _interval(peak: list[int] | None) -> str:
    return "" if peak is None else f"{format_mib(peak[1])} ({format_mib(peak[0])} to {format_mib(peak[2])})"


def _held(peak: list[int] | None, measured: int | None) -> str:
    if peak is None or measured is None:
        return ""
    if measured > peak[2]:
        return "above"
    return "below" if measured < peak[0] else "yes"


def _groups(bench: Bench, results: Results, kind: str, title: str) -> Iterator[str]:
    found = [(group, results.get(f"{kind} {group.id}")) for group in bench.plan.groups]
    rows = [_group_row(group, result, results) for group, result in found if result and "outcome" in result]
    if not rows:
        return
    yield from ("", f"## {title}", "")
    heads = ("group", "trainings", "verdict", "peak", "the plan's guess", "predicted", "held", "overlap", "remarks")
    yield from _table(heads, rows)


def _group_row(group: Any, result: dict[str, Any], results: Results) -> list[str]:
    predicted = _predicted(results, "groups", group.id)
    overlap = result["overlap"]
    cut = result.get("cut_to_steps")
    remarks = [*result["codes"], *([f"epoch cut to {cut} steps"] if cut else [])]
    return [
        group.id,
        " + ".join(training.name for training in group.trainings),
        f"{result['outcome']} ({result['basis']})",
        format_mib(result["peak_bytes"]),
        format_mib(group.expected_bytes, ""),
        _interval(predicted),
        _held(predicted, own_peak(result)),
        "" if overlap is None else f"{overlap:.0%}",
        ", ".join(remarks),
    ]


def _overhead(results: Results) -> Iterator[str]:
    found = [results.get("overhead_sampler"), results.get("overhead_probe")]
    reported = [one for one in found if one and "difference" in one]
    if not reported:
        return
    yield from ("", "## What watching costs", "")
    heads = ("what", "training", "step time without", "longer by", "noise of one reading", "target", "shown")
    yield from _table(heads, (_overhead_row(one) for one in reported))


def _overhead_row(one: dict[str, Any]) -> list[str]:
    step = sum(one["step_s_without"]) / len(one["step_s_without"])
    verdict = "yes" if one["shown"] else "not refuted" if one["kept"] else "NO"
    longer = f"{one['difference']:+.2%} ± {one['margin']:.2%}"
    return [one["what"], one["training"], f"{1000 * step:.2f} ms", longer, f"{one['noise']:.2%}", "0.50%", verdict]


def _kill(results: Results) -> Iterator[str]:
    found = results.get("kill")
    if not found or "looks" not in found:
        return
    yield from ("", "## kill -9 of the harness under load", "")
    load = found["under_load"]
    yield (
        f"{found['group']} on the constrained GPU: {format_mib(load['used_bytes'])} of the GPU and {load['processes']} "
        f"processes of ours at that moment; before the group {format_mib(found['before_bytes'], 'no GPU')}."
    )
    yield ""
    rows = ([f"{one['after_s']:g} s", format_mib(one["used_bytes"]), str(one["processes"])] for one in found["looks"])
    yield from _table(("after", "in use", "processes of ours"), rows)


def _smi(results: Results) -> Iterator[str]:
    found = results.get("smi")
    if not found or "compared" not in found:
        return
    yield from ("", "## Beside nvidia-smi", "")
    yield (
        f"{found['compared']} of {found['readings']} readings of nvidia-smi while memory was steady: at most "
        f"{found['largest_difference_mib']:.1f} MiB from ours (it prints whole MiB)."
    )


def _left_out(results: Results) -> Iterator[str]:
    yield from ("", "## What was cut, failed or is missing", "")
    listed = False
    for name, result in results.items():
        said = _remark(result)
        if said:
            listed = True
            yield f"- {name}: {said}"
    if not listed:
        yield "Nothing."


def _remark(result: dict[str, Any] | None) -> str | None:
    if result is None:
        return "not done"
    if result.get("cut_to_steps"):
        return f"epoch cut to {result['cut_to_steps']} steps of each phase"
    if result["state"] in ("done", "cut") and not result.get("text"):
        return None
    return f"{result['state']}: {result.get('text') or 'a call ended while it ran'}"


def _table(heads: Iterable[str], rows: Iterable[list[str]]) -> Iterator[str]:
    names = list(heads)
    yield f"| {' | '.join(names)} |"
    yield "|" + " --- |" * len(names)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def read(folder: Path) -> dict[str, Any]:
    """An evidence folder's document."""
    document: dict[str, Any] = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))
    return document
