# SPDX-License-Identifier: Apache-2.0
"""Answers the program's questions about values that nobody knows, and remembers which of them mattered.

A truth value that is read, and every comparison of a number that came from an unknown value, is a decision at a place
of the program. A check is answered so that it holds. Everything else has a natural answer, or the other one where a
repeated run asks for it; the harness compares the runs (`colocate.harness.exploration`).
"""

import functools
import itertools
import json
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ..origin import is_own
from ..record import Record
from .branches import Branch, branch_at, compares, number_decides
from .source import frames

ANSWERS = "COLOCATE_ANSWERS"  # JSON: places to answer the other way, and whether numbers rise
UNKNOWN = "_colocate_unknown"  # set on tensors of the host whose values came from an unknown one

FALLS = 0.8  # a loss that is read again at the same place, as a share of before
SLOWEST = 1e-3  # later by less and less, and never to nothing: what each improvement keeps is kept in every step

# A loop over a truth value goes on for so many turns; any other answer is given for so long, then changes once.
TURNS = 20
SAME_ANSWERS = 64
SAME_ANSWERS_S = 15.0

MOST_PLACES = 200

_PROBE = str(Path(__file__).parents[1])
# Frames of torch that stand between an operator and who called it.
_BETWEEN = ("_python_dispatch.py", "_ops.py", "_tensor.py", "_compile.py", "eval_frame.py", "_contextlib.py")
_STANDARD = sysconfig.get_path("stdlib")


class Place:
    """Where the program asked, and what it was told."""

    __slots__ = ("answers", "branch", "last", "same", "since_t", "where")

    def __init__(self, where: str, branch: Branch) -> None:
        self.where = where
        self.branch = branch
        self.answers: set[bool] = set()
        self.last: bool | None = None
        self.same = 0
        self.since_t = time.monotonic()

    @property
    def open_answers(self) -> list[bool]:
        """Answers that were not given and lead to work which may need memory."""
        weighs = {True: self.branch.true_weighs, False: self.branch.false_weighs}
        return [answer for answer in (True, False) if answer not in self.answers and weighs[answer]]


class Decisions:
    """The decisions of one process.

    Args:
        record: where they are told, as ``decisions``; ``assumed_at`` is the first with work that is perhaps not done.
        assume_more: called ahead of work that the program does because of an answer.
    """

    def __init__(self, record: Record, assume_more: Callable[[], None]) -> None:
        self._assume_more = assume_more
        wish = json.loads(os.environ.get(ANSWERS) or "{}")
        self._other: frozenset[str] = frozenset(wish.get("other", ()))
        self._rising = bool(wish.get("rising"))
        self._record = record
        self._places: dict[str, Place] = {}
        self._reads: dict[str, int] = {}

    def decide(self, natural: bool) -> bool:
        """The truth of something unknown that the program asks for."""
        frame = calling_frame()
        if frame is None:
            return natural
        place = self._place(frame)
        if place.branch.healthy is not None:
            return place.branch.healthy
        if place.branch.stays is not None and place.where not in self._other:
            natural = place.branch.stays if place.same < TURNS else not place.branch.stays
        return self._answered(place, _keeping(place.branch, natural))

    def compared(self, natural: bool) -> bool:
        """The outcome of comparing a number that came from an unknown value."""
        frame = calling_frame()
        if frame is None or not compares(frame.f_code, frame.f_lasti):
            return natural  # min(), max() and sorted() choose values, not ways
        place = self._place(frame)
        branch = place.branch
        if branch.healthy is not None:
            return branch.healthy
        if branch.stays is None and branch.true_weighs is not branch.false_weighs:
            natural = branch.true_weighs  # nobody knows how often a score is better than the best so far
        return self._answered(place, _keeping(branch, natural))

    def number(self, value: float) -> float:
        """An unknown number: one that falls from reading to reading, as a loss does, or rises to it as a score."""
        frame = calling_frame()
        where = place_of(frame) if frame is not None else ""
        times = self._reads[where] = self._reads.get(where, -1) + 1
        if self._rising:
            return value * (1 - _fallen(times + 1))
        return value * _fallen(times)

    def escaped(self) -> None:
        """A number left as a plain one (``float(loss)``): its comparisons will not be seen, only the source tells."""
        for frame in itertools.islice(frames(calling_frame()), 3):
            where = place_of(frame)
            if where not in self._reads:
                self._reads[where] = -1
                if number_decides(frame.f_code.co_filename, frame.f_lineno):
                    self._tell_numbers(where)
                    return

    def _answered(self, place: Place, natural: bool) -> bool:
        answer = natural != (place.where in self._other)
        if place.same >= SAME_ANSWERS:
            loop = place.branch.stays is not None
            if loop or time.monotonic() - place.since_t > SAME_ANSWERS_S:
                answer = not place.last
                if loop or place.branch.true_weighs or place.branch.false_weighs:
                    self._record.note(f"{place.where} had the same answer {place.same} times; its loop was ended")
                if not loop and (place.branch.true_weighs or place.branch.false_weighs):
                    self._record.fields["loops_ended"] = [*self._record.fields.get("loops_ended", ()), place.where]
        if answer is place.last:
            place.same += 1
        else:
            place.last, place.same, place.since_t = answer, 1, time.monotonic()
        if answer not in place.answers:
            if answer is place.branch.keeps or (place.branch.true_weighs if answer else place.branch.false_weighs):
                if self._record.fields.get("certain_reserved_bytes") is None:
                    self._record.fields["assumed_at"] = place.where
                self._assume_more()
            place.answers.add(answer)
            self._tell()
        return answer

    def _place(self, frame: FrameType) -> Place:
        where = place_of(frame)
        place = self._places.get(where)
        if place is None:
            branch = branch_at(frame.f_code, frame.f_lasti, frame.f_lineno)
            if frame.f_code.co_filename.startswith(_STANDARD) and "-packages" not in frame.f_code.co_filename:
                branch = branch._replace(true_weighs=False, false_weighs=False)  # such as json, which writes a number
            place = Place(where, branch)
            if len(self._places) < MOST_PLACES:
                self._places[where] = place
        return place

    def _tell(self) -> None:
        self._record.fields["decisions"] = {
            one.where: [sorted(one.answers), one.open_answers] for one in self._places.values() if one.answers
        }

    def _tell_numbers(self, where: str) -> None:
        self._record.fields["numbers_decide"] = [*self._record.fields.get("numbers_decide", ()), where][:MOST_PLACES]


