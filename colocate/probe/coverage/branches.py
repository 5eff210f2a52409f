# SPDX-License-Identifier: Apache-2.0
"""Tells what hangs on a test in the program's code: a check, a loop, or work that may need memory.

Reads bytecode, for the direction of a test, and source, for what each side of it does. Standard library only; the
program is not run by it. Where the source cannot be read, every side is taken to matter.
"""

import ast
import copy
import dis
import functools
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import NamedTuple

from .source import FUNCTIONS, innermost, last_name, tree_of

MOST_INSTRUCTIONS = 200  # of a side that only raises; messages are short

# Name of the function into whose calls `watch` puts tests, and the instructions of such a call behind its test.
TELL = "__colocate_told__"
TELLING = {"CALL", "LOAD_CLOSURE", "LOAD_FAST", "BUILD_TUPLE", "LOAD_CONST", "MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE"}
BETWEEN = {"NOP", "EXTENDED_ARG", "TO_BOOL", "PRECALL", "NOT_TAKEN"}

# Calls that move no memory of the device, by the last part of their name.
_LIGHT = """
print debug info warning warn error exception critical log write flush format join strftime split strip replace
round len str repr int float bool min max abs exp sqrt isfinite isnan isinstance getattr hasattr range enumerate zip
item items keys values get state_dict dump dumps time time_ns perf_counter sleep timedelta datetime now
eval train zero_grad detach cpu numpy tolist mean sum avg any all append extend update reset array
collect empty_cache synchronize memory_allocated max_memory_allocated memory_reserved max_memory_reserved
memory_summary add_scalar add_scalars add_text set_description set_description_str set_postfix set_postfix_str
get_last_lr lr getLogger report display tqdm close exit makedirs mkdir exists remove rename copyfile copy2
pop popleft popitem clear discard system __colocate_told__
"""
LIGHT_CALLS = frozenset(_LIGHT.split())
LIGHT_PREFIXES = ("save", "log_", "print")
ENDS_PROCESS = frozenset({"exit", "_exit", "quit", "abort"})


# Calls by which a container takes something, and those whose results are no tensors of the device.
TAKING = {"append", "appendleft", "add", "extend", "insert"}
OF_THE_HOST = {"cpu", "item", "tolist", "numpy", "float", "int", "len", "str", "round", "format", "time"}


class Branch(NamedTuple):
    """What hangs on one reading of a truth value.

    ``healthy`` is the answer without which the program only raises; ``stays`` the answer that goes on with a loop;
    ``true_weighs`` and ``false_weighs`` say whether that answer leads to work which may need memory; ``keeps`` is the
    answer with which alone something is put into a container.
    """

    healthy: bool | None
    stays: bool | None
    true_weighs: bool
    false_weighs: bool
    keeps: bool | None = None


UNREADABLE = Branch(None, None, True, True)


@functools.lru_cache(maxsize=4096)
def branch_at(code: CodeType, instruction: int, line: int) -> Branch:
    """The branch behind the instruction that reads a truth value.

    Args:
        code: the code that is running.
        instruction: offset of the instruction, a frame's ``f_lasti``.
        line: its line in the source.
    """
    ways = _ways(code, instruction)
    healthy = None
    if ways is not None:
        raising = {answer: _only_raises(code, offset) for answer, offset in ways.items()}
        if raising[True] != raising[False]:
            healthy = raising[False]
    tree = tree_of(code.co_filename)
    test = _test_at(tree, line) if tree is not None else None
    if isinstance(test, ast.Assert):
        return Branch(True if healthy is None else healthy, None, False, False)
    if tree is None:
        return UNREADABLE._replace(healthy=healthy)
    if test is None:
        weighs = _result_weighs(tree, line)
        return Branch(healthy, None, weighs, weighs)
    sides = _sides(code, ways, test)
    if sides is None:
        return UNREADABLE._replace(healthy=healthy)
    yes, no = sides
    stays = None
    if isinstance(test, ast.While):
        stays = yes is test.body
    elif _is_exit(tree, test):
        stays = yes is not test.body
    kept = keeps(yes) if keeps(yes) is not keeps(no) else None
    return Branch(healthy, stays, _weighs(tree, yes, no), _weighs(tree, no, yes), kept)


def number_decides(filename: str, line: int) -> bool:
    """Whether a number that was read in this line is tested later on, with work behind the test."""
    tree = tree_of(filename)
    if tree is None:
        return False
    test = _test_at(tree, line)
    if isinstance(test, ast.If | ast.While | ast.IfExp):
        return any(does_work(tree, side, frozenset()) for side in _both(test))
    scope = innermost(tree, FUNCTIONS, line) or tree
    targets = {name for one in _statements_at(scope, line) for name in _targets(one)}
    valued = _WithoutTypeTests().visit(copy.deepcopy(scope))
    return any(_tested(valued, name, frozenset()) for name in targets)


