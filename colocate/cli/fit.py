# SPDX-License-Identifier: Apache-2.0
"""``colocate fit``: the largest batch, or any other number, with which a group still fits beside its background."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.arguments import DEFAULT_PLAN, DEVICES, default_plan, group_named, number, seconds
from colocate.errors import PlanError
from colocate.units import format_mib, mib_text, span_text

if TYPE_CHECKING:
    from colocate.advice import Fit, Forecast, Grid, Tried, Variable
    from colocate.device import Basis, FoundGpu
    from colocate.plan import GpuModel, Group, Plan

MOST = 1 << 16  # a larger batch is not looked for
CONFIRMATIONS = {"measured": 2, "predicted": 1}  # a prediction comes out the same every time
SCHEMA = 1

EPILOG = """\
examples:
  colocate fit group09                                foreground.batch_size
  colocate fit group09 --vary background.batch_size
  colocate fit group01 --plan mine.json --vary foreground.--max-len --step 64

exit codes: 0 the largest value is found and confirmed, 1 not even the least
fits, 3 undecided, 2 wrong input
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands, run, "fit", "Find the largest batch, or other number, with which a group still fits.", EPILOG
    )
    parser.add_argument("group", metavar="GROUP", help="id of a group of the plan")
    parser.add_argument("--vary", metavar="MEMBER.NAME", help="what varies (foreground.batch_size)")
    parser.add_argument("--plan", type=Path, metavar="FILE", help=f"the plan ({DEFAULT_PLAN})")
    parser.add_argument("--device", choices=DEVICES, default="auto", help="the GPU (auto)")
    parser.add_argument("--gpu", metavar="GPU", help="its size or name (a GPU's own, else the plan's)")
    parser.add_argument("--least", type=number, metavar="N", help="the least value that is looked at (the step)")
    parser.add_argument("--most", type=number, metavar="N", help=f"the greatest value that is looked at ({MOST})")
    parser.add_argument("--step", type=number, metavar="N", help="values are this far apart (1)")
    parser.add_argument(
        "--confirm", type=int, choices=range(10), metavar="N", help="runs that confirm it (2 measured, 1 predicted)"
    )
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="for records (results)")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="S", help="seconds to wait for a busy GPU (0)")
    command.takes_dry_runs(parser)
    command.takes_json(parser)


def run(options: argparse.Namespace) -> int:
    """Search, tell every trial as it comes, then the answer; the exit code says what was found."""
    from colocate.advice import LargestValue, variable
    from colocate.files import write_json
    from colocate.harness import AttemptRunner
    from colocate.plan import load_plan
    from colocate.results import RunDirectory

    plan = load_plan(options.plan or default_plan())
    group, catalog = _group(plan, options.group), plan.load_catalog()
    if group.missing:
        raise PlanError(f"{group.id}: {group.missing}")
    usual = "foreground.batch_size" if group.foreground.repository and catalog else "foreground.--batch-size"
    varies = variable(group, options.vary or usual, catalog)
    grid = _grid(varies, options)
    gpu, sentence = _gpu(options, command.gpu_model(options, plan.limits.gpu_bytes), group)
    basis: Basis = "measured" if gpu.kind == "nvidia" else "predicted"
    confirmations = CONFIRMATIONS[basis] if options.confirm is None else options.confirm
    records = RunDirectory.new(options.results, datetime.now(), "fit")
    print(f"{sentence}\nrecords: {command.near(records.path)}", file=sys.stderr)
    search = LargestValue(
        group=group,
        variable=varies,
        grid=grid,
        catalog=catalog,
        basis=basis,
        foresee=_forecasts(options, gpu.figures),
        attempt=AttemptRunner(records, plan.name, gpu, options.wait).attempt,
        confirmations=confirmations,
        tell=lambda tried: print(_line(tried), file=sys.stderr, flush=True),
    )
    with records.locked():
        try:
            fit = search.find()
        finally:
            records.release()
    document = _document(plan, group, fit, confirmations)
    with command.writing(records.path):
        write_json(records.path / "fit.json", document)
    if options.json:
        print(json.dumps(document, indent=2, default=str))
    else:
        _print(group, fit, confirmations, document)
    return _exit_code(fit, confirmations)


def _group(plan: "Plan", name: str) -> "Group":
    found = group_named(name, plan.ids)
    if found is None:
        raise PlanError(f"group: expected one of {', '.join(plan.ids)}, got {name!r}")
    return plan.by_id[found]


def _gpu(options: argparse.Namespace, model: "GpuModel", group: "Group") -> "tuple[FoundGpu, str]":
    """The first GPU that is what the group asks for, and a sentence about the choice; the virtual one is ``model``."""
    from colocate.device import as_asked, find_gpus

    size, name, small, waits = model.total_bytes, model.name, bool(options.gpu), bool(options.wait)
    found = find_gpus(options.device, gpu_bytes=size, name=name, small=small, waits=waits)
    for one in found.free:
        if (gpu := as_asked(one, group.gpu)) is not None:
            return gpu, found.sentence
    raise PlanError(f"GPU: expected {group.gpu!r} as the group asks, found {', '.join(map(str, found.free))}")


