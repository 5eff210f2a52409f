# SPDX-License-Identifier: Apache-2.0
"""Output of a training: stored with a size cap, searched as it arrives, and shown as last lines.

Works on bytes in flat memory whatever arrives: gigabytes, carriage-return progress bars, NUL, anything but UTF-8, a
line without end. Imports the standard library only, because the supervisor imports it.
"""

import os
import re
import signal
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from colocate.process import out_of_memory

MIB = 1024**2  # not from colocate.units: the supervisor loads nothing that it can do without
HEAD_BYTES = 4 * MIB
TAIL_BYTES = 4 * MIB
LINE_BYTES = 64 * 1024
"""A longer line is searched piece by piece; pieces overlap, so that a match of up to `OVERLAP_BYTES` is not cut."""
OVERLAP_BYTES = 4 * 1024
TEXT_CHARS = 200
LINE_CHARS = 400
_JOINED_CHARS = 400
_WINDOW_BYTES = 4096
_BLANK = b" \t|"
_NUMBER = re.compile(rb"\d+")
_MOST_INNOCENT = 1000
_HINTS = tuple(hint.encode() for hint in out_of_memory.HINTS)
_PLACE = re.compile(r'\s*File ".*", line \d+|\s*\S+\.(?:py|pyx|cc|cpp|cu|h):\d+: in ')  # source follows

PATTERN_S = 1.0
"""Processor time that a pattern may take for one piece of output: a sound one needs milliseconds."""


class SlowPatternError(Exception):
    """A pattern backtracks without end."""


class Match(NamedTuple):
    """A line of a training's output that a pattern was found in.

    ``t`` is the monotonic time in seconds at which it was read; ``text`` is up to 200 characters around the match;
    ``value`` is what the pattern's first group matched.
    """

    t: float
    name: str
    text: str
    value: str | None = None


class Found(NamedTuple):
    """A pattern in a line: its name, up to 800 bytes around it, and what its first group matched."""

    name: str
    excerpt: bytes
    value: bytes | None


