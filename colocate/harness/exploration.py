# SPDX-License-Identifier: Apache-2.0
"""Which further runs of a program tell what its values would decide, and what all of its runs say together.

Pure: starts nothing. `colocate.harness.simulation` makes the runs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from colocate.harness.simulated_run import SimulatedRun
from colocate.units import format_mib
from colocate.verdict import PeakRange

MOST_RUNS = 5

# In the last line of a program that counted on as many batches as its loader says.
WORDS_OF_LENGTHS = ("shape", "size", "length", "index", "broadcast", "zerodivision", "stopiteration", "samples")

SAME_PEAK = 0.02  # two peaks that differ by a smaller share are the same

BRANCH, TAKES_ALL = "branch_on_values", "takes_what_it_gets"

# Of the GPU that a run sees: one that gives more than it has, one that refuses what it has not, a smaller one.
Size = Literal["generous", "real", "smaller"]


@dataclass(frozen=True)
class Answers:
    """What a run is told where nobody knows: the other answer at these places, numbers that rise, a GPU's size.

    ``whole``: no pass over the data is cut.
    """

    other: frozenset[str] = frozenset()
    rising: bool = False
    size: Size = "generous"
    whole: bool = False

    @property
    def text(self) -> str:
        """For the environment of the run."""
        return json.dumps({"other": sorted(self.other), "rising": self.rising})


@dataclass(frozen=True)
class Observed:
    """What one run showed.

    ``decisions`` has by place the answers that were given, and those not given behind which there is work; ``numbers``
    are places where a number left that is tested later. ``refused`` counts requests that the GPU had no room for, in a
    program that went on; ``asked_size`` says that the program asked how much is free, ``cut`` that passes over its data
    were cut.
    """

    answers: Answers
    run: SimulatedRun
    decisions: Mapping[str, tuple[frozenset[bool], frozenset[bool]]] = field(default_factory=dict)
    numbers: tuple[str, ...] = ()
    refused: int = 0
    asked_size: bool = False
    late: bool = False
    cut: bool = False


class Exploration:
    """The runs of one program.

    Args:
        timeout_s: when no further run is begun, counted over all of them.
        total_bytes: the GPU's size, which a program that takes all it gets cannot exceed.
    """

    def __init__(self, timeout_s: float, total_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._total_bytes = total_bytes
        self._seen: list[Observed] = []

    def take(self, observed: Observed) -> None:
        """One run has ended."""
        self._seen.append(observed)

    def following(self) -> Answers | None:
        """The next run, or None when enough is known or time is up."""
        if not self._seen:
            return Answers()
        if len(self._seen) >= MOST_RUNS or self._seen[-1].late:
            return None
        if sum(one.run.duration_s for one in self._seen) > self._timeout_s:
            return None
        tried = {one.answers for one in self._seen}
        return next((wish for wish in self._wishes() if wish not in tried), None)

    def _wishes(self) -> list[Answers]:
        """What is worth a run, the most telling first."""
        first, checks = self._seen[0], self._checks()
        if first.run.failure is not None and not checks:
            return self._after_a_failure(first)
        wishes = [Answers(size="real")] if first.refused else []
        wishes += [Answers(size="smaller")] if first.asked_size and not first.refused else []
        left = self._open()
        if left:
            wishes.append(Answers(checks | frozenset(left)))
        failed = {place for one in self._seen if one.run.failure is not None for place in one.answers.other}
        wishes += [Answers(checks | {place}) for place in left if place in failed]
        if any(one.numbers for one in self._seen):
            wishes.append(Answers(checks, rising=True))
        return wishes

    def _after_a_failure(self, first: Observed) -> list[Answers]:
        """The cut of passes may have done it, or a check of values that nobody recognised as one."""
        if first.run.failure_code != "dry_run_failed" or any(one.answers.whole for one in self._good()):
            return []
        whole = [Answers(whole=True)] if first.cut else []
        places = list(first.decisions)
        other = [Answers(frozenset(places[-1:])), Answers(frozenset(places))] if places else []
        of_lengths = any(word in line.lower() for line in first.run.last_lines[-1:] for word in WORDS_OF_LENGTHS)
        return [*whole, *other] if of_lengths else [*other, *whole]

    def _checks(self) -> frozenset[str]:
        """Places whose first answer failed and whose other one did not: checks that nobody recognised as such."""
        if self._seen[0].run.failure is None:
            return frozenset()
        return next((one.answers.other for one in self._good() if one.answers.other), frozenset())

    def _open(self) -> list[str]:
        """Places of which a run that ended well has not shown an answer with work behind it."""
        given: dict[str, set[bool]] = {}
        wanted: dict[str, set[bool]] = {}
        for one in self._good():
            for place, (answers, unseen) in one.decisions.items():
                given.setdefault(place, set()).update(answers)
                wanted.setdefault(place, set()).update(unseen)
        return [place for place in wanted if wanted[place] - given[place] and place not in self._checks()]

    def _good(self) -> list[Observed]:
        return [one for one in self._seen if one.run.peak is not None and one.answers.size == "generous"]

    def result(self) -> SimulatedRun:
        """What the runs say together: the largest peak, with a range over all of them."""
        duration_s = sum(one.run.duration_s for one in self._seen)
        good = self._good()
        if not good:
            failed = self._seen[0].run
            if self._seen[0].cut and failed.failure_code == "dry_run_failed":
                text = f"{failed.failure}; its passes over the data were cut, which may be why"
                failed = replace(failed, failure=text)
            return replace(failed, duration_s=duration_s)
        if good[0].refused:
            return replace(self._of_all_it_gets(good[0].run), duration_s=duration_s)
        peaks = [one.run.peak for one in good if one.run.peak is not None]
        largest = max(good, key=lambda one: one.run.peak.expected_bytes if one.run.peak else 0).run
        assert largest.peak is not None
        low, high = min(one.low_bytes for one in peaks), max(one.high_bytes for one in peaks)
        doubts = dict.fromkeys((*largest.doubts, *(doubt for one in good for doubt in one.run.doubts)))
        merged = replace(
            largest,
            duration_s=duration_s,
            peak=PeakRange(low, largest.peak.expected_bytes, high),
            doubts=tuple([*doubts, *self._untried()]),
            notes=(*largest.notes, *self._tried(good)),
        )
        return self._sized_by_what_is_free(merged)

    def _untried(self) -> list[tuple[str, str]]:
        doubts = []
        for place in self._open():
            text = f"{place} decides by a value that nobody knows, and its other side could not be tried; measure"
            doubts.append((BRANCH, text))
        return doubts

    def _tried(self, good: list[Observed]) -> list[str]:
        """How the runs differ, where they do."""
        notes = []
        first = good[0].run.peak
        for one in good[1:]:
            peak = one.run.peak
            if first is None or peak is None or _same(first, peak):
                continue
            where = ", ".join(sorted(one.answers.other)) or ", ".join(good[0].numbers)
            two = f"{format_mib(first.expected_bytes)} or {format_mib(peak.expected_bytes)}"
            notes.append(f"{two} by values that nobody knows: {where}; the range is over both")
        return notes

    def _of_all_it_gets(self, generous: SimulatedRun) -> SimulatedRun:
        """A program that went on after it was refused memory: its peak is what the GPU at hand gave it."""
        text = "it asks until the GPU refuses, so it takes what it gets: who starts first decides; measure"
        real = next((one.run for one in self._seen if one.answers.size == "real"), None)
        if real is None or real.peak is None:
            failed = (
                "expected it to go on on a GPU of this size, found that it did not" if real else "not tried in time"
            )
            return replace(generous, peak=None, parts=None, floor_bytes=None, failure=failed, failure_code=TAKES_ALL)
        peak = _from_its_parameters(real)
        peak = replace(peak, high_bytes=max(peak.expected_bytes, min(peak.high_bytes, self._total_bytes)))
        parts = real.parts
        if parts is not None:  # they were replayed where nothing is refused
            rest_bytes = parts.total - parts.fragmentation
            parts = replace(parts, fragmentation=max(0, peak.expected_bytes - rest_bytes))
        return replace(real, peak=peak, parts=parts, doubts=(*real.doubts, (TAKES_ALL, text)))

    def _sized_by_what_is_free(self, merged: SimulatedRun) -> SimulatedRun:
        """The same with a doubt, where the peak differs on a smaller GPU."""
        smaller = next((one.run for one in self._seen if one.answers.size == "smaller"), None)
        own = self._seen[0].run.peak
        if smaller is None or own is None or (smaller.peak is not None and _same(smaller.peak, own)):
            return merged
        text = "it asks how much is free and takes by that what it gets: who starts first decides; measure"
        return replace(merged, peak=_from_its_parameters(merged), doubts=(*merged.doubts, (TAKES_ALL, text)))


def _same(one: PeakRange, other: PeakRange) -> bool:
    return abs(one.expected_bytes - other.expected_bytes) <= SAME_PEAK * max(one.expected_bytes, other.expected_bytes)


def _from_its_parameters(run: SimulatedRun) -> PeakRange:
    """The range down to what it cannot do without."""
    assert run.peak is not None
    least = 0 if run.parts is None else run.parts.parameters + run.parts.context
    return replace(run.peak, low_bytes=min(run.peak.low_bytes, least))
