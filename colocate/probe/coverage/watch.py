# SPDX-License-Identifier: Apache-2.0
"""Watches the conditions of a program: those of the running loop by its frame, those of functions by their code.

A counter may be kept anywhere, ``self.step`` for one, and be tested in any function, of the program or of the library
whose trainer it uses. So functions get the code of their own source again, with every test that compares numbers told
to `Watch.told`; lines, names and results stay what they are.
"""

import ast
import builtins
import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch

from ..origin import OURS, is_own
from .branches import TELL
from .conditions import Condition, condition_of, pure_part
from .loop_source import Loop, variables_of
from .passes import MOST_AHEAD
from .series import Level
from .source import frames, tree_of

# Torch's own functions know nothing of a program's steps, and a progress bar's only of their display.
NEVER_WATCHED = ("torch", "tqdm", "numpy", "accelerate")

MOST_LOOKS = 5  # for functions, a quarter of a second each


class Watch:
    """The conditions that were met, and the loops that are under way."""

    def __init__(self) -> None:
        self._conditions: dict[tuple[str, int, int], Condition | None] = {}
        self._of_loops: dict[int, list[Condition]] = {}
        self._told: list[Condition] = []
        self._seen_files: dict[str, bool] = {}
        self._done: set[CodeType] = set()
        self._places: set[str] = set()
        self.at: Level | None = None
        self.begun = 0  # loops so far

    def begin(self, level: Level) -> None:
        """A loop begins within the one that is under way, or anew after it was left in the middle."""
        level.outer = next((one.outer for one in self._levels() if one.place == level.place), self.at)
        self.at = level
        self.begun += 1

    def end(self, level: Level) -> None:
        """A loop is over."""
        for condition in self.noted_in(level):
            condition.release()
        self.at = level.outer

    def conditions(self) -> list[Condition]:
        """All that were met."""
        return [one for one in self._conditions.values() if one is not None]

    def noted_in(self, level: Level) -> list[Condition]:
        """The conditions that were noted in this pass of a loop."""
        return [one for one in self.conditions() if one.series_in(level) is not None]

    def look(self, loop: Loop, frame: Any) -> None:
        """Note the conditions in the body of a loop whose frame is here, behind one of its steps."""
        variables = variables_of(frame)
        loop.observe(variables)
        known = self._of_loops.get(id(loop))
        if known is None:
            known = self._of_loops[id(loop)] = list(self._conditions_of(loop))
        for condition in known:
            levels = [one for one in self._levels() if not condition.is_noted(one)]
            if levels:
                condition.note(levels, frame.f_globals, variables, {}, loop.assigned)

    def end_of(self, level: Level) -> int | None:
        """After how many batches the loop is left by a ``break`` that hangs on a counter, as far as is known."""
        ways_out = (one for one in self.noted_in(level) if one.ends == level.place)
        ahead = (one.news(level, MOST_AHEAD)[:1] for one in ways_out)
        return min((level.given + after for found in ahead for after in found), default=None)

    def _levels(self) -> Iterator[Level]:
        level = self.at
        while level is not None:
            yield level
            level = level.outer

    def _conditions_of(self, loop: Loop) -> Iterator[Condition]:
        for statement in loop.statements():
            for node, test in _tests(statement):
                found = self._condition(loop.path, node, test, loop.node)
                if found is not None:
                    is_whole = ast.unparse(pure_part(test) or test) == found.text
                    if is_whole and isinstance(node, ast.If) and isinstance(node.body[-1], ast.Break):
                        found.ends = loop.place
                    yield found

    def _condition(self, path: str, node: ast.AST, test: ast.expr, scope: ast.AST) -> Condition | None:
        key = path, test.lineno, test.col_offset
        if key not in self._conditions:
            place = f"{path.rpartition('/')[2]}:{test.lineno}"
            self._conditions[key] = condition_of(place, node, test, scope, tree_of(path) or scope, own=is_own(path))
        return self._conditions[key]

    def told(self, index: int, value: Any, around: Any = None) -> Any:
        """Called by watched code with the outcome of a test, which is given back."""
        condition = self._told[index]
        if type(value) is bool or type(value) is int or value is None:
            condition.seen.add(bool(value))
        at = self.at
        if at is None or condition.is_known or condition.latest == (id(at), at.given):
            return value
        condition.latest = id(at), at.given
        levels = [one for one in self._levels() if not condition.is_noted(one)]
        if levels:
            frame = sys._getframe(1)
            cells = {} if around is None else dict(zip(around.__code__.co_freevars, around.__closure__, strict=True))
            condition.note(levels, frame.f_globals, variables_of(frame), cells)
        return value

    # --- functions ----------------------------------------------------------------------------------------------------

    def put_into_functions(self, place: str, frame: Any) -> None:
        """Watch the functions that exist when a loop begins: the program's, and those of a library's trainer."""
        if place in self._places or len(self._places) >= MOST_LOOKS:
            return
        self._places.add(place)
        setattr(builtins, TELL, self.told)
        self._seen_files.update(dict.fromkeys(_trainer_files(frame), True))
        found: dict[str, list[FunctionType]] = {}
        for one in [one for one in gc.get_objects() if type(one) is FunctionType]:
            code = one.__code__
            if self._is_watched(code) and code not in self._done:
                found.setdefault(code.co_filename, []).append(one)
        for path, functions in found.items():
            codes = self._watched_codes(path, {_key(one.__code__): one.__code__.co_freevars for one in functions})
            for one in functions:
                watched = codes.get(_key(one.__code__))
                self._done.add(one.__code__)
                if watched is not None and watched.co_freevars == one.__code__.co_freevars:
                    one.__code__ = watched
                    self._done.add(watched)

    def _is_watched(self, code: CodeType) -> bool:
        path = code.co_filename
        known = self._seen_files.get(path)
        if known is None:
            known = self._seen_files[path] = is_own(path) and Path(path).is_file()
        return known

    def _watched_codes(self, path: str, free: dict[tuple[str, int], tuple[str, ...]]) -> dict[Any, CodeType]:
        """The code of a file's functions, watched; empty where nothing is to be watched, or it cannot be read."""
        try:
            tree = ast.parse(Path(path).read_bytes())
            changed = _Telling(self, path, free)
            tree = ast.fix_missing_locations(changed.visit(tree))
            return {_key(one): one for one in _codes_in(compile(tree, path, "exec", dont_inherit=True))}
        except (OSError, SyntaxError, ValueError, RecursionError):
            return {}

    def number_of(self, path: str, node: ast.AST, test: ast.expr, scope: ast.AST) -> int | None:
        """The number under which watched code tells of a test; None for one that needs no watching."""
        condition = self._condition(path, node, test, scope)
        if condition is None:
            return None
        self._told.append(condition)
        return len(self._told) - 1


