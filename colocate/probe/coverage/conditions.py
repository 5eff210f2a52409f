# SPDX-License-Identifier: Apache-2.0
"""Tests in the program's source that compare numbers: the outcomes they had, and when another one comes.

A condition such as ``self.step % 100 == 0`` is asked for the steps that a cut pass leaves out, so that the pass can
jump to the first one at which something new happens. Nothing of the program is called: only names, attributes, numbers
and arithmetic are evaluated.
"""

import ast
import contextlib
import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from .branches import keeps
from .decisions import UNKNOWN, Unknown
from .series import Level, Series, moved
from .weighing import PURE_CALLS, evaluates, weighs

PLAIN = (int, float, str, bool, type(None), range)
CONTAINERS = (list, tuple, dict, set)
MOST_COPIED = 100  # elements of a container whose values are remembered
EVALUATED = (
    ast.BoolOp,
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Name,
    ast.Attribute,
    ast.Constant,
    ast.Call,
    ast.Subscript,
    ast.Tuple,
    ast.List,
    ast.Set,
    ast.boolop,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)

KNOWN_TIMES = 3  # that an outcome came: at first, and twice for what it keeps

CLOCKS = ("time.time()", "time.monotonic()", "time.perf_counter()", "time()", "perf_counter()", "datetime.now()")

# Objects whose counters say which of their data was handed out; batches that are left out were not.
HOLDS_DATA = (Dataset, DataLoader, Sampler)


class Leaf:
    """A name, attribute, subscript or clock that a condition reads, and where its value can be changed."""

    def __init__(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.Call) -> None:
        self.name = node.id if isinstance(node, ast.Name) else None
        self._code = _compiled(node)
        self._base = None if isinstance(node, ast.Name | ast.Call) else _compiled(node.value)
        self._attribute = node.attr if isinstance(node, ast.Attribute) else None
        self._key = _compiled(node.slice) if isinstance(node, ast.Subscript) else None
        self._place: tuple[Any, Any] | None = None

    def read(self, scope: dict[str, Any], variables: Mapping[str, Any]) -> Any:
        """Return the value, or raise ValueError: it is no plain one, so that comparing it would have an effect."""
        value = eval(self._code, scope, dict(variables))
        if _is_whole_number(value):
            return int(value)
        if isinstance(value, (*HOLDS_DATA, *CONTAINERS)):
            return _snapshot(value)
        if not isinstance(value, PLAIN) or isinstance(value, Unknown):
            raise ValueError(self.name)
        return value

    def find(
        self, scope: dict[str, Any], variables: Mapping[str, Any], cells: Mapping[str, Any], own: frozenset[str]
    ) -> None:
        """Remember where the value lies; ``own`` are names that the frame itself moves."""
        self._place = None
        if self._base is not None:
            holder = eval(self._base, scope, dict(variables))
            key = self._attribute if self._key is None else eval(self._key, scope, dict(variables))
            self._place = None if isinstance(holder, HOLDS_DATA) else (holder, key)
        elif self.name is not None and self.name in cells:
            self._place = cells[self.name], "cell_contents"
        elif self.name in scope and self.name not in own and (variables is scope or self.name not in variables):
            self._place = scope, self.name

    @property
    def place(self) -> tuple[int, Any] | None:
        """Identify the counter; None where it cannot be moved."""
        return None if self._place is None else (id(self._place[0]), self._place[1])

    def move(self, by: int) -> None:
        """Add to the counter, if its holder allows it."""
        if self._place is None:
            return
        holder, key = self._place
        try:
            if self._key is None and not isinstance(holder, dict):
                setattr(holder, key, getattr(holder, key) + by)
            else:
                holder[key] += by
        except Exception:  # frozen or computed: it stays
            self._place = None

    def release(self) -> None:
        """Hold nothing of the program any more."""
        self._place = None


def _snapshot(value: Any) -> Any:
    """What a test may ask of a container: its few plain values, or its length; nothing of the program stays alive."""
    few = isinstance(value, CONTAINERS) and len(value) <= MOST_COPIED
    if not few or not all(isinstance(one, PLAIN) for one in value):
        return range(len(value))
    return set(value) if isinstance(value, dict | set) else list(value) if isinstance(value, list) else tuple(value)


