"""``colocate pack``: which of many trainings should share a card, and a schedule that says so."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate import commands as command
from colocate.arguments import count, whole
from colocate.commands.trainings import (
    CARD,
    DEFAULT_CATALOG,
    SOLO_HEAD,
    Task,
    save,
    solo_line,
    takes_epochs,
    takes_limit,
)
from colocate.errors import PlanError
from colocate.units import format_mib, format_size, span_text, to_mib

if TYPE_CHECKING:
    from colocate.advice.packing import Pair, Question
    from colocate.advice.sharing import Measured, Solo
    from colocate.device.opening import Card

DEFAULT_OUT = Path("pack.json")

EPILOG = """\
examples:
  colocate pack settings/models.json --cards 4          every model of the catalog
  colocate pack --from settings/parallel_feasibility_test.json
  colocate pack --per-card 3 --card 24GB
  colocate pack --device nvidia --measure 5             at most five pairs are run

exit codes: 0 a schedule, 1 nothing shares, 3 open pairs may still change it,
2 wrong input, or a training whose need is not known
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(commands, "pack", "Decide which of many trainings should share a card, with few runs.", EPILOG)
    parser.add_argument("catalog", nargs="?", type=Path, metavar="CATALOG", help=f"its models ({DEFAULT_CATALOG})")
    parser.add_argument("--from", dest="plan", type=Path, metavar="PLAN", help="the trainings of a plan instead")
    parser.add_argument("--cards", type=whole, default=1, metavar="N", help="cards of the schedule (1)")
    parser.add_argument("--per-card", type=whole, default=2, metavar="K", help="trainings that share one (2)")
    command.takes_card(parser, CARD)
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
    command.takes_rehearsals(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Solo runs, bounds, the runs that matter, then the schedule and its plan."""
    task = Task.of(options)
    card, sentence = command.free_card(options, task.card, task.asked)
    print(sentence, file=sys.stderr)
    if card.kind == "virtual":
        if options.measure:
            raise PlanError("--measure: expected a GPU; a virtual card cannot decide what its own interval leaves open")
        solos, base = task.predicted(options), task.card.baseline_bytes
        return _answer(task, options, solos, _question(solos, base, task.card.total_bytes, task, options.known), [])
    return _on_a_gpu(task, options, card)


def _on_a_gpu(task: Task, options: argparse.Namespace, card: "Card") -> int:
    from colocate.advice.sharing import decide, measured
    from colocate.run_directory import RunDirectory
    from colocate.series import settled_groups
    from colocate.trial import Trials

    run = RunDirectory.new(options.results, datetime.now(), "pack")
    trials = Trials(run, f"pack_{task.name}", card, options.wait)
    print(f"records: {command.near(run.path)}", file=sys.stderr)

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with run.locked():
        try:
            solos = measured(task.trainings, trials, task.limits, tell)
            seen = [one.deciding.evidence for one in settled_groups(run).values()]
            base = max((one["baseline_bytes"] or 0 for one in seen), default=0)
            total = max((one["device"]["total_bytes"] for one in seen), default=task.card.total_bytes)
            name = next((one["device"]["name"] for one in seen), None)
            question = _question(solos, base, total, task, options.known, name)
            question, found = decide(question, _known(solos), trials, task.limits, options.measure, tell)
        finally:
            run.release()
    return _answer(task, options, solos, question, found)


def _known(solos: "Sequence[Solo]") -> "list[Solo]":
    return [solo for solo in solos if solo.load is not None]


def _question(
    solos: "Sequence[Solo]",
    base_bytes: int,
    total_bytes: int,
    task: Task,
    runs: Sequence[Path],
    card_name: str | None = None,
) -> "Question":
    from colocate.advice.packing import Question
    from colocate.advice.sharing import remembered
    from colocate.run_directory import RunDirectory

    known = _known(solos)
    question = Question(tuple(solo.load for solo in known if solo.load), base_bytes, task.limits.peak_bytes)
    for run in runs:
        if not run.is_dir():
            raise PlanError(f"--known: expected a run directory, got {str(run)!r}")
        question = remembered(question, known, RunDirectory(run), total_bytes, card_name)
    return question


# --- the answer -------------------------------------------------------------------------------------------------------


def _answer(
    task: Task, options: argparse.Namespace, solos: "Sequence[Solo]", question: "Question", found: "list[Measured]"
) -> int:
    from colocate.advice.packing import Fit, best_pairs, next_question, packed

    known = _known(solos)
    open_left = False
    if options.per_card == 2:
        pairs = best_pairs(question)
        # One that carried no verdict may fit all the same.
        open_left = next_question(question) is not None or any(one.fits is None for one in found)
        shared = {place for pair in pairs for place in pair}
        slots: list[tuple[int, ...]] = [*pairs, *((place,) for place in range(len(known)) if place not in shared)]
        note = _why_pairs(question, open_left)
    else:
        packing = packed(question, options.per_card)
        placed = {place for one in packing.bins for place in one}
        slots = [*packing.bins, *((place,) for place in range(len(known)) if place not in placed)]
        fewest = "no packing takes fewer" if packing.optimal else f"at least {packing.at_least} are needed"
        note = f"{len(packing.bins)} cards hold {len(placed)} trainings, at most {options.per_card} each; {fewest}"
    slots = [one for one in slots if len(one) > 1 or question.by_bounds(one) is not Fit.NO]
    slots.sort(key=lambda one: (-len(one), -question.bounds(one)[1]))
    for line in _lines(task, options, solos, question, found, slots, note):
        print(line)
    folder, why = options.out.resolve().parent, "Which trainings should share a card, by colocate pack."
    written = save(task.document("pack", why, _entries(task, known, slots, folder), folder), options.out)
    print(f"\nplan: {command.near(options.out)}: {written} groups")
    print(f"run:  pytest feasibility --plan={command.near(options.out)}")
    if len(known) < len(solos):
        return command.USAGE
    if open_left:
        return command.UNDECIDED
    return command.WELL if any(len(one) > 1 for one in slots) else command.FINDING


def _why_pairs(question: "Question", open_left: bool) -> str:
    if question.by_time:
        return "optimal: no other choice of pairs that fit saves more time"
    if open_left:
        return "optimal among the pairs that surely fit; open ones may give more"
    return "optimal: no other choice gives more pairs, whatever the open ones do"


def _lines(
    task: Task,
    options: argparse.Namespace,
    solos: "Sequence[Solo]",
    question: "Question",
    found: "list[Measured]",
    slots: Sequence[tuple[int, ...]],
    note: str,
) -> Iterator[str]:
    known = _known(solos)
    basis = solos[0].basis if solos else "predicted"
    yield f"{task.name}: {len(solos)} trainings on {format_size(task.card.total_bytes)} cards, {basis}"
    yield f"limit {format_mib(task.limits.peak_bytes)}, {format_mib(question.base_bytes)} in use before anything starts"
    yield ""
    yield SOLO_HEAD
    for solo in solos:
        yield solo_line(solo)
    yield ""
    yield from command.wrapped(_count(solos, question, found))
    yield from command.wrapped(note)
    yield ""
    rounds = ceil(len(slots) / options.cards)
    alone = ceil(len(known) / options.cards)
    yield f"{options.cards} card{'s' if options.cards > 1 else ''}, {rounds} rounds instead of {alone}"
    for number, slot in enumerate(slots):
        low, high = question.bounds(slot)
        place = f"round {number // options.cards + 1}, card {number % options.cards + 1}"
        names = " + ".join(known[one].training.name for one in slot)
        how = "measured, " if len(slot) == 2 and _pair(slot) in question.known else ""
        room = to_mib(question.limit_bytes - high)
        yield f"{place}: {names}"
        saves = f", saves {question.saved_s[slot]:.1f} s" if len(slot) == 2 and slot in question.saved_s else ""
        spare = f", {room:.0f} MiB of room" if room > 0 else ""
        yield f"    {how}{span_text(low, high)} MiB{spare}{saves}"
    if any(len(slot) > 2 for slot in slots):
        yield ""
        yield from command.wrapped("a group of a plan has two members: of more on a card the plan tries every pair")


def _pair(slot: Sequence[int]) -> "Pair":
    return (min(slot), max(slot))


def _count(solos: "Sequence[Solo]", question: "Question", found: "list[Measured]") -> str:
    from colocate.advice.packing import Fit

    cards = [solo for solo in solos if solo.training.uses_gpu]
    cached = sum(solo.cached for solo in cards)
    of_card = {place for place, solo in enumerate(_known(solos)) if solo.training.uses_gpu}
    fits = {pair: question.by_bounds(pair) for pair in question.fits if of_card.issuperset(pair)}
    num = {fit: sum(one is fit for one in fits.values()) for fit in Fit}
    total = len(of_card) * (len(of_card) - 1) // 2
    runs = f"{len(cards)} solo runs" + (f", {cached} of them remembered" if cached else "")
    text = f"{total} pairs from {runs}: {num[Fit.YES]} surely fit, {num[Fit.NO] + total - len(fits)} surely do not, "
    text += f"{num[Fit.OPEN]} open; {len(found)} of these were run"
    doubtful = sum(one.fits is None for one in found)
    if doubtful:
        text += f", {doubtful} without a verdict, which do not share"
    if len(question.known) > len(found):
        text += f", {len(question.known) - len(found)} pairs were measured in earlier runs"
    if len(cards) < len(solos):
        text += f"; {len(solos) - len(cards)} training without a card shares with any"
    return text


# --- the plan ---------------------------------------------------------------------------------------------------------


def _entries(
    task: Task, known: "Sequence[Solo]", slots: Sequence[tuple[int, ...]], folder: Path
) -> Iterator[dict[str, Any]]:
    from itertools import combinations

    from colocate.advice.sharing import rank

    for slot in slots:
        for places in combinations(slot, 2) if len(slot) > 1 else [slot]:
            chosen = sorted((known[place] for place in places), key=rank)
            front, *beside = [task.member(one.training, folder) for one in chosen]
            if beside:
                yield {
                    **task.wish,
                    "mode": "parallel",
                    "foreground": {"mode": "default", **front},
                    "background": beside[0],
                }
            else:
                yield {**task.wish, "mode": "default", **front}
