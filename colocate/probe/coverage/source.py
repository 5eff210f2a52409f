# SPDX-License-Identifier: Apache-2.0
"""Reads source files and walks up frames. Standard library only."""

import ast
import functools
import linecache
from collections.abc import Iterator
from types import FrameType
from typing import Any

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.lru_cache(maxsize=256)
def tree_of(path: str) -> ast.Module | None:
    """A parsed source file; None for one that cannot be read."""
    source = "".join(linecache.getlines(path))
    try:
        return ast.parse(source) if source else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def innermost(tree: ast.AST | None, kinds: tuple[type[ast.AST], ...], line: int) -> Any:
    """The innermost node of some kinds that a line is part of; None without one, or without a tree."""
    nodes: list[Any] = [node for node in ast.walk(tree) if isinstance(node, kinds)] if tree is not None else []
    around = [node for node in nodes if node.lineno <= line <= (node.end_lineno or node.lineno)]
    return max(around, key=lambda node: node.lineno, default=None)


def last_name(node: ast.AST) -> str:
    """``c`` of ``a.b.c``, ``a`` of ``a``; empty for anything else."""
    return str(getattr(node, "attr", getattr(node, "id", "")))


def frames(frame: FrameType | None) -> Iterator[Any]:
    """A frame and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back
