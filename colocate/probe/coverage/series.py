# SPDX-License-Identifier: Apache-2.0
"""The numbers that a condition reads in the latest steps of a loop, and how each step moves them. Knows no program."""

import itertools
import math
from collections import deque
from typing import Any, Protocol

NOTES = 4  # of the latest steps, from which a counter is recognised
SAME_STEPS = 2  # differences that must be equal; of unequal ones one more must have the same sign

LATER_S = 1e9  # longer than any program runs


def moved(value: Any, by: float) -> Any:
    """A number, or the length of a container, as it will be."""
    return range(max(0, len(value) + round(by))) if type(value) is range else value + by


class Level(Protocol):
    """A loop that is under way: where it stands, how many of how many steps have begun, and the loop around it."""

    place: str
    given: int
    whole: int | None
    outer: "Level | None"


class Series:
    """The values of a condition in the latest steps of one loop, and by how much each step moves them."""

    def __init__(self, leaves: int) -> None:
        self.at: Level | None = None
        self.number: int | None = None
        self.steps_per_note = 1.0
        self.has_jumped = False
        self.moves: list[float] = [0] * leaves
        self.rising = [False] * leaves  # by unequal amounts, as a clock does
        self.lacks: list[float] = [0] * leaves  # elements that steps which were left out would have added
        self._latest: list[Any] = [0] * leaves
        self.notes: deque[tuple[int, list[Any]]] = deque(maxlen=NOTES)

    def begin(self, at: Level) -> None:
        """Another step; in another pass of the loop what was measured before still holds."""
        if self.at is not at:
            self.at = at
            self.notes.clear()
        self.number = at.given

    def add(self, values: list[Any]) -> None:
        """The values in this step."""
        assert self.number is not None
        if self.has_jumped:  # what is seen next is no step
            self.notes.clear()
            self.has_jumped = False
        self.notes.append((self.number, values))
        for index, (before, now) in enumerate(zip(self._latest, values, strict=True)):
            if type(before) is type(now) is range and len(now) < len(before):  # emptied
                self.lacks[index] = 0
        self._latest = values
        numbers, rows = [one for one, _ in self.notes], [one for _, one in self.notes]
        if len(rows) > 1:
            self.steps_per_note = max(1.0, (numbers[-1] - numbers[0]) / (len(numbers) - 1))
        if len(rows) > SAME_STEPS:
            for index, column in enumerate(zip(*rows, strict=True)):
                counts = tuple(len(one) if type(one) is range else one for one in column)
                self.moves[index] = _move_of(counts) if all(type(one) in (int, float) for one in counts) else 0
                floats = all(type(one) is float for one in column) and not self.moves[index]
                self.rising[index] = floats and all(one < other for one, other in itertools.pairwise(column))

    @property
    def whole(self) -> list[Any]:
        """The latest values, as if no step had been left out."""
        latest = self.notes[-1][1]
        return [moved(one, by) if by else one for one, by in zip(latest, self.lacks, strict=True)]

    @property
    def later(self) -> list[Any]:
        """The latest values, long after."""
        return [one + LATER_S if rises else one for one, rises in zip(self.notes[-1][1], self.rising, strict=True)]


def _move_of(column: tuple[float, ...]) -> float:
    """By how much each step moves a number; 0 for one that does not move, or in no order, as a clock does."""
    if not all(map(math.isfinite, column)):
        return 0
    moves = [after - before for before, after in itertools.pairwise(column)]
    if all(abs(one - moves[-1]) <= 1e-6 * abs(moves[-1]) for one in moves[-SAME_STEPS:]):
        return moves[-1]
    whole = all(type(one) is int for one in column)
    in_order = whole and len(moves) > SAME_STEPS and all(moves) and len({one > 0 for one in moves}) == 1
    return (column[-1] - column[0]) / len(moves) if in_order else 0
