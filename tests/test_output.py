"""Logs: bytes of any kind and amount, kept with capped size and searched while they pass."""

import errno
import os
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.process.out_of_memory import WORDS, Words, judge, parsed
from colocate.process.output import LINE_BYTES, CappedLog, Scanner, assemble, last_lines, text_of


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


@settings(deadline=None, max_examples=60)
@given(pieces=st.lists(st.binary(max_size=60), max_size=12), head=st.integers(0, 40), tail=st.integers(1, 40))
def test_what_is_kept_is_the_start_and_the_end(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], head: int, tail: int
) -> None:
    output, folder = b"".join(pieces), tmp_path_factory.mktemp("log")
    found = kept(folder, *pieces, head_bytes=head, tail_bytes=tail)

    assert [path.name for path in folder.iterdir()] == ["log"]

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


@pytest.mark.parametrize(("path", "why"), [("/dev/full", errno.ENOSPC), ("/dev/nowhere/log", errno.ENOENT)])
def test_a_log_that_cannot_be_written_is_told_and_does_not_raise(path: str, why: int) -> None:
    log = CappedLog(Path(path))
    log.write(b"a line\n")
    log.write(b"another\n")
    log.close()

    assert log.failed == f"could not write the log {path}: {os.strerror(why)}"


def test_last_lines_of_a_running_log_come_from_its_tail(tmp_path: Path) -> None:
    log = CappedLog(tmp_path / "log", 10, 50)
    log.write(b"".join(b"line %d\n" % number for number in range(100)))

    assert last_lines(tmp_path / "log", 2) == ("line 98", "line 99")
    log.close()
    assert last_lines(tmp_path / "log", 2) == ("line 98", "line 99")


def test_last_lines_are_cut_and_show_only_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    for content, expected in {
        b"start\r\n 10%\r 50%\r100%\r\n\n\x00\xff end \x1b[0m\n": ("start", "100%", "\ufffd\ufffd end \ufffd[0m"),
        b"x" * 3_000_000: ("x" * 400,),
    }.items():
        (tmp_path / "log").write_bytes(content)
        assert last_lines(tmp_path / "log") == expected
    assert last_lines(tmp_path / "missing") == ()


def test_a_line_of_megabytes_counts_once_and_needs_little_memory() -> None:
    scanner = Scanner({"oom": "out of memory"})
    for _ in range(50):
        scanner.feed(b"x" * LINE_BYTES + b"out of memory")
        assert len(scanner._rest) <= LINE_BYTES
    scanner.feed(b"\nout of memory\n")
    assert scanner.counts["oom"] == 2

    ((name, excerpt, _),) = Scanner({"oom": "out of memory"}).feed(
        b"x" * 5000 + b" out of memory " + b"\xff" * 5000 + b"\n"
    )
    assert (name, len(text_of(excerpt))) == ("oom", 200)
    assert "out of memory" in text_of(excerpt)


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


@pytest.mark.slow
def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    """It used to hang the supervisor, which was then killed, and the group was run again."""
    scanner = Scanner({"slow": "(a+)+$", "sound": "b"})

    assert [found.name for found in scanner.feed(b"a" * 45 + b"!b\n")] == ["sound"]
    assert scanner.slow == ["slow"]


# --- out of memory, in every language


def certainties(*pieces: bytes) -> list[str]:
    """What is said of the lines of an output, whatever else they have."""
    scanner = Scanner({})
    found = [one for piece in pieces for one in scanner.feed(piece)] + scanner.close()
    return [judged.certainty for one in found if (judged := parsed(one.name)) is not None]


def test_a_real_message_is_found_as_its_frameworks_own() -> None:
    for words in WORDS:
        judged = judge(words.example)
        assert judged is not None, words
        expected = (words.framework, words.memory, words.at_most)
        assert (judged.framework, judged.memory, judged.certainty) == expected


