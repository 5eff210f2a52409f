# SPDX-License-Identifier: Apache-2.0
"""JSON that was written by somebody else: by a training, or by a run that was cut short, damaged or edited.

What is read here can be used without further fear: numbers are finite and fit 64 bits, text can be written and shown.
Whatever does not is a `ValueError`, whatever was wrong with it. Plans and catalogs, whose authors want to know every
mistake and its place, are read by `colocate.plan.validation`.
"""

import errno
import json
import math
import os
import stat
import sys
import tempfile
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError, printable

_LARGEST = 2**63  # more than any GPU holds bytes and any training makes steps


def shipped(name: str) -> Path:
    """A file or folder that colocate brings along, such as ``settings/models.json``: in the package, or beside it."""
    package = Path(__file__).parent
    return package / name if (package / name).exists() else package.parent / name


def content(path: Path, most_bytes: int = 1 << 30) -> bytes:
    """All of a file; where somebody put a pipe or a device in its place, nobody waits for what it may say.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file, or longer than so many bytes.
    """
    handle = opened(path)
    try:
        size = os.fstat(handle).st_size
        if size > most_bytes:
            raise ValueError(f"{path}: expected a file of at most {most_bytes} bytes, found {size}")
        with os.fdopen(os.dup(handle), "rb") as file:
            return file.read(most_bytes)
    finally:
        os.close(handle)


def tail(path: Path, most_bytes: int) -> bytes:
    """The end of a file, at most so many bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no file.
    """
    handle = opened(path)
    try:
        size = os.fstat(handle).st_size
        return os.pread(handle, most_bytes, max(0, size - most_bytes))
    finally:
        os.close(handle)


def opened(path: Path) -> int:
    """A descriptor to read a file with.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no file.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError(f"{path}: expected a file, found something else in its place")
    return handle


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that were closed when this program started (`>&-`)."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(handle, True)
            stream = os.fdopen(handle, "r" if name == "stdin" else "w")
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def append_line(path: Path, data: bytes) -> None:
    """Add a line to a file in one write, on a line of its own even where a crash left half of one before.

    Raises:
        OSError: it cannot be written, or something else is in the file's place, which nobody waits for.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o644)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "found something in its place that is no file", str(path))
        torn = status.st_size > 0 and os.pread(handle, 1, status.st_size - 1) != b"\n"
        data = b"\n" * torn + data + b"\n"
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def parse(data: bytes) -> Any:
    """The document in these bytes.

    Raises:
        ValueError: there is none, or one with numbers that no reading can have.
    """
    text = data.decode()
    try:
        document = json.loads(text, parse_float=finite, parse_int=_sensible, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("expected a document of sensible depth, got far more") from error
    return _writable(document) if "\\ud" in text or "\\uD" in text else document


def whole(value: Any) -> int | None:
    """The value if it is a whole number of at least 0, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def number(value: Any) -> float | None:
    """The value if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def finite(text: str) -> float:
    """The number that a text is.

    Raises:
        ValueError: it is none, or NaN or an infinity.
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {text[:40]}")
    return value


def line(value: Any, most: int = 500) -> str | None:
    """The value as text on one line of at most so many characters; None stays None."""
    return None if value is None else printable(str(value)[:most])


def _sensible(text: str) -> int:
    value = int(text)
    if abs(value) >= _LARGEST:
        raise ValueError(f"expected a number of at most 64 bits, got {text[:40]}")
    return value


def _writable(value: Any) -> Any:
    """The same without halves of surrogate pairs, which JSON can name but no file can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_writable(part) for part in value]
    return {_writable(key): _writable(part) for key, part in value.items()} if isinstance(value, dict) else value


def safe_name(text: str) -> str:
    """A name that is one plain path component: other characters than letters, digits, ``-_.`` become ``_``."""
    name = "".join(
        character if (character.isascii() and character.isalnum()) or character in "-_." else "_" for character in text
    )
    return name.strip(".")[:100] or "_"


def make_folder(path: Path) -> None:
    """Make a folder and its parents.

    Raises:
        ColocateError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ColocateError(f"could not write the folder {path}: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: aside, flushed to the disk, then renamed over the name.

    A file name that is no UTF-8, which some texts quote, gets question marks.

    Raises:
        OSError: the disk is full or gone; the old content, if any, is still there.
    """
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Any) -> None:
    """Write JSON the same way; NaN and infinity are refused, for no reader knows them."""
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON back.

    Raises:
        ColocateError: the file is missing, cut short, no JSON, or has numbers that no reading can have.
    """
    try:
        return parse(content(path))
    except (OSError, ValueError) as error:
        raise ColocateError(f"{path}: expected a JSON record, got {error}") from error
