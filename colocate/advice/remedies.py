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
from colocate.harness import decide, take_up
from colocate.plan import Catalog, Group, rewritten, varied
from colocate.results import Attempt, GroupDirectory, RunDirectory, advice_files, read_attempt, read_bare_evidence
from colocate.verdict import Evidence, Outcome, Verdict

KIND = "remedies"


# Trials of one group, each as long as the group: what fits by prediction mostly holds at once.
MOST_TRIALS = 4

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One thing to try and its predicted ``peak`` as in ``proposals.json``; None without a prediction."""

    proposal: Proposal
    step: Step
    answer: Answer
    peak: Mapping[str, Any] | None


@dataclass(frozen=True)
class Trial:
    """A candidate that was run; ``reused`` says that an earlier session of the run did it."""

    candidate: Candidate
    group: Group
    attempt: Attempt
    verdict: Verdict
    reused: bool


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
    group: Group, evidence: Evidence, catalog: Catalog | None, predicted: Sequence[Entry]
) -> list[Candidate]:
    """List what to try: first what is predicted to fit, by cost, then what could not be predicted.

    On a GPU what a prediction leaves undecided comes last; on a virtual GPU a run would leave it undecided too.

    Args:
        group: The group as it was run.
        evidence: What was seen, without the samples.
        catalog: That of the plan.
        predicted: Its proposals in ``proposals.json``.
    """
    known = {(str(one.get("kind")), one.get("role")): one for one in predicted}
    found = [
        candidate
        for proposal in proposals(group, evidence, catalog)
        for candidate in _of(proposal, known.get((str(proposal.kind), proposal.role), {}))
    ]
    order = [Answer.FITS, Answer.UNKNOWN]
    if evidence.device.basis == "measured":
        order.append(Answer.UNDECIDED)
    wanted = [one for one in found if one.answer in order]
    return sorted(wanted, key=lambda one: order.index(one.answer))[:MOST_TRIALS]  # stable: the cost decides among them


def _of(proposal: Proposal, entry: Entry) -> Iterator[Candidate]:
    """The step that was predicted, else every step from the mildest on."""
    answer = entry.get("answer")
    steps = [step for step in proposal.steps if answer is None or step.settings == entry.get("settings")]
    for step in steps:
        yield Candidate(proposal, step, Answer.UNKNOWN if answer is None else Answer(answer), entry.get("peak"))


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
    entry: Callable[[Group], Entry]

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
        predicted = advice_files.read(self.run.proposals)
        for group, directory in wanted:
            tried = self._try(group, directory, predicted.get(group.id, {}))
            if tried is not None:
                yield tried

    def _try(self, group: Group, directory: GroupDirectory, entry: Entry) -> Remedied | None:
        evidence = read_bare_evidence(directory)
        if evidence is None:
            return None
        proposed = entry.get("proposals", ()) if entry.get("content_hash") == group.content_hash else ()
        found = Remedied(group, read_attempt(directory).verdict, ())
        self._write(found)
        for candidate in candidates(group, evidence, self.catalog, proposed):
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
        if decision.reused is not None:
            return Trial(candidate, changed, decision.reused.deciding, decision.reused.verdict, reused=True)
        attempt = self.attempt(changed)
        if attempt.verdict.outcome is Outcome.INCONCLUSIVE and "undecided" not in attempt.verdict.codes:
            attempt = self.attempt(changed)  # what spoiled one attempt may be gone in the next
        return Trial(candidate, changed, attempt, attempt.verdict, reused=False)

    def _write(self, found: Remedied) -> None:
        entries = {**advice_files.read(self.run.remedies), found.group.id: self._document(found)}
        advice_files.write(self.run.remedies, entries)

    def _document(self, found: Remedied) -> dict[str, Any]:
        remedy = found.remedy
        return {
            "content_hash": found.group.content_hash,
            "before": _figures(found.before),
            "tried": [self._entry(one) for one in found.trials],
            "holds": None if remedy is None else found.trials.index(remedy),
        }

    def _entry(self, trial: Trial) -> dict[str, Any]:
        proposal, step = trial.candidate.proposal, trial.candidate.step
        return {
            "group": trial.group.id,
            "kind": str(proposal.kind),
            "role": proposal.role,
            "training": proposal.training,
            "settings": step.settings,
            "why": step.why,
            "predicted": {"answer": str(trial.candidate.answer), "peak": trial.candidate.peak},
            "after": _figures(trial.verdict),
            "directory": str(trial.attempt.directory.path.relative_to(self.run.path)),
            "member": {step.override.role: rewritten(self.entry(trial.group), step.override, trial.group)},
        }


def _figures(verdict: Verdict) -> dict[str, Any]:
    return {
        "outcome": str(verdict.outcome),
        "basis": verdict.basis,
        "codes": list(verdict.codes),
        "peak_bytes": verdict.peak_bytes,
        "peak_low_bytes": verdict.peak_low_bytes,
        "peak_high_bytes": verdict.peak_high_bytes,
        "limit_bytes": verdict.limit_bytes,
        "headroom_bytes": verdict.headroom_bytes,
    }
