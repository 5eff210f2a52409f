# SPDX-License-Identifier: Apache-2.0
"""Short loops over a range: epochs, or steps that take no batch from a loader, of which the first ones show the rest.

In the program's own modules ``range`` hands out turns where it heads a ``for``. Once the first turns have trained,
their memory repeats and the rest would take long, it goes on with those turns at which a condition says something new,
and with the last one; every turn has its true number.
"""

import ast
import builtins
import functools
import sys
import time
from typing import Any, NamedTuple

import torch

from ..origin import is_own
from .conditions import move_counters
from .coverage import Coverage
from .growth import CONFIRMED_STEPS, FOREVER, LEAST_BYTES, LEAST_GROWTH_BYTES, Keeper, lengths_in_sight
from .loaders import Enumerate, looping
from .loop_source import Loop
from .passes import EFFORTS, MOST_AHEAD, MOST_TARGETS, RISE, Event, Left, LoopCoverage
from .series import Level
from .source import last_name

# Turns that are run at least: the first is a warm-up, what the second keeps shows in the third.
LEAST_TURNS = 3
LEAST_STEPS = 8  # of turns that make one step each
SETTLED_TURNS = 2  # latest turns that must have trained, and raised no peak

# Peaks of single steps that differ by more than this share: a larger one may be among those that are left out.
DIFFERENT = 1.25

BARS = {"tqdm", "track", "enumerate"}  # what may stand around a range at the head of a loop


class OfRanges(type):
    """Makes turns at the head of a loop and ranges everywhere else, and recognises ranges."""

    coverage: Coverage

    def __call__(cls, *bounds: Any) -> Any:
        """A range, or the turns of the loop that it heads."""
        whole = range(*bounds)
        frame = sys._getframe(1)
        loop = _headed_by_range(frame.f_code.co_filename, frame.f_lineno) if len(whole) > LEAST_TURNS else None
        return whole if loop is None else Turns(whole, loop, cls.coverage)

    def __instancecheck__(cls, one: Any) -> bool:
        return isinstance(one, range)


class Turn(NamedTuple):
    """One turn that was run: its steps of memory, its optimizer steps, its time, and the highest peak so far.

    ``peak_bytes`` is its own, where no other loop was run in it.
    """

    first_step: int
    last_step: int
    optimizer_steps: int
    spent_s: float
    highest_bytes: int
    peak_bytes: int | None


