# SPDX-License-Identifier: Apache-2.0
"""``colocate pack``: which of many trainings should share a GPU, and a schedule that says so."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.arguments import whole
from colocate.cli.training_set import DEFAULT_CATALOG, Task, head_lines, takes_epochs, takes_gpu
from colocate.errors import PlanError
from colocate.units import plural, span_text, to_mib

if TYPE_CHECKING:
    from colocate.advice import PackingProblem, SoloProfile

DEFAULT_OUT = Path("pack.json")

EPILOG = """\
examples:
  colocate pack settings/models.json --gpus 4          every model of the catalog
  colocate pack --from settings/parallel_feasibility_test.json
  colocate pack --known results/run_20261124_053000     what that run measured decides

exit codes: 0 a schedule, 1 nothing shares, 3 open pairs may still change it,
2 wrong input, or a training whose need is not known
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(commands, run, "pack", "Decide which of many trainings should share a GPU.", EPILOG)
    parser.add_argument("catalog", nargs="?", type=Path, metavar="CATALOG", help=f"its models ({DEFAULT_CATALOG})")
    parser.add_argument("--from", dest="plan", type=Path, metavar="PLAN", help="the trainings of a plan instead")
    parser.add_argument("--gpus", type=whole, default=1, metavar="N", help="GPUs of the schedule (1)")
    takes_gpu(parser)
    parser.add_argument(
        "--known", type=Path, action="append", default=[], metavar="RUN", help="take what an earlier run measured"
    )
    takes_epochs(parser)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="PLAN", help=f"the plan ({DEFAULT_OUT})")
    command.takes_dry_runs(parser)


def run(options: argparse.Namespace) -> int:
    """Solo dry runs, bounds of all pairs, then the schedule and its plan."""
    from colocate.advice import Answer, PackingProblem, best_pairs, known_of, remembered
    from colocate.results import RunDirectory

    task = Task.of(options)
    solos = task.predicted(options)
    known = known_of(solos)
    peaks = tuple(solo.peak for solo in known if solo.peak)
    problem = PackingProblem(peaks, task.gpu.baseline_bytes, task.limits.peak_bytes)
    for path in options.known:
        if not path.is_dir():
            raise PlanError(f"--known: expected a run directory, got {str(path)!r}")
        problem = remembered(problem, known, RunDirectory(path), task.gpu.total_bytes)
    pairs = best_pairs(problem, Answer.FITS)
    open_left = len(best_pairs(problem, Answer.FITS, Answer.UNDECIDED)) > len(pairs)
    schedule = Schedule(task, solos, known, problem, pairs, open_left)
    for line in _lines(schedule, options.gpus):
        print(line)
    folder, why = options.out.resolve().parent, "Which trainings should share a GPU, by colocate pack."
    print()
    command.write_plan(task.document("pack", why, _entries(schedule, folder), folder), options.out, what="")
    if len(known) < len(solos):
        return command.WRONG_INPUT
    if open_left:
        return command.UNDECIDED
    return command.SUCCESS if pairs else command.CHECK_FAILED


# --- the answer -------------------------------------------------------------------------------------------------------

Slot = tuple[int, ...]
"""The trainings of one GPU at one time, as places among those whose need is known."""


@dataclass(frozen=True)
class Schedule:
    """What is known of the trainings, and which of them share a GPU.

    ``known`` are those of ``solos`` whose need is known; ``open_left`` says that open pairs may give more pairs.
    """

    task: Task
    solos: "Sequence[SoloProfile]"
    known: "Sequence[SoloProfile]"
    problem: "PackingProblem"
    pairs: Sequence[Slot]
    open_left: bool

    @cached_property
    def slots(self) -> list[Slot]:
        """The pairs and, on a GPU of its own, every training in none of them that may fit: the fullest first."""
        from colocate.advice import Answer

        placed = {place for slot in self.pairs for place in slot}
        rest = [(place,) for place in range(len(self.known)) if place not in placed]
        alone = [slot for slot in rest if self.problem.by_bounds(slot) is not Answer.DOES_NOT_FIT]
        return sorted([*self.pairs, *alone], key=lambda slot: (-len(slot), -self.problem.peak(slot).high_bytes))


def _lines(schedule: Schedule, num_gpus: int) -> Iterator[str]:
    problem, slots = schedule.problem, schedule.slots
    yield from head_lines(schedule.task, schedule.solos)
    yield from command.wrapped(_count(schedule))
    yield from command.wrapped(
        "optimal among the pairs that surely fit; open ones may give more: measure them with colocate pairs"
        if schedule.open_left
        else "optimal: no other choice gives more pairs, whatever the open ones do"
    )
    yield ""
    rounds, alone = ceil(len(slots) / num_gpus), ceil(len(schedule.known) / num_gpus)
    yield f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}, {rounds} rounds instead of {alone}"
    for number, slot in enumerate(slots):
        names = " + ".join(schedule.known[place].training.name for place in slot)
        peak = problem.peak(slot)
        how = "measured, " if slot in problem.known else ""
        room = to_mib(problem.limit_bytes - peak.high_bytes)
        spare = f", {room:.0f} MiB of room" if room > 0 else ""
        yield f"round {number // num_gpus + 1}, GPU {number % num_gpus + 1}: {names}"
        yield f"    {how}{span_text(peak.low_bytes, peak.high_bytes)} MiB{spare}"


def _count(schedule: Schedule) -> str:
    from colocate.advice import Answer

    solos, problem = schedule.solos, schedule.problem
    gpus = [solo for solo in solos if solo.training.uses_gpu]
    cached = sum(solo.cached for solo in gpus)
    of_gpu = {place for place, solo in enumerate(schedule.known) if solo.training.uses_gpu}
    answers = Counter(answer for pair, answer in problem.answers.items() if of_gpu.issuperset(pair))
    fit, open_ = answers[Answer.FITS], answers[Answer.UNDECIDED]
    total = len(of_gpu) * (len(of_gpu) - 1) // 2
    runs = f"{len(gpus)} solo runs" + (f", {cached} of them remembered" if cached else "")
    text = f"{total} pairs from {runs}: {fit} fit, {total - fit - open_} do not, {open_} open"
    if problem.known:
        text += f"; {plural(len(problem.known), 'pair')} measured in earlier runs"
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
