# SPDX-License-Identifier: Apache-2.0
"""Read a settings file as JSON; what no settings file may contain is a mistake with its place."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from colocate.errors import PlanError
from colocate.plan.validation import Mistakes, Place, shown
from colocate.units import to_mib

MAX_BYTES = 32 * 1024**2  # a plan of ten thousand groups is 5 to 15 MiB; more is a wrong file
MAX_DEPTH = 32  # a plan needs six levels; far below the interpreter's own recursion limit


class _Object(dict[str, Any]):
    """A JSON object that remembers which of its keys were written twice; json itself keeps the last one silently."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.twice = [key for key, _ in pairs if key in seen or seen.add(key)]  # type: ignore[func-returns-value]


def display_name(path: Path) -> str:
    """The file as an error message calls it: relative to the working directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_json(path: Path, mistakes: Mistakes) -> Any:
    """The document in a file; its duplicate keys, non-finite numbers and control characters go to ``mistakes``.

    A byte order mark and carriage returns are accepted.

    Raises:
        PlanError: the file cannot be read, or is no JSON.
    """
    text = _text(_bytes(path, mistakes.file), mistakes.file)
    document = _parsed(text, mistakes.file)
    for place, message in _defects(document):
        mistakes.add(place, message)
        if len(place) > MAX_DEPTH:  # what follows would only repeat it, and validate recursively
            mistakes.raise_if_any()
    return document


def _bytes(path: Path, file: str) -> bytes:
    try:
        if not path.is_file():  # also keeps a pipe or a device from blocking the start
            raise PlanError(f"{file}: expected a file, {_found(path)}")
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
            size = os.fstat(stream.fileno()).st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PlanError(f"{file}: expected a readable file, got {reason!r}") from error
    if len(content) > MAX_BYTES:
        raise PlanError(f"{file}: expected at most {to_mib(MAX_BYTES):.0f} MiB of settings, got {to_mib(size):.0f} MiB")
    return content


def _found(path: Path) -> str:
    if path.is_dir():
        return "got a directory"
    return "got something that is no regular file" if path.exists() else "there is none"


def _text(content: bytes, file: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        found = f"got the byte 0x{content[error.start]:02x}"
        raise PlanError(f"{file}:{line}:{column}: expected UTF-8 text, {found}; save the file as UTF-8") from error


def _parsed(text: str, file: str) -> Any:
    if not text.strip():
        raise PlanError(f"{file}: expected JSON, the file is empty")
    try:
        return json.loads(text, object_pairs_hook=_Object, parse_constant=float)
    except json.JSONDecodeError as error:
        message = error.msg[:1].lower() + error.msg[1:]
        raise PlanError(f"{file}:{error.lineno}:{error.colno}: {message}") from error
    except RecursionError as error:
        raise PlanError(f"{file}: expected at most {MAX_DEPTH} levels of nesting, got far more") from error
    except ValueError as error:  # CPython refuses whole numbers of more than 4300 digits
        raise PlanError(f"{file}: expected numbers of a sensible length, got {str(error)[:80]!r}") from error


def _defects(document: Any) -> Iterator[tuple[Place, str]]:
    """Find what no settings file may contain. Works without recursion, so that no nesting can break it."""
    waiting: list[tuple[Place, Any]] = [((), document)]
    while waiting:
        place, value = waiting.pop()
        yield from ((place, message) for message in _own_defects(value, len(place)))
        if len(place) <= MAX_DEPTH:
            for key in getattr(value, "twice", ()):
                yield (*place, key), "expected every key once, got it twice"
            waiting.extend(reversed([((*place, key), child) for key, child in _children(value)]))


def _children(value: Any) -> Iterable[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _own_defects(value: Any, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        yield f"expected at most {MAX_DEPTH} levels of nesting, got more"
    if isinstance(value, float) and not abs(value) < float("inf"):
        yield f"expected a finite number, got {value}"
    texts = value if isinstance(value, dict) else [value] if isinstance(value, str) else []
    for text in texts:
        if _UNPRINTABLE.search(text):
            yield f"expected text without control characters, got {shown(text)}"


# Control characters but tab and line ends, and halves of surrogate pairs, which cannot be written anywhere.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
