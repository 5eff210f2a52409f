# SPDX-License-Identifier: Apache-2.0
"""How far a dry run follows a program: when a pass over the data may be cut, and what is said about the rest.

A pass goes on until an optimizer step was made and the memory of a step repeats, as far as a budget of processor time
allows. Growth, and conditions on the number of the step, keep it going; what they would still do in the steps that are
left out is told in the record, as numbers and as doubts.
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..record import Record
from .growth import LEAST_GROWTH_BYTES, Keeper, Kept, StepMemory
from .loop_source import Condition, Loop, is_own


class Effort(NamedTuple):
    """Seconds of processor time that one process may spend beyond the least.

    ``cheap_s``: on passes whose rest costs little. ``unsettled_s``: on each loop whose memory has not repeated yet.
    ``look_s``: on looking for the largest batch. ``end_s``: after so long a program whose loops know no loader, and
    whose memory repeats, is ended.
    """

    cheap_s: float
    unsettled_s: float
    look_s: float
    end_s: float


EFFORTS = {
    "quick": Effort(0.5, 2.0, 0.5, 10.0),
    "normal": Effort(2.0, 4.0, 1.5, 20.0),
    "full": Effort(float("inf"), float("inf"), 60.0, float("inf")),
}

# A peak that is this much above all before it has not repeated.
RISE = 1.01

# Steps that left something after which growth counts as known: more would not make it surer.
PROVEN_STEPS = 24

# Passes of one loop after which its batches have been seen: later ones are cut to the least.
KNOWN_PASSES = 2

# A batch that is only put aside takes few blocks, those of its tensors; and so many are put aside at most.
MOST_COLLECTED_BLOCKS = 8
MOST_COLLECTED = 256

MOST_TARGETS = 6  # batches of a pass that are jumped to
MOST_AHEAD = 20_000  # steps for which a condition is asked

# Optimizer steps without a batch of a loader after which the loop counts as the program's own.
OWN_LOOP_STEPS = 8
REPEATED_STEPS = 20


@dataclass
class LoopCoverage:
    """What is known of one loop over a loader, from all its passes."""

    place: str
    passes: int = 0
    batches_run: int = 0
    batches_whole: int | None = 0
    steps: int = 0
    settled: bool = False
    slope: float = 0.0
    spent_s: float = 0.0
    keeper: Keeper = field(default_factory=Keeper)
    kept_at: str | None = None


@dataclass
class Pass:
    """One pass over a loader, as far as it went; ``whole`` is its number of batches, None where nobody knows."""

    whole: int | None
    ordered: bool
    largest: list[int] = field(default_factory=list)
    given: int = 0
    highest: list[int] = field(default_factory=list)
    spent_s: list[float] = field(default_factory=list)
    asked_s: float = 0.0
    first_step: int = 0
    optimizer_steps: int = 0
    backwards: int = 0
    counted: int = 0
    last_rise: int = 0
    over: bool = False
    whole_for_s: float = 0.0
    known: LoopCoverage | None = None
    left: "Left | None" = None
    loop: Loop | None = None
    moved: dict[str, int] = field(default_factory=dict)


@dataclass
class Left:
    """Growth of a pass that was cut: its steps, what they hold while it lives, and what the others would.

    ``after`` is the step behind the pass: what is made in it of what was collected is larger by ``more_share``.
    """

    first: int
    last: int
    held_bytes: int
    more_bytes: float
    more_share: float
    after: int | None = None


class Coverage:
    """Decides how far passes go, and tells what was covered.

    Args:
        record: where the optimizer's steps are counted and the result goes.
        memory: the live memory by steps.
        settle: takes back what has died.
        effort: one of ``EFFORTS``.
        may_end: end the program once it only repeats itself; for predictions, which wait for its end.
    """

    def __init__(
        self, record: Record, memory: StepMemory, settle: Callable[[], Any], effort: Effort, may_end: bool
    ) -> None:
        self.effort = effort
        self.passes_cut = 0
        self._record = record
        self._memory = memory
        self._settle = settle
        self._may_end = may_end
        self._cheap_left_s = effort.cheap_s
        self._backwards = 0
        self._loops: dict[str, LoopCoverage] = {}
        self._expected: dict[tuple[str, int], tuple[Condition, bool]] = {}
        self._growth: dict[str, dict[str, Any]] = {}
        self._left: list[Left] = []
        self._doubts: dict[str, str] = {}
        self._highest = self._extrapolated = 0
        self._has_optimizer = False
        self._since_loader = 0
        self._own_first = self._jumps = 0
        self._own = LoopCoverage("?")
        self._own_peaks: list[int] = []
        self._ended = False

    @property
    def look_s(self) -> float:
        """Seconds for a look at the samples of a data set."""
        return self.effort.look_s

    def install(self) -> None:
        """Count backward passes and optimizer steps, and let the record tell the coverage."""
        backward = torch.autograd.backward

        def backward_and_count(*args: Any, **kwargs: Any) -> Any:
            self._backwards += 1
            return backward(*args, **kwargs)

        torch.autograd.backward = backward_and_count
        make = torch.optim.Optimizer.__init__

        @functools.wraps(make)
        def make_and_know(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self._has_optimizer = True
            make(optimizer, *args, **kwargs)

        torch.optim.Optimizer.__init__ = make_and_know
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: self._stepped())
        read = self._record.read
        self._record.read = lambda: {**read(), "coverage": self.told()}

    # --- passes over loaders ------------------------------------------------------------------------------------------

    def asked(self, one: Pass, frame: Any) -> None:
        """The program asks for a batch: the step before it is over."""
        self._since_loader = 0
        now_s = time.process_time()
        if one.known is None:
            self._begin(one, frame)
        else:
            one.spent_s.append(now_s - one.asked_s)
            self._end_step(one, one.known, frame)
        one.asked_s = now_s

    def gave(self, one: Pass, position: int, frame: Any) -> int:
        """A batch is handed out; returns how many were left out before it, after moving the program's counters."""
        jumped = position - one.given
        if jumped and one.loop is not None and frame is not None:
            one.loop.advance(frame, one.moved, jumped)
        one.given = position + 1
        if one.known is not None:
            one.known.batches_run += 1
        return jumped

    def least(self, one: Pass, least: int) -> int:
        """Batches that a pass has at least, besides its last: one, where earlier passes have shown all there is."""
        known = one.known
        if known is not None and known.passes == 1 and self._backwards > one.backwards:
            return least + 1  # the first step makes gradients and states, so that growth shows in the third
        return 1 if known is not None and known.settled and known.passes > KNOWN_PASSES else least

    def wants_more(self, one: Pass, least: int) -> bool:
        """Whether the next batch of a pass is run, too, because something would be missed without it."""
        known = one.known
        if known is None or one.given < self.least(one, least) or self.effort is EFFORTS["full"]:
            return True
        if self._collects(one) or sum(one.spent_s) < one.whole_for_s:
            return True
        if one.whole is not None and one.spent_s:
            spent_s = one.spent_s[1:] or one.spent_s  # the first step is slower
            rest_s = sum(spent_s) / len(spent_s) * (one.whole - one.given)
            if rest_s <= self._cheap_left_s:
                self._cheap_left_s -= rest_s
                one.whole_for_s = sum(one.spent_s) + 2 * rest_s + 0.5
                return True
        if known.spent_s < self.effort.unsettled_s and self._is_unsettled(one, known):
            known.spent_s += one.spent_s[-1] if one.spent_s else 0.0
            return True
        return False

    def cut(self, one: Pass, frame: Any) -> list[int]:
        """The pass is cut here: the batches that are still worth running, in order."""
        known = one.known
        assert known is not None
        self.passes_cut += 1
        known.settled = known.settled or not self._is_unsettled(one, known)
        targets = set(one.largest[:MOST_TARGETS]) if known.passes <= KNOWN_PASSES else set()
        targets |= self._news(one, frame)
        if one.whole is not None and one.ordered:
            targets.add(one.whole - 1)
        targets = {position for position in targets if one.given <= position < (one.whole or 0)}
        skipped = None if one.whole is None else one.whole - one.given - len(targets)
        self._extrapolate(one, known, skipped, one.given + len(targets))
        return sorted(targets) if one.ordered else []

    def ended(self, one: Pass) -> None:
        """The pass is over, or the program asks for no more."""
        if one.over or one.known is None:
            return
        one.over = True
        if one.left is not None:
            one.left.after = self._memory.step

    def _begin(self, one: Pass, frame: Any) -> None:
        one.loop = Loop.at(frame.f_code.co_filename, frame.f_lineno) if is_own(frame.f_code.co_filename) else None
        place = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        if one.loop is not None:
            place = one.loop.place
            one.loop.forget()
        one.known = known = self._loops.setdefault(place, LoopCoverage(place))
        known.passes += 1
        if known.batches_whole is not None:
            known.batches_whole = None if one.whole is None else known.batches_whole + one.whole
        self._close_step()
        one.first_step = self._memory.step
        one.optimizer_steps = one.counted = self._steps
        one.backwards = self._backwards

    def _end_step(self, one: Pass, known: LoopCoverage, frame: Any) -> None:
        highest = self._close_step()
        if highest > RISE * max(one.highest, default=0):
            one.last_rise = one.given
        one.highest.append(highest)
        if one.loop is not None:
            moved = one.loop.observe(frame)
            one.moved = moved or one.moved
        known.steps += self._steps - one.counted
        one.counted = self._steps
        if self._kept(one).matters(self._left_of(one)):
            known.kept_at = known.keeper.look(frame) or known.kept_at

    @staticmethod
    def _left_of(one: Pass) -> int | None:
        return None if one.whole is None else one.whole - one.given

    def _close_step(self) -> int:
        self._settle()
        highest = self._memory.next_step()
        self._highest = max(self._highest, highest)
        more = sum(self._more_of(left) for left in self._left)
        self._extrapolated = max(self._extrapolated, highest + round(more))
        return highest

    def _more_of(self, left: Left) -> float:
        held = self._memory.still_held(left.first, left.last) >= left.held_bytes / 2
        after = 0 if left.after is None else self._memory.still_held(left.after, left.after)
        return (left.more_bytes if held else 0.0) + after * left.more_share

    @property
    def _steps(self) -> int:
        return int(self._record.fields["optimizer_steps"])

    def _kept(self, one: Pass) -> Kept:
        """Without the first step of a pass that trains: gradients and states are made in it."""
        return self._memory.kept(one.first_step + (self._backwards > one.backwards))

    def _collects(self, one: Pass) -> bool:
        """The program takes several batches before it works on them, as trainers do that accumulate gradients."""
        waits = torch.is_grad_enabled() and self._has_optimizer and self._backwards == one.backwards
        few = self._memory.blocks_before <= MOST_COLLECTED_BLOCKS and one.given < MOST_COLLECTED
        return waits and few and sum(one.spent_s) < self.effort.unsettled_s

    def _is_unsettled(self, one: Pass, known: LoopCoverage) -> bool:
        """No optimizer step yet, memory still rising, or growing."""
        if known.settled:
            return False
        trained, stepped = self._backwards > one.backwards, self._steps > one.optimizer_steps
        if trained and not stepped and self._has_optimizer:
            return True
        kept = self._kept(one)
        return one.last_rise >= one.given or (kept.steps < PROVEN_STEPS and kept.matters(self._left_of(one)))

    def _news(self, one: Pass, frame: Any) -> set[int]:
        """Batches at which a condition of the loop says something new; what cannot be jumped to becomes a doubt."""
        if one.loop is None or not one.moved:
            return set()
        ahead = MOST_AHEAD if one.whole is None else min(MOST_AHEAD, one.whole - one.given)
        found: set[int] = set()
        for steps, condition in one.loop.first_news(frame, one.moved, ahead):
            if condition.is_harmless:
                continue
            self._expected[one.loop.place, condition.line] = condition, not any(condition.seen)
            found |= {one.given - 1 + steps, one.given + steps}  # a counter may be moved before or after the test
        return set(sorted(found)[:MOST_TARGETS])

    def _extrapolate(self, one: Pass, known: LoopCoverage, skipped: int | None, run: int) -> None:
        """What the steps that are left out would keep, if those that were run kept something."""
        kept = self._kept(one)
        if kept.grows and kept.matters(self._left_of(one)):
            known.slope = max(known.slope, kept.bytes_per_step)
        last = self._memory.step - 1
        if not known.slope or skipped == 0:
            return
        more = known.slope * (skipped or 0)
        if skipped is not None and more < LEAST_GROWTH_BYTES:
            return
        held = round(known.slope * max(1, last - one.first_step - 1))
        one.left = Left(one.first_step, last, held, more, (skipped or 0) / run)
        self._left.append(one.left)
        told = self._growth.setdefault(
            known.place,
            {"place": known.kept_at, "bytes_per_step": 0, "steps_seen": 0, "steps_left": 0},
        )
        told["place"] = told["place"] or known.kept_at
        told["bytes_per_step"] = round(known.slope)
        told["steps_seen"] += run
        if skipped is None or told["steps_left"] is None:
            told["steps_left"] = None
        else:
            told["steps_left"] += skipped
        self._close_step()

    # --- loops of the program's own ----------------------------------------------------------------------------------

    def _stepped(self) -> None:
        """An optimizer has made a step; several since the last batch of a loader mean a loop that has none."""
        self._since_loader += 1
        if not self._may_end:
            return
        frame, loop = _own_loop()
        moved = {} if loop is None else loop.observe(frame)
        if self._since_loader < OWN_LOOP_STEPS:
            return
        if self._since_loader == OWN_LOOP_STEPS:
            self._own = LoopCoverage("?" if loop is None else loop.place, batches_whole=None)
            self._own_first = self._memory.step + 1
            self._own_peaks = []
        self._own_peaks.append(self._close_step())
        kept = self._memory.kept(self._own_first)
        if frame is not None and kept.matters(None):
            self._own.kept_at = self._own.keeper.look(frame) or self._own.kept_at
        if time.process_time() < self.effort.end_s or not self._repeats(kept):
            return
        if loop is None or not self._jumped(frame, loop, moved):
            self._end(frame, loop, moved, kept)

    def _jumped(self, frame: Any, loop: Loop, moved: dict[str, int]) -> bool:
        """Move the counters of a loop to just before the next condition that says something new, if there is one."""
        for ahead, condition in sorted(loop.first_news(frame, moved, MOST_AHEAD), key=lambda one: one[0]):
            counters = condition.names & set(moved)
            if not condition.is_harmless and counters <= loop.counted and self._jumps < MOST_TARGETS:
                self._jumps += 1
                loop.advance(frame, moved, ahead - 1)
                return True
        return False

    def _repeats(self, kept: Kept) -> bool:
        before, latest = self._own_peaks[:-REPEATED_STEPS], self._own_peaks[-REPEATED_STEPS:]
        return bool(before) and (kept.grows or max(latest) <= RISE * max(before))

    def _end(self, frame: Any, loop: Loop | None, moved: dict[str, int], kept: Kept) -> None:
        """End the program, whose steps only repeat themselves, and say what that may hide."""
        steps = self._since_loader
        where = self._own.place
        if kept.grows:
            self._growth[where] = {
                "place": self._own.kept_at,
                "bytes_per_step": round(kept.bytes_per_step),
                "steps_seen": steps,
                "steps_left": None,
            }
        if loop is not None:
            for ahead, condition in loop.first_news(frame, moved, MOST_AHEAD):
                if not condition.is_harmless:
                    told = (
                        f"`{condition.text}` ({where.rpartition(':')[0]}:{condition.line}) comes true {ahead} steps on"
                    )
                    self._doubts["phase_not_reached"] = f"{told}; ended after {steps} steps"
        if loop is None or loop.is_followed_by_work(frame):
            self._doubts["ended_early"] = f"ended after {steps} steps of the loop at {where}; what follows was not run"
        self._ended = True
        self._record.note(f"ended after {steps} steps of the loop at {where}: memory had repeated")
        raise SystemExit(0)

    # --- what is told -------------------------------------------------------------------------------------------------

    def doubt(self, code: str, text: str) -> None:
        """Something that was left out and may need more memory."""
        self._doubts.setdefault(code, text)

    def told(self) -> dict[str, Any]:
        """The coverage as the record has it."""
        highest = max(self._highest, self._memory.highest_bytes)
        more = sum(self._more_of(left) for left in self._left)
        extrapolated = max(self._extrapolated, self._memory.highest_bytes + round(more))
        loops = [*self._loops.values(), *([self._own_loop_told()] if self._own_peaks else [])]
        return {
            "loops": [
                {
                    "place": one.place,
                    "passes": one.passes,
                    "batches_run": one.batches_run,
                    "batches_whole": one.batches_whole,
                    "steps": one.steps,
                }
                for one in loops
            ],
            "growth": list(self._growth.values()),
            "growth_bytes": max(0, extrapolated - highest),
            "doubts": [[code, text] for code, text in self._all_doubts().items()],
            "ended_early": self._ended,
        }

    def _own_loop_told(self) -> LoopCoverage:
        steps = OWN_LOOP_STEPS + len(self._own_peaks)
        return LoopCoverage(self._own.place, 1, steps, None if self._ended else steps, steps)

    def _all_doubts(self) -> dict[str, str]:
        doubts = dict(self._doubts)
        for (place, line), (condition, wanted) in list(self._expected.items()):
            if wanted not in condition.seen:
                file = place.rpartition(":")[0]
                doubts["phase_not_reached"] = f"`{condition.text}` ({file}:{line}) has not come true in the steps run"
        for told in self._growth.values():
            if told["steps_left"] is None:
                at = f" at {told['place']}" if told["place"] else ""
                rate = f"{told['bytes_per_step'] / 2**20:.2f} MiB a step{at}"
                doubts["memory_grows"] = f"{rate}, for an unknown number of steps"
        cut_training = any(one.passes and not one.settled for one in self._loops.values()) and self.passes_cut
        if cut_training and self._backwards and not self._steps and self._has_optimizer:
            doubts["no_optimizer_step"] = f"{self._backwards} backward passes were run and no optimizer step"
        if "error_raised" in self._record.fields:
            doubts["error_caught"] = self._record.fields["error_raised"]
        return doubts


def _own_loop() -> tuple[Any, Loop | None]:
    """The nearest frame of the program that is in a loop, and that loop."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        loop = Loop.at(path, frame.f_lineno) if is_own(path) else None
        if loop is not None:
            return frame, loop
        frame = frame.f_back
    return None, None
