# SPDX-License-Identifier: Apache-2.0
"""Remedies for groups that do not fit: what is proposed is tried, the cheapest first, until one of them holds.

A remedy is a run of the changed group in a side run, with a record of its own; the group's verdict stays what it was.
Owns ``remedies.json`` of a run, from which the page shows before and after without running anything.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from colocate.advice.forecast import Answer
from colocate.advice.proposals import MEMORY, Proposal, Step, proposals
from colocate.device import FoundGpu
from colocate.errors import ColocateError
from colocate.harness import decide, take_up
from colocate.plan import Catalog, Group, rewritten, varied
from colocate.results import Attempt, GroupDirectory, RunDirectory, advice_files, read_attempt
from colocate.verdict import Evidence, Outcome, PeakRange, Verdict

KIND = "remedies"


# Trials of one group, each as long as the group: what fits by prediction mostly holds at once.
MOST_TRIALS = 4


@dataclass(frozen=True)
class Candidate:
    """One thing to try and its predicted ``peak``; None without a prediction."""

    proposal: Proposal
    step: Step
    answer: Answer
    peak: PeakRange | None


@dataclass(frozen=True)
class Trial:
    """A candidate that was run; ``reused`` says that an earlier session of the run did it."""

    candidate: Candidate
    group: Group
    attempt: Attempt
    reused: bool

    @property
    def verdict(self) -> Verdict:
        """How it ended."""
        return self.attempt.verdict


@dataclass(frozen=True)
class Remedied:
    """A group with what was tried for it; the last trial is the remedy if it is feasible."""

    group: Group
    before: Verdict
    trials: tuple[Trial, ...]

    @property
    def remedy(self) -> Trial | None:
        """The trial that holds, or None."""
        return next((one for one in self.trials if one.verdict.feasible), None)


def is_of_memory(outcome: str, codes: Iterable[str]) -> bool:
    """The group does not fit, and for want of memory on the GPU."""
    return outcome == Outcome.INFEASIBLE and not MEMORY.isdisjoint(codes)


def candidates(
    group: Group, evidence: Evidence, catalog: Catalog | None, predicted: Sequence[advice_files.Proposed]
) -> list[Candidate]:
    """List what to try: first what is predicted to fit, by cost, then what could not be predicted.

    On a GPU what a prediction leaves undecided comes last; on a virtual GPU a run would leave it undecided too.

    Args:
        group: The group as it was run.
        evidence: What was seen, without the samples.
        catalog: That of the plan.
        predicted: Its proposals in ``proposals.json``.
    """
    known = {(one.kind, one.role): one for one in predicted}
    found = [
        candidate
        for proposal in proposals(group, evidence, catalog)
        for candidate in _of(proposal, known.get((str(proposal.kind), proposal.role), advice_files.Proposed()))
    ]
    order = [Answer.FITS, Answer.UNKNOWN]
    if evidence.device.basis == "measured":
        order.append(Answer.UNDECIDED)
    wanted = [one for one in found if one.answer in order]
    return sorted(wanted, key=lambda one: order.index(one.answer))[:MOST_TRIALS]  # stable: the cost decides among them


def _of(proposal: Proposal, entry: advice_files.Proposed) -> Iterator[Candidate]:
    """The step that was predicted, else every step from the mildest on."""
    answer = Answer.UNKNOWN if entry.answer is None else Answer(entry.answer)
    for step in proposal.steps:
        if entry.answer is None or step.settings == entry.settings:
            yield Candidate(proposal, step, answer, entry.peak)


# --- trying -----------------------------------------------------------------------------------------------------------


@dataclass
class Remedies:
    """Tries what is proposed for the groups of a run.

    Args:
        run: The run directory.
        catalog: That of the plan.
        GPUs: The GPUs of the session; an earlier trial counts where it ran on one of them.
        attempt: Runs a group once in the side run.
        entry: What stands in the plan under a group, as `Plan.entry` says it.
    """

    run: RunDirectory
    catalog: Catalog | None
    gpus: Sequence[FoundGpu]
    attempt: Callable[[Group], Attempt]
    entry: Callable[[Group], Mapping[str, Any]]

    @property
    def side(self) -> RunDirectory:
        """Return the side run in which trials are recorded."""
        return self.run.side_run(KIND)

    def find(self, wanted: Sequence[tuple[Group, GroupDirectory]]) -> Iterator[Remedied]:
        """Try remedies for each group; what an earlier session tried is reused while it holds.

        Raises:
            ColocateError: the GPU cannot be used.
            OSError: a record or the file cannot be written.
        """
        if self.side.path.exists():
            take_up(self.side)
        predicted = advice_files.read(self.run.proposals, advice_files.Proposals)
        for group, directory in wanted:
            tried = self._try(group, directory, predicted.get(group.id, advice_files.Proposals()))
            if tried is not None:
                yield tried

    def _try(self, group: Group, directory: GroupDirectory, entry: advice_files.Proposals) -> Remedied | None:
        try:
            attempt = read_attempt(directory)
        except ColocateError:
            return None
        proposed = entry.proposals if entry.content_hash == group.content_hash else ()
        found = Remedied(group, attempt.verdict, ())
        self._write(found)
        for candidate in candidates(group, attempt.evidence, self.catalog, proposed):
            found = replace(found, trials=(*found.trials, self._trial(group, candidate)))
            self._write(found)
            if found.remedy is not None:
                break
        return found

    def _trial(self, group: Group, candidate: Candidate) -> Trial:
        changed = varied(group, candidate.step.override, self.catalog)
        kind = str(candidate.proposal.kind).replace(" ", "-")
        changed = replace(changed, id=f"{group.id}-{kind}-{changed.content_hash[:4]}", runs=1)
        (decision,) = decide(self.side, [changed], self.gpus)
        if decision.reused is not None and decision.reused.deciding is not None:
            return Trial(candidate, changed, decision.reused.deciding, reused=True)
        attempt = self.attempt(changed)
        if attempt.verdict.outcome is Outcome.INCONCLUSIVE and "undecided" not in attempt.verdict.codes:
            attempt = self.attempt(changed)  # what spoiled one attempt may be gone in the next
        return Trial(candidate, changed, attempt, reused=False)

    def _write(self, found: Remedied) -> None:
        entries = advice_files.read(self.run.remedies, advice_files.Remedies)
        advice_files.write(self.run.remedies, {**entries, found.group.id: self._document(found)})

    def _document(self, found: Remedied) -> advice_files.Remedies:
        holds = None if found.remedy is None else found.trials.index(found.remedy)
        tried = tuple(self._tried(one) for one in found.trials)
        return advice_files.Remedies(found.group.content_hash, advice_files.Figures.of(found.before), tried, holds)

    def _tried(self, trial: Trial) -> advice_files.Tried:
        proposal, step = trial.candidate.proposal, trial.candidate.step
        return advice_files.Tried(
            group=trial.group.id,
            kind=str(proposal.kind),
            role=proposal.role,
            training=proposal.training,
            settings=step.settings,
            why=step.why,
            answer=str(trial.candidate.answer),
            peak=trial.candidate.peak,
            after=advice_files.Figures.of(trial.verdict),
            directory=str(trial.attempt.directory.path.relative_to(self.run.path)),
            member={step.override.role: rewritten(self.entry(trial.group), step.override, trial.group)},
        )
