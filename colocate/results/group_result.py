# SPDX-License-Identifier: Apache-2.0
"""How a group ended: the one shape that terminal, JUnit, journal, summary, page and comparison read."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from colocate.plan import Group
from colocate.results.layout import GroupDirectory
from colocate.results.lenient import read_leniently
from colocate.results.record import Attempt
from colocate.verdict import WORST_LAST, Evidence, Outcome, Reason, ReasonCode, Verdict, combine

_KEPT_APART = ("run", "text", "verdict", "deciding", "attempts")


@dataclass(frozen=True)
class GroupResult:
    """How a group ended, with or without a verdict; None or empty is what is not known.

    The fields up to ``content_hash`` are what a case reports to pytest and what a line of the journal keeps, as builtin
    types. ``run`` is the name of its run, ``text`` what pytest saw of an error. The rest is read from the run
    directory: the combined ``verdict``, the attempt that decides it, and all ``attempts`` in order.
    """

    group: str
    outcome: str
    number: int | None = None
    tier: str | None = None
    foreground: str | None = None
    background: str | None = None
    expected_bytes: int | None = None
    budget_bytes: int | None = None
    peak_bytes: int | None = None
    peak_low_bytes: int | None = None
    peak_high_bytes: int | None = None
    limit_bytes: int | None = None
    headroom_bytes: int | None = None
    basis: str | None = None
    memory_class: str | None = None
    overlap: float | None = None
    codes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    directory: str | None = None
    duration_s: float | None = None
    device_name: str | None = None
    device_uuid: str | None = None
    reused: str | None = None
    margin_pass_bytes: int | None = None
    speedup: str | None = None
    content_hash: str | None = None
    run: str = ""
    text: str = ""
    verdict: Verdict | None = field(default=None, compare=False)
    deciding: Attempt | None = field(default=None, compare=False)
    attempts: tuple[Attempt, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, deciding: Attempt, verdict: Verdict, attempts: Iterable[Attempt]) -> "GroupResult":
        """The result of a group that has a verdict."""
        group, evidence = deciding.group, deciding.evidence
        return cls(
            group=group.id,
            outcome=str(verdict.outcome),
            number=group.number,
            tier=group.tier,
            foreground=evidence.foreground.name,
            background=None if evidence.background is None else evidence.background.name,
            expected_bytes=group.expected_bytes,
            budget_bytes=group.budget_bytes,
            peak_bytes=verdict.peak_bytes,
            peak_low_bytes=verdict.peak_low_bytes,
            peak_high_bytes=verdict.peak_high_bytes,
            limit_bytes=verdict.limit_bytes,
            headroom_bytes=verdict.headroom_bytes,
            basis=verdict.basis,
            memory_class=verdict.memory_class,
            overlap=verdict.overlap,
            codes=tuple(map(str, verdict.codes)),
            reasons=tuple(map(str, verdict.reasons)),
            warnings=tuple(map(str, verdict.warnings)),
            directory=str(deciding.directory.path),
            duration_s=evidence.duration_s,
            device_name=evidence.device.name,
            device_uuid=evidence.device.uuid,
            content_hash=group.content_hash,
            verdict=verdict,
            deciding=deciding,
            attempts=tuple(attempts),
        )

    @classmethod
    def without_verdict(cls, group: Group, outcome: str, *reasons: str) -> "GroupResult":
        """The result of a group that ended without a verdict, and why."""
        return cls(group.id, outcome, limit_bytes=group.limits.peak_bytes, reasons=reasons).as_planned(group)

    def as_planned(self, group: Group) -> "GroupResult":
        """The same with what the plan says of the group by now."""
        return replace(
            self,
            group=group.id,
            number=group.number,
            tier=group.tier,
            foreground=group.foreground.name,
            background=None if group.background is None else group.background.name,
            expected_bytes=group.expected_bytes,
            budget_bytes=group.budget_bytes,
            content_hash=group.content_hash,
        )

    def with_warning(self, text: str) -> "GroupResult":
        """The same with a warning more."""
        return replace(self, warnings=(*self.warnings, text))

    def to_json(self) -> dict[str, Any]:
        """What of it travels: to other processes and into the journal, as JSON types."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _KEPT_APART}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}

    @classmethod
    def from_json(cls, document: Any) -> "GroupResult":
        """The inverse of :meth:`to_json`, of a damaged document as far as it fits."""
        known = document if isinstance(document, dict) else {}
        return read_leniently({name: value for name, value in known.items() if name not in _KEPT_APART}, cls)

    @property
    def key(self) -> str:
        """A name for its place in a page, unlike that of any other."""
        return re.sub(r"[^\w-]", "-", f"{self.run}--{self.group}")

    @property
    def is_judged(self) -> bool:
        """It ended with a verdict."""
        return self.outcome in set(Outcome)

    @property
    def folder(self) -> GroupDirectory | None:
        """The folder of the attempt that decides."""
        return None if self.deciding is None else self.deciding.directory

    @property
    def evidence(self) -> Evidence:
        """The evidence of the attempt that decides; one in which nothing is known where there is none."""
        return _no_evidence() if self.deciding is None else self.deciding.evidence

    @property
    def gpu(self) -> tuple[str, str]:
        """Name of the GPU and basis: results that differ in one of the two are never counted together."""
        return (self.device_name or "", self.basis or "")

    @property
    def last(self) -> tuple[Attempt, ...]:
        """The attempt of every run that counts."""
        return _last_of_each_run(self.attempts)


@cache
def _no_evidence() -> Evidence:
    return read_leniently({}, Evidence)


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
    return GroupResult.of(deciding, verdict, ordered)


def _in_order(attempts: Sequence[Attempt]) -> list[Attempt]:
    """Sort attempts by their start. The clock may have been set back, so neighbours are sorted by number."""
    begun: dict[str, str] = {}
    keys: dict[int, tuple[str, tuple[int, int]]] = {}
    for attempt in sorted(attempts, key=lambda one: one.place):
        name = attempt.directory.path.name.removesuffix(f"_attempt{attempt.place[1]}")
        begun[name] = max(attempt.evidence.started_at or "", begun.get(name, ""))
        keys[id(attempt)] = (begun[name], attempt.place)
    return sorted(attempts, key=lambda one: keys[id(one)])


def _last_of_each_run(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    last = {attempt.place[0]: attempt for attempt in attempts}
    return tuple(last[number] for number in sorted(last))


def _ending(verdict: Verdict) -> str:
    return ", ".join(verdict.codes) or str(verdict.outcome)