def _grid(varies: "Variable", options: argparse.Namespace) -> "Grid":
    from colocate.advice import Grid

    if varies.kind == "float" and options.step is None:
        raise PlanError(f"--step: expected how far apart the values of {varies} are, for it is no whole number")
    step = options.step or 1
    least = options.least or step
    most = options.most or MOST
    whole = all(isinstance(one, int) for one in (step, least, most))
    if varies.kind == "int" and not whole:
        raise PlanError(f"{varies}: expected whole numbers for --least, --most and --step")
    if most < least:
        raise PlanError(f"--most: expected at least {least}, got {most}")
    return Grid(least, most, step)


def _forecasts(options: argparse.Namespace, gpu: "GpuModel") -> "Callable[[Group], Forecast]":
    from colocate.advice import Predictor

    predictor = Predictor(gpu, cache=command.cache(options), timeout_s=options.timeout)

    def foresee(group: "Group") -> "Forecast":
        predictor.forget_failures()
        return predictor.forecast(group, group.limits.peak_bytes)

    return foresee


def _exit_code(fit: "Fit", confirmations: int) -> int:
    if fit.largest is not None:
        return command.SUCCESS if fit.confirmations >= confirmations else command.UNDECIDED
    return command.CHECK_FAILED if fit.refused is not None and fit.undecided is None else command.UNDECIDED


# --- words ------------------------------------------------------------------------------------------------------------


def _line(tried: "Tried") -> str:
    peak = tried.peak
    figures = ""
    if peak is not None:
        bounds = "" if peak.low_bytes == peak.high_bytes else span_text(peak.low_bytes, peak.high_bytes)
        figures = f"{mib_text(peak.expected_bytes):>6} {bounds:>11} {mib_text(tried.headroom_bytes):>8}"
    what = f"{tried.how} ({tried.basis})"
    return f"{tried.value:>8}  {what:20} {tried.answer:14} {figures:27} {tried.why}".rstrip()


def _print(group: "Group", fit: "Fit", confirmations: int, document: dict[str, Any]) -> None:
    names = " + ".join(training.name for training in group.trainings)
    print(f"{group.id}: {names}, limit {format_mib(group.limits.peak_bytes)}: largest {fit.variable}, {fit.basis}\n")
    head = f"{'value':>8}  {'trial':20} {'answer':14} {'peak':>6} {'range':>11} {'headroom':>8} why"
    print("\n".join([head, *map(_line, sorted(fit.trials, key=lambda one: one.value))]), end="\n\n")
    for text in _sentences(fit, confirmations):
        print("\n".join(command.wrapped(text)))
    if document["settings"] is not None:
        print("\nto copy into the plan:\n" + json.dumps(document["settings"], indent=2, ensure_ascii=False))


def _sentences(fit: "Fit", confirmations: int) -> Iterator[str]:
    name = fit.variable.name
    if fit.largest is None:
        known = "no value is known to fit" if fit.refused is None or fit.undecided else "no value fits"
        yield f"{name}: {known}" + (f"; {fit.refused} does not" if fit.refused is not None else "")
    else:
        yield f"{name} {fit.largest} fits, with a headroom of {format_mib(fit.headroom_bytes, beside=0)}"
        yield f"{_runs(fit, confirmations)}"
    if fit.undecided is not None:
        low, high = fit.undecided
        span = f"{low}" if low == high else f"{low} to {high}"
        yield f"unknown for {span}: " + ("measure" if fit.basis == "predicted" else "its runs carried no verdict")
    if fit.refused is not None and fit.largest is not None:
        yield f"{fit.refused} does not fit"
    if fit.at_most:
        yield "larger values were not looked at; see --most"
    if fit.unpredicted:
        yield f"not predicted: {fit.unpredicted}"
    for value, below in fit.surprises:
        yield f"memory does not grow steadily with {name}: {value} fits although {below} does not"
    if not fit.surprises:
        yield f"memory was taken to grow with {name}; the values next to the turn agree"


def _runs(fit: "Fit", confirmations: int) -> str:
    if not confirmations:
        return "no run was asked to confirm it"
    if fit.confirmations < confirmations:
        return "its runs did not confirm it"
    runs = f"{fit.confirmations} run{'s' if fit.confirmations > 1 else ''} of the group"
    cut = "of shortened epochs, " if fit.basis == "predicted" else ""
    return f"confirmed by {runs}, {cut}evaluation and last batch included"


def _document(plan: "Plan", group: "Group", fit: "Fit", confirmations: int) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "plan": plan.name,
        "group": group.id,
        **asdict(fit),
        "variable": str(fit.variable),
        "given": fit.variable.given,
        "headroom_bytes": fit.headroom_bytes,
        "limit_bytes": group.limits.peak_bytes,
        "confirmed": fit.largest is not None and fit.confirmations >= confirmations,
        "settings": _settings(plan, group, fit),
    }


def _settings(plan: "Plan", group: "Group", fit: "Fit") -> dict[str, Any] | None:
    """The member as it is to stand in the plan."""
    from colocate.plan import rewritten, varied

    if fit.largest is None:
        return None
    override = fit.variable.override(fit.largest)
    return {fit.variable.role: rewritten(plan.entry(group), override, varied(group, override, plan.load_catalog()))}
