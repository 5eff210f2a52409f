# SPDX-License-Identifier: Apache-2.0
"""Loops that train without a loader: ended once they only repeat themselves, with what that may hide."""

import sys
import time
from typing import TYPE_CHECKING, Any

from .conditions import Condition, move_counters
from .growth import Keeper, Kept
from .loop_source import Loop
from .passes import MOST_AHEAD, MOST_TARGETS, RISE, LoopCoverage, Pass
from .source import frames

if TYPE_CHECKING:
    from .coverage import Coverage

# Optimizer steps without a batch of a loader after which the loop counts as the program's own.
LEAST_STEPS = 8
REPEATED_STEPS = 20
FEWER_STEPS = 6  # are enough where steps are so slow that the program has run half as long again as it should


class OwnLoops:
    """Follows such a loop by its optimizer steps; only in predictions, which wait for the program's end."""

    def __init__(self, coverage: "Coverage") -> None:
        self.steps = 0  # since the last batch of a loader
        self._coverage = coverage
        self._pass = Pass(None, False)
        self._first = self._jumps = 0
        self._keeper = Keeper()
        self._kept_at: str | None = None
        self._peaks: list[int] = []
        self._ended = False

    def stepped(self) -> None:
        """An optimizer has made a step; several since the last batch of a loader mean a loop that has none."""
        coverage = self._coverage
        self.steps += 1
        if not coverage.may_end or self.steps < LEAST_STEPS:
            return
        frame, loop = _running_loop()
        if self.steps == LEAST_STEPS:
            self._begin(frame, "?" if loop is None else loop.place)
        if loop is not None and loop.goes_on(frame):
            self._pass.given += 1
            coverage.watch.look(loop, frame)
        self._peaks.append(coverage.close_step())
        kept = coverage.memory.kept(self._first)
        if frame is not None and kept.matters(None):
            self._kept_at = self._keeper.look(frame) or self._kept_at
        if time.process_time() < coverage.effort.end_s or not self._repeats(kept):
            return
        news = self._news()
        if loop is None or not self._jumped(frame, loop, news):
            self._end(frame, loop, news, kept)

    def told(self) -> list[LoopCoverage]:
        """What was run of the last such loop."""
        if not self._peaks:
            return []
        steps = LEAST_STEPS + len(self._peaks)
        return [LoopCoverage(self._pass.place, 1, steps, None if self._ended else steps, steps, "steps")]

    def _begin(self, frame: Any, place: str) -> None:
        self._first = self._coverage.memory.step + 1
        self._peaks = []
        self._pass = Pass(None, False, place=place)
        self._coverage.watch.put_into_functions(place, frame)
        self._coverage.watch.begin(self._pass)

    def _news(self) -> list[tuple[int, Condition]]:
        """Conditions that say something new in the iterations to come, and after how many."""
        noted = (one for one in self._coverage.watch.noted_in(self._pass) if one.weighs)
        asked = ((one.news(self._pass, MOST_AHEAD), one) for one in noted)
        return sorted(((after[0], one) for after, one in asked if after), key=lambda one: one[0])

    def _jumped(self, frame: Any, loop: Loop, news: list[tuple[int, Condition]]) -> bool:
        """Move the counters to just before the next condition that says something new, if there is one."""
        for after, condition in news:
            moving = condition.moving(self._pass)
            if self._jumps < MOST_TARGETS and all(leaf.place or leaf.name in loop.counted for leaf, _ in moving):
                self._jumps += 1
                loop.advance(frame, after - 1)
                move_counters(self._coverage.watch.noted_in(self._pass), self._pass, after - 1)
                return True
        return False

    def _repeats(self, kept: Kept) -> bool:
        slow = time.process_time() > 1.5 * self._coverage.effort.end_s
        count = FEWER_STEPS if slow else REPEATED_STEPS
        before, latest = self._peaks[:-count], self._peaks[-count:]
        return bool(before) and (kept.grows or max(latest) <= RISE * max(before))

    def _end(self, frame: Any, loop: Loop | None, news: list[tuple[int, Condition]], kept: Kept) -> None:
        """End the program, whose steps only repeat themselves, and say what that may hide."""
        coverage, where = self._coverage, self._pass.place
        if kept.grows and kept.matters(None):
            coverage.grows(where, self._kept_at, kept.bytes_per_step, self.steps, None)
        for after, condition in news:
            text = f"`{condition.text}` ({condition.place}) changes {after} steps on; ended after {self.steps} steps"
            coverage.doubts["phase_not_reached"] = text
        if loop is None or loop.is_followed_by_work(frame):
            text = f"ended after {self.steps} steps of the loop at {where}; what follows was not run"
            coverage.doubts["ended_early"] = text
        self._ended = coverage.ended_early = True
        coverage.record.note(f"ended after {self.steps} steps of the loop at {where}: memory had repeated")
        raise SystemExit(0)


def _running_loop() -> tuple[Any, Loop | None]:
    """The nearest frame of the program that is in a loop, and that loop."""
    found = ((frame, Loop.of(frame)) for frame in frames(sys._getframe(1)))
    return next(((frame, loop) for frame, loop in found if loop is not None), (None, None))
