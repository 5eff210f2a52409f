# SPDX-License-Identifier: Apache-2.0
"""``colocate pairs``: the plan of all ordered pairs of many trainings, or of a choice of them."""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli.training_set import Task, head_lines, takes_epochs, takes_gpu
from colocate.errors import PlanError
from colocate.units import format_mib, mib_text, span_text

if TYPE_CHECKING:
    from colocate.advice import OrderedPair, SoloProfile
    from colocate.plan import Training

DEFAULT_OUT = Path("pairs.json")
MOST_LISTED = 20  # of the pairs that cannot fit; the plan has them all

EPILOG = """\
examples:
  colocate pairs                                     all pairs of the catalog
  colocate pairs --models=mnist,siamese,VulBERTa/mlp
  colocate pairs --from settings/parallel_feasibility_test.json --gpu=24GB

exit codes: 0 a plan was written, 1 no pair is left to be run, 2 wrong input
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands, run, "pairs", "Write the plan of all ordered pairs of trainings, or of a choice.", EPILOG
    )
    parser.add_argument("--models", type=words, metavar="NAME,...", help="MODEL or REPOSITORY/MODEL (all there are)")
    parser.add_argument("--catalog", type=Path, metavar="FILE", help="where they are from (settings/models.json)")
    parser.add_argument("--from", dest="plan", type=Path, metavar="PLAN", help="the trainings of a plan instead")
    parser.add_argument("--with-itself", action="store_true", help="every training beside itself too")
    parser.add_argument("--all", action="store_true", help="run those too that cannot fit by their floor")
    takes_gpu(parser)
    takes_epochs(parser)
    command.takes_dry_runs(parser)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, metavar="FILE", help=f"the plan ({DEFAULT_OUT})")


def words(text: str) -> list[str]:
    """The words of ``a,b,c``, each once.

    Raises:
        argparse.ArgumentTypeError: there is none.
    """
    found = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise argparse.ArgumentTypeError(f"expected words with commas between them, got {text!r}")
    return found


def run(options: argparse.Namespace) -> int:
    """Solo dry runs, all pairs out of them, the choice, the plan."""
    from colocate.advice import ordered_pairs

    task = Task.of(options)
    if options.models:
        task = replace(task, trainings=_named(task.trainings, options.models))
    solos = task.predicted(options)
    base, limit = task.gpu.baseline_bytes, task.limits.peak_bytes
    every = list(ordered_pairs(solos, base, limit, with_itself=options.with_itself))
    left = [pair for pair in every if pair.impossible and not options.all]
    chosen = [pair for pair in every if options.all or not pair.impossible]
    for line in _lines(task, solos, every, chosen, left):
        print(line)
    if not chosen:
        print("\nno pair is left to be run; no plan is written")
        return command.CHECK_FAILED
    folder = options.out.resolve().parent
    members = [task.member(solo.training, folder) for solo in solos]
    entries = [_entry(pair, members, solos, task) for pair in chosen]
    document = task.document("pairs", "Ordered pairs of trainings, by colocate pairs.", entries, folder)
    if left:
        document["not_run"] = [_entry(pair, members, solos, task) for pair in left]
    print()
    command.write_plan(document, options.out, what=f", {len(left)} not run" if left else "")
    return command.SUCCESS


def _named(trainings: "Sequence[Training]", names: Sequence[str]) -> "list[Training]":
    """The trainings that the names mean, in the order of the names; of a plan one name may mean several.

    Raises:
        PlanError: a name means none, or models of several repositories.
    """
    found = [_of_name(trainings, name) for name in names]
    return list({id(training): training for several in found for training in several}.values())


def _of_name(trainings: "Sequence[Training]", name: str) -> "list[Training]":
    from colocate.plan import shown, suggestion

    full = {id(one): f"{one.repository}/{one.model}" if one.repository else one.name for one in trainings}
    exact = [one for one in trainings if name in (full[id(one)], one.name)]
    found = exact or [one for one in trainings if one.model == name]
    meant = list(dict.fromkeys(full[id(one)] for one in found))
    if len(meant) > 1:
        raise PlanError(f"--models: expected one of {', '.join(meant)}, got {shown(name)}")
    if not found:
        known = list(dict.fromkeys(word for one in trainings for word in (one.model, full[id(one)]) if word))
        raise PlanError(f"--models: expected MODEL or REPOSITORY/MODEL, got {shown(name)}{suggestion(name, known)}")
    return found


# --- words ------------------------------------------------------------------------------------------------------------


def _lines(
    task: Task,
    solos: "Sequence[SoloProfile]",
    every: "Sequence[OrderedPair]",
    chosen: "Sequence[OrderedPair]",
    left: "Sequence[OrderedPair]",
) -> Iterator[str]:
    yield from head_lines(task, solos)
    yield f"{len(every)} ordered pairs"
    yield from _table(every, chosen)
    unknown = sum(pair.peak is None for pair in chosen)
    if unknown:
        yield from command.wrapped(
            f"{unknown} pairs of the plan are not predicted, and have no expected_memory and no tier"
        )
    if left:
        yield ""
        yield from command.wrapped(
            f"not run, {len(left)} pairs: the least that both need is not below {format_mib(task.limits.peak_bytes)}"
        )
        for pair in left[:MOST_LISTED]:
            yield from command.wrapped(f"  {pair.id}: at least {mib_text(pair.floor_bytes)} MiB")
        if len(left) > MOST_LISTED:
            yield f"  and {len(left) - MOST_LISTED} more, all under not_run in the plan"


def _table(every: "Sequence[OrderedPair]", chosen: "Sequence[OrderedPair]") -> Iterator[str]:
    from colocate.advice import TIERS, UNKNOWN, Answer

    widths = {answer: len(answer) for answer in Answer}
    yield f"{'tier':10} {'pairs':>6} {'to run':>6}  " + "  ".join(widths)
    counts = Counter((pair.tier or UNKNOWN, pair.answer) for pair in every)
    running = Counter(pair.tier or UNKNOWN for pair in chosen)
    for tier in (*TIERS, UNKNOWN):
        numbers = {answer: counts[tier, answer] for answer in Answer}
        if any(numbers.values()):
            columns = "  ".join(f"{number or '':>{widths[answer]}}" for answer, number in numbers.items())
            yield f"{tier:10} {sum(numbers.values()):>6} {running[tier]:>6}  {columns}".rstrip()


# --- the plan ---------------------------------------------------------------------------------------------------------


def _entry(
    pair: "OrderedPair", members: Sequence[dict[str, Any]], solos: "Sequence[SoloProfile]", task: Task
) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": pair.id, **task.wish}
    if pair.peak is not None:
        entry["tier"] = pair.tier
        if pair.peak.expected_bytes <= task.limits.gpu_bytes:  # a plan refuses to expect more than the GPU has
            entry["expected_memory"] = f"{mib_text(pair.peak.expected_bytes)}MB"
    return entry | {
        "mode": "parallel",
        "foreground": {"mode": "default", **members[pair.foreground]},
        "background": members[pair.background],
        "note": _note(pair, solos),
    }


def _note(pair: "OrderedPair", solos: "Sequence[SoloProfile]") -> str:
    if pair.peak is None:
        both = (solos[pair.foreground], solos[pair.background])
        return "not predicted: " + "; ".join(
            dict.fromkeys(f"{one.training.name} {one.why}" for one in both if one.peak is None)
        )
    text = f"predicted {span_text(pair.peak.low_bytes, pair.peak.high_bytes)} MiB: {pair.answer}"
    least = f", needs at least {mib_text(pair.floor_bytes)} MiB"
    return text + (least if pair.impossible else "")
