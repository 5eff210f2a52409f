# SPDX-License-Identifier: Apache-2.0
"""Combine the verdicts of a group's runs into one."""

from collections.abc import Sequence
from dataclasses import replace

from colocate.units import format_mib
from colocate.verdict.reasons import Reason, ReasonCode
from colocate.verdict.verdict import Outcome, Verdict, class_of

WORST_LAST = (Outcome.FEASIBLE, Outcome.INCONCLUSIVE, Outcome.INFEASIBLE)


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
