# SPDX-License-Identifier: Apache-2.0
"""Live memory from step to step: what each step left behind, and the line of the program that keeps it.

A healthy training leaves nothing behind after its first steps. Blocks are counted by the step that allocated them, so
that growth is told from memory that merely moves: what a step allocated and two steps later still lives has been kept.
"""

import ast
import inspect
import itertools
import statistics
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ..origin import is_own
from .loop_source import Loop, variables_of
from .source import frames, last_name, tree_of

# A step counts as having left something from this size on: an allocator's smallest block.
LEAST_BYTES = 512

# Steps that must each have left something before it is called growth. The first ones make gradients, the optimizer's
# state, averages; a queue of batches keeps two or three.
CONFIRMED_STEPS = 4

# A level that rises with each step by amounts that differ by no more than this share: what is kept is replaced by a
# larger copy, as `bank = torch.cat([bank, features])` does.
EQUAL_RISES = 1.25
FOREVER = 1 << 62

# What a step keeps may be so many times what it usually is; what is made once, such as an optimizer's state, is not.
ALIKE = 4

# What steps that are left out add is told from this size on; of a pass without a known end so many are reckoned with.
LEAST_GROWTH_BYTES = 16 << 20
UNKNOWN_STEPS = 10_000

MOST_ELEMENTS = 8  # of a container, looked into for tensors
CHANGING = {"append", "extend", "add", "insert", "appendleft", "setdefault", "update"}
EMPTYING = {"clear", "pop", "popleft", "popitem", "remove", "discard"}


class Kept(NamedTuple):
    """What steps left behind: how many of the last steps did, out of how many, and how much together.

    ``is_old``: the oldest of them did, too; a queue of batches, such as those of one optimizer step, holds the latest.
    ``is_regular``: every third or rarer step did, from the first to the last at equal distances. ``moves``: it is not
    where it was left, but in a larger copy that each step makes.
    """

    steps: int
    of_steps: int
    num_bytes: int
    is_old: bool
    is_regular: bool = False
    moves: bool = False

    def matters(self, steps_left: int | None) -> bool:
        """Most steps left something, and as much in each of those to come would be seen in the peak."""
        left = UNKNOWN_STEPS if steps_left is None else steps_left
        several = self.is_regular or (self.is_old and self.steps * 3 >= self.of_steps > 0)
        return several and self.bytes_per_step * left >= LEAST_GROWTH_BYTES

    @property
    def grows(self) -> bool:
        """So many steps left something that it is no warm-up and no queue."""
        return self.steps >= CONFIRMED_STEPS

    @property
    def bytes_per_step(self) -> float:
        """The slope."""
        return self.num_bytes / max(1, self.of_steps)


