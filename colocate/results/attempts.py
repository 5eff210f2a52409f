# SPDX-License-Identifier: Apache-2.0
"""A group in a run directory: its runs, the attempts at each of them, and the one verdict that they come to together.

A run is what the plan asks for, one or several. An attempt is a run that was begun: when a foreign process, a blind
sensor or an interruption spoiled it, the next attempt stands beside it, and the last one counts. Reads records,
starts nothing.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from colocate.errors import ColocateError
from colocate.files import read_json
from colocate.plan import Group
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.slim import slim
from colocate.verdict import SCHEMA, WORST_LAST, Outcome, Reason, ReasonCode, Verdict, combine


@dataclass(frozen=True)
class Attempt:
    """One finished attempt: its record on disk without the samples and what else is bulky, and its verdict."""

    directory: GroupDirectory
    experiment: dict[str, Any]
    verdict: Verdict

    @property
    def group(self) -> dict[str, Any]:
        """Return the group's settings at that time."""
        found: dict[str, Any] = self.experiment["group"]
        return found

    @property
    def evidence(self) -> dict[str, Any]:
        """Return the evidence without the samples."""
        found: dict[str, Any] = self.experiment["evidence"]
        return found

    @property
    def place(self) -> tuple[int, int]:
        """The number of the run and of the attempt at it."""
        return (self.evidence.get("run", 1), self.evidence.get("attempt", 1))


@dataclass(frozen=True)
class GroupResult:
    """The result of a group: its verdict, the attempt that decides it, and all attempts in order."""

    deciding: Attempt
    verdict: Verdict
    attempts: tuple[Attempt, ...]

    @property
    def last(self) -> tuple[Attempt, ...]:
        """The attempt of every run that counts."""
        return _last_of_each_run(self.attempts)


def combine_attempts(attempts: Sequence[Attempt], runs: int = 1) -> GroupResult:
    """Combine attempts at one group (at least one) into a result; of every run the last attempt counts.

    A group that was seen to fit in fewer ``runs`` than the plan asks for is inconclusive.
    """
    ordered = _in_order(attempts)
    last = _last_of_each_run(ordered)
    verdict = combine([attempt.verdict for attempt in last])
    if verdict.feasible and len(last) < runs:
        reason = Reason(ReasonCode.RUNS_MISSING, f"{len(last)} of the {runs} runs that the plan asks for are done")
        verdict = replace(verdict, outcome=Outcome.INCONCLUSIVE, memory_class=None, reasons=(reason,))
    deciding = max(last, key=lambda one: (WORST_LAST.index(one.verdict.outcome), one.verdict.peak_bytes or 0))
    earlier = [attempt for attempt in ordered if attempt not in last]
    if earlier:
        ends = ", ".join(f"{one.directory.path.name} ({_ending(one.verdict)})" for one in earlier)
        verdict = replace(verdict, warnings=(*verdict.warnings, Reason(ReasonCode.REPEATED, f"repeated after {ends}")))
    return GroupResult(deciding, verdict, tuple(ordered))


