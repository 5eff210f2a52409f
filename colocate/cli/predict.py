# SPDX-License-Identifier: Apache-2.0
"""``colocate predict``: what trainings will need of a GPU, without a GPU."""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

from colocate.cli import common as command
from colocate.cli import predict_text as words
from colocate.cli.arguments import DEFAULT_PLAN, EFFORT, EFFORTS, whole
from colocate.cli.predict_request import PredictRequest
from colocate.errors import PlanError

if TYPE_CHECKING:
    from colocate.advice import Forecast
    from colocate.plan import GpuModel, Group, Training

EPILOG = """\
examples:
  colocate predict                                   every group of the plan
  colocate predict settings/my_plan.json -k group12
  colocate predict -- python train.py --batch-size 64
  colocate predict -t pcb --batch-size 8,16,32,64    a curve
  colocate predict --vary=--bs --batch-size 8,16 -- python train.py

exit codes: 0 all of it fits, 1 some of it does not, 3 undecided (the interval
lies across the limit, or not all was seen) or not predicted, 2 wrong input
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands, run, "predict", "Predict what trainings need of a GPU, and whether they fit; needs no GPU.", EPILOG
    )
    parser.add_argument("words", nargs="*", metavar="PLAN | -- COMMAND", help=f"a plan ({DEFAULT_PLAN}), or a program")
    parser.add_argument("-k", "--group", action="append", metavar="NAME", help="only groups of this id or training")
    parser.add_argument("-t", "--training", metavar="NAME", help="only this training of the plan, alone")
    parser.add_argument("--gpu", metavar="GPU", help="a size, or a name of settings/gpu_models.json (the plan's size)")
    parser.add_argument("--batch-size", type=sizes, metavar="N,N,...", help="predict for each of these batch sizes")
    parser.add_argument(
        "--vary", metavar="FLAG", help="the option of a COMMAND that sets its batch size (--batch-size)"
    )
    parser.add_argument("--effort", choices=EFFORTS, help="how far dry runs go; full: every pass whole (normal)")
    command.takes_dry_runs(parser)
    command.takes_json(parser)


def sizes(text: str) -> list[int]:
    """Batch sizes of ``8,16,32``.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    return [whole(word.strip()) for word in text.split(",")]


def run(options: argparse.Namespace) -> int:
    """A table or JSON; the exit code says what fits."""
    if options.effort:
        os.environ[EFFORT] = options.effort
    if options.vary and not options.vary.startswith("-"):
        raise PlanError(f"--vary: expected an option such as --batch-size, got {options.vary!r}")
    request = PredictRequest.of(options)
    if options.batch_size:
        return _curve(request)
    if request.command is not None or options.training is not None:
        return _programs(request)
    return _groups(request)


# --- the three questions ----------------------------------------------------------------------------------------------


def _groups(request: PredictRequest) -> int:
    assert request.plan is not None
    started = time.monotonic()
    groups = request.groups(request.options.group)
    predictions = list(_by_gpu(request, groups))
    forecasts = [forecast for one in predictions for forecast in one.forecasts]
    names = {group.id: " + ".join(one.name for one in group.trainings) for group in groups}
    if request.options.json:
        print(json.dumps(words.document(predictions), indent=2))
    else:
        for one in predictions:
            _show([*_of_one_gpu(request.plan.name, one, names), ""])
        dry_runs = [dry_run for one in predictions for dry_run in one.dry_runs]
        cached = sum(one.cached for one in dry_runs)
        took = f"{time.monotonic() - started:.0f} s, {cached} of {len(dry_runs)} trainings from the cache"
        _show([*words.not_modelled(forecasts), "", took])
    return _exit_code(forecasts)


def _by_gpu(request: PredictRequest, groups: "Sequence[Group]") -> "Iterator[words.Predicted]":
    """The groups by the GPUs that they are for, each on its own; those that are refused stand with the first."""
    from colocate.advice import Forecast, forecast, needed, program_of

    own: dict[GpuModel | None, list[Group]] = {}
    for group in groups:
        own.setdefault(request.gpu_for(group), []).append(group)
    refused = [
        Forecast(group.id, (), 0, group.limits.peak_bytes, f"{group.id} {request.why_not(group)}")
        for group in own.pop(None, ())
    ]
    if not own:
        yield words.Predicted(request.gpu, [], refused)
    for gpu, some in own.items():
        assert gpu is not None
        programs = [program_of(training) for training in needed(some)]
        dry_runs = request.simulated(programs, gpu)
        known = request.predictors[gpu].known
        found = [forecast(group, known, gpu.baseline_bytes, request.limit_for(group)) for group in some]
        yield words.Predicted(gpu, dry_runs, [*found, *refused])
        refused = []