class StepMemory:
    """An observer of the device's memory that knows in which step each live block was allocated."""

    def __init__(self) -> None:
        self.step = 0
        self.current_bytes = self.highest_bytes = 0
        self.blocks = self.blocks_before = 0  # allocated in this step, and in the one before
        self._step_of: dict[int, tuple[int, int]] = {}
        self._left: dict[int, int] = {}
        self._levels: list[int] = []  # at the end of each step

    def allocated(self, number: int, num_bytes: int, stream: int) -> None:
        """A block was handed out."""
        size = -(-num_bytes // LEAST_BYTES) * LEAST_BYTES
        self.blocks += 1
        self._step_of[number] = (self.step, size)
        self._left[self.step] = self._left.get(self.step, 0) + size
        self.current_bytes += size
        self.highest_bytes = max(self.highest_bytes, self.current_bytes)

    def freed(self, number: int) -> None:
        """A block came back."""
        step, size = self._step_of.pop(number, (0, 0))
        self._left[step] = self._left.get(step, 0) - size
        self.current_bytes -= size

    def convolved(self, call: object) -> None:
        """Workspaces do not stay."""

    def emptied(self) -> None:
        """The cache holds nothing that lives."""

    def next_step(self) -> int:
        """End a step; the most that lived during it, in bytes."""
        highest, self.highest_bytes = self.highest_bytes, self.current_bytes
        self.blocks_before, self.blocks = self.blocks, 0
        self.step += 1
        self._levels.append(self.current_bytes)
        for step in [step for step, left in list(self._left.items()) if not left]:
            self._left.pop(step, None)
        return highest

    def kept(self, since: int) -> Kept:
        """What the steps from ``since`` on have left, without the latest, whose variables still live."""
        until = self.step - 2
        left = list(self._left.items())
        found = {step: size for step, size in left if since <= step <= until and size >= LEAST_BYTES}
        usual = statistics.median_low(found.values()) if found else 0
        alike = {step: size for step, size in found.items() if usual <= ALIKE * size and size <= ALIKE * usual}
        count = until - since + 1
        oldest = max(1, count // 3)
        is_old = sum(step < since + oldest for step in alike) * 3 >= oldest
        if len(alike) * 3 < count and (rise := self.rise(range(since, self.step))):
            return Kept(count, count, rise * count, is_old=True, moves=True)
        return Kept(len(alike), count, sum(alike.values()), is_old, _are_regular(sorted(alike), since, until))

    def rise(self, steps: Sequence[int]) -> int:
        """By how much the level rises from each of these steps to the next, in bytes; 0 unless most rise alike.

        A larger copy may live beside the one that it replaces until the garbage collector has seen both; what is given
        back now and then, as at the end of an episode, does not grow.
        """
        levels = [self._levels[step] for step in steps]
        rises = [after - before for before, after in itertools.pairwise(levels)]
        usual = statistics.median_low(rises) if rises else 0
        alike = [one for one in rises if usual <= EQUAL_RISES * one and one <= EQUAL_RISES * usual]
        most = len(alike) * 2 > len(rises) and 2 * sum(rises) > usual * len(rises)
        return usual if most and usual >= LEAST_BYTES else 0

    def still_held(self, first: int, last: int) -> int:
        """What the steps from ``first`` to ``last`` have left and still lives, in bytes."""
        return sum(size for step, size in list(self._left.items()) if first <= step <= last)


def _are_regular(steps: list[int], since: int, until: int) -> bool:
    """Say whether steps lie at equal distances of three or more, from the first to the last."""
    distances = {after - before for before, after in itertools.pairwise(steps)}
    if len(steps) < CONFIRMED_STEPS or len(distances) > 1:
        return False
    (distance,) = distances
    return distance > 2 and steps[0] - since < distance and until - steps[-1] < distance


class Keeper:
    """Finds the variable that holds more tensors after each step, and the line that makes it so.

    ``is_steady``: every step of the running loop goes through that line, and the loop never gives back what it keeps.
    """

    def __init__(self) -> None:
        self.is_steady = False
        self._sizes: dict[tuple[int, str], int] = {}

    def look(self, frame: Any) -> str | None:
        """Remember the sizes of containers in sight; ``file:line`` of one that has grown since the last look."""
        found: tuple[str, ast.AST] | None = None
        sizes: dict[tuple[int, str], int] = {}
        for owner, name, value in variables_in_sight(frame):
            size = _size(value)
            if size is None:
                continue
            key = (id(owner), name)
            sizes[key] = size
            before = self._sizes.get(key)
            if found is None and before is not None and size > before:
                found = _line_that_keeps(frame, name)
                self.is_steady = found is not None and _is_steady(frame, found[1], name, value)
        self._sizes = sizes
        if found is None and (found := _line_of_sum(frame)) is not None:
            self.is_steady = _is_steady(frame, found[1], _sums_into(found[1]), None)
        return found[0] if found else None


def variables_in_sight(frame: Any) -> Iterator[tuple[Any, str, Any]]:
    """The variables of the program's frames from here on down the stack, and the attributes of their objects."""
    seen: set[int] = set()
    for own in (one for one in frames(frame) if is_own(one.f_code.co_filename)):
        for name, value in variables_of(own).items():
            yield own.f_code, name, value
            if hasattr(value, "__dict__") and not isinstance(value, type(sys) | type) and id(value) not in seen:
                seen.add(id(value))
                yield from ((value, attribute, one) for attribute, one in list(vars(value).items()))
        if id(own.f_globals) not in seen and own.f_code.co_flags & inspect.CO_OPTIMIZED:
            seen.add(id(own.f_globals))
            yield from ((own.f_code, name, value) for name, value in list(own.f_globals.items()))


def lengths_in_sight(frame: Any) -> dict[tuple[int, str], int]:
    """How long the containers are that the program's frames can see."""
    seen = variables_in_sight(frame)
    return {(id(owner), name): len(one) for owner, name, one in seen if isinstance(one, list | deque | dict | set)}


def _size(value: Any) -> int | None:
    """How much a container of tensors holds, one level of containers deep; None for everything else."""
    if isinstance(value, dict):
        latest = list(itertools.islice(reversed(value.values()), MOST_ELEMENTS))
        inner: Any = value.values()
    elif isinstance(value, list):
        latest, inner = value[-MOST_ELEMENTS:], value
    elif isinstance(value, set | deque):
        latest, inner = list(itertools.islice(value, MOST_ELEMENTS)), value
    else:
        return None
    if not any(_holds_tensor(one) for one in latest):
        return None
    return len(value) + sum(len(one) for one in inner if isinstance(one, list | tuple | dict | set))


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple | set):
        return any(isinstance(one, torch.Tensor) for one in list(value)[-MOST_ELEMENTS:])
    if isinstance(value, dict):
        return any(isinstance(one, torch.Tensor) for one in list(value.values())[-MOST_ELEMENTS:])
    return isinstance(value, torch.Tensor)


def _line_that_keeps(frame: Any, name: str) -> tuple[str, ast.AST] | None:
    """The first statement in the program's files in sight that adds to a container of this name, and where it is."""
    for path in (one.f_code.co_filename for one in frames(frame)):
        tree = tree_of(path) if is_own(path) else None
        for node in ast.walk(tree) if tree is not None else ():
            if _adds_to(node, name):
                return f"{_short(path)}:{node.lineno}", node  # type: ignore[attr-defined]
    return None


def _is_steady(frame: Any, line: Any, name: str | None, value: Any) -> bool:
    """Say whether each step of the loop keeps something in this line: no condition, no way out, nothing given back."""
    loop = Loop.of(frame)
    if loop is None or not name or getattr(value, "maxlen", None) is not None:
        return False
    inside = list(ast.walk(loop.node))
    in_body = any(one is line or getattr(one, "value", None) is line for one in loop.node.body)
    changed = [one for one in inside if isinstance(one, ast.Assign | ast.AugAssign) and one is not line]
    targets = [target for one in changed for target in (one.targets if isinstance(one, ast.Assign) else [one.target])]
    given_back = (
        isinstance(one, ast.Break | ast.Return | ast.Delete | ast.Continue)
        or (isinstance(one, ast.Attribute) and one.attr in EMPTYING and _named(one.value) == name)
        for one in inside
    )
    return in_body and not any(given_back) and not any(_named(target) == name for target in targets)


def _adds_to(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING:
        return _named(node.func.value) == name
    if isinstance(node, ast.AugAssign):
        return _named(node.target) == name
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Subscript) and _named(target) == name for target in node.targets)
    return False


def _named(node: ast.AST) -> str:
    """The last name of ``a``, ``self.a``, ``a[...]``, ``self.a[...]``."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return last_name(node)


def _line_of_sum(frame: Any) -> tuple[str, ast.AST] | None:
    """The statement of the running loop that adds to a tensor which carries a graph: a loss kept whole."""
    for one in frames(frame):
        loop = Loop.of(one)
        for node in loop.statements() if loop is not None else ():
            name = _sums_into(node)
            value = variables_of(one).get(name) if name else None
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                return f"{_short(one.f_code.co_filename)}:{node.lineno}", node
    return None


def _sums_into(node: ast.AST) -> str | None:
    """The name in ``name += ...`` and ``name = name + ...``."""
    if isinstance(node, ast.AugAssign):
        return node.target.id if isinstance(node.target, ast.Name) else None
    if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        reads = any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node.value))
        return name if reads and isinstance(node.value, ast.BinOp) else None
    return None


def _short(path: str) -> str:
    return path.rpartition("/")[2]
