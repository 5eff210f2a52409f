"""What is said beside a measured verdict, and who ended a foreground."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import background, evidence, foreground

from colocate.device.base import DeviceProcess
from colocate.harness.gpu_processes import GpuProcesses
from colocate.process.exit_status import Exit
from colocate.process.procfs import ProcessId
from colocate.units import MIB
from colocate.verdict.ended_by import killed_from_outside
from colocate.verdict.evidence import Allocator, GpuProcess, Member, ProcessRun
from colocate.verdict.rules import Outcome, judge


def ended(exit_: Exit, *lines: str, argv: tuple[str, ...] = ("python", "train.py")) -> Member:
    run = ProcessRun("training.log", 8.0, exit_, last_lines=lines)
    return foreground(process_runs=(run,), epochs=(), argv=argv)


OUTSIDE = [
    (Exit(None, "SIGKILL", 15.0, host_oom_kills=0), (), "neither this harness nor the kernel's"),
    (Exit(None, "SIGKILL", 15.0), (), "cannot be read here"),
    (Exit(None, "SIGTERM", 15.0, host_oom_kills=0), (), "SIGTERM"),
    (Exit(143, None, 15.0, host_oom_kills=0), (), "SIGTERM"),
    (
        Exit(1, None, 15.0, host_oom_kills=0),
        ("slurmstepd: error: *** JOB 77 ON node1 CANCELLED AT 2026-11-30T12:00:00 DUE TO TIME LIMIT ***",),
        "its scheduler",
    ),
    (Exit(1, None, 15.0), ("RuntimeError: DataLoader worker (pid 7) is killed by signal: Terminated.",), "worker"),
    (Exit(124, None, 15.0), (), "timeout"),
    (Exit(None, "SIGXFSZ", 15.0, host_oom_kills=0), (), "SIGXFSZ"),
    (Exit(1, None, 15.0), ("RuntimeError: CUDA error: uncorrectable ECC error encountered",), "a fault of the GPU"),
    (Exit(1, None, 15.0), ("OSError: [Errno 28] No space left on device: 'model.pt'",), "a full disk"),
]


@pytest.mark.parametrize(("exit_", "lines", "words"), OUTSIDE)
def test_an_end_from_outside_is_no_verdict(exit_: Exit, lines: tuple[str, ...], words: str) -> None:
    argv = ("timeout", "60", "python", "train.py") if exit_.code == 124 else ("python", "train.py")
    verdict = judge(evidence(foreground=ended(exit_, *lines, argv=argv)))

    assert verdict.codes == ("killed_from_outside",)
    assert words in str(verdict)


@pytest.mark.parametrize(
    ("exit_", "lines", "code"),
    [
        (Exit(None, "SIGKILL", 15.0, host_oom_kills=1), (), "foreground_host_out_of_memory"),
        (
            Exit(None, "SIGKILL", 15.0, host_oom_kills=0),
            ("slurmstepd: error: Detected 1 oom_kill event in StepId=77.0.",),
            "foreground_host_out_of_memory",
        ),
        (Exit(None, "SIGSEGV", 15.0, host_oom_kills=0), (), "foreground_failed"),
        (Exit(1, None, 15.0, host_oom_kills=0), ("ValueError: bad data",), "foreground_failed"),
        (Exit(124, None, 15.0), (), "foreground_failed"),
    ],
)
def test_an_end_of_its_own_is_infeasible(exit_: Exit, lines: tuple[str, ...], code: str) -> None:
    verdict = judge(evidence(foreground=ended(exit_, *lines)))

    assert verdict.outcome is Outcome.INFEASIBLE
    assert code in verdict.codes
    assert killed_from_outside(replace(ended(exit_), process_runs=())) is None


def warnings(**changes: object) -> dict[str, str]:
    return {str(warning.code): warning.text for warning in judge(evidence(**changes)).warnings}


def on_gpu(pid: int, role: str, size: int, **changes: object) -> GpuProcess:
    return GpuProcess(pid, role, f"pid {pid}", 9.0, 20.0, size * MIB, **changes)  # type: ignore[arg-type]


def test_a_framework_that_takes_memory_in_advance_is_named_with_its_variable_and_the_other_order() -> None:
    ahead = on_gpu(100, "background", 3000, framework="JAX")
    said = warnings(gpu_processes=(ahead,))["start_order"]
    assert "what it holds is not what it needs" in said
    assert "XLA_PYTHON_CLIENT_PREALLOCATE=false" in said

    ours = foreground(held_bytes=2000 * MIB)
    for share, fits in ((None, "and want 6144 MiB: too little"), (0.3, "and want 2458 MiB: enough")):
        ahead = on_gpu(100, "background", 3000, framework="JAX", share=share)
        said = warnings(gpu_processes=(ahead,), foreground=ours)["start_order"]
        assert f"would find about 5962 MiB beside the foreground, {fits}" in said

    ahead = on_gpu(200, "foreground", 1400, framework="TensorFlow")
    said = warnings(gpu_processes=(ahead,), background=background(held_bytes=1500 * MIB))["start_order"]
    assert "would leave about 0 MiB to the background, which held 1500 MiB: too little" in said
    assert "TF_FORCE_GPU_ALLOW_GROWTH=true" in said


def test_a_framework_is_known_by_the_libraries_of_its_processes(tmp_path: Path) -> None:
    library = tmp_path / "jaxlib" / "libjax_common.so"
    library.parent.mkdir()
    library.write_bytes(bytes(4096))
    program = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'r+b') as file: mapped = mmap.mmap(file.fileno(), 4096)\n"
        "print('here', flush=True); input()"
    )
    found = []
    variables = [("PREALLOCATE", "true"), ("PREALLOCATE", "false"), ("ALLOCATOR", "platform"), ("MEM_FRACTION", ".3")]
    for name, value in variables:
        env = {**os.environ, f"XLA_PYTHON_CLIENT_{name}": value}
        with subprocess.Popen(
            [sys.executable, "-c", program, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            seen = GpuProcesses("run", "group01")
            seen.take([(1.0, (DeviceProcess(process.pid, 100),))], {})
            found += [(one.framework, one.share) for one in seen.seen]
            process.kill()

    assert found == [("JAX", None), (None, None), (None, None), ("JAX", 0.3)]


def test_what_costs_memory_without_need_is_named() -> None:
    """24 data-loader workers that touch CUDA: the peak is their contexts, not tensors."""
    workers = tuple(on_gpu(200 + number, "foreground", 300) for number in range(4))
    said = warnings(gpu_processes=workers)["many_contexts"]
    assert "4 processes of examples_mnist are on the GPU at once, 1200 MiB together" in said
    assert "many_contexts" not in warnings(gpu_processes=workers[:2])

    held = ((9.0, 1400 * MIB), (10.0, 700 * MIB))  # the most before the first step
    assert "map_location='cpu'" in warnings(foreground=foreground(held=held, held_by="allocator"))["peak_at_start"]
    caught = Allocator(1, "cuda", optimizer_steps=3, num_ooms=2, ooms_raised=0)  # by PyTorch itself
    assert "its convolutions may be slower" in warnings(foreground=foreground(allocators=(caught,)))["tight"]


# --- processes that cannot be seen


def seen(monkeypatch: pytest.MonkeyPatch, *lists: tuple[float, tuple[int, ...]], container: bool, ours: int) -> str:
    """Whether somebody is accused of being a foreign process, when the driver lists these numbers."""
    monkeypatch.setattr("colocate.process.procfs.sees_all_processes", lambda: not container)
    monkeypatch.setattr("colocate.harness.gpu_processes.procfs.has_open", lambda *_: False)
    processes = GpuProcesses("run", "group01")
    tree = [ProcessId(5_000_000 + number, 0) for number in range(ours)]
    members = {"foreground": [SimpleNamespace(tree=lambda: tree)]}
    for number in range(len(lists)):
        told = [(at, tuple(DeviceProcess(pid, 100) for pid in pids)) for at, pids in lists[: number + 1]]
        processes.take(told, members)
    return next((one.name for one in processes.seen if one.owner == "foreign"), "")


def test_a_number_that_stays_on_the_list_and_cannot_be_seen_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under hidepid: the process of another user. One that has just ended is on no second list."""
    there, gone = (4_000_001,), ()
    assert "cannot be seen" in seen(monkeypatch, (1.0, there), (2.0, there), container=False, ours=1)
    assert seen(monkeypatch, (1.0, there), (2.0, gone), container=False, ours=1) == ""


def test_in_a_container_more_numbers_than_we_have_processes_are_a_foreign_one(
    monkeypatch: pytest.MonkeyPatch, foreign_process: int
) -> None:
    """The host's numbers: nobody knows whose each is, and one that exists here is so by chance."""
    two, three = (4_000_001, foreign_process), (4_000_001, 4_000_002, foreign_process)
    assert seen(monkeypatch, (1.0, two), (2.0, two), container=True, ours=2) == ""
    assert "one of 3 processes" in seen(monkeypatch, (1.0, three), (2.0, three), container=True, ours=2)
