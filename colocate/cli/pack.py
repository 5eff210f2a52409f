"""``colocate pack``: which of many trainings should share a card, and a schedule that says so."""

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
from colocate.cli.training_set import CARD, DEFAULT_CATALOG, SOLO_HEAD, Task, save, solo_line, takes_epochs, takes_limit
from colocate.errors import PlanError
from colocate.units import format_mib, format_size, span_text, to_mib

if TYPE_CHECKING:
    from colocate.advice.packing import Question
    from colocate.advice.solo_profiles import Measured, Solo
    from colocate.device.acquire import Card

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
    from colocate.advice.solo_profiles import decide, known_of, measured
    from colocate.harness.attempt import Trials
    from colocate.results.attempts import settled_groups
    from colocate.results.layout import RunDirectory

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
            question, found = decide(question, known_of(solos), trials, task.limits, options.measure, tell)
        finally:
            run.release()
    return _answer(task, options, solos, question, found)


def _question(
    solos: "Sequence[Solo]",
    base_bytes: int,
    total_bytes: int,
    task: Task,
    runs: Sequence[Path],
    card_name: str | None = None,
) -> "Question":
    from colocate.advice.packing import Question
    from colocate.advice.solo_profiles import known_of, remembered
    from colocate.results.layout import RunDirectory

    known = known_of(solos)
    question = Question(tuple(solo.load for solo in known if solo.load), base_bytes, task.limits.peak_bytes)
    for run in runs:
        if not run.is_dir():
            raise PlanError(f"--known: expected a run directory, got {str(run)!r}")
        question = remembered(question, known, RunDirectory(run), total_bytes, card_name)
    return question


# --- the answer -------------------------------------------------------------------------------------------------------

Slot = tuple[int, ...]
"""The trainings of one card at one time, as places among those whose need is known."""


@dataclass(frozen=True)
class Schedule:
    """What is known of the trainings, and which of them share a card.

    ``open_left`` says that open pairs may still change it.
    """

    task: Task
    solos: "Sequence[Solo]"
    question: "Question"
    found: "Sequence[Measured]"
    slots: Sequence[Slot]
    note: str
    open_left: bool = False

    @cached_property
    def known(self) -> "list[Solo]":
        """The trainings whose need is known: slots are places in this list."""
        from colocate.advice.solo_profiles import known_of

        return known_of(self.solos)

    @property
    def exit_code(self) -> int:
        """What the command comes to."""
        if len(self.known) < len(self.solos):
            return command.USAGE
        if self.open_left:
            return command.UNDECIDED
        return command.WELL if any(len(slot) > 1 for slot in self.slots) else command.FINDING


def _answer(
    task: Task, options: argparse.Namespace, solos: "Sequence[Solo]", question: "Question", found: "Sequence[Measured]"
) -> int:
    found_by = _in_pairs if options.per_card == 2 else _in_bins
    slots, note, open_left = found_by(question, found, options.per_card)
    schedule = Schedule(task, solos, question, found, _in_order(question, slots), note, open_left)
    for line in _lines(schedule, options.cards):
        print(line)
    folder, why = options.out.resolve().parent, "Which trainings should share a card, by colocate pack."
    written = save(task.document("pack", why, _entries(schedule, folder), folder), options.out)
    print()
    command.tell_plan(options.out, f"{written} groups")
    return schedule.exit_code


def _in_pairs(question: "Question", found: "Sequence[Measured]", per_card: int) -> tuple[list[Slot], str, bool]:
    """The best pairs, why they are the best, and whether open pairs may give more."""
    from colocate.advice.packing import best_pairs, next_question

    # One that carried no verdict may fit all the same.
    open_left = next_question(question) is not None or any(one.fits is None for one in found)
    if question.by_time:
        note = "optimal: no other choice of pairs that fit saves more time"
    elif open_left:
        note = "optimal among the pairs that surely fit; open ones may give more"
    else:
        note = "optimal: no other choice gives more pairs, whatever the open ones do"
    return list(best_pairs(question)), note, open_left


def _in_bins(question: "Question", found: "Sequence[Measured]", per_card: int) -> tuple[list[Slot], str, bool]:
    """The same for more than two a card, by their sizes alone."""
    from colocate.advice.packing import packed

    packing = packed(question, per_card)
    fewest = "no packing takes fewer" if packing.optimal else f"at least {packing.at_least} are needed"
    held = sum(map(len, packing.bins))
    note = f"{len(packing.bins)} cards hold {held} trainings, at most {per_card} each; {fewest}"
    return list(packing.bins), note, False


