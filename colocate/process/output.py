"""What a training prints: kept on disk with capped size, searched while it passes, shown as last lines.

Works on bytes in flat memory whatever arrives: gigabytes, carriage-return progress bars, NUL, anything but UTF-8, a
line without end. Imports the standard library only, because the supervisor imports it.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

MIB = 1024**2  # not from colocate.units: the supervisor loads nothing that it can do without
HEAD_BYTES = 4 * MIB
TAIL_BYTES = 4 * MIB
LINE_BYTES = 64 * 1024
"""A longer line is searched piece by piece; pieces overlap, so that a match of up to `OVERLAP_BYTES` is not cut."""
OVERLAP_BYTES = 4 * 1024
TEXT_CHARS = 200
LINE_CHARS = 400

OUT_OF_MEMORY: Mapping[str, str] = {
    # torch.OutOfMemoryError (2.5 on), torch.cuda.OutOfMemoryError (1.13 to 2.4): the last line of a traceback.
    "out of memory: torch exception": r"OutOfMemoryError(?::|\s*$)",
    # c10/cuda/CUDACachingAllocator.cpp; the whole message of releases before 1.13, which raised a RuntimeError.
    "out of memory: torch allocator": r"CUDA out of memory\. Tried to allocate",
    # c10/cuda/CUDAException.cpp and aten/src/ATen/cuda/Exceptions.h: "CUDA error: " or "CUDA driver error: " and the
    # runtime's own words. This is what a process prints that gets no memory for its CUDA context or a library's
    # workspace: common on a shared GPU, and unknown to the allocator's counters.
    "out of memory: CUDA error": r"CUDA (?:driver )?error: out of memory",
    # CUDA Runtime API, cudaError_t 2.
    "out of memory: CUDA runtime": r"cudaErrorMemoryAllocation\b",
    # CUDA Driver API, CUresult 2.
    "out of memory: CUDA driver": r"CUDA_ERROR_OUT_OF_MEMORY\b",
    # cuBLAS, cublasStatus_t 3. CUBLAS_STATUS_NOT_INITIALIZED often means the same but not always: not in this list.
    "out of memory: cuBLAS": r"CUBLAS_STATUS_ALLOC_FAILED\b",
    # cuDNN, cudnnStatus_t; the second name since cuDNN 9.
    "out of memory: cuDNN": r"CUDNN_STATUS_(?:ALLOC_FAILED|INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)\b",
    # NCCL, src/include/checks.h: "Cuda failure 2 'out of memory'"; older releases without the number.
    "out of memory: NCCL": r"Cuda failure (?:2 )?'out of memory'",
    # XLA: an absl status code in front of the allocator's message.
    "out of memory: XLA": r"RESOURCE_EXHAUSTED: Out of memory",
    # TensorFlow, core/framework/op_kernel.h.
    "out of memory: TensorFlow": r"OOM when allocating tensor",
}
"""Texts that mean "no memory left on the GPU" and nothing else, by name, as regular expressions for one line.

One failure usually matches several of them: ask whether any matched, do not add them up.
Each begins with a literal, which makes the search some twenty times faster than a leading ``\\b`` (1700 against
70 MB/s): a training that floods its log must not be held up by us.
"""


class Match(NamedTuple):
    """A line of a training's output that a pattern was found in.

    ``t`` is the monotonic time in seconds at which it was read; ``text`` is up to 200 characters around the match.
    """

    t: float
    name: str
    text: str


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
        self._try(self._begin)

    def write(self, data: bytes) -> None:
        """Keep these bytes. Never raises: what the disk refuses is dropped, and ``failed`` says why."""
        if self.failed is None:
            self._try(lambda: self._write(memoryview(data)))

    def close(self) -> None:
        """Put head and tail together. Does not raise either."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._try(lambda: assemble(self._path, self._tail_bytes))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except OSError as error:
            self.failed = self.failed or f"{self._path}: expected to write the log, got {error.strerror!r}"

    def _begin(self) -> None:
        for stale in _segments(self._path):
            stale.unlink()
        self._open(self._path)

    def _open(self, path: Path) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o644)

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
        self._open(_segment_path(self._path, self._segment))
        self._room_bytes = self._tail_bytes
        _segment_path(self._path, self._segment - 2).unlink(missing_ok=True)


class Scanner:
    """Finds named patterns in a stream of bytes, line by line, and counts the lines that have them.

    Newline and carriage return both end a line. A line counts once per pattern, however long it is. The anchors ``^``
    and ``$`` mean the ends of a line (above 64 KiB also those of its pieces); others are not supported.
    """

    def __init__(self, patterns: Mapping[str, str]) -> None:
        self.counts: Counter[str] = Counter({name: 0 for name in patterns})
        self._patterns = {name: _compiled(text) for name, text in patterns.items()}
        self._rest = b""
        self._counted: set[str] = set()  # patterns that the unfinished line has shown in an earlier piece

    def feed(self, data: bytes) -> list[tuple[str, bytes]]:
        """Names of patterns and the excerpts of lines that have them, for every line that these bytes complete."""
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

    def close(self) -> list[tuple[str, bytes]]:
        """The same for a last line without an end."""
        return self.feed(b"\n") if self._rest else []

    def _search(self, block: bytes, unfinished: bool = False) -> list[tuple[str, bytes]]:
        found = []
        for name, (anywhere, within) in self._patterns.items():
            if not anywhere.search(block):
                continue
            for number, line in enumerate(block.split(b"\n")):
                match = within.search(line)
                if match and not (number == 0 and name in self._counted):
                    found.append((name, _around(line, match.start())))
                    if unfinished:
                        self._counted.add(name)
        self.counts.update(name for name, _ in found)
        return found


def assemble(path: Path, tail_bytes: int = TAIL_BYTES) -> None:
    """Append the kept segments of a log to its head, with a line between them that says how much was left out.

    Does nothing to a log without segments, so that whoever comes last can call it again.
    """
    segments = _segments(path)
    if not segments:
        return
    last_bytes = segments[-1].stat().st_size
    later_bytes = int(segments[-1].suffix.rpartition("-")[2]) * tail_bytes + last_bytes
    left_out_bytes = max(0, later_bytes - tail_bytes)
    with path.open("ab") as log:
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
    start = f"{path.name}.tail-"
    try:
        return sorted(entry for entry in path.parent.iterdir() if entry.name.startswith(start))
    except OSError:
        return []


def _append(segment: Path, log: BinaryIO, start: int) -> None:
    with segment.open("rb") as source:
        source.seek(start)
        while piece := source.read(MIB):
            log.write(piece)


def _end_of(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as log:
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