class CappedLog:
    """A log file that keeps the first and the last bytes of an output of any length.

    The head goes to the file itself. What comes later goes to segments beside it, ``<log>.tail-00000000`` and so on,
    of which only the last two are kept: they can be read while the training runs and survive a SIGKILL of the writer.
    :func:`assemble` makes one file of them.
    """

    def __init__(self, path: Path, head_bytes: int = HEAD_BYTES, tail_bytes: int = TAIL_BYTES) -> None:
        self.failed: str | None = None
        self._path = path
        self._tail_bytes = tail_bytes
        self._descriptor: int | None = None
        self._room_bytes = head_bytes
        self._segment = -1
        self._identity: tuple[int, int] | None = None
        self._try(self._begin)

    def write(self, data: bytes) -> None:
        """Keep these bytes. Never raises: what the disk refuses is dropped, and ``failed`` says why."""
        if self.failed is None:
            self._try(lambda: self._write(memoryview(data)))

    def close(self) -> None:
        """Put head and tail together, unless somebody put something else in their place. Does not raise either."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._try(self._expect_own_file)
        if self.failed is None:
            self._try(lambda: assemble(self._path, self._tail_bytes))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.failed = self.failed or f"could not write the log {self._path}: {error.strerror}"

    def _begin(self) -> None:
        for stale in _segments(self._path):
            stale.unlink()
        # Also a device, such as /dev/null of somebody who wants no log; a pipe without a reader is refused.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = os.open(self._path, flags, 0o644)
        self._identity = _identity(os.fstat(self._descriptor))

    def _expect_own_file(self) -> None:
        if self._identity is not None and _identity(self._path.stat()) != self._identity:
            raise OSError(0, "something else in its place")

    def _write(self, view: memoryview) -> None:
        while view:
            if not self._room_bytes:
                self._next_segment()
            assert self._descriptor is not None
            written = os.write(self._descriptor, view[: self._room_bytes])
            self._room_bytes -= written
            view = view[written:]

    def _next_segment(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._segment += 1
        path = _segment_path(self._path, self._segment)
        path.unlink(missing_ok=True)  # what somebody put there is none of ours
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._room_bytes = self._tail_bytes
        _segment_path(self._path, self._segment - 2).unlink(missing_ok=True)


class Scanner:
    """Finds named patterns in a stream of bytes, line by line, and counts the lines that have them.

    Newline and carriage return both end a line. A line counts once per pattern, however long it is. The anchors ``^``
    and ``$`` mean the ends of a line (above 64 KiB also those of its pieces); others are not supported.
    Out-of-memory messages are found besides, under the names that `out_of_memory` gives them, also those that a console
    has broken into two or three lines. ``slow`` has the patterns that were given up because they take too long.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.counts: Counter[str] = Counter({name: 0 for name in patterns})
        self.slow: list[str] = []
        self._patterns = {name: _compiled(text) for name, text in patterns.items()}
        self._rest = b""
        self._counted: set[str] = set()  # patterns that the unfinished line has shown in an earlier piece
        self._before: tuple[bytes, ...] = ()  # the last two lines, which may have the beginning of a message
        self._innocent: set[tuple[bytes, ...]] = set()

    def feed(self, data: bytes) -> list[Found]:
        """What the lines have that these bytes complete."""
        block = self._rest + data.replace(b"\r", b"\n")
        end = block.rfind(b"\n") + 1
        self._rest = block[end:]
        found = []
        if end:
            found = self._search(block[: end - 1])
            self._counted.clear()
        if len(self._rest) > LINE_BYTES:
            found += self._search(self._rest, unfinished=True)
            self._rest = self._rest[-OVERLAP_BYTES:]
        return found

    def close(self) -> list[Found]:
        """The same for a last line without an end."""
        return self.feed(b"\n") if self._rest else []

    def _search(self, block: bytes, unfinished: bool = False) -> list[Found]:
        found = [*self._out_of_memory(block, unfinished)]
        for name in [*self._patterns]:
            try:
                with _bounded():
                    found += self._matches(name, block)
            except SlowPatternError:
                del self._patterns[name]
                self.slow.append(name)
        if unfinished:
            self._counted.update(one.name for one in found)
        self.counts.update(one.name for one in found)
        return found

    def _matches(self, name: str, block: bytes) -> list[Found]:
        anywhere, within = self._patterns[name]
        if not anywhere.search(block):
            return []
        found = []
        for number, line in enumerate(block.split(b"\n")):
            match = within.search(line)
            if match and not (number == 0 and name in self._counted):
                value = match[1] if within.groups else None
                found.append(Found(name, _around(line, match.start()), value))
        return found

    def _out_of_memory(self, block: bytes, unfinished: bool) -> Iterator[Found]:
        """Judges each line alone and, where that says nothing, together with the two in front of it."""
        block = out_of_memory.uncoloured(block)
        lines, low = block.split(b"\n"), b"\n".join((*self._before, block)).lower()
        if not any(hint in low for hint in _HINTS):
            lines = lines[-2:]  # nothing to be found, and what comes may go on with these
        for number, line in enumerate(lines):
            if line.strip(_BLANK):
                found = self._judged_once(line)
                if found is not None and not (number == 0 and found.name in self._counted):
                    yield found
                self._before = () if found is not None else (*self._before, line[-_JOINED_CHARS:])[-2:]
        if unfinished:
            self._before = ()

    def _judged_once(self, line: bytes) -> Found | None:
        """As `_judged`, but lines that differ in numbers only, as those of a loop do, are judged once."""
        alike = tuple(_NUMBER.sub(b"0", one[:_WINDOW_BYTES]) for one in (*self._before, line))
        if alike in self._innocent and len(line) <= _WINDOW_BYTES:
            return None
        found = next((one for text in _windows(line) if (one := self._judged(text)) is not None), None)
        if found is None:
            if len(self._innocent) >= _MOST_INNOCENT:
                self._innocent.clear()
            self._innocent.add(alike)
        return found

    def _judged(self, text: str) -> Found | None:
        before = [out_of_memory.plain(one) for one in reversed(self._before)]
        place = bool(before) and _PLACE.match(before[0]) is not None
        judged = out_of_memory.judge(text, below_place=place)
        for earlier in () if place else before:
            if judged is not None:
                break
            text = out_of_memory.joined(earlier, text[:_JOINED_CHARS])
            judged = out_of_memory.judge(text)
        return None if judged is None else Found(judged.name, _around(text.encode(), judged.start), None)


