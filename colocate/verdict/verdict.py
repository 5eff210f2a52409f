# SPDX-License-Identifier: Apache-2.0
"""The verdict on one group as a record: the outcome, its reasons, and the numbers it rests on; that of several runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fractions import Fraction
from typing import Any, Literal

from pydantic import TypeAdapter

from colocate.device import Basis
from colocate.units import format_mib
from colocate.verdict.measured_peak import PeakReading
from colocate.verdict.overlap import PhasePairs
from colocate.verdict.reasons import Reason, ReasonCode
from colocate.verdict.worst_case_peak import WorstCasePeak

# The study's classes change at 3000 and 4000 MiB of its limit of 7500 MiB; another limit has the same shares.
STABLE_BELOW = Fraction(3000, 7500)
USABLE_UP_TO = Fraction(4000, 7500)

MemoryClass = Literal["stable", "usable", "high-risk"]


class Outcome(StrEnum):
    """The three answers."""

    FEASIBLE = "FEASIBLE"
    INFEASIBLE = "INFEASIBLE"
    INCONCLUSIVE = "INCONCLUSIVE"


WORST_LAST = (Outcome.FEASIBLE, Outcome.INCONCLUSIVE, Outcome.INFEASIBLE)


def memory_class(peak_bytes: int, limit_bytes: int) -> MemoryClass:
    """Classify a peak by its share of the limit: stable below 40 %, usable up to 53.3 %, high-risk above."""
    if peak_bytes < STABLE_BELOW * limit_bytes:
        return "stable"
    return "usable" if peak_bytes <= USABLE_UP_TO * limit_bytes else "high-risk"


def class_of(outcome: Outcome, peak_bytes: int | None, limit_bytes: int) -> MemoryClass | None:
    """Classify what carries a verdict; a group without an answer has no class."""
    if peak_bytes is None or outcome is Outcome.INCONCLUSIVE:
        return None
    return memory_class(peak_bytes, limit_bytes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer for one group with the numbers it rests on.

    ``peak_bytes`` is the highest that the sources carry together or, predicted, the expected value of
    ``peak_low_bytes`` to ``peak_high_bytes``; None when nothing was read. ``peaks`` has what each source told.
    ``overlap`` is the share of the foreground's training time during which the background trained too. ``worst_case``
    is the peak of another meeting of the same two, which this run did not show.
    """

    outcome: Outcome
    basis: Basis
    reasons: tuple[Reason, ...]
    warnings: tuple[Reason, ...]
    peak_bytes: int | None
    peak_low_bytes: int | None
    peak_high_bytes: int | None
    limit_bytes: int
    headroom_bytes: int | None
    memory_class: MemoryClass | None
    overlap: float | None
    phases_together: PhasePairs
    phases_apart: PhasePairs
    epoch_cut: bool
    peaks: tuple[PeakReading, ...] = ()
    worst_case: WorstCasePeak | None = None

    @property
    def feasible(self) -> bool:
        """Every rule holds on trustworthy evidence."""
        return self.outcome is Outcome.FEASIBLE

    @property
    def codes(self) -> tuple[str, ...]:
        """The reason codes, most decisive first."""
        return tuple(reason.code for reason in self.reasons)

    @property
    def out_of_memory(self) -> bool:
        """Return whether one of the trainings ran out of memory, on the GPU or on the host."""
        return any(code.endswith("out_of_memory") for code in self.codes)

    @property
    def over_limit(self) -> bool:
        """The GPU's peak reached the limit."""
        return "peak_over_limit" in self.codes

    @property
    def epoch_finished(self) -> bool:
        """The foreground did not fail, and nothing speaks against the end of its epoch."""
        return not {"foreground_failed", "epoch_unfinished", "dry_run_failed", "killed_from_outside"} & set(self.codes)

    def __str__(self) -> str:
        reasons = "; ".join(map(str, self.reasons))
        return f"{self.outcome} ({self.basis})" + (f": {reasons}" if reasons else "")

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON types."""
        return dict(_ADAPTER.dump_python(self, mode="json"))

    @classmethod
    def from_json(cls, document: Any) -> "Verdict":
        """The inverse of :meth:`to_json`.

        Raises:
            pydantic.ValidationError: the document is no verdict.
        """
        return _ADAPTER.validate_python(document)


_ADAPTER = TypeAdapter(Verdict)


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a group that was run several times: it rests on the worst run, and the spread is shown.

    A group that fits by less than its runs differ among themselves is inconclusive: the next run may not fit.
    """
    worst = max(verdicts, key=lambda verdict: (WORST_LAST.index(verdict.outcome), verdict.peak_bytes or 0))
    peaks = [verdict.peak_bytes for verdict in verdicts if verdict.peak_bytes is not None]
    if len(verdicts) == 1 or not peaks:
        return worst
    highs = [verdict.peak_high_bytes for verdict in verdicts if verdict.peak_high_bytes is not None]
    lows = [verdict.peak_low_bytes for verdict in verdicts if verdict.peak_low_bytes is not None]
    spread, headroom = max(peaks) - min(peaks), worst.limit_bytes - max(highs)
    text = f"{len(verdicts)} runs peaked at {', '.join(map(format_mib, peaks))}: a spread of {format_mib(spread)}"
    together = replace(
        worst,
        peak_bytes=max(peaks),
        peak_low_bytes=max(lows),
        peak_high_bytes=max(highs),
        headroom_bytes=headroom,
        memory_class=class_of(worst.outcome, max(peaks), worst.limit_bytes),
        warnings=(*worst.warnings, Reason(ReasonCode.SPREAD, text)),
    )
    if worst.outcome is Outcome.FEASIBLE and headroom < spread:
        reason = Reason(ReasonCode.SPREAD, f"{text}, more than the headroom of {format_mib(headroom, beside=spread)}")
        return replace(together, outcome=Outcome.INCONCLUSIVE, memory_class=None, reasons=(reason,))
    return together
