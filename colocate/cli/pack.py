# SPDX-License-Identifier: Apache-2.0
"""``colocate pack``: which of many trainings should share a GPU, and a schedule that says so."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.arguments import count, whole
from colocate.cli.training_set import DEFAULT_CATALOG, GPU, SOLO_HEAD, Task, save, solo_line, takes_epochs, takes_limit
from colocate.errors import PlanError
from colocate.units import format_mib, format_size, span_text, to_mib

if TYPE_CHECKING:
    from colocate.advice import Measured, PackingProblem, SoloProfile
    from colocate.device import FoundGpu

DEFAULT_OUT = Path("pack.json")

EPILOG = """\
examples:
  colocate pack settings/models.json --gpus 4          every model of the catalog
  colocate pack --from settings/parallel_feasibility_test.json
  colocate pack --device nvidia --measure 5             at most five pairs are run

exit codes: 0 a schedule, 1 nothing shares, 3 open pairs may still change it,
2 wrong input, or a training whose need is not known
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(commands, "pack", "Decide which of many trainings should share a GPU, with few runs.", EPILOG)
    parser.add_argument("catalog", nargs="?", type=Path, metavar="CATALOG", help=f"its models ({DEFAULT_CATALOG})")
    parser.add_argument("--from", dest="plan", type=Path, metavar="PLAN", help="the trainings of a plan instead")
    parser.add_argument("--gpus", type=whole, default=1, metavar="N", help="GPUs of the schedule (1)")
    command.takes_gpu(parser, GPU)
    takes_limit(parser)
    parser.add_argument(
        "--measure",
        type=count,
        metavar="N",
        help="open pairs that are run on a GPU at the most (all that matter)",
    )
    parser.add_argument(
        "--known", type=Path, action="append", default=[], metavar="RUN", help="take what an earlier run measured"
    )
    takes_epochs(parser)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="PLAN", help=f"the plan ({DEFAULT_OUT})")
    command.takes_records(parser)
    command.takes_dry_runs(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Solo runs, bounds, the runs that matter, then the schedule and its plan."""
    task = Task.of(options)
    gpu, sentence = command.free_gpu(options, task.gpu, task.asked)
    print(sentence, file=sys.stderr)
    if gpu.kind == "virtual":
        if options.measure:
            raise PlanError("--measure: expected a GPU; a virtual GPU cannot decide what its own interval leaves open")
        solos, base = task.predicted(options), task.gpu.baseline_bytes
        return _answer(task, options, solos, _problem(solos, base, task.gpu.total_bytes, task, options.known), [])
    return _on_a_gpu(task, options, gpu)


def _on_a_gpu(task: Task, options: argparse.Namespace, gpu: "FoundGpu") -> int:
    from colocate.advice import decide, known_of, measured
    from colocate.harness import AttemptRunner
    from colocate.results import RunDirectory, group_results

    run = RunDirectory.new(options.results, datetime.now(), "pack")
    trials = AttemptRunner(run, f"pack_{task.name}", gpu, options.wait)
    print(f"records: {command.near(run.path)}", file=sys.stderr)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with run.locked():
        try:
            solos = measured(task.trainings, trials, task.limits, tell)
            seen = [one.deciding.evidence for one in group_results(run).values()]
            base = max((one["baseline_bytes"] or 0 for one in seen), default=0)
            total = max((one["device"]["total_bytes"] for one in seen), default=task.gpu.total_bytes)
            name = next((one["device"]["name"] for one in seen), None)
            problem = _problem(solos, base, total, task, options.known, name)
            problem, found = decide(problem, known_of(solos), trials, task.limits, options.measure, tell)
        finally:
            run.release()
    return _answer(task, options, solos, problem, found)


def _problem(
    solos: "Sequence[SoloProfile]",
    base_bytes: int,
    total_bytes: int,
    task: Task,
    runs: Sequence[Path],
    gpu_name: str | None = None,
) -> "PackingProblem":
    from colocate.advice import PackingProblem, known_of, remembered
    from colocate.results import RunDirectory

    known = known_of(solos)
    problem = PackingProblem(tuple(solo.load for solo in known if solo.load), base_bytes, task.limits.peak_bytes)
    for run in runs:
        if not run.is_dir():
            raise PlanError(f"--known: expected a run directory, got {str(run)!r}")
        problem = remembered(problem, known, RunDirectory(run), total_bytes, gpu_name)
    return problem


# --- the answer -------------------------------------------------------------------------------------------------------

Slot = tuple[int, ...]
"""The trainings of one GPU at one time, as places among those whose need is known."""


@dataclass(frozen=True)
class Schedule:
    """Print what is known of the trainings, and which of them share a GPU.

    ``open_left`` says that open pairs may still change it.
    """

    task: Task
    solos: "Sequence[SoloProfile]"
    problem: "PackingProblem"
    found: "Sequence[Measured]"
    slots: Sequence[Slot]
    note: str
    open_left: bool = False

    @cached_property
    def known(self) -> "list[SoloProfile]":
        """The trainings whose need is known: slots are places in this list."""
        from colocate.advice import known_of

        return known_of(self.solos)

    @property
    def exit_code(self) -> int:
        """Return the result as JSON types."""
        if len(self.known) < len(self.solos):
            return command.WRONG_INPUT
        if self.open_left:
            return command.UNDECIDED
        return command.SUCCESS if any(len(slot) > 1 for slot in self.slots) else command.CHECK_FAILED


def _answer(
    task: Task,
    options: argparse.Namespace,
    solos: "Sequence[SoloProfile]",
    problem: "PackingProblem",
    found: "Sequence[Measured]",
) -> int:
    slots, note, open_left = _in_pairs(problem, found)
    schedule = Schedule(task, solos, problem, found, _in_order(problem, slots), note, open_left)
    for line in _lines(schedule, options.gpus):
        print(line)
    folder, why = options.out.resolve().parent, "Which trainings should share a GPU, by colocate pack."
    written = save(task.document("pack", why, _entries(schedule, folder), folder), options.out)
    print()
    command.tell_plan(options.out, f"{written} groups")
    return schedule.exit_code


def _in_pairs(problem: "PackingProblem", found: "Sequence[Measured]") -> tuple[list[Slot], str, bool]:
    """The best pairs, why they are the best, and whether open pairs may give more."""
    from colocate.advice import best_pairs, next_problem

    # One that carried no verdict may fit all the same.
    open_left = next_problem(problem) is not None or any(one.fits is None for one in found)
    if problem.by_time:
        note = "optimal: no other choice of pairs that fit saves more time"
    elif open_left:
        note = "optimal among the pairs that surely fit; open ones may give more"
    else:
        note = "optimal: no other choice gives more pairs, whatever the open ones do"
    return list(best_pairs(problem)), note, open_left


def _in_order(problem: "PackingProblem", slots: Sequence[Slot]) -> list[Slot]:
    """The slots and, on a GPU of its own, every training in none of them that may fit: the fullest first."""
    from colocate.advice import Answer

    placed = {place for slot in slots for place in slot}
    rest = [(place,) for place in range(len(problem.loads)) if place not in placed]
    alone = [slot for slot in rest if problem.by_bounds(slot) is not Answer.DOES_NOT_FIT]
    return sorted([*slots, *alone], key=lambda slot: (-len(slot), -problem.peak(slot).high_bytes))


def _lines(schedule: Schedule, num_gpus: int) -> Iterator[str]:
    task, solos, problem, slots = schedule.task, schedule.solos, schedule.problem, schedule.slots
    basis = solos[0].basis if solos else "predicted"
    yield f"{task.name}: {len(solos)} trainings on {format_size(task.gpu.total_bytes)} GPUs, {basis}"
    yield f"limit {format_mib(task.limits.peak_bytes)}, {format_mib(problem.base_bytes)} in use before anything starts"
    yield ""
    yield SOLO_HEAD
    for solo in solos:
        yield solo_line(solo)
    yield ""
    yield from command.wrapped(_count(schedule))
    yield from command.wrapped(schedule.note)
    yield ""
    rounds, alone = ceil(len(slots) / num_gpus), ceil(len(schedule.known) / num_gpus)
    yield f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}, {rounds} rounds instead of {alone}"
    for number, slot in enumerate(slots):
        names = " + ".join(schedule.known[place].training.name for place in slot)
        yield f"round {number // num_gpus + 1}, GPU {number % num_gpus + 1}: {names}"
        yield f"    {_figures(problem, slot)}"


def _figures(problem: "PackingProblem", slot: Slot) -> str:
    """Describe what the trainings of a GPU take together, what is left, and what sharing saves."""
    peak, pair = problem.peak(slot), (min(slot), max(slot))
    how = "measured, " if len(slot) == 2 and pair in problem.known else ""
    room = to_mib(problem.limit_bytes - peak.high_bytes)
    spare = f", {room:.0f} MiB of room" if room > 0 else ""
    saves = f", saves {problem.saved_s[pair]:.1f} s" if len(slot) == 2 and pair in problem.saved_s else ""
    return f"{how}{span_text(peak.low_bytes, peak.high_bytes)} MiB{spare}{saves}"


def _count(schedule: Schedule) -> str:
    from colocate.advice import Answer

    solos, problem, found = schedule.solos, schedule.problem, schedule.found
    gpus = [solo for solo in solos if solo.training.uses_gpu]
    cached = sum(solo.cached for solo in gpus)
    of_gpu = {place for place, solo in enumerate(schedule.known) if solo.training.uses_gpu}
    answers = Counter(problem.by_bounds(pair) for pair in problem.answers if of_gpu.issuperset(pair))
    fit, open_ = answers[Answer.FITS], answers[Answer.UNDECIDED]
    total = len(of_gpu) * (len(of_gpu) - 1) // 2
    runs = f"{len(gpus)} solo runs" + (f", {cached} of them remembered" if cached else "")
    text = f"{total} pairs from {runs}: {fit} surely fit, {total - fit - open_} surely do not, {open_} open; "
    text += f"{len(found)} of these were run"
    doubtful = sum(one.fits is None for one in found)
    if doubtful:
        text += f", {doubtful} without a verdict, which do not share"
    if len(problem.known) > len(found):
        text += f", {len(problem.known) - len(found)} pairs were measured in earlier runs"
    if len(gpus) < len(solos):
        text += f"; {len(solos) - len(gpus)} training without a GPU shares with any"
    return text


# --- the plan ---------------------------------------------------------------------------------------------------------


def _entries(schedule: Schedule, folder: Path) -> Iterator[dict[str, Any]]:
    from colocate.advice import rank

    task, known = schedule.task, schedule.known
    for slot in schedule.slots:
        chosen = sorted((known[place] for place in slot), key=rank)
        front, *beside = [task.member(one.training, folder) for one in chosen]
        if beside:
            foreground = {"mode": "default", **front}
            yield {**task.wish, "mode": "parallel", "foreground": foreground, "background": beside[0]}
        else:
            yield {**task.wish, "mode": "default", **front}
