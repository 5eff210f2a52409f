# SPDX-License-Identifier: Apache-2.0
"""Learn what trainings take alone, predicted or measured, and measure the few pairs that only a run decides.

Runs programs through `colocate.harness.simulation` and `colocate.harness.attempt`; what follows from the figures is
`colocate.advice.packing`'s business.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from colocate.advice.forecast import keyed, program_of
from colocate.advice.packing import Load, PackingProblem, Pair, next_problem
from colocate.advice.solo_runs import read_speedup
from colocate.advice.speedup import SoloRun, compare, solo_run_of, why_not
from colocate.device import Basis
from colocate.harness import AttemptRunner, Cache, SimulatedRun, Watcher, simulate
from colocate.plan import Catalog, GpuModel, Group, Limits, Mistakes, Plan, Training, solo_group
from colocate.results import Attempt, RunDirectory, group_results, read_energy, read_record
from colocate.verdict import Evidence, Outcome, PeakRange, Verdict, foreground_window, measured_peak

Tell = Callable[[str], None]


@dataclass(frozen=True)
class SoloProfile:
    """A training alone: what it takes, or why that is not known; whether that was remembered from an earlier call.

    ``solo_run`` is how fast it was, where it was run on a GPU. ``least_bytes`` is what it cannot do with less of,
    even if it gives its cache back in time; None where nobody knows.
    """

    training: Training
    load: Load | None
    basis: Basis
    why: str | None = None
    cached: bool = False
    solo_run: SoloRun | None = None
    least_bytes: int | None = None


@dataclass(frozen=True)
class Measured:
    """Run a pair: whether it fits, or None if its evidence carried no verdict."""

    fits: bool | None
    attempt: Attempt


def of_catalog(catalog: Catalog, epochs: int) -> list[Training]:
    """Every model of a catalog as it is without any hyperparameter but the number of epochs.

    Raises:
        PlanError: a training cannot be made.
    """
    mistakes = Mistakes(str(catalog.path))
    found: list[Training] = []
    for name, repository in catalog.repositories.items():
        for model in repository.models:
            given = {"epochs": epochs} if "epochs" in catalog.supported(name, model) else {}
            training = catalog.training(name, model, given, (), mistakes)
            found += [training] if training else []
    mistakes.raise_if_any()
    return found


def of_plan(plan: Plan) -> list[Training]:
    """The different trainings of a plan, in order of their first appearance."""
    return list({keyed(program_of(one)): one for group in plan.groups for one in group.trainings}.values())


def predicted(
    trainings: Sequence[Training], gpu: GpuModel, *, cache: Cache | None, timeout_s: float, tell: Watcher
) -> list[SoloProfile]:
    """Predict each training by a dry run; one that does not use a GPU takes nothing of it.

    Raises:
        TrainingError: a program could not be started.
    """
    programs = {place: program_of(one) for place, one in enumerate(trainings) if one.uses_gpu and not one.missing}
    found = simulate(list(programs.values()), gpu, cache=cache, timeout_s=timeout_s, tell=tell)
    simulated = dict(zip(programs, found, strict=True))
    return [
        _unused(training, "predicted")
        if not training.uses_gpu or training.missing
        else _simulated(training, simulated[place], gpu)
        for place, training in enumerate(trainings)
    ]


def _simulated(training: Training, found: SimulatedRun, gpu: GpuModel) -> SoloProfile:
    peak = found.peak
    if peak is not None and found.doubts:  # it may need more than was seen: no sum with it fits
        peak = replace(peak, high_bytes=max(peak.high_bytes, gpu.total_bytes))
    load = None if peak is None else Load(peak, peak.low_bytes)
    return SoloProfile(training, load, "predicted", found.failure, found.cached, least_bytes=_least_bytes(found, gpu))


def _least_bytes(dry_run: SimulatedRun, gpu: GpuModel) -> int | None:
    """Its floor with the smallest context, where that is less than the lower end of its peak."""
    if dry_run.peak is None:
        return None
    if dry_run.floor_bytes is None or dry_run.parts is None:
        return dry_run.peak.low_bytes
    context = dry_run.parts.context
    smaller = context - context * gpu.context_range_bytes[0] // gpu.context_bytes
    return min(dry_run.floor_bytes - smaller, dry_run.peak.low_bytes)


def measured(trainings: Sequence[Training], trials: AttemptRunner, limits: Limits, tell: Tell) -> list[SoloProfile]:
    """Measure one epoch of each training alone on the GPU.

    Raises:
        DeviceError: the GPU cannot be had.
        OSError: a record cannot be written.
        ColocateError: there is no room for it.
    """
    return list(_measured(trainings, trials, limits, tell))


def _measured(
    trainings: Sequence[Training], trials: AttemptRunner, limits: Limits, tell: Tell
) -> Iterator[SoloProfile]:
    for number, training in enumerate(trainings, start=1):
        if not training.uses_gpu or training.missing:
            yield _unused(training, "measured")
            continue
        group = solo_group(training, Group(f"solo{number:02}", number, training, None, limits))
        attempt = trials.attempt(group)
        evidence = read_record(attempt.directory).evidence
        load = load_of(evidence)
        why = None if load is not None and tells_its_need(attempt.verdict) else f"alone: {attempt.verdict}"
        tell(f"{training.name} alone: {why or 'done'}")
        pace = solo_run_of(evidence, read_energy(attempt.directory.energy), str(attempt.directory.path))
        yield SoloProfile(
            training,
            load if why is None else None,
            evidence.device.basis,
            why,
            solo_run=None if isinstance(pace, str) else pace,
        )


def tells_its_need(verdict: Verdict) -> bool:
    """A run alone whose peak can be relied on: whole and undisturbed, even where it is too high for the limit."""
    return set(verdict.codes) <= {"peak_over_limit", "peak_between_samples"}


def _unused(training: Training, basis: Basis) -> SoloProfile:
    """Describe a training that takes nothing of the GPU, or that cannot be run."""
    nothing = None if training.missing else Load(PeakRange(0, 0, 0), 0)
    return SoloProfile(training, nothing, basis, training.missing, least_bytes=None if training.missing else 0)


def load_of(evidence: Evidence) -> Load | None:
    """Return what a training took alone: its peak without the baseline, and the least while it trained."""
    peak, window, base = measured_peak(evidence), foreground_window(evidence), evidence.baseline_bytes
    if peak is None or window is None or base is None:
        return None
    inside = [one.used_bytes for one in evidence.trace.samples if window[0] <= one.elapsed_s <= window[1]]
    low, expected, high, floor = (
        max(0, size - base)
        for size in (peak.low_bytes, peak.expected_bytes, peak.high_bytes, min(inside, default=base))
    )
    return Load(PeakRange(low, expected, high), min(floor, low))


def known_of(solos: Sequence[SoloProfile]) -> list[SoloProfile]:
    """Return the trainings whose need is known."""
    return [solo for solo in solos if solo.load is not None]


def as_group(solos: Sequence[SoloProfile], places: Sequence[int], number: int, limits: Limits) -> Group:
    """Make a group of one or two trainings; the one that takes more GPU memory is the foreground."""
    chosen = sorted((solos[place] for place in places), key=rank)
    front, *beside = [one.training for one in chosen]
    return Group(f"pair{number:02}", number, front, beside[0] if beside else None, limits)


def rank(solo: SoloProfile) -> tuple[bool, int]:
    """Rank a training as foreground: it uses the GPU, and takes the most of it."""
    return (not solo.training.uses_gpu, -(solo.load.peak.expected_bytes if solo.load else 0))


def decide(
    problem: PackingProblem,
    solos: Sequence[SoloProfile],
    trials: AttemptRunner,
    limits: Limits,
    most: int | None,
    tell: Tell,
) -> tuple[PackingProblem, list[Measured]]:
    """Measure open pairs as long as one may change the choice, at most so many; what is known afterwards.

    A pair without a verdict is not shared, for nothing is shared on a doubt, and stays open in the answer.

    Raises:
        DeviceError: the GPU cannot be had.
        OSError: a record cannot be written.
        ColocateError: there is no room for it.
    """
    found: list[Measured] = []
    while most is None or len(found) < most:
        pair = next_problem(problem)
        if pair is None:
            break
        number = len(solos) + len(found) + 1
        attempt = trials.attempt(as_group(solos, pair, number, limits))
        fits = {Outcome.FEASIBLE: True, Outcome.INFEASIBLE: False}.get(attempt.verdict.outcome)
        found.append(Measured(fits, attempt))
        names = " + ".join(solos[place].training.name for place in pair)
        tell(f"measured {names}: {attempt.verdict.outcome}")
        saved_s = _saved_s(attempt, solos, pair)
        problem = replace(
            problem,
            known={**problem.known, pair: fits is True},
            saved_s=problem.saved_s if saved_s is None else {**problem.saved_s, pair: saved_s},
        )
    return problem, found


def _saved_s(attempt: Attempt, solos: Sequence[SoloProfile], pair: Pair) -> float | None:
    """Seconds that sharing saved in the work that both did; None where that cannot be told."""
    evidence = read_record(attempt.directory).evidence
    front, beside = (solos[place].solo_run for place in sorted(pair, key=lambda place: rank(solos[place])))
    if front is None or beside is None or why_not(evidence) is not None:
        return None
    speedup = compare(evidence, (), front, beside)
    return None if isinstance(speedup, str) else speedup.sequential_s - speedup.together_s


def remembered(
    problem: PackingProblem,
    solos: Sequence[SoloProfile],
    run: RunDirectory,
    gpu_bytes: int,
    gpu_name: str | None = None,
) -> PackingProblem:
    """Take over what an earlier run measured of these pairs: whether they fit, and what sharing saved.

    Counts on a GPU of the same size and below the same limit only, and of the same name where that is known: an
    8 GB GPU is not 8 GB of a larger one. Of an INCONCLUSIVE group nothing is known, nor of one whose foreground was
    ended before its own end that it fits.
    """
    places = {solo.training.argv: place for place, solo in enumerate(solos)}
    known, saved_s = dict(problem.known), dict(problem.saved_s)
    for group_result in group_results(run).values():
        evidence = group_result.deciding.evidence
        pair = _places_of(evidence, places)
        verdict = group_result.verdict
        if pair is None or not _is_measured_on(evidence["device"], gpu_bytes, gpu_name):
            continue
        if verdict.limit_bytes == problem.limit_bytes and verdict.outcome is not Outcome.INCONCLUSIVE:
            known[pair] = verdict.feasible
        found = read_speedup(group_result.deciding.directory)
        if found is not None and found.runs:
            saved_s[pair] = min(one.sequential_s - one.together_s for one in found.runs)
    return replace(problem, known=known, saved_s=saved_s)


def _is_measured_on(device: Mapping[str, Any], gpu_bytes: int, gpu_name: str | None) -> bool:
    same = device["total_bytes"] == gpu_bytes and gpu_name in (None, device["name"])
    return device["basis"] == "measured" and same


def _places_of(evidence: Mapping[str, Any], places: Mapping[tuple[str, ...], int]) -> Pair | None:
    members = [evidence["foreground"], evidence.get("background") or {}]
    found = sorted(place for one in members if (place := places.get(tuple(one.get("argv") or ()))) is not None)
    return (found[0], found[1]) if len(found) == 2 and found[0] != found[1] else None
