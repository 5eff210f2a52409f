"""``colocate predict``: what trainings will need of a card, without a GPU."""

import argparse
import json
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.cli import common as command
from colocate.cli import predict_text as words
from colocate.cli.arguments import DEFAULT_PLAN, whole
from colocate.cli.progress import Progress
from colocate.errors import PlanError

if TYPE_CHECKING:
    from colocate.advice.forecast import Forecast
    from colocate.harness.simulation import Cache, Program, Rehearsal
    from colocate.plan.catalog import Training
    from colocate.plan.gpu_models import KnownCard
    from colocate.plan.plan import Group, Plan

MOST_SAMPLES = 1 << 16  # a larger batch is not looked for

EPILOG = """\
examples:
  colocate predict                                   every group of the plan
  colocate predict settings/my_plan.json -k group12
  colocate predict -- python train.py --batch-size 64
  colocate predict -t pcb --batch-size 8,16,32,64    a curve
  colocate predict -t pcb --largest-batch --beside mnist_rnn
  colocate predict --vary=--bs --batch-size 8,16 -- python train.py

exit codes: 0 all of it fits, 1 some of it does not, 3 undecided (the interval
lies across the limit), 2 wrong input, or a program that cannot be predicted
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands, "predict", "Predict what trainings need of a card, and whether they fit; needs no GPU.", EPILOG
    )
    parser.add_argument("words", nargs="*", metavar="PLAN | -- COMMAND", help=f"a plan ({DEFAULT_PLAN}), or a program")
    parser.add_argument("-k", "--group", action="append", metavar="NAME", help="only groups of this id or training")
    parser.add_argument("-t", "--training", metavar="NAME", help="only this training of the plan, alone")
    parser.add_argument("--card", metavar="CARD", help="a size, or a name of settings/cards.json (the plan's size)")
    parser.add_argument("--batch-size", type=sizes, metavar="N,N,...", help="predict for each of these batch sizes")
    parser.add_argument("--largest-batch", action="store_true", help="find the largest batch that fits")
    parser.add_argument("--beside", metavar="NAME", help="a group or training of the plan that holds the card too")
    parser.add_argument(
        "--vary", metavar="FLAG", help="the option of a COMMAND that sets its batch size (--batch-size)"
    )
    command.takes_rehearsals(parser)
    command.takes_json(parser)
    parser.set_defaults(run=run)


def sizes(text: str) -> list[int]:
    """Batch sizes of ``8,16,32``.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    return [whole(word.strip()) for word in text.split(",")]


def run(options: argparse.Namespace) -> int:
    """A table or JSON; the exit code says what fits."""
    if options.vary and not options.vary.startswith("-"):
        raise PlanError(f"--vary: expected an option such as --batch-size, got {options.vary!r}")
    question = Question.of(options)
    if options.batch_size or options.largest_batch:
        return _curve(question)
    if question.command is not None or options.training is not None:
        return _programs(question)
    return _groups(question)