def _keeping(branch: Branch, natural: bool) -> bool:
    """The answer with which something is kept, where nothing else hangs on it."""
    neither = branch.keeps is None or branch.stays is not None or branch.true_weighs or branch.false_weighs
    return natural if neither else bool(branch.keeps)


def _fallen(times: int) -> float:
    return max(FALLS**times, SLOWEST / (1 + times))


def calling_frame() -> FrameType | None:
    """The innermost frame that is neither ours nor torch's way from a call to its operator."""
    for frame in frames(sys._getframe(1)):
        name = frame.f_code.co_filename
        if not name.startswith(_PROBE) and not (name.endswith(_BETWEEN) and "torch" in name):
            return frame  # type: ignore[no-any-return]
    return None


def place_of(frame: FrameType) -> str:
    """The place as people are told of it: file and line; for a library, with the program's own line that called it."""
    name, line = frame.f_code.co_filename, frame.f_lineno
    if is_own(name):
        return f"{_short(name)}:{line}"
    caller = next((one for one in frames(frame.f_back) if is_own(one.f_code.co_filename)), None)
    inside = f"{'/'.join(Path(name).parts[-2:])}:{line}"
    if caller is None:
        return inside
    return f"{inside} (from {_short(caller.f_code.co_filename)}:{caller.f_lineno})"


@functools.cache
def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


# --- numbers that remember where they came from -----------------------------------------------------------------------


def tracked(value: Any, decisions: Decisions) -> Any:
    """A number that behaves as this one and tells when it is compared; other values as they are."""
    if type(value) is float:
        return UnknownFloat(value, decisions)
    if type(value) is int:
        return UnknownInt(value, decisions)
    return value


class Unknown:
    """A number that came from an unknown value."""

    _decisions: Decisions

    def __new__(cls, value: Any, decisions: Decisions) -> Any:
        """The number, and who is told of its comparisons."""
        self = super().__new__(cls, value)  # type: ignore[call-arg]  # of the plain number, which is next in line
        self._decisions = decisions
        return self

    def __reduce__(self) -> Any:
        """Stored as a plain number."""
        plain: Any = type(self).__mro__[2]
        return (plain, (plain(self),))

    def __deepcopy__(self, memo: Any) -> Any:
        """Numbers do not change."""
        return self


class UnknownFloat(Unknown, float):
    """A float of these."""

    __hash__ = float.__hash__


class UnknownInt(Unknown, int):
    """An int of these."""

    __hash__ = int.__hash__


ARITHMETIC = "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow neg pos abs round"
COMPARISONS = "lt le gt ge eq ne bool"


def _complete(kind: type, plain: type) -> None:
    """Give a class the operators of its plain type, with results that are tracked and comparisons that are told."""

    def arithmetic(operator: Callable[..., Any]) -> Callable[..., Any]:
        def apply(self: Any, *others: Any) -> Any:
            result = operator(self, *others)
            return result if result is NotImplemented else tracked(result, self._decisions)

        return apply

    def comparison(operator: Callable[..., Any]) -> Callable[..., Any]:
        def compare(self: Any, *others: Any) -> Any:
            result = operator(self, *others)
            return result if result is NotImplemented else self._decisions.compared(result)

        return compare

    for names, wrap in ((ARITHMETIC, arithmetic), (COMPARISONS, comparison)):
        for name in (f"__{word}__" for word in names.split()):
            setattr(kind, name, wrap(getattr(plain, name)))


_complete(UnknownFloat, float)
_complete(UnknownInt, int)
