# SPDX-License-Identifier: Apache-2.0
"""The source of the loop that consumes a loader: its statements, its counters, and what follows it."""

import ast
import ctypes
import functools
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from ..origin import is_own
from .branches import does_work
from .source import FUNCTIONS, frames, innermost, tree_of

# A function that calls one of these may keep the very copy.
LOOKS_AT_ITSELF = {"locals", "vars", "eval", "exec"}


def variables_of(frame: Any) -> dict[str, Any]:
    """The variables of a frame. Nothing stays alive by the look: before 3.13 a frame keeps the copy that it makes."""
    seen = frame.f_locals
    found = dict(seen)
    code = frame.f_code
    is_copy = seen is not frame.f_globals and type(seen) is dict and code.co_flags & inspect.CO_OPTIMIZED
    if is_copy and not LOOKS_AT_ITSELF & {*code.co_names}:
        seen.clear()
    return found


class Loop:
    """A ``for`` or ``while`` of the program's source."""

    def __init__(self, path: str, node: ast.For | ast.While) -> None:
        self.path = path
        self.node = node
        self.place = f"{path.rpartition('/')[2]}:{node.lineno}"
        self.counted = {
            one.target.id
            for one in itertools.chain.from_iterable(map(walk_here, node.body))
            if isinstance(one, ast.AugAssign) and isinstance(one.op, ast.Add) and isinstance(one.target, ast.Name)
        }
        self.assigned = frozenset(
            one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)
        )
        self.moves: dict[str, int] = {}
        self._before: dict[str, int] = {}
        self._iteration: dict[str, int] = {}

    @classmethod
    @functools.cache
    def at(cls, path: str, line: int) -> "Loop | None":
        """The innermost loop around a line."""
        node = innermost(tree_of(path), (ast.For, ast.While), line)
        return None if node is None else cls(path, node)

    @classmethod
    def of(cls, frame: Any) -> "Loop | None":
        """The innermost loop around the running line of a frame, if that is the program's."""
        path = frame.f_code.co_filename
        return cls.at(path, frame.f_lineno) if is_own(path) else None

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

    def observe(self, variables: Mapping[str, Any]) -> None:
        """Learn by how much a step moves the counters of the loop (``step += 1``)."""
        now = {name: variables[name] for name in self.counted if type(variables.get(name)) is int}
        moves = {name: value - self._before[name] for name, value in now.items() if name in self._before}
        self.moves.update({name: by for name, by in moves.items() if by})
        self._before = now

    def goes_on(self, frame: Any) -> bool:
        """Another iteration is under way since the last call: a number that the loop sets has changed."""
        variables = variables_of(frame)
        now = {name: variables[name] for name in self.assigned if type(variables.get(name)) is int}
        before, self._iteration = self._iteration, now
        return not now or now != before

    def is_followed_by_work(self, frame: Any) -> bool:
        """Whether the program's code behind the loop, up to its end, calls anything that could need memory."""
        for one in frames(frame):
            after = (self.node.end_lineno or self.node.lineno) if one is frame else one.f_lineno
            tree = tree_of(one.f_code.co_filename) if is_own(one.f_code.co_filename) else None
            if tree is not None and does_work(tree, _behind(tree, one.f_lineno, after)):
                return True
        return False

    def forget(self) -> None:
        """A pass begins: what is seen next is no step."""
        self._before = {}

    def advance(self, frame: Any, steps: int) -> None:
        """Move the loop's own counters as if so many steps had been made."""
        variables = variables_of(frame)
        changed = {name: variables[name] + steps * by for name, by in self.moves.items() if name in variables}
        if not changed:
            return
        seen = frame.f_locals
        seen.update(changed)
        if sys.version_info < (3, 13) and seen is not frame.f_globals:  # before, a function's variables are a copy
            ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
            variables_of(frame)
        self._before.update(changed)


def _behind(tree: ast.Module, line: int, after: int) -> list[ast.stmt]:
    """The statements that begin behind a line, in the function around another one or else in the module."""
    around = innermost(tree, FUNCTIONS, line) or tree
    inside = [one for node in around.body for one in walk_here(node) if isinstance(one, ast.stmt)]
    return [one for one in inside if one.lineno > after]


def walk_here(node: ast.AST) -> Iterator[ast.AST]:
    """A node and what is in it, without the bodies of functions and classes that it defines."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from walk_here(child)
