# SPDX-License-Identifier: Apache-2.0
"""Predict the effect of proposals by dry runs on the virtual GPU, the cheapest proposals first.

Owns the search for the mildest setting that fits, and ``proposals.json`` of a run, from which page and commands show
the same without running anything. What is proposed is `colocate.advice.proposals`' business.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from colocate.advice.forecast import Answer, Forecast, program_of
from colocate.advice.predictor import Behind, Predictor
from colocate.advice.proposals import Proposal, Step, held_bytes, proposals
from colocate.errors import ColocateError, PlanError
from colocate.harness import Cache, Program, SimulatedRun
from colocate.plan import (
    ROLES,
    Catalog,
    GpuModel,
    Group,
    Role,
    Training,
    gpu_model,
    model_called,
    model_of_size,
    varied,
)
from colocate.results import Attempt, GroupDirectory, RunDirectory, advice_files, read_attempt
from colocate.verdict import Evidence, member_range

NOT_YET = "not predicted yet"


@dataclass(frozen=True)
class ProposalForecast:
    """A proposal with what is predicted of it.

    ``step`` is the mildest of its settings that is predicted to fit, else the last one tried; None where there is
    nothing to try. Without a ``forecast`` the reason stands in ``why_not``.
    """

    proposal: Proposal
    step: Step | None = None
    forecast: Forecast | None = None
    why_not: str | None = None

    @property
    def answer(self) -> Answer:
        """Return whether the group is predicted to fit with the proposal."""
        return Answer.UNKNOWN if self.forecast is None else self.forecast.answer


def gpu_of(evidence: Evidence) -> GpuModel:
    """The GPU to dry-run on: that of the evidence, by its name where the table has it, else by its size."""
    device = evidence.device
    if device.kind == "virtual":
        return model_called(device.name, device.total_bytes)
    try:
        return gpu_model(device.name)
    except PlanError:
        return model_of_size(device.total_bytes)


def forecasts_of_proposals(
    group: Group,
    evidence: Evidence,
    found: Sequence[Proposal],
    catalog: Catalog | None,
    predictor: Predictor,
    *,
    first: bool = False,
) -> list[ProposalForecast]:
    """Predict the peaks of the proposals for a group, in their order; with ``first`` no further than to one that fits.

    The member that a proposal leaves alone counts as it was seen, where it was predicted already; everything that was
    measured is predicted anew, so that the figures can be compared with each other only.

    Raises:
        TrainingError: a program could not be started.
    """
    why_not = _why_not(evidence)
    if why_not is not None:
        return [
            ProposalForecast(one, next(iter(one.steps), None), why_not=why_not if one.steps else None) for one in found
        ]
    searches = [_Search(one) for one in found]
    forecaster = _Forecaster(group, evidence, catalog, predictor)
    for place in range(0, len(searches), predictor.at_once):
        some = searches[place : place + predictor.at_once]
        while asked := [(search, step) for search in some if (step := search.next()) is not None]:
            predictor.simulated([program for _, step in asked for program in forecaster.programs(step)])
            for search, step in asked:
                search.take(forecaster.forecast(step))
        if first and any(search.proposal_forecast.answer is Answer.FITS for search in some):
            break
    return [search.proposal_forecast for search in searches]


def _why_not(evidence: Evidence) -> str | None:
    """Return why nothing can be predicted for a group."""
    silent = [one.name for one in evidence.members if one.uses_gpu and one.process_runs and not one.allocators]
    return f"{', '.join(silent)} told nothing of a PyTorch allocator" if silent else None


class _Forecaster:
    """Forecasts of one group with one thing changed."""

    def __init__(self, group: Group, evidence: Evidence, catalog: Catalog | None, predictor: Predictor) -> None:
        self._group = group
        self._evidence = evidence
        self._catalog = catalog
        self._predictor = predictor

    def _changed(self, step: Step) -> Iterator[tuple[Training, Role, bool]]:
        """The trainings that use the GPU, each with whether the step changes it."""
        other = varied(self._group, step.override, self._catalog)
        for role in ROLES:
            training = other.training(role)
            if training is not None and training.uses_gpu:
                yield training, role, role == step.override.role

    def programs(self, step: Step) -> list[Program]:
        """Return the programs whose dry runs it needs."""
        return [
            program_of(training)
            for training, role, is_changed in self._changed(step)
            if is_changed or self._seen(role) is None
        ]

    def forecast(self, step: Step) -> Forecast | None:
        """The group with the change made; None where there was no time for it."""
        members = [self._member(training, role, is_changed) for training, role, is_changed in self._changed(step)]
        if any(one is None for one in members):
            return None
        base_bytes = self._evidence.baseline_bytes
        base_bytes = self._predictor.gpu.baseline_bytes if base_bytes is None else base_bytes
        known = tuple(one for one in members if one is not None)
        return Forecast(self._group.id, known, base_bytes, self._group.limits.peak_bytes)

    def _member(self, training: Training, role: Role, is_changed: bool) -> SimulatedRun | None:
        seen = None if is_changed else self._seen(role)
        return seen or self._predictor.known.get(program_of(training))

    def _seen(self, role: Role) -> SimulatedRun | None:
        """A member as the virtual GPU saw it; on a real GPU nothing was predicted."""
        member = self._evidence.member(role)
        if member is None or self._evidence.device.kind != "virtual":
            return None
        peak = member_range(member)
        return None if peak is None else SimulatedRun(member.name, member.argv, 0.0, peak=peak)


class _Search:
    """For the mildest step of a proposal that fits: the first one tried, then bisection where memory only falls."""

    def __init__(self, proposal: Proposal) -> None:
        self._proposal = proposal
        self._low, self._high = 0, len(proposal.steps)  # the first that fits lies here; the end means none
        self._place = 0
        self._tried: dict[int, Forecast] = {}
        self._over = False

    def next(self) -> Step | None:
        """The step to be predicted now; None when nothing is left to ask."""
        if self._over or self._low >= self._high:
            return None
        self._place = (self._low + self._high) // 2 if self._proposal.rising and self._tried else self._low
        return self._proposal.steps[self._place]

    def take(self, forecast: Forecast | None) -> None:
        """Take in what came of it."""
        if forecast is None:
            self._over = True
            return
        self._tried[self._place] = forecast
        if forecast.answer is Answer.FITS:
            self._high = self._place
        else:
            self._low = self._place + 1

    @property
    def proposal_forecast(self) -> ProposalForecast:
        """Return the dry runs that are known in the end."""
        steps = self._proposal.steps
        if not steps:
            return ProposalForecast(self._proposal)
        fitting = [place for place, one in self._tried.items() if one.answer is Answer.FITS]
        known = [place for place, one in self._tried.items() if one.peak is not None]
        place = min(fitting, default=max(known, default=max(self._tried, default=None)))
        if place is None:
            return ProposalForecast(self._proposal, steps[0], why_not=NOT_YET)
        forecast = self._tried[place]
        return ProposalForecast(self._proposal, steps[place], forecast, "; ".join(forecast.failures) or None)


# --- the groups of a run ----------------------------------------------------------------------------------------------

# The sizes of models seen in so many groups are enough to say which of a repository are smaller.
MOST_KNOWN = 200


def advise(
    run: RunDirectory,
    wanted: Sequence[tuple[Group, GroupDirectory]],
    catalog: Catalog | None,
    *,
    budget_s: float,
    cache: Cache | None = None,
    behind: Behind | None = None,
    first: bool = False,
) -> Iterator[tuple[Group, list[ProposalForecast]]]:
    """Proposals for the groups of a run that do not fit, each with what is predicted of it, and into the run's file.

    Groups whose proposals stand there already are left out. An interruption ends the predictions, not the proposals.

    Args:
        run: The run directory.
        wanted: The groups, each with the folder of the record that decides.
        catalog: That of the plan.
        budget_s: Seconds for all predictions together, shared among the groups; 0 predicts nothing.
        cache: As in `Predictor`.
        behind: As in `Predictor`.
        first: Predict of each group no further than to a proposal that fits.

    Raises:
        ColocateError: a program could not be started.
        OSError: the file cannot be written.
    """
    until_t, entries, known = (
        time.monotonic() + budget_s,
        advice_files.read(run.proposals, advice_files.Proposals),
        _known_models(run),
    )
    try:
        for place, (group, directory) in enumerate(wanted):
            attempt = _attempt(directory)
            if attempt is None or _is_complete(entries.get(group.id), group):
                continue
            evidence = attempt.evidence
            now_t = time.monotonic()
            predictor = Predictor(gpu_of(evidence), now_t + (until_t - now_t) / (len(wanted) - place), cache, behind)
            found = proposals(group, evidence, catalog, known)
            try:
                proposal_forecasts_ = forecasts_of_proposals(group, evidence, found, catalog, predictor, first=first)
            except KeyboardInterrupt:
                until_t = 0.0
                predictor.until_t = until_t
                proposal_forecasts_ = forecasts_of_proposals(group, evidence, found, catalog, predictor)
            entries[group.id] = _document(group, proposal_forecasts_, predictor.gpu)
            yield group, proposal_forecasts_
    finally:
        if entries:
            advice_files.write(run.proposals, entries)


def _known_models(run: RunDirectory) -> dict[tuple[str, str], int]:
    """The most that each model of a repository held in any group of the run."""
    found: dict[tuple[str, str], int] = {}
    for attempt in filter(None, map(_attempt, islice(run.groups(), MOST_KNOWN))):
        evidence, experiment = attempt.evidence, attempt.experiment
        for member, settings in zip(evidence.members, (experiment.foreground, experiment.background), strict=False):
            held = held_bytes(member, virtual=evidence.device.kind == "virtual")
            if held is not None and settings is not None and settings.repository and settings.model:
                names = (settings.repository, settings.model)
                found[names] = max(found.get(names, 0), held)
    return found


def _attempt(directory: GroupDirectory) -> Attempt | None:
    try:
        return read_attempt(directory)
    except ColocateError:
        return None


def _is_complete(entry: advice_files.Proposals | None, group: Group) -> bool:
    """The group is still the same, and all was predicted."""
    if entry is None or entry.content_hash != group.content_hash:
        return False
    return all(one.why_not != NOT_YET for one in entry.proposals)


def _document(group: Group, found: Sequence[ProposalForecast], gpu: GpuModel) -> advice_files.Proposals:
    proposals = tuple(map(_proposed, found))
    return advice_files.Proposals(group.content_hash, gpu.name, group.limits.peak_bytes, proposals)


def _proposed(one: ProposalForecast) -> advice_files.Proposed:
    step = one.step
    return advice_files.Proposed(
        kind=str(one.proposal.kind),
        role=one.proposal.role,
        training=one.proposal.training,
        text=one.proposal.text(step),
        settings=None if step is None else step.settings,
        why=None if step is None else step.why,
        change=None if step is None else {name: value for name, value in asdict(step.override).items() if value},
        peak=None if one.forecast is None else one.forecast.peak,
        answer=None if one.forecast is None else str(one.answer),
        why_not=one.why_not,
    )
