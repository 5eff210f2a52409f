# SPDX-License-Identifier: Apache-2.0
"""The source of the loop that consumes a loader: its counters, and its conditions on them.

A condition such as ``step % 100 == 0`` is asked for the steps that a cut pass leaves out, so that the pass can jump to
the first one at which something new happens. Nothing of the program is called: only names, attributes, numbers and
arithmetic are evaluated.
"""

import ast
import ctypes
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from ..origin import OURS, installed_folders

PURE_CALLS = {"len": len, "min": min, "max": max, "int": int, "round": round, "abs": abs, "bool": bool}
PLAIN = (int, float, str, bool, type(None), list, tuple, dict, set, range)
SOURCE = (
    ast.Expression,
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

# What the body of a condition may call without needing the device's memory.
HARMLESS = frozenset(
    """
    print format item float int len str round append extend write flush log info debug warning time perf_counter
    join set_postfix set_description set_postfix_str update add_scalar add_scalars log_metric log_metrics sum
    mean display tolist cpu numpy save state_dict detach max min range enumerate items keys values strftime
    getLogger sleep get get_last_lr lr add_text zip exit close makedirs system mkdir exists dump dumps
    synchronize step memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_summary
    report tqdm abs timedelta datetime now time_ns any all isnan isfinite sqrt exp array reset avg split strip
    replace empty_cache collect
    """.split()  # noqa: SIM905  # a list of a hundred lines is no easier to read
)


def is_own(path: str) -> bool:
    """A source file of the program: neither installed nor ours."""
    return not path.startswith(("<", OURS, *installed_folders()))


def variables_of(frame: Any) -> dict[str, Any]:
    """The variables of a frame. Nothing stays alive by the look: before 3.13 a frame keeps the copy that it makes."""
    seen = frame.f_locals
    found = dict(seen)
    if seen is not frame.f_globals and type(seen) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED:
        seen.clear()
    return found


def calls_of_work(nodes: Iterable[ast.AST]) -> bool:
    """Whether code calls anything that could need the device's memory, as far as names tell."""
    for call in (one for node in nodes for one in walk_here(node) if isinstance(one, ast.Call)):
        if getattr(call.func, "attr", getattr(call.func, "id", "")) not in HARMLESS:
            return True
    return False


def walk_here(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, without the bodies of functions and classes that it defines."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from walk_here(child)


class Condition:
    """An ``if`` of a loop whose test hangs on a counter of that loop."""

    def __init__(self, node: ast.If) -> None:
        self.node = node
        self.text = ast.unparse(node.test)
        self.line = node.lineno
        self.seen: set[bool] = set()
        self._code: CodeType = compile(ast.Expression(node.test), "<condition>", "eval")
        self.names = {one.id for one in ast.walk(node.test) if isinstance(one, ast.Name)}
        self._leaves = [
            compile(ast.Expression(leaf), "<leaf>", "eval")
            for leaf in ast.walk(node.test)
            if isinstance(leaf, ast.expr) and _is_leaf(leaf)
        ]

    @property
    def is_harmless(self) -> bool:
        """Neither of its branches calls anything that could need memory, as far as names tell."""
        return not calls_of_work([*self.node.body, *self.node.orelse])

    def is_readable(self, scope: Mapping[str, Any], variables: Mapping[str, Any]) -> bool:
        """All that it reads are plain values, so that asking it has no effect."""
        try:
            return all(isinstance(eval(leaf, dict(scope), dict(variables)), PLAIN) for leaf in self._leaves)
        except Exception:
            return False

    def holds(self, scope: Mapping[str, Any], variables: Mapping[str, Any]) -> bool | None:
        """Whether it is true with these variables; None where that cannot be told."""
        try:
            return bool(eval(self._code, {**scope, **PURE_CALLS}, dict(variables)))
        except Exception:
            return None


def _is_leaf(node: ast.AST) -> bool:
    return isinstance(node, ast.Name | ast.Attribute | ast.Subscript) and not (
        isinstance(node, ast.Name) and node.id in PURE_CALLS
    )


class Loop:
    """A ``for`` or ``while`` of the program's source."""

    def __init__(self, path: str, node: ast.For | ast.While) -> None:
        self.path = path
        self.node = node
        self.place = f"{path.rpartition('/')[2]}:{node.lineno}"
        self.counted = {name for name, _ in self._counted()}
        assigned = {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
        self.conditions = [
            Condition(one)
            for one in self.statements()
            if isinstance(one, ast.If) and _is_pure(one.test) and _reads(one.test, assigned)
        ]
        self._before: dict[str, int] = {}

    @staticmethod
    @functools.cache
    def tree_of(path: str) -> ast.Module | None:
        """A parsed source file; None for one that cannot be read."""
        try:
            return ast.parse(Path(path).read_bytes())
        except (OSError, SyntaxError, ValueError):
            return None

    @classmethod
    @functools.cache
    def at(cls, path: str, line: int) -> "Loop | None":
        """The innermost loop around a line."""
        tree = cls.tree_of(path)
        around = [
            node
            for node in (ast.walk(tree) if tree is not None else ())
            if isinstance(node, ast.For | ast.While) and node.lineno <= line <= (node.end_lineno or node.lineno)
        ]
        return cls(path, max(around, key=lambda node: node.lineno)) if around else None

    def statements(self) -> Iterator[ast.stmt]:
        """Those of its body, without the bodies of inner loops and functions."""
        waiting: list[ast.stmt] = list(self.node.body)
        while waiting:
            node = waiting.pop(0)
            yield node
            if isinstance(node, ast.If):
                waiting += [*node.body, *node.orelse]
            elif isinstance(node, ast.With):
                waiting += node.body
            elif isinstance(node, ast.Try):
                waiting += [*node.body, *(one for handler in node.handlers for one in handler.body)]

    def observe(self, frame: Any) -> dict[str, int]:
        """The counters of the loop, and by how much the last step moved them.

        Also remembers of every condition whether it was true in the last step.
        """
        variables = variables_of(frame)
        now = {
            name: value
            for name, value in variables.items()
            if type(value) is int and (name in self._names_in_use or name in self.counted)
        }
        moved = {name: value - self._before[name] for name, value in now.items() if name in self._before}
        for condition in self.conditions:
            if condition.is_readable(frame.f_globals, variables):
                held = condition.holds(frame.f_globals, variables)
                condition.seen |= {held} if held is not None else set()
        self._before = now
        return {name: by for name, by in moved.items() if by}

    def is_followed_by_work(self, frame: Any) -> bool:
        """Whether the program's code behind the loop, up to its end, calls anything that could need memory."""
        after = self.node.end_lineno or self.node.lineno
        while frame is not None:
            path = frame.f_code.co_filename
            tree = self.tree_of(path) if is_own(path) else None
            if tree is not None and calls_of_work(_behind(tree, frame.f_lineno, after)):
                return True
            frame = frame.f_back
            after = frame.f_lineno if frame is not None else 0
        return False

    def forget(self) -> None:
        """A pass begins: what is seen next is no step."""
        self._before = {}

    def first_news(self, frame: Any, moved: Mapping[str, int], steps: int) -> list[tuple[int, Condition]]:
        """For every condition, after how many more steps it says something that it has not said yet, if it does."""
        variables = variables_of(frame)
        found = []
        for condition in self.conditions:
            counters = {name: (variables[name], by) for name, by in moved.items() if name in condition.names}
            if not counters or not condition.is_readable(frame.f_globals, variables):
                continue
            for ahead in range(1, steps + 1):
                changed = {name: value + ahead * by for name, (value, by) in counters.items()}
                held = condition.holds(frame.f_globals, {**variables, **changed})
                if held is None:
                    break
                if held not in condition.seen:
                    found.append((ahead, condition))
                    break
        return found

    def advance(self, frame: Any, moved: Mapping[str, int], steps: int) -> None:
        """Move the program's own counters (``step += 1``) as if so many steps had been made."""
        variables = variables_of(frame)
        changed = {name: variables[name] + steps * by for name, by in moved.items() if name in self.counted}
        if not changed:
            return
        seen = frame.f_locals
        seen.update(changed)
        if sys.version_info < (3, 13) and seen is not frame.f_globals:  # before, a function's variables are a copy
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
            variables_of(frame)
        self._before.update(changed)

    def _counted(self) -> Iterator[tuple[str, ast.AugAssign]]:
        for node in self.statements():
            if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and isinstance(node.target, ast.Name):
                yield node.target.id, node

    @functools.cached_property
    def _names_in_use(self) -> set[str]:
        return {name for condition in self.conditions for name in condition.names}


def _behind(tree: ast.Module, line: int, after: int) -> list[ast.stmt]:
    """The statements that begin behind a line, in the function around another one or else in the module."""
    around: ast.AST = tree
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= line <= (node.end_lineno or 0):
            around = node
    body = [*getattr(around, "body", ())]
    inside = [one for node in body for one in walk_here(node) if isinstance(one, ast.stmt)]
    return [one for one in inside if one.lineno > after]


def _is_pure(node: ast.expr) -> bool:
    for one in ast.walk(node):
        if not isinstance(one, SOURCE):
            return False
        if isinstance(one, ast.Call) and not (isinstance(one.func, ast.Name) and one.func.id in PURE_CALLS):
            return False
    return True


def _reads(node: ast.expr, names: set[str]) -> bool:
    return any(isinstance(one, ast.Name) and one.id in names for one in ast.walk(node))