class _WithoutTypeTests(ast.NodeTransformer):
    """Leaves out what a number's value does not decide."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """A constant in place of a test of a type."""
        return ast.Constant(True) if last_name(node.func) == "isinstance" else self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        """A constant in place of a test for None."""
        return ast.Constant(True) if isinstance(node.ops[0], ast.Is | ast.IsNot) else self.generic_visit(node)


# --- bytecode: which way an answer goes -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=512)
def _instructions(code: CodeType) -> dict[int, tuple[dis.Instruction, int | None]]:
    """By offset: each instruction, and the offset of the next."""
    listed = list(dis.get_instructions(code))
    following = [*(one.offset for one in listed[1:]), None]
    return {one.offset: (one, after) for one, after in zip(listed, following, strict=True)}


def _is_test(instruction: dis.Instruction) -> bool:
    name = instruction.opname
    return "JUMP" in name and ("IF_TRUE" in name or "IF_FALSE" in name)


@functools.lru_cache(maxsize=4096)
def compares(code: CodeType, offset: int) -> bool:
    """The instruction compares or tests by itself, and is no call of ``min()`` or the like."""
    known = _instructions(code).get(offset)
    return known is not None and (known[0].opname in ("COMPARE_OP", "TO_BOOL", "UNARY_NOT") or _is_test(known[0]))


def _ways(code: CodeType, offset: int) -> dict[bool, int] | None:
    """Where the program goes on after either answer; None where the answer is kept for later."""
    known = _instructions(code)
    straight, place = True, offset if offset in known else None
    between = BETWEEN | TELLING if TELL in code.co_names else BETWEEN
    for step in range(12):
        if place is None:
            return None
        instruction, after = known[place]
        if _is_test(instruction):
            if after is None:
                return None
            jumps_when = ("IF_TRUE" in instruction.opname) == straight
            return {jumps_when: int(instruction.argval), not jumps_when: after}
        if instruction.opname == "UNARY_NOT":
            straight = not straight
        elif step and instruction.opname not in between:
            return None
        place = after
    return None


def _only_raises(code: CodeType, offset: int) -> bool:
    """Every way from here on raises or ends the process, without a loop or a return before."""
    known = _instructions(code)
    waiting, seen = [offset], set()
    while waiting:
        place: int | None = waiting.pop()
        while place is not None and place not in seen:
            seen.add(place)
            instruction, after = known[place]
            name = instruction.opname
            if len(seen) > MOST_INSTRUCTIONS or "RETURN" in name or "BACKWARD" in name or name in ("FOR_ITER", "SEND"):
                return False
            if name.startswith("LOAD") and instruction.argval in ENDS_PROCESS:
                break
            if name == "RAISE_VARARGS":
                break
            if _is_test(instruction):
                waiting.append(int(instruction.argval))
            elif "JUMP" in name:
                if int(instruction.argval) <= place:
                    return False
                place = int(instruction.argval)
                continue
            place = after
            if place is None:
                return False
    return True


# --- source: what either side does ------------------------------------------------------------------------------------

Side = list[ast.stmt]
Test = ast.If | ast.While | ast.IfExp | ast.Assert


@functools.lru_cache(maxsize=4096)
def _test_at(tree: ast.Module, line: int) -> Test | None:
    """The innermost test that a line is part of."""
    found: Test | None = None
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            within = node.test.lineno <= line <= (node.test.end_lineno or node.test.lineno)
            if within and (found is None or node.lineno >= found.lineno):
                found = node
    return found


def _both(test: Test) -> tuple[Side, Side]:
    if isinstance(test, ast.If | ast.While):
        return test.body, test.orelse
    if isinstance(test, ast.IfExp):
        return [ast.Expr(test.body)], [ast.Expr(test.orelse)]
    return [], []


def _sides(code: CodeType, ways: dict[bool, int] | None, test: Test) -> tuple[Side, Side] | None:
    """What is done after True and after False; None where only more of the test follows."""
    if ways is None:
        return None
    body, other = _both(test)
    if isinstance(test, ast.IfExp):
        return body, other  # which one is not told; both are weighed alike
    begins, ends = body[0].lineno, body[-1].end_lineno or body[-1].lineno
    lines = {answer: _line(code, offset) for answer, offset in ways.items()}
    inside = {answer: line is not None and begins <= line <= ends for answer, line in lines.items()}
    if inside[True] == inside[False]:  # `if test: break`, or one of several conditions
        compound = isinstance(test.test, ast.BoolOp)
        nearer = min(ways, key=lambda answer: ways[answer])  # the body follows its test
        if compound:
            return None
        inside = {answer: answer == nearer for answer in ways}
    elif isinstance(test.test, ast.BoolOp) and any(
        line is not None and test.test.lineno <= line < begins for line in lines.values()
    ):
        return None
    return (body, other) if inside[True] else (other, body)


def _line(code: CodeType, offset: int) -> int | None:
    for start, end, line in code.co_lines():
        if start <= offset < end:
            return line
    return None


def _is_exit(tree: ast.AST, test: ast.AST) -> bool:
    """It is the way out of a ``while True``, which nothing else would end."""
    if not isinstance(test, ast.If) or not isinstance(test.body[-1], ast.Break | ast.Return):
        return False
    loop = innermost(tree, (ast.While, ast.For), test.lineno)
    return isinstance(loop, ast.While) and isinstance(loop.test, ast.Constant)


def _weighs(tree: ast.AST, side: Side, other: Side) -> bool:
    """A side does work, or is all the rest because the other one leaves."""
    leaves = bool(other) and isinstance(other[-1], ast.Break | ast.Continue | ast.Return)
    return leaves or does_work(tree, side, frozenset())


def does_work(tree: ast.AST, side: Iterable[ast.AST], asked: frozenset[str] = frozenset()) -> bool:
    """Something in these statements may need memory of the device, now or by what it sets in the tree."""
    for statement in side:
        if any(_is_work(node) for node in _heavy_nodes(statement)):
            return True
        if any(_sets_off(tree, name, asked) for name in _targets(statement)):
            return True
    return False


def _heavy_nodes(statement: ast.AST, light: bool = False) -> Iterator[ast.AST]:
    """Its parts; of the arguments of calls that move no memory only the calls."""
    if isinstance(statement, ast.Call) or not light:
        yield statement
    light = light or (isinstance(statement, ast.Call) and _is_light(statement))
    if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(statement):
            yield from _heavy_nodes(child, light)


def _is_work(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return not _is_light(node)
    if isinstance(node, ast.BinOp | ast.AugAssign):
        return not any(isinstance(part, ast.Constant) for part in ast.iter_child_nodes(node))
    return isinstance(node, ast.Await | ast.Yield | ast.YieldFrom)


def _is_light(call: ast.Call) -> bool:
    name = last_name(call.func)
    return name in LIGHT_CALLS or name.lower().startswith(LIGHT_PREFIXES)


def _targets(statement: ast.AST) -> set[str]:
    """Names and attributes that a statement sets, nested ones included."""
    found: set[str] = set()
    for node in ast.walk(statement):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
            targets = [node.target]
        for target in targets:
            found |= {last_name(part) for part in ast.walk(target)}
    return found - {"self", ""}


def _statements_at(tree: ast.AST, line: int) -> list[ast.stmt]:
    """The simple statements that a line is part of."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
        and not hasattr(node, "body")
        and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]


