"""Logs: bytes of any kind and amount, kept with capped size and searched while they pass."""

import errno
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.process.output import LINE_BYTES, OUT_OF_MEMORY, CappedLog, Scanner, assemble, last_lines, text_of

TORCH = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB"


def kept(tmp_path: Path, *pieces: bytes, head_bytes: int = 100, tail_bytes: int = 100) -> bytes:
    log = CappedLog(tmp_path / "log", head_bytes, tail_bytes)
    for piece in pieces:
        log.write(piece)
    log.close()
    assert log.failed is None
    return (tmp_path / "log").read_bytes()


def counts(patterns: dict[str, str], *pieces: bytes) -> dict[str, int]:
    scanner = Scanner(patterns)
    for piece in pieces:
        scanner.feed(piece)
    scanner.close()
    return dict(scanner.counts)


def test_a_short_output_is_kept_unchanged(tmp_path: Path) -> None:
    assert kept(tmp_path, b"one\n", b"\xff\x00\rtwo") == b"one\n\xff\x00\rtwo"


def test_head_and_tail_of_a_long_output_are_kept_and_the_gap_is_counted(tmp_path: Path) -> None:
    output = bytes(range(256)) * 10

    expected = output[:100] + b"\n[colocate: 2360 bytes left out]\n" + output[-100:]

    assert kept(tmp_path, output) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.binary(max_size=60), max_size=12), head=st.integers(0, 40), tail=st.integers(1, 40))
def test_what_is_kept_is_the_start_and_the_end(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], head: int, tail: int
) -> None:
    output = b"".join(pieces)
    found = kept(tmp_path_factory.mktemp("log"), *pieces, head_bytes=head, tail_bytes=tail)

    if len(output) <= head + tail:
        assert found == output
    else:
        notice = b"\n[colocate: %d bytes left out]\n" % (len(output) - head - tail)
        assert found == output[:head] + notice + output[-tail:]


def test_a_log_whose_writer_was_killed_can_be_put_together_later(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 10, 20)
    log.write(bytes(range(100)))

    assemble(tmp_path / "log", 20)
    assemble(tmp_path / "log", 20)

    expected = bytes(range(10)) + b"\n[colocate: 70 bytes left out]\n" + bytes(range(80, 100))
    assert (tmp_path / "log").read_bytes() == expected
    log.close()


def test_a_full_disk_is_told_and_does_not_raise() -> None:
    log = CappedLog(Path("/dev/full"))

    log.write(b"a line\n")
    log.write(b"another\n")
    log.close()

    assert log.failed == f"/dev/full: expected to write the log, got {os.strerror(errno.ENOSPC)!r}"


def test_a_missing_folder_is_told_and_does_not_raise(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "nowhere" / "log")
    log.write(b"a line\n")

    assert log.failed is not None
    assert "No such file" in log.failed


def test_last_lines_of_a_running_log_come_from_its_tail(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 10, 50)
    log.write(b"".join(b"line %d\n" % number for number in range(100)))

    assert last_lines(tmp_path / "log", 2) == ("line 98", "line 99")
    log.close()
    assert last_lines(tmp_path / "log", 2) == ("line 98", "line 99")


def test_last_lines_show_only_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"start\r\n 10%\r 50%\r100%\r\n\n\x00\xff end \x1b[0m\n")

    assert last_lines(tmp_path / "log") == ("start", "100%", "\ufffd\ufffd end \ufffd[0m")


def test_last_lines_of_no_log_are_none(tmp_path: Path) -> None:
    assert last_lines(tmp_path / "missing") == ()


def test_last_lines_cut_a_line_without_end(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"x" * 3_000_000)

    assert last_lines(tmp_path / "log") == ("x" * 400,)


def test_every_line_counts_once_per_pattern() -> None:
    assert counts({"loss": "loss"}, b"loss loss\nnone\nloss\r\nlo", b"ss") == {"loss": 3}


def test_carriage_returns_end_lines_too() -> None:
    assert counts({"step": r"^step \d+$"}, b"step 1\rstep 2\rstep x\r") == {"step": 2}


def test_a_match_across_two_reads_is_found() -> None:
    assert counts({"oom": "CUDA out of memory"}, b"CUDA out", b" of mem", b"ory\n") == {"oom": 1}


def test_a_pattern_does_not_match_across_lines() -> None:
    assert counts({"pair": r"a\s+b"}, b"a\nb\n") == {"pair": 0}


def test_a_line_of_megabytes_counts_once_and_needs_little_memory() -> None:
    scanner = Scanner({"oom": "out of memory"})
    for _ in range(50):
        scanner.feed(b"x" * LINE_BYTES + b"out of memory")
        assert len(scanner._rest) <= LINE_BYTES
    scanner.feed(b"\nout of memory\n")

    assert scanner.counts["oom"] == 2


@settings(deadline=None)
@given(
    data=st.lists(st.sampled_from([b"ab", b"a", b"b", b"\n", b"\r", b"\xff", b"\0"])), cuts=st.sets(st.integers(0, 60))
)
def test_how_the_output_was_cut_into_reads_does_not_matter(data: list[bytes], cuts: set[int]) -> None:
    output = b"".join(data)
    edges = [0, *sorted(cut for cut in cuts if cut < len(output)), len(output)]
    pieces = [output[start:end] for start, end in pairwise(edges)]

    expected = sum(b"ab" in line for line in re.split(rb"[\n\r]", output))

    assert counts({"ab": "ab"}, *pieces) == {"ab": expected}


def test_the_excerpt_of_a_long_line_holds_the_match() -> None:
    scanner = Scanner({"oom": "out of memory"})
    ((name, excerpt),) = scanner.feed(b"x" * 5000 + b" out of memory " + b"\xff" * 5000 + b"\n")

    assert name == "oom"
    assert "out of memory" in text_of(excerpt)
    assert len(text_of(excerpt)) == 200


@pytest.mark.parametrize(
    "line",
    [
        TORCH,
        "torch.cuda.OutOfMemoryError",
        "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity; ...)",
        "RuntimeError: CUDA error: out of memory",
        "RuntimeError: CUDA driver error: out of memory",
        "torch.AcceleratorError: CUDA error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cudaErrorMemoryAllocation: out of memory",
        "ncclUnhandledCudaError: Call to CUDA function failed. Last error: Cuda failure 2 'out of memory'",
        "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.",
    ],
)
def test_an_out_of_memory_is_recognised(line: str) -> None:
    assert any(counts(dict(OUT_OF_MEMORY), line.encode()).values())


@pytest.mark.parametrize(
    "line",
    [
        "handling OutOfMemoryErrors gracefully",
        "out of memory budget: 0",
        "RuntimeError: CUDA error: an illegal memory access was encountered",
        "If reserved memory is >> allocated memory try setting max_split_size_mb",
        "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    ],
)
def test_what_is_no_out_of_memory_is_not_taken_for_one(line: str) -> None:
    assert not any(counts(dict(OUT_OF_MEMORY), line.encode()).values())