def assemble(path: Path, tail_bytes: int = TAIL_BYTES) -> None:
    """Append the kept segments of a log to its head, with a line between them that says how much was left out.

    Does nothing to a log without segments, so that whoever comes last can call it again.
    """
    segments = _segments(path)
    if not segments:
        return
    last_bytes = segments[-1].lstat().st_size
    later_bytes = int(segments[-1].suffix.rpartition("-")[2]) * tail_bytes + last_bytes
    left_out_bytes = max(0, later_bytes - tail_bytes)
    with _opened(path, os.O_WRONLY | os.O_APPEND, "ab") as log:
        if left_out_bytes:
            log.write(b"\n[colocate: %d bytes left out]\n" % left_out_bytes)
        for number, segment in enumerate(segments):
            is_last = number == len(segments) - 1
            _append(segment, log, 0 if is_last or not left_out_bytes else last_bytes)
    for segment in segments:
        segment.unlink()


def last_lines(path: Path, count: int = 20) -> tuple[str, ...]:
    """The last lines of a training's output, finished or not, as printable text; () when there is none.

    Of a progress bar only the last state is shown. Empty lines are left out, long ones cut.
    """
    reach_bytes = count * LINE_CHARS * 4 + LINE_BYTES
    data = b"".join(_end_of(part, reach_bytes) for part in [path, *_segments(path)][-2:])
    lines = (line.rstrip(b"\r").rpartition(b"\r")[2] for line in data.split(b"\n"))
    texts = [_printable(line, LINE_CHARS) for line in lines]
    return tuple([text for text in texts if text][-count:])


def text_of(excerpt: bytes) -> str:
    """Bytes of an output as text of up to 200 characters for a message."""
    return _printable(excerpt, TEXT_CHARS)


def _compiled(pattern: str) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    """The pattern twice: over a whole block, to learn in one call that no line has it, and within a line."""
    return re.compile(pattern.encode(), re.MULTILINE), re.compile(pattern.encode())


def _segment_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.tail-{number:08d}")


def _segments(path: Path) -> list[Path]:
    """The pieces of a log by number; what is only called like one, or is no file, is somebody else's."""
    name = re.compile(re.escape(path.name) + r"\.tail-\d{8}")
    try:
        found = [entry.path for entry in os.scandir(path.parent) if name.fullmatch(entry.name)]
    except OSError:
        return []
    return sorted(Path(entry) for entry in found)


def _opened(path: Path, flags: int, mode: str) -> BinaryIO:
    """A file that a training may have replaced: never waits for what a pipe may say, and follows no link.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    handle = os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "something that is no file")
    return os.fdopen(handle, mode)  # type: ignore[return-value]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _windows(line: bytes) -> Iterator[str]:
    """A line as text; of a long one the surroundings of what may be a message."""
    if len(line) <= _WINDOW_BYTES:
        yield out_of_memory.plain(line)
        return
    low, start = line.lower(), 0
    while positions := [at for hint in _HINTS if (at := low.find(hint, start)) >= 0]:
        first = max(0, min(positions) - _WINDOW_BYTES // 2)
        yield out_of_memory.plain(line[first : first + _WINDOW_BYTES])
        start = first + _WINDOW_BYTES


@contextmanager
def _bounded() -> Iterator[None]:
    """Ends a search that takes too much of the processor: a signal, because Python's engine of patterns heeds one.

    Raises:
        SlowPatternError: it did.
    """

    def give_up(*_: object) -> NoReturn:
        raise SlowPatternError

    earlier = signal.signal(signal.SIGVTALRM, give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATTERN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, earlier)


def _append(segment: Path, log: BinaryIO, start: int) -> None:
    with _opened(segment, os.O_RDONLY, "rb") as source:
        source.seek(start)
        while piece := source.read(MIB):
            log.write(piece)


def _end_of(path: Path, num_bytes: int) -> bytes:
    try:
        with _opened(path, os.O_RDONLY, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - num_bytes))
            return log.read(num_bytes)
    except OSError:
        return b""


def _around(line: bytes, start: int) -> bytes:
    """The line, or what surrounds the match in a long one; four bytes are the longest character of UTF-8."""
    if len(line) <= TEXT_CHARS:
        return line
    first = max(0, start - TEXT_CHARS // 4)
    return line[first : first + TEXT_CHARS * 4]


def _printable(line: bytes, max_chars: int) -> str:
    text = line[: max_chars * 4].decode(errors="replace").expandtabs(4).strip()
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)[:max_chars]