@dataclass
class Question:
    """What is asked: about a plan's groups, one of its trainings, or a command; on which card, below which limit."""

    options: argparse.Namespace
    card: "KnownCard"
    limit_bytes: int
    plan: "Plan | None"
    command: "Program | None"
    cache: "Cache | None"
    known: "dict[tuple[KnownCard, Program], Rehearsal]" = field(default_factory=dict)

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Question":
        """The question behind the options.

        Raises:
            PlanError: plan, card or command cannot be used.
        """
        from colocate.plan.gpu_models import card_of_size, known_card
        from colocate.plan.plan import load_plan

        given = options.words
        is_plan = not given or (len(given) == 1 and given[0].endswith(".json"))
        path = Path(given[0]) if given and is_plan else DEFAULT_PLAN
        wants_plan = is_plan or options.beside is not None
        plan = load_plan(path) if wants_plan else None
        program = None if is_plan else _program(given)
        if options.card:
            card = known_card(options.card)
        else:
            card = card_of_size(plan.limits.card_bytes) if plan else known_card("8GB")
        of_plan = plan is not None and card.total_bytes == plan.limits.card_bytes
        limit_bytes = plan.limits.peak_bytes if plan and of_plan else card.total_bytes
        question = cls(options, card, limit_bytes, plan, program, command.cache(options))
        return question._of_the_group_beside() if options.beside and not options.card else question

    def _of_the_group_beside(self) -> "Question":
        """The same, about the card that the group of ``--beside`` asks for.

        Raises:
            PlanError: too little is known of that card.
        """
        group = next(iter(_groups_called(self, self.options.beside)), None)
        if group is None or group.card is None:
            return self
        card = self.card_for(group)
        if card is None:
            raise PlanError(f"{group.id}: {self.why_not(group)}; name one with --card")
        return replace(self, card=card, limit_bytes=self.limit_for(group))

    def card_for(self, group: "Group") -> "KnownCard | None":
        """The card that a run on virtual ones has for a group; None where that is refused."""
        from colocate.device.acquire import Card, as_asked

        own = Card("virtual", total_bytes=self.card.total_bytes, name=self.card.name, given=bool(self.options.card))
        found = as_asked(own, group.card)
        return None if found is None else found.figures

    def limit_for(self, group: "Group") -> int:
        """The group's own limit, as in a run; the whole of a card that ``--card`` puts in the place of the plan's."""
        assert self.plan is not None
        own = group.card is not None or self.card.total_bytes == self.plan.limits.card_bytes
        return group.limits.peak_bytes if own else self.limit_bytes

    def why_not(self, group: "Group") -> str:
        """Why there is no card for a group."""
        if self.options.card:
            return f"is for a card {group.card!r} and not for a {self.card.name}"
        return f"is for a card {group.card!r}, which is not in settings/cards.json"

    def rehearsed(self, programs: "Iterable[Program]", card: "KnownCard | None" = None) -> "list[Rehearsal]":
        """The programs' rehearsals on a card, that of the question without one; run now unless they are known."""
        from colocate.advice.forecast import keyed
        from colocate.harness.simulation import rehearse

        card = card or self.card
        wanted = [(card, keyed(program)) for program in programs]
        new = [one for one in dict.fromkeys(wanted) if one not in self.known]
        with Progress(len(new), sys.stderr) as progress:
            found = rehearse(
                [program for _, program in new],
                card,
                cache=self.cache,
                timeout_s=self.options.timeout,
                tell=progress.tell,
            )
        self.known.update(zip(new, found, strict=True))
        return [self.known[one] for one in wanted]

    def title(self, name: str) -> str:
        """The first line of an answer."""
        return words.title(self.card, self.limit_bytes, name)

    def document(self, rehearsals: "Iterable[Rehearsal]", forecasts: "Iterable[Forecast]") -> dict[str, Any]:
        """The answer as JSON types."""
        return words.document([words.Predicted(self.card, list(rehearsals), list(forecasts))])

    def training(self, name: str) -> "Training":
        """The training of the plan that a name means.

        Raises:
            PlanError: none, or several different ones.
        """
        assert self.plan is not None
        trainings = {one.argv: one for group in self.plan.groups for one in group.trainings}
        found = [one for one in trainings.values() if name in (one.name, one.model)]
        found = found or [one for one in trainings.values() if name.lower() in one.name.lower()]
        if len(found) != 1:
            names = ", ".join(sorted({one.name for one in found or trainings.values()}))
            raise PlanError(f"training: expected one of {names}, got {name!r}")
        return found[0]

    def groups(self, names: Sequence[str] | None) -> "list[Group]":
        """The plan's groups of these ids or trainings; all without names.

        Raises:
            PlanError: a name means none.
        """
        assert self.plan is not None
        if not names:
            return list(self.plan.groups)
        found: list[Group] = []
        for name in (word for text in names for word in text.split(",")):
            matching = [group for group in self.plan.groups if _means(name, group)]
            if not matching:
                raise PlanError(f"-k: expected a group or training of {self.plan.name}, got {name!r}")
            found += [group for group in matching if group not in found]
        return found