class Turns:
    """The values of a range, with those left out that would only repeat others."""

    def __init__(self, whole: range, loop: Loop, coverage: Coverage) -> None:
        self.place = loop.place
        self.given = 0
        self.whole: int | None = len(whole)
        self.outer: Level | None = None
        self.range = whole
        self._loop = loop
        self._coverage = coverage
        self._known = LoopCoverage(loop.place, unit="turns")
        self._keeper = Keeper()
        self._turns: list[Turn] = []
        self._targets: list[int] | None = None
        self._events: list[Event] = []
        self._lengths: dict[tuple[int, str], int] = {}
        self._is_cheap = False
        self._since = 0, 0, 0.0, 0

    def __len__(self) -> int:
        return len(self.range)

    def __iter__(self) -> "Turns":
        return self

    def __next__(self) -> int:
        """The next value."""
        frame = looping(sys._getframe(1))
        if self.given:
            self._end_turn(frame)
        else:
            self._loop.forget()
            self._coverage.watch.begin(self)
        if self._targets is None and self._may_be_cut(frame):
            self._cut(frame)
        following = [self.given] if self._targets is None else self._targets
        position = following.pop(0) if following else len(self.range)
        if position >= len(self.range):
            self._coverage.watch.end(self)
            raise StopIteration
        self._skip(position - self.given, frame)
        self.given = position + 1
        coverage = self._coverage
        coverage.highest_of_turn = 0
        self._since = coverage.memory.step, self._trained, time.process_time(), coverage.watch.begun
        return self.range[position]

    @property
    def _trained(self) -> int:
        """Optimizer steps so far; backward passes of a program that has no optimizer."""
        return self._coverage.steps if self._coverage.has_optimizer else self._coverage.backwards

    def _end_turn(self, frame: Any) -> None:
        coverage = self._coverage
        coverage.watch.at = self
        coverage.close_step()
        coverage.watch.look(self._loop, frame)
        first, steps, began_s, begun = self._since
        spent_s = time.process_time() - began_s
        if self._trained > steps:
            coverage.watch.put_into_functions(self.place, frame)
        own_peak = coverage.highest_of_turn if coverage.watch.begun == begun else None
        trained, last = self._trained - steps, coverage.memory.step - 1
        turn = Turn(first, last, trained, spent_s, coverage.highest, own_peak)
        self._turns.append(turn)
        if len(self._turns) == SETTLED_TURNS:
            self._lengths = lengths_in_sight(frame)
        for event in self._events:
            if self.given - 1 in event.positions[:2]:
                event.steps.append((first, last))
        self._known.batches_run += 1
        self._known.steps += turn.optimizer_steps
        if len(self._turns) > 1 and self._kept_by(self._turns[-2]) > LEAST_BYTES:
            self._known.kept_at = self._keeper.look(frame) or self._known.kept_at

    def _may_be_cut(self, frame: Any) -> bool:
        """Whether enough was seen, and the rest would take long."""
        left = len(self.range) - self.given
        is_step = bool(self._turns) and self._turns[-1].peak_bytes is not None
        least = LEAST_STEPS if is_step else LEAST_TURNS
        if left < SETTLED_TURNS or len(self._turns) < least or self._is_cheap:
            return False
        coverage, latest = self._coverage, self._turns[-SETTLED_TURNS:]
        trained = [one.optimizer_steps > 0 for one in self._turns[-least:]]
        if not coverage.may_end or coverage.effort is EFFORTS["full"]:
            return False
        # steps may be accumulated
        if not (any(trained) if is_step else all(trained[-SETTLED_TURNS:])) and not self._only_evaluates(frame):
            return False
        rest_s = left * sum(one.spent_s for one in latest) / len(latest)
        if rest_s <= coverage.cheap_left_s:
            coverage.cheap_left_s -= rest_s
            self._is_cheap = True
            return False
        known = self._turns[1:-1]  # without the warm-up, and without the latest, whose variables still live
        keeping = [one for one in known[-CONFIRMED_STEPS:] if self._kept_by(one) > LEAST_BYTES]
        unclear = len(keeping) * 2 > len(known[-CONFIRMED_STEPS:]) and len(known) < CONFIRMED_STEPS
        if unclear and len(known) < SETTLED_TURNS:
            return False
        rising = latest[-1].highest_bytes > RISE * self._turns[-SETTLED_TURNS - 1].highest_bytes
        return not ((unclear or rising) and sum(one.spent_s for one in self._turns) < coverage.effort.unsettled_s)

    def _only_evaluates(self, frame: Any) -> bool:
        """The turns work on the device without gradients, are alike to the byte, and nothing grows, here or there.

        A text that is generated word by word would differ by the logits of each word.
        """
        peaks = {one.peak_bytes for one in self._turns[1:]}
        works = self._coverage.memory.blocks_before > 0 and not torch.is_grad_enabled()
        return works and len(peaks) == 1 and None not in peaks and self._lengths == lengths_in_sight(frame)

    def _kept_by(self, turn: Turn) -> float:
        """What a turn allocated and still lives, and what the batches that it left out would add to it."""
        left = (one for one in self._coverage.left if turn.first_step <= one.first <= turn.last_step)
        held = self._coverage.memory.still_held(turn.first_step, turn.last_step)
        return held + sum(self._coverage.more_of(one) for one in left)

    def _cut(self, frame: Any) -> None:
        """Leave out the turns that repeat others; what they would keep is reckoned with."""
        coverage, count = self._coverage, len(self.range)
        targets = sorted({*self._news(), count - 1})
        self._targets = targets
        coverage.passes_cut += 1
        coverage.loops.setdefault(self.place, self._known)
        self._known.passes += 1
        self._known.batches_whole = (self._known.batches_whole or 0) + count
        skipped = count - self.given - len(targets)
        peaks = [one.peak_bytes for one in self._turns[len(self._turns) // 2 :] if one.peak_bytes]
        if peaks and max(peaks) > DIFFERENT * min(peaks):
            text = f"steps of the loop at {self.place} differ in memory, and only {self.given} of {count} were run"
            coverage.doubt("longest_batch_unseen", text)
        latest = [one.highest_bytes for one in self._turns[-SETTLED_TURNS - 1 :]]
        if latest[-1] > RISE * latest[0]:
            coverage.rising[self.place] = f"the peak of the loop at {self.place} rose in {self.given} of {count} turns"
        self._extrapolate(skipped)

    def _extrapolate(self, skipped: int) -> None:
        """What the turns that are left out would keep, if those that were run kept something."""
        coverage, known = self._coverage, self._turns[1:-1][-CONFIRMED_STEPS:]
        kept = [size for one in known if (size := self._kept_by(one)) > LEAST_BYTES]
        slope, until = sum(kept) / len(known), self._turns[-1].last_step
        if len(kept) * 2 <= len(known):
            rise = coverage.memory.rise([one.last_step for one in self._turns[-CONFIRMED_STEPS - 1 :]])
            slope, until = rise, FOREVER
        if slope * skipped >= LEAST_GROWTH_BYTES:
            coverage.grows(self.place, self._known.kept_at, slope, len(self._turns), skipped)
            coverage.left.append(Left(self._turns[1].first_step, until, 0, slope * skipped))

    def _news(self) -> list[int]:
        """Turns at which a condition says something new: by what moves from turn to turn, or within the turns."""
        left = len(self.range) - self.given
        found = []
        for condition in self._coverage.watch.conditions():
            if not condition.weighs:
                continue
            turns = condition.news(self, left)[:1]
            for level in condition.levels_within(self):
                steps = max(1, level.whole or level.given)
                turns += [-(-ahead // steps) for ahead in condition.news(level, min(MOST_AHEAD, left * steps))[:1]]
            if turns and min(turns) <= left:
                self._coverage.expected.append(condition)
                found.append(self.given - 1 + min(turns))
            elif condition.comes_with_time(self):
                self._coverage.expected.append(condition)
            elif returning := [self.given - 1 + ahead for ahead in condition.returning(self, left)]:
                self._events.append(Event(condition, returning, 1))
        self._coverage.events += self._events
        again = [position for event in self._events[:MOST_TARGETS] for position in event.positions[:2]]
        return [*sorted(found)[:MOST_TARGETS], *again]

    def _skip(self, skipped: int, frame: Any) -> None:
        if not skipped:
            return
        if self._known.steps:
            self._coverage.own_loops.steps = 0
        self._loop.advance(frame, skipped)
        move_counters(self._coverage.watch.noted_in(self), self, skipped)
        Enumerate.jumped += skipped


def install_turns(coverage: Coverage) -> None:
    """Put our ``range`` into the program's own modules: the main one now, the others once there is an optimizer."""
    OfRanges.coverage = coverage
    make = torch.optim.Optimizer.__init__

    @functools.wraps(make)
    def make_and_look(optimizer: Any, *args: Any, **kwargs: Any) -> None:
        make(optimizer, *args, **kwargs)
        _put_into_modules()

    torch.optim.Optimizer.__init__ = make_and_look
    _put_into_modules()


class Range(metaclass=OfRanges):
    """Stands for ``range`` in the program's own modules."""


def _put_into_modules() -> None:
    if "numba" in sys.modules:  # it compiles functions, and knows no range but the one
        return
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and is_own(path) and getattr(module, "range", builtins.range) is builtins.range:
            vars(module)["range"] = Range


@functools.cache
def _headed_by_range(path: str, line: int) -> Loop | None:
    """The loop whose head in this line is a range, or a progress bar over one."""
    loop = Loop.at(path, line)
    node = loop.node if loop is not None else None
    if not isinstance(node, ast.For) or not isinstance(node.iter, ast.Call):
        return None
    call, name = node.iter, last_name(node.iter.func)
    if name in BARS and call.args and isinstance(call.args[0], ast.Call):
        call = call.args[0]
    is_range = isinstance(call.func, ast.Name) and call.func.id == "range"
    return loop if is_range and call.lineno <= line <= (call.end_lineno or call.lineno) else None
