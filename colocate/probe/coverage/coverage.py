# SPDX-License-Identifier: Apache-2.0
"""How far a dry run follows a program: when a pass over the data may be cut, and what is said about the rest.

A pass goes on until an optimizer step was made and the memory of a step repeats, as far as a budget of processor time
allows. Growth, and conditions on the number of the step, keep it going; what they would still do in the steps that are
left out is told in the record, as numbers and as doubts.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..record import Record
from .collected import Collected
from .conditions import Condition, move_counters
from .growth import FOREVER, LEAST_GROWTH_BYTES, Kept, StepMemory
from .loop_source import Loop
from .own_loops import OwnLoops
from .passes import (
    CERTAIN_STEPS,
    EFFORTS,
    KNOWN_PASSES,
    MOST_AHEAD,
    MOST_COLLECTED,
    MOST_COLLECTED_BLOCKS,
    MOST_TARGETS,
    PROVEN_STEPS,
    RISE,
    Effort,
    Event,
    Left,
    LoopCoverage,
    Pass,
)
from .watch import Watch


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
        self.record = record
        self.memory = memory
        self._settle = settle
        self.may_end = may_end
        self.cheap_left_s = effort.cheap_s
        self.backwards = 0
        self.loops: dict[str, LoopCoverage] = {}
        self.rising: dict[Any, str] = {}  # what has become larger from pass to pass, or from turn to turn
        self.watch = Watch()
        self.expected: list[Condition] = []
        self.events: list[Event] = []
        self.growth: dict[str, dict[str, Any]] = {}
        self.left: list[Left] = []
        self.doubts: dict[str, str] = {}
        self.highest = self.highest_of_turn = self._extrapolated = self._surely_more = 0
        self.has_optimizer = False
        self.ended_early = False
        self.own_loops = OwnLoops(self)
        self.collected = Collected(self.doubt)

    @property
    def look_s(self) -> float:
        """Seconds for a look at the samples of a data set."""
        return self.effort.look_s

    def install(self) -> None:
        """Count backward passes and optimizer steps, and let the record tell the coverage."""
        backward = torch.autograd.backward

        def backward_and_count(*args: Any, **kwargs: Any) -> Any:
            self.backwards += 1
            return backward(*args, **kwargs)

        torch.autograd.backward = backward_and_count
        make = torch.optim.Optimizer.__init__

        @functools.wraps(make)
        def make_and_know(optimizer: Any, *args: Any, **kwargs: Any) -> None:
            self.has_optimizer = True
            make(optimizer, *args, **kwargs)

        torch.optim.Optimizer.__init__ = make_and_know
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: self.own_loops.stepped())
        read = self.record.read
        self.record.read = lambda: {**read(), "coverage": self.told()}

    # --- passes over loaders ------------------------------------------------------------------------------------------

    def asked(self, one: Pass, frame: Any) -> None:
        """The program asks for a batch: the step before it is over."""
        self.own_loops.steps = 0
        now_s = time.process_time()
        if one.known is None:
            self._begin(one, frame)
        else:
            one.spent_s.append(now_s - one.asked_s)
            self.watch.at = one
            self._end_step(one, one.known, frame)
        one.asked_s = now_s

    def gave(self, one: Pass, position: int, frame: Any) -> int:
        """A batch is handed out; returns how many were left out before it, after moving the program's counters."""
        jumped = position - one.given
        if jumped and one.loop is not None and frame is not None:
            one.loop.advance(frame, jumped)
        if jumped:
            move_counters(self.watch.noted_in(one), one, jumped)
        one.given = position + 1
        one.step_began = self.memory.step
        if one.known is not None:
            one.known.batches_run += 1
        return jumped

    def least(self, one: Pass, least: int) -> int:
        """Batches that a pass has at least, besides its last: one, where earlier passes have shown all there is."""
        known = one.known
        if known is not None and known.passes == 1 and self.backwards > one.backwards:
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
            if rest_s <= self.cheap_left_s:
                self.cheap_left_s -= rest_s
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
        one.is_cut = True
        known.settled = known.settled or not self._is_unsettled(one, known)
        targets = set(one.largest[:MOST_TARGETS]) if known.passes <= KNOWN_PASSES else set()
        targets |= self._news(one)
        whole = min(filter(None, (one.whole, self.watch.end_of(one))), default=None)
        if whole is not None and one.ordered:
            targets.add(whole - 1)
        targets = {position for position in targets if one.given <= position < (whole or MOST_AHEAD)}
        skipped = None if whole is None else whole - one.given - len(targets)
        self._extrapolate(one, known, skipped, one.given + len(targets))
        one.targets = sorted(targets)
        return one.targets

    def grows(self, place: str, kept_at: str | None, slope: float, seen: int, left: int | None) -> None:
        """Tell of memory that grows from step to step: where, how fast, in how many steps seen and left out."""
        told = self.growth.setdefault(place, _growth(kept_at, 0, 0, 0))
        told["place"] = told["place"] or kept_at
        told["bytes_per_step"] = round(slope)
        told["steps_seen"] += seen
        told["steps_left"] = None if left is None or told["steps_left"] is None else told["steps_left"] + left

    def ended(self, one: Pass) -> None:
        """The pass is over, or the program asks for no more."""
        if one.over or one.known is None:
            return
        one.over = True
        if not one.is_cut:  # later passes may be cut, and keep as much
            self._learn(one, one.known, one.given)
        self.watch.end(one)
        if one.left is not None:
            one.left.after = self.memory.step

    def _begin(self, one: Pass, frame: Any) -> None:
        one.loop = Loop.of(frame)
        place = f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
        if one.loop is not None:
            place = one.loop.place
            one.loop.forget()
        one.known = known = self.loops.setdefault(place, LoopCoverage(place))
        known.passes += 1
        self.watch.put_into_functions(place, frame)
        one.place = place
        self.watch.begin(one)
        if known.batches_whole is not None:
            known.batches_whole = None if one.whole is None else known.batches_whole + one.whole
        self.close_step()
        one.first_step = self.memory.step
        one.optimizer_steps = one.counted = self.steps
        one.backwards = self.backwards

    def _end_step(self, one: Pass, known: LoopCoverage, frame: Any) -> None:
        highest = self.close_step()
        if highest > RISE * max(one.highest, default=0):
            one.last_rise = one.given
        one.highest.append(highest)
        self.collected.look(one, frame)
        if one.loop is not None:
            self.watch.look(one.loop, frame)
        known.steps += self.steps - one.counted
        one.counted = self.steps
        self._follow_events(one)
        if self._kept(one).matters(self._left_of(one)):
            known.kept_at = known.keeper.look(frame) or known.kept_at

    @staticmethod
    def _left_of(one: Pass) -> int | None:
        return None if one.whole is None else one.whole - one.given

    def close_step(self) -> int:
        """End a step of the memory; the most that lived during it, in bytes."""
        self._settle()
        highest = self.memory.next_step()
        self.highest = max(self.highest, highest)
        self.highest_of_turn = max(self.highest_of_turn, highest)
        self._extrapolated = max(self._extrapolated, highest + round(self._more()))
        self._tell_events()
        sure = sum(self._in_the_pass(left) for left in self.left if left.is_certain)
        self._surely_more = max(self._surely_more, highest + round(sure))
        return highest

    def _tell_events(self) -> None:
        """What conditions kept, each time that they set something off, counts as growth."""
        for event in self.events:
            left, place = len(event.positions) - len(event.steps), event.condition.place
            if len(event.steps) > 1 and (kept := self._kept_by(event)) * left >= LEAST_GROWTH_BYTES:
                self.growth.setdefault(place, _growth(place, kept, len(event.steps), left))

    def _more(self) -> float:
        """What all that was left out would hold now."""
        several = [event for event in self.events if len(event.steps) > 1]
        repeated = sum(self._kept_by(event) * (len(event.positions) - len(event.steps)) for event in several)
        return sum(self.more_of(left) for left in self.left) + repeated

    def more_of(self, left: Left) -> float:
        """What the steps that were left out would hold now, as far as those that were run are still held."""
        after = 0 if left.after is None else min(left.held_bytes, self.memory.still_held(left.after, left.after))
        return self._in_the_pass(left) + after * left.more_share

    def _in_the_pass(self, left: Left) -> float:
        """That part of it which the steps themselves would have made."""
        return left.more_bytes if self.memory.still_held(left.first, left.last) >= left.held_bytes / 2 else 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps of this process so far."""
        return int(self.record.fields["optimizer_steps"])

    def _kept(self, one: Pass) -> Kept:
        """Without the first step of a pass that trains: gradients and states are made in it."""
        return self.memory.kept(one.first_step + (self.backwards > one.backwards))

    def _collects(self, one: Pass) -> bool:
        """The program takes several batches before it works on them, as trainers do that accumulate gradients."""
        waits = torch.is_grad_enabled() and self.has_optimizer and self.backwards == one.backwards
        few = self.memory.blocks_before <= MOST_COLLECTED_BLOCKS and one.given < MOST_COLLECTED
        return waits and few and sum(one.spent_s) < self.effort.unsettled_s

    def _is_unsettled(self, one: Pass, known: LoopCoverage) -> bool:
        """No optimizer step yet, memory still rising, or growing."""
        if known.settled:
            return False
        trained, stepped = self.backwards > one.backwards, self.steps > one.optimizer_steps
        if trained and not stepped and self.has_optimizer:
            return True
        kept = self._kept(one)
        return one.last_rise >= one.given or (kept.steps < PROVEN_STEPS and kept.matters(self._left_of(one)))

    def _news(self, one: Pass) -> set[int]:
        """Batches at which a condition says something new; what is not reached by jumping there is a doubt."""
        ahead = MOST_AHEAD if one.whole is None else min(MOST_AHEAD, one.whole - one.given)
        for condition in self.watch.noted_in(one):
            after = condition.news(one, ahead) if condition.weighs else []
            if after or condition.comes_with_time(one):
                self.expected.append(condition)
            elif not self._kept(one).matters(self._left_of(one)):  # what each step keeps is reckoned with as it is
                after = condition.returning(one, ahead)
            if after:
                # A counter may be moved before or after the test, and batches of a step may be taken ahead of it.
                ahead_of_it = math.ceil(condition.steps_per_note(one)) - 1
                positions = [max(one.given, one.given - 1 + more - ahead_of_it) for more in after]
                one.events.append(Event(condition, positions, 2 + 3 * ahead_of_it))
        one.events.sort(key=lambda event: event.positions[0])
        self.events += one.events
        del one.events[MOST_TARGETS:]
        return {event.positions[0] + more for event in one.events for more in range(event.span)}

    def _follow_events(self, one: Pass) -> None:
        """A step is over: what a condition set off in it is run once more if it has kept something."""
        position, step = one.given - 1, (one.step_began, self.memory.step - 1)
        for event in one.events:
            for times, first in enumerate(event.positions[:2]):
                if first <= position < first + event.span:
                    event.steps += [] if len(event.steps) > times else [step]
                    event.steps[times] = event.steps[times][0], step[1]
            is_over = len(event.steps) == 1 and position == event.positions[0] + event.span - 1
            if is_over and self._kept_by(event) * len(event.positions) >= LEAST_GROWTH_BYTES:
                again = [event.positions[1] + more for more in range(event.span) if len(event.positions) > 1]
                end = MOST_AHEAD if one.whole is None else one.whole
                one.targets[:] = sorted({*one.targets, *(at for at in again if one.given <= at < end)})

    def _kept_by(self, event: Event) -> int:
        """The least that one of its steps still holds."""
        return min((self.memory.still_held(*step) for step in event.steps), default=0)

    def _learn(self, one: Pass, known: LoopCoverage, left: int | None) -> Kept:
        kept = self._kept(one)
        if kept.grows and kept.matters(left):
            known.slope, known.moves = max(known.slope, kept.bytes_per_step), kept.moves
        return kept

    def _extrapolate(self, one: Pass, known: LoopCoverage, skipped: int | None, run: int) -> None:
        """What the steps that are left out would keep, if those that were run kept something."""
        kept, last = self._learn(one, known, self._left_of(one)), self.memory.step - 1
        if not known.slope or skipped == 0:
            return
        more = known.slope * (skipped or 0)
        if skipped is not None and more < LEAST_GROWTH_BYTES:
            return
        held = round(known.slope * max(1, last - one.first_step - 1))
        is_certain = kept.steps == kept.of_steps >= CERTAIN_STEPS and known.keeper.is_steady
        until = FOREVER if known.moves else last
        one.left = Left(one.first_step, until, held, more, (skipped or 0) / run, is_certain=is_certain)
        self.left.append(one.left)
        self.grows(known.place, known.kept_at, known.slope, run, skipped)
        self.close_step()

    # --- what is told -------------------------------------------------------------------------------------------------

    def doubt(self, code: str, text: str) -> None:
        """Something that was left out and may need more memory."""
        self.doubts.setdefault(code, text)

    def told(self) -> dict[str, Any]:
        """The coverage as the record has it."""
        highest = max(self.highest, self.memory.highest_bytes)
        extrapolated = max(self._extrapolated, self.memory.highest_bytes + round(self._more()))
        loops = [*self.loops.values(), *self.own_loops.told()]
        return {
            "loops": [
                {
                    name: getattr(one, name)
                    for name in ("place", "passes", "batches_run", "batches_whole", "steps", "unit")
                }
                for one in loops
            ],
            "growth": list(self.growth.values()),
            "growth_bytes": max(0, extrapolated - highest),
            "certain_growth_bytes": max(0, self._surely_more - highest),
            "doubts": [[code, text] for code, text in self._all_doubts().items()],
            "ended_early": self.ended_early,
        }

    def _all_doubts(self) -> dict[str, str]:
        doubts = dict(self.doubts)
        for condition in self.expected:
            if len(condition.seen) < 2:
                outcome = "come true" if False in condition.seen else "become false"
                text = f"`{condition.text}` ({condition.place}) has not {outcome} in the steps run"
                doubts["phase_not_reached"] = text
        for told in self.growth.values():
            if told["steps_left"] is None:
                at = f" at {told['place']}" if told["place"] else ""
                rate = f"{told['bytes_per_step'] / 2**20:.2f} MiB a step{at}"
                doubts["memory_grows"] = f"{rate}, for an unknown number of steps"
        if self.rising and self.passes_cut and "assumed_at" in self.record.fields:
            text = f"{next(iter(self.rising.values()))} by values that nobody knows, and may go on so"
            doubts.setdefault("longest_batch_unseen", text)
        cut_training = any(one.passes and not one.settled for one in self.loops.values()) and self.passes_cut
        if cut_training and self.backwards and not self.steps and self.has_optimizer:
            doubts["no_optimizer_step"] = f"{self.backwards} backward passes were run and no optimizer step"
        if "error_raised" in self.record.fields:
            doubts["error_caught"] = self.record.fields["error_raised"]
        return doubts


def _growth(place: str | None, bytes_per_step: int, seen: int, left: int) -> dict[str, Any]:
    return {"place": place, "bytes_per_step": bytes_per_step, "steps_seen": seen, "steps_left": left}