def _in_order(question: "Question", slots: Sequence[Slot]) -> list[Slot]:
    """The slots and, on a card of its own, every training in none of them that may fit: the fullest first."""
    from colocate.advice.forecast import Answer

    placed = {place for slot in slots for place in slot}
    rest = [(place,) for place in range(len(question.loads)) if place not in placed]
    alone = [slot for slot in rest if question.by_bounds(slot) is not Answer.DOES_NOT_FIT]
    return sorted([*slots, *alone], key=lambda slot: (-len(slot), -question.peak(slot).high_bytes))


def _lines(schedule: Schedule, num_cards: int) -> Iterator[str]:
    task, solos, question, slots = schedule.task, schedule.solos, schedule.question, schedule.slots
    basis = solos[0].basis if solos else "predicted"
    yield f"{task.name}: {len(solos)} trainings on {format_size(task.card.total_bytes)} cards, {basis}"
    yield f"limit {format_mib(task.limits.peak_bytes)}, {format_mib(question.base_bytes)} in use before anything starts"
    yield ""
    yield SOLO_HEAD
    for solo in solos:
        yield solo_line(solo)
    yield ""
    yield from command.wrapped(_count(schedule))
    yield from command.wrapped(schedule.note)
    yield ""
    rounds, alone = ceil(len(slots) / num_cards), ceil(len(schedule.known) / num_cards)
    yield f"{num_cards} card{'s' if num_cards > 1 else ''}, {rounds} rounds instead of {alone}"
    for number, slot in enumerate(slots):
        names = " + ".join(schedule.known[place].training.name for place in slot)
        yield f"round {number // num_cards + 1}, card {number % num_cards + 1}: {names}"
        yield f"    {_figures(question, slot)}"
    if any(len(slot) > 2 for slot in slots):
        yield ""
        yield from command.wrapped("a group of a plan has two members: of more on a card the plan tries every pair")


def _figures(question: "Question", slot: Slot) -> str:
    """What the trainings of a card take together, what is left, and what sharing saves."""
    peak, pair = question.peak(slot), (min(slot), max(slot))
    how = "measured, " if len(slot) == 2 and pair in question.known else ""
    room = to_mib(question.limit_bytes - peak.high_bytes)
    spare = f", {room:.0f} MiB of room" if room > 0 else ""
    saves = f", saves {question.saved_s[pair]:.1f} s" if len(slot) == 2 and pair in question.saved_s else ""
    return f"{how}{span_text(peak.low_bytes, peak.high_bytes)} MiB{spare}{saves}"


def _count(schedule: Schedule) -> str:
    from colocate.advice.forecast import Answer

    solos, question, found = schedule.solos, schedule.question, schedule.found
    cards = [solo for solo in solos if solo.training.uses_gpu]
    cached = sum(solo.cached for solo in cards)
    of_card = {place for place, solo in enumerate(schedule.known) if solo.training.uses_gpu}
    answers = Counter(question.by_bounds(pair) for pair in question.answers if of_card.issuperset(pair))
    fit, open_ = answers[Answer.FITS], answers[Answer.UNDECIDED]
    total = len(of_card) * (len(of_card) - 1) // 2
    runs = f"{len(cards)} solo runs" + (f", {cached} of them remembered" if cached else "")
    text = f"{total} pairs from {runs}: {fit} surely fit, {total - fit - open_} surely do not, {open_} open; "
    text += f"{len(found)} of these were run"
    doubtful = sum(one.fits is None for one in found)
    if doubtful:
        text += f", {doubtful} without a verdict, which do not share"
    if len(question.known) > len(found):
        text += f", {len(question.known) - len(found)} pairs were measured in earlier runs"
    if len(cards) < len(solos):
        text += f"; {len(solos) - len(cards)} training without a card shares with any"
    return text


# --- the plan ---------------------------------------------------------------------------------------------------------


def _entries(schedule: Schedule, folder: Path) -> Iterator[dict[str, Any]]:
    from itertools import combinations

    from colocate.advice.solo_profiles import rank

    task, known = schedule.task, schedule.known
    for slot in schedule.slots:
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