class _Telling(ast.NodeTransformer):
    """Wraps the tests of functions into calls of `Watch.told`."""

    def __init__(self, watch: Watch, path: str, free: dict[tuple[str, int], tuple[str, ...]]) -> None:
        self._watch = watch
        self._path = path
        self._free = free
        self._scopes: list[Any] = []

    def visit_FunctionDef(self, node: Any) -> Any:
        """A function, within which tests are wrapped."""
        self._scopes.append(node)
        node.body = [self.visit(one) for one in node.body]
        self._scopes.pop()
        return node

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        """As it is: several in one line cannot be told apart."""
        return node

    def visit(self, node: ast.AST) -> Any:
        """Wrap the tests of a node, if they compare numbers."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or not self._scopes:
            return super().visit(node)
        wrapped = [(test, self._wrapped(node, test)) for _, test in _tests_at(node)]
        node = self.generic_visit(node)
        for test, call in wrapped:
            for name, value in ast.iter_fields(node):
                if value is test and call is not None:
                    setattr(node, name, call)
        return node

    def _wrapped(self, node: ast.AST, test: ast.expr) -> ast.expr | None:
        function = self._scopes[-1]
        number = self._watch.number_of(self._path, node, test, function)
        if number is None:
            return None
        line = min([function.lineno, *(one.lineno for one in function.decorator_list)])
        free = self._free.get((function.name, line), ())
        around = sorted({one.id for one in ast.walk(test) if isinstance(one, ast.Name) and one.id in free})
        arguments: list[ast.expr] = [ast.Constant(number), test]
        if around:
            nothing = ast.arguments([], [], None, [], [], None, [])
            arguments.append(ast.Lambda(nothing, ast.Tuple([ast.Name(one, ast.Load()) for one in around], ast.Load())))
        return ast.copy_location(ast.Call(ast.Name(TELL, ast.Load()), arguments, []), test)


def _tests(statement: ast.stmt) -> Iterator[tuple[ast.AST, ast.expr]]:
    """The tests of a statement and of the expressions in it, without those of statements inside."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield from _tests_at(node)
        if not isinstance(node, ast.Lambda):
            waiting += [one for one in ast.iter_child_nodes(node) if not isinstance(one, ast.stmt)]


def _tests_at(node: ast.AST) -> Iterator[tuple[ast.AST, ast.expr]]:
    """The test of a node itself, or the outcome of one that it keeps or returns."""
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield node, node.test
    elif isinstance(node, ast.Return | ast.Assign) and isinstance(node.value, ast.Compare | ast.BoolOp | ast.UnaryOp):
        yield node, node.value


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield one
            yield from _codes_in(one)


def _key(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _trainer_files(frame: Any) -> set[str]:
    """The files of libraries in the calls down to the loop, and of what their objects consist of."""
    found: set[str] = set()
    for caller in frames(frame):
        path = caller.f_code.co_filename
        if not is_own(path) and not path.startswith(("<", OURS)) and _is_of_a_trainer(caller.f_globals.get("__name__")):
            found.add(path)
            for one in _objects_of(variables_of(caller).get("self")):
                found |= {*_files_of(type(one))}
    return found


def _is_of_a_trainer(module: str | None) -> bool:
    top = (module or "torch").partition(".")[0]
    return top not in NEVER_WATCHED and top not in sys.stdlib_module_names


def _objects_of(owner: Any, depth: int = 2) -> Iterator[Any]:
    """An object and what it consists of, but for networks."""
    if not hasattr(owner, "__dict__") or isinstance(owner, type | type(sys) | torch.nn.Module):
        return
    yield owner
    for value in list(vars(owner).values()) if depth else ():
        for one in value if isinstance(value, list | tuple) else (value,):
            yield from _objects_of(one, depth - 1)


def _files_of(kind: type) -> Iterator[str]:
    """The files of a class and of those that it inherits from."""
    for one in kind.__mro__:
        if _is_of_a_trainer(one.__module__):
            file = getattr(sys.modules.get(one.__module__), "__file__", None)
            if isinstance(file, str) and file.endswith(".py"):
                yield file
