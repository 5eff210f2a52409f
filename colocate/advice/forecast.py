# SPDX-License-Identifier: Apache-2.0
"""Forecast from dry runs whether a training or a group fits a GPU.

Arithmetic over results of `colocate.harness.simulation`; runs nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from colocate.errors import PlanError
from colocate.harness import Parts, Program, SimulatedRun
from colocate.plan import Group, Training
from colocate.verdict import PeakRange


class Answer(StrEnum):
    """The answer to whether a predicted peak stays below a limit."""

    FITS = "fits"
    UNDECIDED = "undecided"
    DOES_NOT_FIT = "does not fit"
    UNKNOWN = "not predicted"


@dataclass(frozen=True, slots=True)
class Forecast:
    """One or more programs on one GPU at once; ``base_bytes`` is what the GPU holds without them.

    ``refused`` is why nothing is said of a group at all: it is for another GPU than the one that is asked about.
    """

    name: str
    members: tuple[SimulatedRun, ...]
    base_bytes: int
    limit_bytes: int
    refused: str | None = None

    @property
    def failures(self) -> tuple[str, ...]:
        """Return why there is no prediction; empty if there is one."""
        if self.refused is not None:
            return (self.refused,)
        return tuple(f"{one.name} {one.failure}" for one in self.members if one.failure is not None)

    @property
    def peak(self) -> PeakRange | None:
        """The GPU's peak with all of them at theirs; None where one of them is not known."""
        ranges = [one.peak for one in self.members if one.peak is not None]
        if self.refused is not None or len(ranges) < len(self.members):
            return None
        return sum(ranges, start=PeakRange(self.base_bytes, self.base_bytes, self.base_bytes))

    @property
    def parts(self) -> Parts | None:
        """Return what the peak consists of, without the GPU's baseline."""
        known = [one.parts for one in self.members if one.parts is not None]
        if self.refused is not None or len(known) < len(self.members):
            return None
        return sum(known[1:], start=known[0])

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why it may need more than its peak: such a prediction never says that it fits."""
        return tuple(f"{one.name}: {text} [{code}]" for one in self.members for code, text in one.doubts)

    @property
    def answer(self) -> Answer:
        """Whether it stays below the limit; a doubt about what was not run turns "fits" into "undecided"."""
        answer = answer_of(self.peak, self.limit_bytes)
        return Answer.UNDECIDED if answer is Answer.FITS and self.doubts else answer


def answer_of(peak: PeakRange | None, limit_bytes: int) -> Answer:
    """Compare a peak with a limit as a verdict does: the whole range on one side of the limit, or undecided."""
    if peak is None:
        return Answer.UNKNOWN
    if peak.high_bytes < limit_bytes:
        return Answer.FITS
    return Answer.DOES_NOT_FIT if peak.low_bytes >= limit_bytes else Answer.UNDECIDED


def program_of(training: Training) -> Program:
    """A training of a plan as a program, shortened as on the virtual GPU."""
    return Program(training.name, tuple(training.command(dry_run=True)), training.cwd, training.env)


def needed(groups: Sequence[Group]) -> list[Training]:
    """The different trainings of the groups that use the GPU, in order of their first appearance.

    Raises:
        PlanError: one of them cannot be run.
    """
    found: dict[Program, Training] = {}
    for group in groups:
        for training in group.trainings:
            if training.uses_gpu:
                found.setdefault(program_of(training), training)
    missing = [training.missing for training in found.values() if training.missing]
    if missing:
        raise PlanError(*missing)
    return list(found.values())


def forecast(group: Group, known: Mapping[Program, SimulatedRun], base_bytes: int, limit_bytes: int) -> Forecast:
    """A group out of its members' dry runs."""
    members = tuple(known[program_of(training)] for training in group.trainings if training.uses_gpu)
    return Forecast(group.id, members, base_bytes, limit_bytes)
