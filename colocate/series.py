"""A group in a run directory: its runs, the attempts at each of them, and the one verdict that they come to together.

A run is what the plan asks for, one or several. An attempt is a run that was begun: when a stranger, a blind sensor or
an interruption spoiled it, the next attempt stands beside it, and the last one counts. Reads records, starts nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from colocate.errors import ColocateError
from colocate.evidence import SCHEMA
from colocate.run_directory import GroupDirectory, RunDirectory, read_json
from colocate.units import format_mib
from colocate.verdict import Outcome, Reason, Verdict

# What spoils one attempt and may be gone in the next. An out-of-memory, a failed foreground or a background that is no
# load would only come again.
RETRY_CAUSES = ("foreign_process", "sensor_gap", "supervisor_lost")

_WORST_LAST = (Outcome.FEASIBLE, Outcome.INCONCLUSIVE, Outcome.INFEASIBLE)


@dataclass(frozen=True)
class Attempt:
    """One finished attempt: its record on disk without the samples, and its verdict."""

    directory: GroupDirectory
    experiment: dict[str, Any]
    verdict: Verdict

    @property
    def group(self) -> dict[str, Any]:
        """What the plan said of the group then."""
        found: dict[str, Any] = self.experiment["group"]
        return found

    @property
    def evidence(self) -> dict[str, Any]:
        """What was seen, without the samples."""
        found: dict[str, Any] = self.experiment["evidence"]
        return found

    @property
    def place(self) -> tuple[int, int]:
        """The number of the run and of the attempt at it."""
        return (self.evidence.get("run", 1), self.evidence.get("attempt", 1))


@dataclass(frozen=True)
class Settled:
    """What the attempts at one group come to: the deciding attempt, the verdict, and all attempts in order."""

    deciding: Attempt
    verdict: Verdict
    attempts: tuple[Attempt, ...]

    @property
    def complete(self) -> bool:
        """Every run that the plan asked for has a verdict."""
        runs = {attempt.place[0] for attempt in self.attempts}
        return len(runs) >= int(self.deciding.group.get("runs", 1))


def retry_cause(verdict: Verdict, *, started: bool) -> str | None:
    """Why it is worth repeating an attempt at once; None when it is not.

    What kept it from starting at all was waited for already.
    """
    if verdict.outcome is not Outcome.INCONCLUSIVE or not started:
        return None
    return next((code for code in RETRY_CAUSES if code in verdict.codes), None)


def free_directory(
    run: RunDirectory, foreground: str, number: int, *, parallel: bool, repeat: int
) -> tuple[GroupDirectory, int]:
    """The folder of the next attempt at a run and its number: the first that is not there, not even half written."""
    attempt = 1
    while (directory := run.group(foreground, number, parallel=parallel, repeat=repeat, attempt=attempt)).path.exists():
        attempt += 1
    return directory, attempt


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a group that was run several times: it rests on the worst run, and the spread is shown.

    A group that fits by less than its runs differ among themselves is inconclusive: the next run may not fit.
    """
    worst = max(verdicts, key=lambda verdict: (_WORST_LAST.index(verdict.outcome), verdict.peak_bytes or 0))
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
        warnings=(*worst.warnings, Reason("spread", text)),
    )
    if worst.outcome is Outcome.FEASIBLE and headroom < spread:
        reason = Reason("spread", f"{text}, more than the headroom of {format_mib(headroom)}")
        return replace(together, outcome=Outcome.INCONCLUSIVE, reasons=(reason,))
    return together


def settled(attempts: Sequence[Attempt]) -> Settled:
    """What attempts at one group, at least one, come to: of every run the last attempt counts."""
    ordered = sorted(attempts, key=lambda attempt: attempt.place)
    last = list({attempt.place[0]: attempt for attempt in ordered}.values())
    verdict = combine([attempt.verdict for attempt in last])
    deciding = max(last, key=lambda one: (_WORST_LAST.index(one.verdict.outcome), one.verdict.peak_bytes or 0))
    earlier = [attempt for attempt in ordered if attempt not in last]
    if earlier:
        ends = ", ".join(f"{one.directory.path.name} ({_ending(one.verdict)})" for one in earlier)
        verdict = replace(verdict, warnings=(*verdict.warnings, Reason("repeated", f"repeated after {ends}")))
    return Settled(deciding, verdict, tuple(ordered))


def settled_groups(run: RunDirectory) -> dict[str, Settled]:
    """What every group of a run came to, by its id; a record that cannot be read is left out."""
    found: dict[str, list[Attempt]] = {}
    for attempt in _attempts(run):
        found.setdefault(str(attempt.group["id"]), []).append(attempt)
    return {group: settled(attempts) for group, attempts in found.items()}


def read_attempt(directory: GroupDirectory) -> Attempt:
    """One attempt from disk.

    Raises:
        ColocateError: its record is missing, cut short or of another schema.
    """
    experiment, verdict = read_json(directory.experiment), read_json(directory.verdict)
    try:
        attempt = Attempt(directory, experiment, Verdict.from_json(verdict))
        if attempt.evidence["schema"] != SCHEMA or not attempt.group["id"]:
            raise ValueError(f"schema {attempt.evidence['schema']}")
    except (KeyError, TypeError, ValueError) as error:
        raise ColocateError(f"{directory.path}: expected a record of this version, got {error}") from error
    return attempt


def _attempts(run: RunDirectory) -> Iterator[Attempt]:
    for directory in run.groups():
        try:
            yield read_attempt(directory)
        except ColocateError:
            continue  # `colocate verify` names it; the other groups are not its hostages


def _ending(verdict: Verdict) -> str:
    return ", ".join(verdict.codes) or str(verdict.outcome)
