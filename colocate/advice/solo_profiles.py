# SPDX-License-Identifier: Apache-2.0
"""Predict what trainings take alone, and take over what earlier runs measured of their pairs.

Runs programs through `colocate.harness.simulation`; what follows from the figures is `colocate.advice.packing`'s and
`colocate.advice.pairing`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from colocate.advice.forecast import program_of
from colocate.advice.packing import PackingProblem, Pair
from colocate.harness import Cache, SimulatedRun, Watcher, simulate
from colocate.plan import Catalog, GpuModel, Mistakes, Plan, Training, is_of_size
from colocate.results import RunDirectory, group_results
from colocate.verdict import Evidence, Outcome, PeakRange


@dataclass(frozen=True)
class SoloProfile:
    """A training alone: its predicted peak, or why that is not known; whether it was remembered from an earlier call.

    ``least_bytes`` is what it cannot do with less of, even if it gives its cache back in time; None where nobody knows.
    """

    training: Training
    peak: PeakRange | None
    why: str | None = None
    cached: bool = False
    least_bytes: int | None = None


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
    return list({program_of(one): one for group in plan.groups for one in group.trainings}.values())


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
        _simulated(training, simulated[place], gpu) if place in simulated else _unused(training)
        for place, training in enumerate(trainings)
    ]


def _simulated(training: Training, found: SimulatedRun, gpu: GpuModel) -> SoloProfile:
    peak = found.peak
    if peak is not None and found.doubts:  # it may need more than was seen: no sum with it fits
        peak = replace(peak, high_bytes=max(peak.high_bytes, gpu.total_bytes))
    return SoloProfile(training, peak, found.failure, found.cached, _least_bytes(found, gpu))


def _least_bytes(dry_run: SimulatedRun, gpu: GpuModel) -> int | None:
    """Its floor with the smallest context, where that is less than the lower end of its peak."""
    if dry_run.peak is None:
        return None
    if dry_run.floor_bytes is None or dry_run.parts is None:
        return dry_run.peak.low_bytes
    context = dry_run.parts.context
    smaller = context - context * gpu.context_range_bytes[0] // max(gpu.context_bytes, gpu.cudnn_context_bytes)
    return min(dry_run.floor_bytes - smaller, dry_run.peak.low_bytes)


def _unused(training: Training) -> SoloProfile:
    """Describe a training that takes nothing of the GPU, or that cannot be run."""
    if training.missing:
        return SoloProfile(training, None, training.missing)
    return SoloProfile(training, PeakRange(0, 0, 0), least_bytes=0)


def known_of(solos: Sequence[SoloProfile]) -> list[SoloProfile]:
    """Return the trainings whose need is known."""
    return [solo for solo in solos if solo.peak is not None]


def rank(solo: SoloProfile) -> tuple[bool, int]:
    """Rank a training as foreground: it uses the GPU, and takes the most of it."""
    return (not solo.training.uses_gpu, -(solo.peak.expected_bytes if solo.peak else 0))


def remembered(
    problem: PackingProblem, solos: Sequence[SoloProfile], run: RunDirectory, gpu_bytes: int
) -> PackingProblem:
    """Take over whether pairs fitted in an earlier run.

    Counts what was measured on a GPU of the same size and below the same limit only. Of an INCONCLUSIVE group nothing
    is known.
    """
    places = {solo.training.argv: place for place, solo in enumerate(solos)}
    known = dict(problem.known)
    for group_result in group_results(run).values():
        evidence, decided = group_result.evidence, group_result.outcome != Outcome.INCONCLUSIVE
        pair, device = _places_of(evidence, places), evidence.device
        same = device.basis == "measured" and is_of_size(device.total_bytes, gpu_bytes)
        if pair and same and decided and group_result.limit_bytes == problem.limit_bytes:
            known[pair] = group_result.outcome == Outcome.FEASIBLE
    return replace(problem, known=known)


def _places_of(evidence: Evidence, places: Mapping[tuple[str, ...], int]) -> Pair | None:
    found = sorted(place for member in evidence.members if (place := places.get(member.argv)) is not None)
    return (found[0], found[1]) if len(found) == 2 and found[0] != found[1] else None
