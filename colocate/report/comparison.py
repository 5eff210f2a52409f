# SPDX-License-Identifier: Apache-2.0
"""Compare two runs: verdicts, peaks and times by group, and what they were run on and with."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colocate.results import GroupResult, carries_peak, judged_text, peak_text
from colocate.units import MIB, duration_text, format_mib, plural, to_mib
from colocate.verdict import Outcome

# Peaks of two runs of the same group wander by some MiB; below this they count as the same.
SAME_BYTES = MIB

_HEADS = (
    "group",
    "before",
    "after",
    "peak before, MiB",
    "peak after, MiB",
    "grew by, MiB",
    "time before",
    "time after",
)


@dataclass(frozen=True)
class GroupDiff:
    """One group in two runs; None where a run does not have it."""

    group: str
    before: GroupResult | None
    after: GroupResult | None

    @property
    def peak_bytes(self) -> int | None:
        """Return by how much the peak grew, or None if one is not known or the GPUs differ."""
        if self.before is None or self.after is None or self.other_gpu:
            return None
        if not (carries_peak(self.before) and carries_peak(self.after)):
            return None
        return (self.after.peak_bytes or 0) - (self.before.peak_bytes or 0)

    @property
    def duration_s(self) -> float | None:
        """Return how much longer the group took, or None if one of the two is not known."""
        if self.before is None or self.after is None:
            return None
        before, after = self.before.duration_s, self.after.duration_s
        return None if before is None or after is None else after - before

    @property
    def verdict_changed(self) -> bool:
        """The two runs came to different outcomes."""
        return _outcome(self.before) != _outcome(self.after)

    @property
    def worse(self) -> bool:
        """Feasible before, and not so any more."""
        return (
            _outcome(self.before) == Outcome.FEASIBLE
            and self.after is not None
            and _outcome(self.after) != Outcome.FEASIBLE
        )

    @property
    def other_gpu(self) -> bool:
        """The two were not run on the same kind of GPU, or one was measured and the other predicted."""
        if self.before is None or self.after is None:
            return False
        return any(one and other and one != other for one, other in zip(self.before.gpu, self.after.gpu, strict=True))


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, in the order of the second.

    ``settings`` are what the groups of both were run on and with, where that changed: GPU, driver, versions.
    """

    before: str
    after: str
    diffs: tuple[GroupDiff, ...]
    settings: tuple[str, ...] = ()

    def grown(self, above_bytes: int) -> list[GroupDiff]:
        """The groups whose peak grew by more than so many bytes, the largest first."""
        found = [diff for diff in self.diffs if diff.peak_bytes is not None and diff.peak_bytes > above_bytes]
        return sorted(found, key=lambda diff: -(diff.peak_bytes or 0))


def compare(before: Sequence[GroupResult], after: Sequence[GroupResult], names: tuple[str, str]) -> Comparison:
    """The groups of both; the last result counts where one has a group several times."""
    old, new = ({result.group: result for result in results} for results in (before, after))
    groups = [*new, *(group for group in old if group not in new)]
    diffs = tuple(GroupDiff(group, old.get(group), new.get(group)) for group in groups)
    both = [group for group in new if group in old]
    settings = _changed([old[group] for group in both], [new[group] for group in both])
    return Comparison(*names, diffs, tuple(settings))


def _changed(before: Sequence[GroupResult], after: Sequence[GroupResult]) -> Iterator[str]:
    """Yield what is known of both runs and differs."""
    old, new = _settings(before), _settings(after)
    for name, values in old.items():
        if name in new and new[name] != values:
            yield f"{name} {', '.join(values)} -> {', '.join(new[name])}"


def _settings(results: Sequence[GroupResult]) -> Mapping[str, Sequence[str]]:
    """GPU, driver and versions, each with all its values; what no record tells is left out."""
    found: dict[str, set[str]] = {}
    for result in results:
        evidence = result.evidence
        versions = {"GPU": result.gpu[0], "driver": evidence.device.driver_version, **evidence.versions}
        if evidence.torch is not None:  # the trainings may have one of their own
            versions["torch"] = evidence.torch
        for name, value in versions.items():
            if value:
                found.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in found.items()}


def lines(comparison: Comparison) -> Iterator[str]:
    """The comparison for a terminal: one line per group of at most 80 columns, then what it comes to."""
    yield f"{comparison.before} -> {comparison.after}"
    yield from textwrap.wrap(settings_text(comparison), 80, subsequent_indent="  ")
    width = max((len(diff.group) for diff in comparison.diffs), default=0)
    for diff in comparison.diffs:
        yield f"{diff.group:{width}} {_verdict_text(diff)}: {', '.join(_number_texts(diff))}"
    yield summary(comparison)


def settings_text(comparison: Comparison) -> str:
    """Say in a sentence what changed around the groups; empty if nothing did."""
    return f"changed: {', '.join(comparison.settings)}" if comparison.settings else ""


def summary(comparison: Comparison) -> str:
    """Summarise the comparison in one line."""
    changed = sum(diff.verdict_changed for diff in comparison.diffs)
    grown, shrunk = comparison.grown(SAME_BYTES), sum((c.peak_bytes or 0) < -SAME_BYTES for c in comparison.diffs)
    largest = f", most {grown[0].group} by {format_mib(grown[0].peak_bytes)}" if grown else ""
    return f"{plural(changed, 'verdict')} changed; {plural(len(grown), 'peak')} grew{largest}; {shrunk} fell"


def _verdict_text(diff: GroupDiff) -> str:
    before, after = ("absent" if one is None else judged_text(one) for one in (diff.before, diff.after))
    if before == after:
        return after
    alike = diff.before and diff.after and diff.before.basis == diff.after.basis
    return f"{_outcome(diff.before) if alike else before} -> {after}"


def _outcome(result: GroupResult | None) -> str:
    return "absent" if result is None else str(result.outcome)


def _number_texts(diff: GroupDiff) -> Iterator[str]:
    if diff.peak_bytes is None:
        yield "peak not comparable"
    else:
        assert diff.after is not None
        yield f"peak {to_mib(diff.peak_bytes):+.0f} to {peak_text(diff.after)}"
    if diff.duration_s is not None:
        yield f"time {diff.duration_s:+.0f} s"
    if diff.other_gpu:
        yield "another basis or GPU"


def table(comparison: Comparison) -> dict[str, Any]:
    """Lay the comparison out for the page."""
    return {
        "title": f"{comparison.before} → {comparison.after}",
        "summary": summary(comparison),
        "settings": settings_text(comparison),
        "heads": _HEADS,
        "rows": [_row(diff) for diff in comparison.diffs],
    }


def _row(diff: GroupDiff) -> dict[str, Any]:
    grew, both = diff.peak_bytes, (diff.before, diff.after)
    kind = "" if grew is None or abs(grew) <= SAME_BYTES else ("v-bad" if grew > 0 else "v-ok")
    peaks = ["" if one is None else peak_text(one).removesuffix(" MiB") for one in both]
    times = ["" if one is None else duration_text(one.duration_s) for one in both]
    return {
        "group": diff.group,
        "changed": diff.verdict_changed,
        "outcomes": [(one, "" if one is None else judged_text(one)) for one in both],
        "numbers": [(text, "") for text in peaks] + [(_growth(grew), kind)] + [(text, "") for text in times],
    }


def _growth(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ""
    return "same" if abs(num_bytes) <= SAME_BYTES else f"{to_mib(num_bytes):+.0f}"