def _mentions(node: ast.AST, name: str) -> bool:
    return any(last_name(part) == name for part in ast.walk(node))


def _tested(tree: ast.AST, name: str, asked: frozenset[str]) -> bool:
    """A test of this name, anywhere in the file, has work behind it."""
    if name in asked:
        return False
    asked = asked | {name}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp) and _mentions(node.test, name):
            if any(does_work(tree, side, asked) for side in _both(node)):
                return True
        elif (
            isinstance(node, ast.Assign)
            and _mentions(node.value, name)
            and any(_tested(tree, target, asked) for target in _targets(node))
        ):
            return True
    return False


def _sets_off(tree: ast.AST, name: str, asked: frozenset[str]) -> bool:
    """A name that was set is tested or handed on where that may lead to work, such as the stage of a curriculum."""
    if name in asked:
        return False
    if _tested(tree, name, asked):
        return True
    return any(_mentions(used, name) for node in ast.walk(tree) for used in _handed_on(node))


def _handed_on(node: ast.AST) -> list[ast.expr]:
    """The parts of an expression or loop by whose values more or less may be done."""
    if isinstance(node, ast.Call) and not _is_light(node):
        return [*node.args, *(word.value for word in node.keywords)]
    if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Store):
        return [node.slice]
    return [node.iter] if isinstance(node, ast.For | ast.comprehension) else []


def _result_weighs(tree: ast.AST, line: int) -> bool:
    """An answer that is kept or returned: whether something with work behind it is done with it in this file."""
    statements = _statements_at(tree, line)
    if not statements or any(isinstance(one, ast.Return) for one in statements):
        return True
    return any(_sets_off(tree, name, frozenset()) for one in statements for name in _targets(one))


def keeps(side: Side) -> bool:
    """Put something into a container that may be a tensor."""
    calls = (one for statement in side for one in ast.walk(statement) if isinstance(one, ast.Call))
    taking = (one for one in calls if isinstance(one.func, ast.Attribute) and one.func.attr in TAKING)
    return any(True for call in taking for given in call.args for _ in _tensors(given))


def _tensors(given: ast.expr) -> Iterator[ast.expr]:
    """The parts of an argument that may be tensors: names, results of calls, and those in tuples and lists."""
    if isinstance(given, ast.Tuple | ast.List | ast.Set):
        for one in given.elts:
            yield from _tensors(one)
    elif isinstance(given, ast.Name | ast.Attribute | ast.Subscript):
        yield given
    elif isinstance(given, ast.Call):
        name = last_name(given.func)
        if name not in OF_THE_HOST:
            yield given
