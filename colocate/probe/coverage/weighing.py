# SPDX-License-Identifier: Apache-2.0
"""Tells by the source whether memory may hang on a test that compares numbers: by work, or by what is kept.

Standard library only; names are believed only where they are a library's.
"""

import ast
import functools

from .branches import does_work
from .source import last_name

PURE_CALLS = {"len": len, "min": min, "max": max, "int": int, "round": round, "abs": abs, "bool": bool}

# In names of outcomes by which a library only tells something, such as Lightning's `should_log`.
TELLS = {"log", "logs", "logging", "print", "save", "progress"}


# How calls begin that make a phase of its own, and not a line in a log.
EVALUATING = ("eval", "valid", "test", "infer", "generate", "sample", "no_grad", "backward")


def weighs(node: ast.AST, scope: ast.AST, own: bool) -> bool:
    """Work of the device may hang on it, as far as names tell; the way out of a loop is none."""
    if isinstance(node, ast.While) or _gives_a_rate(scope):
        return False
    if not isinstance(node, ast.If):
        names = [one.id for one in getattr(node, "targets", ()) if isinstance(one, ast.Name)]
        names += [scope.name] if isinstance(scope, ast.FunctionDef) and isinstance(node, ast.Return) else []
        return own or not any(TELLS & set(name.lower().split("_")) for name in names)
    sides = [*node.body, *node.orelse]
    if isinstance(node.body[-1], ast.Continue | ast.Return) or does_work(scope, sides):
        return True
    stored = (one for side in sides for one in ast.walk(side) if isinstance(getattr(one, "ctx", None), ast.Store))
    return any(isinstance(one, ast.Attribute | ast.Subscript) for one in stored)


def evaluates(node: ast.AST, tree: ast.AST) -> bool:
    """A side of an ``if`` calls for a phase of its own, itself or by functions of the same file."""
    functions = dict(_functions_of(tree))
    waiting: list[ast.AST] = [*node.body, *node.orelse] if isinstance(node, ast.If) else []
    while waiting:
        for call in [one for one in ast.walk(waiting.pop()) if isinstance(one, ast.Call)]:
            name = last_name(call.func)
            if name.startswith(EVALUATING):
                return True
            if name in functions:
                waiting.append(functions.pop(name))
    return False


@functools.cache
def _functions_of(tree: ast.AST) -> dict[str, ast.FunctionDef]:
    return {one.name: one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)}


def _gives_a_rate(scope: ast.AST) -> bool:
    """A function that returns a quotient and calls nothing but arithmetic, such as the learning rate of a step."""
    if not isinstance(scope, ast.FunctionDef):
        return False
    nodes = list(ast.walk(scope))
    returned = [one.value for one in nodes if isinstance(one, ast.Return) and one.value is not None]
    quotients = (one for value in returned for one in ast.walk(value) if isinstance(one, ast.BinOp))
    stored = (one for one in nodes if isinstance(getattr(one, "ctx", None), ast.Store))
    return (
        any(isinstance(one.op, ast.Div) for one in quotients)
        and all(_is_arithmetic(one) for one in nodes if isinstance(one, ast.Call))
        and all(isinstance(one, ast.Name) for one in stored)
    )


def _is_arithmetic(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute):
        return isinstance(call.func.value, ast.Name) and call.func.value.id == "math"
    return isinstance(call.func, ast.Name) and call.func.id in {*PURE_CALLS, "float", "pow"}