def _in_order(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Sort attempts by their start. The clock may have been set back, so neighbours are sorted by number."""
    begun: dict[str, str] = {}
    keys: dict[int, tuple[str, tuple[int, int]]] = {}
    for attempt in sorted(attempts, key=lambda one: one.place):
        name = attempt.directory.path.name.removesuffix(f"_attempt{attempt.place[1]}")
        begun[name] = max(attempt.experiment["timestamp"] or "", begun.get(name, ""))
        keys[id(attempt)] = (begun[name], attempt.place)
    return sorted(attempts, key=lambda one: keys[id(one)])


def _last_of_each_run(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    last = {attempt.place[0]: attempt for attempt in attempts}
    return tuple(last[number] for number in sorted(last))


def group_results(run: RunDirectory, *, every: bool = False) -> dict[str, GroupResult]:
    """Read the results of all groups of a run, by id; a record that cannot be read is left out.

    So is one of other settings than the run's plan has by now, as after an edit and ``--resume``, but with ``every``.
    """
    asked = {} if every else asked_of(run)
    found: dict[str, list[Attempt]] = {}
    for attempt in _attempts(run.groups()):
        name = str(attempt.group["id"])
        if not is_outdated(name, attempt.group, asked):
            found.setdefault(name, []).append(attempt)
    return {
        name: combine_attempts(attempts, asked[name][1] if name in asked else 1) for name, attempts in found.items()
    }


def asked_of(run: RunDirectory) -> dict[str, tuple[str, int]]:
    """The hash of the settings and the number of runs of every group, by the plan of the latest session."""
    try:
        asked = read_json(run.record)["plan"]["asked"]
        return {str(name): (str(one["content_hash"]), int(one["runs"])) for name, one in asked.items()}
    except (ColocateError, AttributeError, KeyError, TypeError, ValueError):
        return {}  # a run of an older version, or a damaged one


def is_outdated(name: str, reported: Mapping[str, Any], asked: Mapping[str, tuple[str, int]]) -> bool:
    """Return whether a group was run with other settings than the run's plan has now."""
    known = reported.get("content_hash")
    return known is not None and name in asked and known != asked[name][0]


def group_result_of(run: RunDirectory, group: Group) -> GroupResult | None:
    """Read the result of one group of a run, or None if nothing of it can be read."""
    found = _attempts(_directories(run, group))
    attempts = [attempt for attempt in found if attempt.group.get("content_hash") in (None, group.content_hash)]
    return combine_attempts(attempts, group.runs) if attempts else None


def _directories(run: RunDirectory, group: Group) -> Iterator[GroupDirectory]:
    name, parallel = group.foreground.name, group.background is not None
    for repeat in range(1, group.runs + 1):
        for attempt in count(1):
            directory = run.group(name, group.number, parallel=parallel, repeat=repeat, attempt=attempt)
            if not directory.path.exists():
                break
            if directory.verdict.exists():
                yield directory


def reused_groups(run: RunDirectory) -> frozenset[str]:
    """The groups that the latest session of a run took over from an earlier one."""
    return _decided(run, "reused")


def again_of(run: RunDirectory) -> frozenset[str]:
    """The groups that the latest session of a run was to run, because no verdict of an earlier one holds."""
    return _decided(run, "again")


def _decided(run: RunDirectory, what: str) -> frozenset[str]:
    try:
        sessions = read_json(run.record).get("sessions") or [{}]
        return frozenset(sessions[-1].get(what, ()))
    except (ColocateError, AttributeError, TypeError):
        return frozenset()


def read_attempt(directory: GroupDirectory) -> Attempt:
    """Read one attempt from disk.

    Raises:
        ColocateError: its record is missing, cut short or of another schema.
    """
    experiment, verdict = read_json(directory.experiment), read_json(directory.verdict)
    try:
        attempt = Attempt(directory, slim(experiment), Verdict.from_json(verdict))
        if attempt.evidence["schema"] != SCHEMA:
            raise ValueError(f"schema {attempt.evidence['schema']!r}")
        _expect_whole(attempt)
    except (KeyError, TypeError, ValueError) as error:
        raise ColocateError(f"{directory.path}: expected a record of this version, got {error}") from error
    return attempt


def _expect_whole(attempt: Attempt) -> None:
    """Check what every reader of an attempt relies on; the rest of its evidence is checked when it is judged."""
    evidence, group, device = attempt.evidence, attempt.group, attempt.evidence["device"]
    texts = [group["id"], attempt.experiment["timestamp"] or "", device["kind"], device["name"], device["uuid"]]
    numbers = [group["number"], *attempt.place, device["total_bytes"]]
    named = evidence.get("versions", {})
    if not all(isinstance(text, str) for text in texts) or not group["id"]:
        raise ValueError(f"expected names in quotes, got {texts!r:.200}")
    if not all(type(number) is int for number in numbers) or not isinstance(named, dict):
        raise ValueError(f"expected whole numbers and a table of versions, got {numbers!r:.200}")


def _attempts(directories: Iterable[GroupDirectory]) -> Iterator[Attempt]:
    for directory in directories:
        try:
            yield read_attempt(directory)
        except ColocateError:
            continue  # `colocate verify` names it; the other groups are not its hostages


def _ending(verdict: Verdict) -> str:
    return ", ".join(verdict.codes) or str(verdict.outcome)