def _means(name: str, group: "Group") -> bool:
    number = name.removeprefix("group").lstrip("_-0")
    if number.isdecimal():
        return group.number == int(number)
    trainings = [word for one in group.trainings for word in (one.name, one.model or one.name)]
    return name in (group.id, group.tier, *trainings)


def _program(words: Sequence[str]) -> "Program":
    from colocate.harness.simulation import Program

    executable = shutil.which(words[0])
    if executable is None:
        raise PlanError(f"command: expected a program, got {words[0]!r}; is it installed?")
    return Program(shlex.join(words), (executable, *words[1:]), Path.cwd())


# --- the three questions ----------------------------------------------------------------------------------------------


def _groups(question: Question) -> int:
    assert question.plan is not None
    started = time.monotonic()
    groups = question.groups(question.options.group)
    predictions = list(_by_card(question, groups))
    forecasts = [forecast for one in predictions for forecast in one.forecasts]
    names = {group.id: " + ".join(one.name for one in group.trainings) for group in groups}
    if question.options.json:
        print(json.dumps(words.document(predictions), indent=2))
    else:
        for one in predictions:
            _show([*_of_one_card(question.plan.name, one, names), ""])
        rehearsals = [rehearsal for one in predictions for rehearsal in one.rehearsals]
        cached = sum(one.cached for one in rehearsals)
        took = f"{time.monotonic() - started:.0f} s, {cached} of {len(rehearsals)} trainings from the cache"
        _show([*words.not_modelled(forecasts), "", took])
    return _exit_code(forecasts)


def _by_card(question: Question, groups: "Sequence[Group]") -> "Iterator[words.Predicted]":
    """The groups by the cards that they are for, each on its own; those that are refused stand with the first."""
    from colocate.advice.forecast import Forecast, forecast, keyed, needed, program_of

    own: dict[KnownCard | None, list[Group]] = {}
    for group in groups:
        own.setdefault(question.card_for(group), []).append(group)
    refused = [
        Forecast(group.id, (), 0, group.limits.peak_bytes, f"{group.id} {question.why_not(group)}")
        for group in own.pop(None, ())
    ]
    if not own:
        yield words.Predicted(question.card, [], refused)
    for card, some in own.items():
        assert card is not None
        programs = [program_of(training) for training in needed(some)]
        rehearsals = question.rehearsed(programs, card)
        known = {keyed(program): one for program, one in zip(programs, rehearsals, strict=True)}
        found = [forecast(group, known, card.baseline_bytes, question.limit_for(group)) for group in some]
        yield words.Predicted(card, rehearsals, [*found, *refused])
        refused = []


def _of_one_card(plan: str, one: "words.Predicted", names: dict[str, str]) -> list[str]:
    """Title, trainings, groups, and what they rest on."""
    limit_bytes, _ = Counter(forecast.limit_bytes for forecast in one.forecasts).most_common(1)[0]
    trainings = [*words.training_table(one.rehearsals), ""] if one.rehearsals else []
    return [
        words.title(one.card, limit_bytes, plan),
        "",
        *trainings,
        *words.group_table(one.forecasts, names),
        *words.other_limits(one.forecasts, limit_bytes),
        "",
        *words.explained(one.rehearsals, one.forecasts),
    ]


def _programs(question: Question) -> int:
    from colocate.advice.forecast import Forecast, program_of

    program = question.command or program_of(question.training(question.options.training))
    (rehearsal,) = question.rehearsed([program])
    beside = _beside(question)
    alone = Forecast(rehearsal.name, (rehearsal, *beside), question.card.baseline_bytes, question.limit_bytes)
    if question.options.json:
        print(json.dumps(question.document([rehearsal, *beside], [alone]), indent=2))
    else:
        _show(
            [
                question.title(rehearsal.name),
                "",
                *words.parts_of(rehearsal),
                *(words.line_of(one) for one in beside),
            ]
        )
        _show([*words.total(alone), "", *words.explained([rehearsal, *beside], [alone]), *words.not_modelled([alone])])
    return _exit_code([alone])