def _of_one_gpu(plan: str, one: "words.Predicted", names: dict[str, str]) -> list[str]:
    """Title, trainings, groups, and what they rest on."""
    limit_bytes, _ = Counter(forecast.limit_bytes for forecast in one.forecasts).most_common(1)[0]
    trainings = [*words.training_table(one.dry_runs), ""] if one.dry_runs else []
    return [
        words.title(one.gpu, limit_bytes, plan),
        "",
        *trainings,
        *words.group_table(one.forecasts, names),
        *words.other_limits(one.forecasts, limit_bytes),
        "",
        *words.explained(one.dry_runs, one.forecasts),
    ]


def _programs(request: PredictRequest) -> int:
    from colocate.advice import Forecast, program_of

    program = request.command or program_of(request.training(request.options.training))
    (dry_run,) = request.simulated([program])
    alone = Forecast(dry_run.name, (dry_run,), request.gpu.baseline_bytes, request.limit_bytes)
    if request.options.json:
        print(json.dumps(words.document([words.Predicted(request.gpu, [dry_run], [alone])]), indent=2))
    else:
        title = words.title(request.gpu, request.limit_bytes, dry_run.name)
        _show([title, "", *words.parts_of(dry_run), *words.total(alone), ""])
        _show([*words.explained([dry_run], [alone]), *words.not_modelled([alone])])
    return _exit_code([alone])


def _curve(request: PredictRequest) -> int:
    from colocate.advice import Answer, Forecast, program_of
    from colocate.plan import with_flag

    options = request.options
    if request.command is None and not options.training:
        raise PlanError("-t: expected the training whose batch size is to vary, got none")
    training = None if request.command else request.training(options.training)
    program = request.command or program_of(training)  # type: ignore[arg-type]
    flag = _batch_option(request, training)
    programs = [replace(program, argv=with_flag(program.argv, flag, size)) for size in options.batch_size]
    curve = {
        size: Forecast(str(size), (one,), request.gpu.baseline_bytes, request.limit_bytes)
        for size, one in sorted(zip(options.batch_size, request.simulated(programs), strict=True), key=itemgetter(0))
    }
    if options.json:
        document = words.document([words.Predicted(request.gpu, [], list(curve.values()))])
        print(json.dumps({**document, "flag": flag}, indent=2))
    else:
        _show([words.title(request.gpu, request.limit_bytes, program.name), "", *words.curve_table(curve), ""])
        _show(words.explained([one.members[0] for one in curve.values()][:1], curve.values()))
        _show(words.not_modelled(curve.values()))
    unknown = any(one.answer is Answer.UNKNOWN for one in curve.values())
    return command.UNDECIDED if unknown else command.SUCCESS


def _batch_option(request: PredictRequest, training: "Training | None") -> str:
    """The option that sets the batch size."""
    if request.options.vary or training is None or training.repository is None or training.model is None:
        return request.options.vary or "--batch-size"
    assert request.plan is not None
    catalog = request.plan.load_catalog()
    assert catalog is not None, "a training of a catalog"
    kind = catalog.supported(training.repository, training.model).get("batch_size")
    if kind is None or kind.flag is None:
        raise PlanError(f"--batch-size: expected a training with that hyperparameter, {training.name} has none")
    return kind.flag


def _show(lines: "Iterable[str]") -> None:
    print("\n".join(lines))


def _exit_code(forecasts: "Iterable[Forecast]") -> int:
    from colocate.advice import Answer

    known = list(forecasts)
    answers = {one.answer for one in known}
    if any(one.refused for one in known):
        return command.WRONG_INPUT
    if Answer.DOES_NOT_FIT in answers:
        return command.CHECK_FAILED
    return command.SUCCESS if answers <= {Answer.FITS} else command.UNDECIDED