def _is_whole_number(value: Any) -> bool:
    """A tensor of the host that counts, as a buffer ``steps`` of a module does."""
    return (
        type(value) is torch.Tensor
        and value.numel() == 1
        and value.device.type == "cpu"
        and not (value.is_floating_point() or value.is_complex() or UNKNOWN in value.__dict__)
    )


class Condition:
    """A test that compares numbers, such as that of an ``if``.

    Args:
        place: file and line.
        test: the test.
        pure: the part of it that can be evaluated without calling the program.
        weighs: work of the device may hang on it, or memory that is kept.
        returns: an outcome that came once is awaited once more, for what it keeps each time.
        evaluates: a phase of its own hangs on it.
    """

    def __init__(
        self, place: str, test: ast.expr, pure: ast.expr, weighs: bool, returns: bool = False, evaluates: bool = False
    ) -> None:
        self.place = place
        self.text = ast.unparse(test)
        self.weighs = weighs
        self.seen: set[bool] = set()
        self.times = [0, 0]  # that it was found false, and true
        self._returns = returns and weighs
        self._evaluates = evaluates
        self.leaves: list[Leaf] = []
        self.ends: str | None = None  # the loop that is left where it comes true
        self.latest: tuple[int, int] | None = None
        named = ast.unparse(_Named(self.leaves).visit(copy.deepcopy(pure)))
        names = ", ".join(f"_{number}" for number in range(len(self.leaves)))
        self._test = eval(f"lambda {names}: {named}", {"__builtins__": PURE_CALLS})  # asked for 10,000 steps at once
        self._series: dict[str, Series] = {}

    def is_noted(self, at: Level) -> bool:
        """Whether a note of this step is there."""
        series = self._series.get(at.place)
        return series is not None and series.at is at and series.number == at.given

    def series_in(self, at: Level) -> Series | None:
        """Return what was noted in a loop, if it was in this pass of it."""
        series = self._series.get(at.place)
        return series if series is not None and series.at is at and series.notes else None

    def levels_within(self, outer: Level) -> list[Level]:
        """The loops directly within one, in which it was noted last."""
        levels = (series.at for series in self._series.values() if series.notes)
        return [one for one in levels if one is not None and one.outer is outer]

    def steps_per_note(self, at: Level) -> float:
        """Steps of a loop from one evaluation to the next."""
        series = self.series_in(at)
        return 1.0 if series is None else series.steps_per_note

    def moving(self, at: Level) -> list[tuple[Leaf, float]]:
        """The counters among its leaves, and by how much each note finds them moved."""
        series = self.series_in(at)
        moves = series.moves if series is not None else ()
        return [(leaf, by) for leaf, by in zip(self.leaves, moves, strict=False) if by]

    def note(
        self, levels: list[Level], scope: dict[str, Any], variables: Mapping[str, Any], cells: Mapping[str, Any],
        own: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Take note of its values.

        Args:
            levels: the loops that are under way and have no note of this step yet.
            scope: the globals where it stands.
            variables: the local variables.
            cells: variables of functions around, by name.
            own: variables that the frame itself moves.
        """
        several = [self._series.setdefault(one.place, Series(len(self.leaves))) for one in levels]
        for series, level in zip(several, levels, strict=True):
            series.begin(level)
        try:
            values = [leaf.read(scope, variables) for leaf in self.leaves]
        except Exception:  # not there yet, or no plain value
            return
        held = self._holds(values)
        if held is None:
            return
        self.seen.add(held)
        self.times[held] += 1
        for series in several:
            series.add(values)
        for index, leaf in enumerate(self.leaves):
            if any(series.moves[index] for series in several):
                with contextlib.suppress(Exception):  # what holds it is gone by now
                    leaf.find(scope, variables, cells, own)

    @property
    def is_known(self) -> bool:
        """Both outcomes were seen, and so often that what each of them keeps is known."""
        return len(self.seen) > 1 and not (self._returns and min(self.times) < KNOWN_TIMES)

    def news(self, at: Level, steps: int) -> list[int]:
        """The steps of a loop, counted from here, at which it has an outcome that it has not had yet."""
        return self._ahead(at, steps, {False, True} - self.seen)

    def comes_with_time(self, at: Level) -> bool:
        """Whether an outcome that it has not had yet comes by the clock, however fast a dry run is."""
        series = self.series_in(at)
        if series is None or not any(series.rising) or not self._evaluates:
            return False
        outcome = self._holds(series.later)
        return outcome is not None and outcome not in self.seen

    def returning(self, at: Level, steps: int) -> list[int]:
        """Those at which it has the outcome again that it has had only in the first steps of all."""
        rare = self.times[True] < self.times[False]
        return [] if self.is_known or len(self.seen) < 2 else self._ahead(at, steps, {rare})

    def _ahead(self, at: Level, steps: int, wanted: set[bool]) -> list[int]:
        series = self.series_in(at)
        moving = [] if series is None else [(index, by) for index, by in enumerate(series.moves) if by]
        if series is None or not moving or not wanted:
            return []
        found, latest = [], series.whole
        values = list(latest)
        for ahead in range(1, int(steps / series.steps_per_note) + 1):
            for index, by in moving:
                values[index] = moved(latest[index], ahead * by)
            held = self._holds(values)
            if held is None:
                return []
            if held in wanted:
                found.append(round(ahead * series.steps_per_note))
        return found

    def release(self) -> None:
        """Hold nothing of the program any more."""
        for leaf in self.leaves:
            leaf.release()

    def _holds(self, values: list[Any]) -> bool | None:
        try:
            return bool(self._test(*values))
        except Exception:
            return None


def condition_of(
    place: str, node: ast.AST, test: ast.expr, scope: ast.AST, tree: ast.AST, *, own: bool
) -> Condition | None:
    """The condition in a statement or expression, if it compares numbers, in a function or loop and a file.

    ``own``: it is in the program's files, whose names tell nothing: at its ``log_images`` it may make images.
    """
    pure = pure_part(test)
    if pure is None or not any(isinstance(one, ast.Compare | ast.Mod) for one in ast.walk(pure)):
        return None
    keeping = own and isinstance(node, ast.If) and keeps([*node.body, *node.orelse])
    weighing = keeping or weighs(node, scope, own)
    condition = Condition(place, test, pure, weighing, returns=own, evaluates=evaluates(node, tree))
    return condition if condition.leaves else None


def move_counters(conditions: Iterable[Condition], at: Level, steps: int) -> None:
    """Move every counter outside of a loop's frame on which work hangs, as if so many steps had been made."""
    moved: set[Any] = set()
    for condition in conditions:
        series = condition.series_in(at)
        if series is None:
            continue
        series.has_jumped = True
        notes = int(steps / series.steps_per_note)
        for index, value in enumerate(series.notes[-1][1]):
            series.lacks[index] += notes * series.moves[index] * (type(value) is range)
        for leaf, by in condition.moving(at) if condition.weighs else ():
            if leaf.place is not None and leaf.place not in moved and by == int(by):
                moved.add(leaf.place)
                leaf.move(notes * int(by))


def pure_part(node: ast.expr) -> ast.expr | None:
    """What of a test can be evaluated without calling the program; the rest is left out of ``and`` and ``or``."""
    if isinstance(node, ast.BoolOp):
        parts = [part for one in node.values if (part := pure_part(one)) is not None]
        return ast.BoolOp(node.op, parts) if len(parts) > 1 else parts[0] if parts else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        inner = pure_part(node.operand)
        return None if inner is None else ast.UnaryOp(node.op, inner)
    return node if all(map(_is_evaluated, ast.walk(node))) else None


def _is_evaluated(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return _is_clock(node) or (isinstance(node.func, ast.Name) and node.func.id in PURE_CALLS)
    return isinstance(node, EVALUATED)


def _is_clock(node: ast.Call) -> bool:
    return ast.unparse(node) in CLOCKS


class _Named(ast.NodeTransformer):
    """Puts a name of ours in place of everything that a condition reads."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._leaves = leaves

    def _leaf(self, node: Any) -> ast.expr:
        self._leaves.append(Leaf(node))
        return ast.Name(f"_{len(self._leaves) - 1}", ast.Load())

    visit_Attribute = visit_Subscript = _leaf

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A clock, or a function of numbers."""
        return self._leaf(node) if _is_clock(node) else self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A variable, but for the functions that may be called."""
        return node if node.id in PURE_CALLS else self._leaf(node)


def _compiled(node: ast.expr) -> Any:
    return compile(ast.fix_missing_locations(ast.Expression(copy.deepcopy(node))), "<condition>", "eval")