@dataclass(frozen=True)
class Batches:
    """A program at any batch size, and what holds the card beside it."""

    question: Question
    program: "Program"
    flag: str
    beside: "list[Rehearsal]"

    def at(self, sizes: Sequence[int]) -> "dict[int, Forecast]":
        """What is predicted for each of these sizes."""
        from colocate.advice.forecast import Forecast
        from colocate.plan.overrides import with_flag

        programs = [replace(self.program, argv=with_flag(self.program.argv, self.flag, size)) for size in sizes]
        base_bytes, limit_bytes = self.question.card.baseline_bytes, self.question.limit_bytes
        return {
            size: Forecast(str(size), (one, *self.beside), base_bytes, limit_bytes)
            for size, one in zip(sizes, self.question.rehearsed(programs), strict=True)
        }

    @property
    def title(self) -> str:
        """The program with what is beside it."""
        return " beside ".join(filter(None, (self.program.name, " + ".join(one.name for one in self.beside))))


def _curve(question: Question) -> int:
    from colocate.advice.bisection import largest_batch
    from colocate.advice.forecast import Answer, program_of

    options = question.options
    if question.command is None and not options.training:
        raise PlanError("-t: expected the training whose batch size is to vary, got none")
    training = None if question.command else question.training(options.training)
    program = question.command or program_of(training)  # type: ignore[arg-type]
    flag, first = _batch_option(question, training)
    batches = Batches(question, program, flag, _beside(question))
    asked = batches.at(options.batch_size) if options.batch_size else {}

    def fits(size: int) -> Answer:
        asked.update(batches.at([size]))
        return asked[size].answer

    best = largest_batch(fits, first, MOST_SAMPLES) if options.largest_batch else None
    curve = dict(sorted(asked.items()))
    if options.json:
        document = question.document([], curve.values())
        print(json.dumps({**document, "flag": flag, "largest_batch": best}, indent=2))
    else:
        _show([question.title(batches.title), "", *words.curve_table(curve), ""])
        if options.largest_batch:
            _show([f"largest batch that fits: {best if best is not None else 'none'}", ""])
        _show(words.explained([one.members[0] for one in curve.values()][:1], curve.values()))
        _show(words.not_modelled(curve.values()))
    if any(one.answer is Answer.UNKNOWN for one in curve.values()):
        return command.USAGE
    return command.FINDING if options.largest_batch and best is None else command.WELL


def _batch_option(question: Question, training: "Training | None") -> tuple[str, int]:
    """The option that sets the batch size, and the size where a search begins."""
    if question.options.vary or training is None:
        return question.options.vary or "--batch-size", 32
    assert question.plan is not None
    first = training.hyperparameters.get("batch_size", 32)
    start = first if isinstance(first, int) else 32
    if training.repository is None or training.model is None:
        return "--batch-size", start
    catalog = question.plan.load_catalog()
    assert catalog is not None, "a training of a catalog"
    kind = catalog.supported(training.repository, training.model).get("batch_size")
    if kind is None or kind.flag is None:
        raise PlanError(f"--batch-size: expected a training with that hyperparameter, {training.name} has none")
    return kind.flag, start


def _beside(question: Question) -> "list[Rehearsal]":
    """The background: a training of the plan, or all of a group's."""
    from colocate.advice.forecast import program_of

    name: str | None = question.options.beside
    if name is None:
        return []
    assert question.plan is not None
    trainings = [one for group in _groups_called(question, name) for one in group.trainings]
    trainings = trainings or [question.training(name)]
    return question.rehearsed(program_of(one) for one in trainings if one.uses_gpu)


def _groups_called(question: Question, name: str) -> "list[Group]":
    """The groups that a word means which begins as their ids do."""
    assert question.plan is not None
    return [group for group in question.plan.groups if name.startswith("group") and _means(name, group)]


def _show(lines: "Iterable[str]") -> None:
    print("\n".join(lines))


def _exit_code(forecasts: "Iterable[Forecast]") -> int:
    from colocate.advice.forecast import Answer

    answers = {one.answer for one in forecasts}
    if Answer.UNKNOWN in answers:
        return command.USAGE
    if Answer.DOES_NOT_FIT in answers:
        return command.FINDING
    return command.UNDECIDED if Answer.UNDECIDED in answers else command.WELL