RAISED = """
[rank0]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB
RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 7.79 GiB total capacity; 6 GiB already allocated)
torch.AcceleratorError: CUDA error: out of memory
RuntimeError: CUDA driver error: out of memory
RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED
RuntimeError: cuFFT error: CUFFT_ALLOC_FAILED
cusolver error: CUSOLVER_STATUS_ALLOC_FAILED
cudaErrorMemoryAllocation: out of memory
  what():  CUDA error: out of memory
CUDA Error: out of memory: File exists
XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.
RuntimeError: Resource exhausted: Failed to allocate request for 32.00MiB (33554432B) on device ordinal 0
ResourceExhaustedError: {{function_node __wrapped__Mul}} failed to allocate memory [Op:Mul]
MXNetError: cudaMalloc retry failed: out of memory
CUDA failure 2: out of memory ; GPU=0
Error Code 1: Cuda Driver (out of memory)
MemoryError: std::bad_alloc: out_of_memory: RMM failure: Maximum pool size exceeded
2024-08-21 22:56:04 ERROR RuntimeError: CUDA error: out of memory
WARNING: batch skipped: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.00 GiB of which
  5%|\u258c   | 3/60 [00:02<00:40,  1.4it/s]RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB
"""
REPORTED = """
WARNING: batch skipped: CUDA out of memory. Tried to allocate 2.00 GiB
[TensorRT] ERROR: ../rtSafe/safeRuntime.cpp (25) - Cuda Error in allocate: 2 (out of memory)
darknet: ./src/cuda.c:36: check_error: Assertion failed. CUDA Error: out of memory
Error using gpuArray: Out of memory on device. To view more detail, use 'gpuDevice()'.
recovered after an out-of-memory
ran out of memory, retrying batch
Skipping step 12 because of CUDA out of memory
allocating 1024.00 MiB on device 0: cudaMalloc failed: out of memory
node1:123:456 [0] NCCL WARN Cuda failure 'out of memory'
2023-11-01 16:19:17: E rocm_driver.cc:606] failed to allocate 127.99TiB from device: HIP_ERROR_OutOfMemory
the last run ended with: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB
DataLoader worker (pid(s) 123) exited: Cannot allocate memory
"""
POSSIBLE = """
CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`
RuntimeError: Unable to find a valid cuDNN algorithm to run convolution
RuntimeError: GET was unable to find an engine to execute this computation
RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at "../c10/cuda/CUDACachingAllocator.cpp":830
clEnqueueNDRangeKernel failed: CL_OUT_OF_RESOURCES
"""
MENTIONED = """
  --on-oom {raise,skip}  what to do on a torch.OutOfMemoryError
java.lang.OutOfMemoryError: Java heap space
tip: if you see 'CUDA out of memory. Tried to allocate', lower --batch-size
    except torch.cuda.OutOfMemoryError:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate")
# CUDA out of memory. Tried to allocate: then the batch is halved
reduce the batch size to avoid CUDA out of memory. It helps
loading docs/CUDA_ERROR_OUT_OF_MEMORY.html
oom_policy: CUDA_ERROR_OUT_OF_MEMORY
cudaErrorMemoryAllocation = 2,
no CUDA out of memory.
Namespace(epochs=3, on_out_of_memory='CUDA out of memory.')
W bfc_allocator.cc:310] Allocator (GPU_0_bfc) ran out of memory trying to allocate 3GiB. The caller \
indicates that this is not a failure, but this may mean that there could be performance gains if there were more.
FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory
"""
NOTHING = """
handling OutOfMemoryErrors gracefully
out of memory budget: 0
on_cuda_out_of_memory: skip
num_ooms: 0
Downloading train-out_of_memory.csv
RuntimeError: CUDA error: an illegal memory access was encountered
If reserved memory is >> allocated memory try setting max_split_size_mb
triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 135168, Hardware limit: 101376.
step 12 loss 0.3 GPU memory: 1234 MiB allocated
"""


def test_how_sure_an_out_of_memory_is() -> None:
    """A help text, a tip, a source line or Java's heap used to be proof; most frameworks' own messages were nothing.

    Of a read without words of memory only the last two lines were looked at, also below half a message.
    """
    for expected, lines in {
        "raised": RAISED, "reported": REPORTED, "possible": POSSIBLE, "mentioned": MENTIONED, None: NOTHING
    }.items():  # fmt: skip
        for line in lines.strip("\n").splitlines():
            judged = judge(line)
            assert (None if judged is None else judged.certainty) == expected, line

    below_its_place = (
        b'Traceback (most recent call last):\n  File "t.py", line 3, in f\n    CUDA error: out of memory\n'
    )
    assert certainties(below_its_place) == ["mentioned"]
    before, after = b"step 1\nError out of memory\n", b"at\nline 380 in file /csrc/pythonInterface.c\nstep 2\n"
    assert certainties(before, after) == certainties(before + after) == ["raised"]


@settings(deadline=None, max_examples=60)
@given(data=st.data(), words=st.sampled_from([words for words in WORDS if words.at_most == "raised"]))
def test_a_message_is_found_however_a_console_breaks_and_colours_it(data: st.DataObject, words: Words) -> None:
    """Rich breaks lines between words and frames them; colours stand within a message; reads end anywhere."""
    parts = words.example.split(" ")
    breaks = data.draw(st.sets(st.integers(1, max(1, len(parts) - 1)), max_size=2)) if len(parts) > 1 else set()
    framed = data.draw(st.booleans())
    edges = [0, *sorted(breaks), len(parts)]
    lines = [" ".join(parts[start:end]) for start, end in pairwise(edges)]
    lines = [f"\u2502 {line:<60} \u2502" if framed else line for line in lines]
    if data.draw(st.booleans()):
        lines = [f"\x1b[1;91m{line[:5]}\x1b[0m{line[5:]}" for line in lines]
    output = ("\n".join(["step 1", *lines, "step 2"]) + "\n").encode()
    cut = data.draw(st.integers(0, len(output)))

    found = certainties(output[:cut], output[cut:])

    assert "raised" in found or "reported" in found, output
