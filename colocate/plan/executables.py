# SPDX-License-Identifier: Apache-2.0
"""Command lines of trainings: what their words stand for, what they are called after, and why they cannot be started.

Starts nothing.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

_PYTHON = re.compile(r"(pypy|python)\d*(\.\d+)?")
_SHELL = re.compile(r"(ba|da|k|z)?sh")


def filled(word: str, model: str = "") -> str:
    """A word of a command with ``{python}`` and ``{model}`` filled in; other braces stay."""
    return word.replace("{python}", sys.executable).replace("{model}", model)


def what_is_missing(argv: list[str], cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    """Say why a command cannot be started, or None if it can. Paths are relative to ``root`` where possible.

    Looks for the folder, the program, and the script or module of a Python or shell command; starts nothing.
    """
    for folder in (root, cwd):
        if not _is(Path.is_dir, folder):
            return f"{_near(folder, root)} is not there yet"
    return _missing_program(argv[0], cwd, env, root) or _missing_script(argv, cwd, env, root)


def _missing_program(program: str, cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    if "/" not in program:
        found = shutil.which(program, path=env.get("PATH"))
        hint = "; write '{python}' for the interpreter that runs the harness" if _PYTHON.fullmatch(program) else ""
        return None if found else f"the program {program!r} is not on PATH{hint}"
    path = cwd / program
    if not _is(Path.is_file, path):
        return f"{_near(path, root)} is not there yet"
    return None if os.access(path, os.X_OK) else f"{_near(path, root)} is not executable; try chmod +x"


def _missing_script(argv: list[str], cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    kind, name = _script(argv)
    if kind == "module":
        return _missing_module(name, argv[0], cwd, env, root)
    if kind == "file" and not _is(Path.exists, cwd / name):
        return f"{_near(cwd / name, root)} is not there yet"
    return None


def _script(argv: list[str]) -> tuple[Literal["module", "file", "none"], str]:
    """The script that an interpreter's command line names."""
    interpreter = Path(argv[0]).name
    if not _PYTHON.fullmatch(interpreter) and not _SHELL.fullmatch(interpreter) and argv[0] != sys.executable:
        return "none", ""
    words = iter(argv[1:])
    for word in words:
        if word == "-m":
            return "module", next(words, "")
        if word in ("-c", "-", "-s", "-lc"):
            return "none", ""
        if word in ("-X", "-W", "-o"):
            next(words, None)
        elif not word.startswith("-"):
            return "file", word
    return "none", ""


def script_of(argv: list[str]) -> str:
    """Return the name of a command: its script, else its module, else its program, without folder and suffix."""
    kind, name = _script(argv)
    return name.rpartition(".")[2] if kind == "module" else Path(name if kind == "file" else argv[0]).stem


def _missing_module(name: str, interpreter: str, cwd: Path, env: Mapping[str, str], root: Path) -> str | None:
    """Say why ``-m name`` would not be found, if that can be known without running the interpreter."""
    parts = name.split(".")
    here = cwd.joinpath(*parts)
    if _is(Path.is_file, Path(f"{here}.py")) or _is(Path.is_file, here / "__main__.py"):
        return None
    if _is(Path.is_dir, cwd / parts[0]) or _is(Path.is_file, cwd / f"{parts[0]}.py"):
        return f"{_near(Path(f'{here}.py'), root)} is not there yet"
    if interpreter != sys.executable or "PYTHONPATH" in env:
        return None
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(parts[0]) is not None:
            return None
    return f"the module {name!r} is not installed"


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """`Path.is_file` and its like without their one exception: a name too long for the file system is not there."""
    try:
        return kind(path)
    except OSError:
        return False


def _near(path: Path, root: Path) -> str:
    return os.path.relpath(path, root) if path.is_relative_to(root) and path != root else str(path)
