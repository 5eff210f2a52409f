# SPDX-License-Identifier: Apache-2.0
"""The largest value that fits, found with few trials: which value to try next, and what the answers so far come to.

Pure, and knows neither groups nor GPUs. Values are places on a grid, counted from 0. Memory is taken to grow with the
value; what contradicts that is kept and told. A value that nobody could decide counts neither as fitting nor as not
fitting: the search goes on below it and above it.
"""

from dataclasses import dataclass, field

from colocate.advice.forecast import Answer

# When so many values in a row carried no answer, it is not the value.
HOPELESS = 3


@dataclass
class Search:
    """The values tried so far.

    Args:
        first: The place to begin at.
        last: The greatest place; 0 is the least.
        stride: How far the second trial is from the first.
        growth: What the distance from the first is multiplied by until an answer turns.
    """

    first: int
    last: int
    stride: int = 1
    growth: int = 2
    known: dict[int, Answer] = field(default_factory=dict)

    def tell(self, place: int, answer: Answer) -> None:
        """Take in what came of a trial; of several at one place the last counts."""
        self.known[place] = answer

    @property
    def bad(self) -> int | None:
        """The smallest place that does not fit."""
        return min((place for place, answer in self.known.items() if answer is Answer.DOES_NOT_FIT), default=None)

    @property
    def good(self) -> int | None:
        """The largest place that fits, below all that do not."""
        bad = self.bad
        return max((place for place in self._fitting if bad is None or place < bad), default=None)

    @property
    def open(self) -> tuple[int, ...]:
        """The undecided places between those that fit and those that do not."""
        low, high = self._ends()
        undecided = [place for place, answer in self.known.items() if _is_open(answer)]
        return tuple(sorted(place for place in undecided if low < place < high))

    @property
    def surprises(self) -> tuple[tuple[int, int], ...]:
        """Places that fit although a smaller one does not, each with that one: memory does not grow steadily."""
        bad = self.bad
        return tuple((place, bad) for place in sorted(self._fitting) if bad is not None and place > bad)

    @property
    def is_hopeless(self) -> bool:
        """Several values were tried and none carried an answer."""
        answers = self.known.values()
        return len(answers) >= HOPELESS and all(answer is Answer.UNKNOWN for answer in answers)

    @property
    def _fitting(self) -> list[int]:
        return [place for place, answer in self.known.items() if answer is Answer.FITS]

    def _ends(self) -> tuple[int, int]:
        good, bad = self.good, self.bad
        return (-1 if good is None else good), (self.last + 1 if bad is None else bad)

    def next(self) -> int | None:
        """The place to try next; None when the answer is as narrow as it can be."""
        if not self.known:
            return self.first
        top, bottom = max(self.known), min(self.known)
        if self.bad is None and top < self.last:
            return min(self.last, self.first + max(self.stride, self.growth * (top - self.first)))
        if self.good is None and bottom > 0:
            return max(bottom // 2, self.first - max(self.stride, self.growth * (self.first - bottom)))
        return self._between()

    def _between(self) -> int | None:
        low, high = self._ends()
        undecided = self.open
        gaps = [(low, undecided[0]), (undecided[-1], high)] if undecided else [(low, high)]
        return next(((start + end) // 2 for start, end in gaps if end - start > 1), None)

    def neighbours(self) -> tuple[int, ...]:
        """The places next to the turn that were not tried: the one below the answer, the one above the refusal."""
        good, bad = self.good, self.bad
        beside = [good - 1] if good is not None else []
        beside += [bad + 1] if bad is not None else []
        return tuple(place for place in beside if 0 <= place <= self.last and place not in self.known)


def _is_open(answer: Answer) -> bool:
    return answer in (Answer.UNDECIDED, Answer.UNKNOWN)
