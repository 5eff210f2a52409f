"""A smaller GPU on a larger one, by the real balloon program on the fake CUDA driver and the fake NVML library."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from fake_nvml import MIB, FakeNvml
from groups import group, training
from sessions import ROOT, arguments, colocate, plan, run, stand_in
from waiting import wait_until

from colocate.device.acquire import FoundGpu, opened
from colocate.device.balloon import GRANULE_BYTES
from colocate.device.constrained import ConstrainedDevice
from colocate.device.nvml import NvidiaDevice
from colocate.errors import BalloonError, DeviceLost
from colocate.harness.attempt import observing
from colocate.process.procfs import with_cookie
from colocate.results.layout import RunDirectory
from colocate.units import GIB

COOKIE = f"run-{os.getpid()}/group01/balloon"
EIGHT = 8 * GIB


@pytest.fixture
def small(large_gpu: FakeNvml, tmp_path: Path) -> Iterator[ConstrainedDevice]:
    """8 GB of the large GPU, nothing taken yet."""
    with closing(
        ConstrainedDevice(NvidiaDevice(large_gpu.uuid()), EIGHT, log=tmp_path / "log", cookie=COOKIE)
    ) as small:
        yield small


@pytest.mark.parametrize("context_mib", [0, 517])
def test_the_balloon_leaves_exactly_the_small_gpu_free(
    large_gpu: FakeNvml, small: ConstrainedDevice, context_mib: int
) -> None:
    """Its context is part of it; what others take is seen, and no more than there is; released, nothing is left."""
    gpu = large_gpu.state.gpus[0]
    gpu.baseline_bytes, gpu.context_bytes = 123 * MIB + 4096, context_mib * MIB

    small.prepare()

    memory = small.memory()
    assert (memory.used_bytes, memory.total_bytes) == (123 * MIB + 4096, EIGHT)
    assert 0 <= EIGHT - memory.used_bytes - memory.free_bytes < GRANULE_BYTES
    assert small.info.balloon.held_bytes == large_gpu.used_bytes() - memory.used_bytes
    assert small.info.name == "8 GB of an NVIDIA H100 80GB HBM3 (simulated) (balloon 71.1 GiB)"
    large_gpu.foreign(memory.free_bytes)
    assert small.memory().used_bytes == memory.used_bytes + memory.free_bytes <= EIGHT
    with pytest.raises(Exception, match="expected room"):
        large_gpu.allocate(GRANULE_BYTES)

    small.release()
    assert large_gpu.used_bytes() == memory.used_bytes + memory.free_bytes
    assert with_cookie(COOKIE) == []
    assert small.info.balloon.held_bytes == 0


def test_the_balloon_is_on_the_list_and_marked(large_gpu: FakeNvml, small: ConstrainedDevice) -> None:
    small.prepare()
    large_gpu.foreign(100 * MIB)

    listed = {process.pid: process for process in small.processes()}

    assert listed[small.info.balloon.pid].balloon
    assert not listed[4_000_000].balloon
    assert [process.pid for process in with_cookie(COOKIE)] == [small.info.balloon.pid]


def test_it_is_prepared_again_after_a_change(large_gpu: FakeNvml, small: ConstrainedDevice) -> None:
    small.prepare()
    pid = small.info.balloon.pid
    large_gpu.state.gpus[0].baseline_bytes = 50 * MIB
    small.resize(EIGHT - 1000 * MIB)

    small.prepare()

    assert small.memory().used_bytes == 50 * MIB
    assert small.memory().free_bytes == EIGHT - 1050 * MIB
    assert small.info.balloon.pid == pid


def test_a_balloon_that_is_killed_is_no_reading_and_can_be_made_again(small: ConstrainedDevice) -> None:
    """Without it a large GPU would pass for the small one."""
    small.prepare()
    pid = small.info.balloon.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists())
    with pytest.raises(DeviceLost, match="expected the balloon to hold its memory, found it ended"):
        small.memory()

    small.prepare()
    assert small.memory().free_bytes == EIGHT


@pytest.mark.parametrize(
    ("size", "baseline", "said"),
    [
        (80 * GIB, 0, "expected at least 81920 MiB for a GPU of that size, found a GPU of 81000"),
        (EIGHT, EIGHT, "expected less than 8192 MiB in use"),
        ((81000 - 100) * MIB, 0, r"room for the balloon's own context .* 200 MiB are missing"),
    ],
)
def test_a_gpu_without_room_is_refused(
    large_gpu: FakeNvml, small: ConstrainedDevice, size: int, baseline: int, said: str
) -> None:
    large_gpu.state.gpus[0].baseline_bytes = baseline
    small.resize(size)

    with pytest.raises(BalloonError, match=said):
        small.prepare()


@pytest.mark.parametrize(
    ("function", "code", "said"),
    [
        ("cuInit", 100, "cuInit: expected success, got CUDA_ERROR_NO_DEVICE"),
        ("cuInit", 999, "cuInit: expected success, got CUDA_ERROR_UNKNOWN"),
        ("cuMemAlloc_v2", 2, "bytes free beside the balloon, NVML says .*cuMemAlloc_v2.*CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_what_cuda_says_is_passed_on(
    large_gpu: FakeNvml, small: ConstrainedDevice, function: str, code: int, said: str
) -> None:
    large_gpu.fail(function, code)

    with pytest.raises(BalloonError, match=said):
        small.prepare()


def test_the_right_gpu_of_several_is_taken(fake_cuda: FakeNvml, tmp_path: Path) -> None:
    for _ in range(2):
        fake_cuda.add_gpu(total_bytes=24 * GIB)
    device = NvidiaDevice(fake_cuda.uuid(1))
    with closing(ConstrainedDevice(device, EIGHT, log=tmp_path / "log", cookie=COOKIE)) as small:
        small.prepare()

        assert small.memory().free_bytes == EIGHT
        assert fake_cuda.used_bytes(0) == 0


def test_without_a_cuda_driver_the_library_is_named(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    fake_nvml.state.gpus[0].total_bytes = 16 * GIB
    small = ConstrainedDevice(NvidiaDevice(fake_nvml.uuid()), EIGHT, log=tmp_path / "log", cookie=COOKIE)
    with closing(small), pytest.raises(BalloonError, match=r"libcuda\.so\.1"):
        small.prepare()


# --- groups on it


def options(*more: str) -> tuple[str, ...]:
    return ("--device=nvidia", "--gpu=8GB", *more)


def pair(folder: Path, foreground: int, background: int) -> Path:
    steps = ("--steps=40", "--context=100", "--probe")
    return plan(
        folder / "plan.json",
        [
            {
                "foreground": stand_in(f"--hold={foreground}", *steps),
                "background": stand_in(f"--hold={background}", "--repeat", *steps),
            }
        ],
    )


@pytest.mark.slow
def test_a_group_is_judged_as_on_the_small_gpu(large_gpu: FakeNvml, tmp_path: Path) -> None:
    large_gpu.state.gpus[0].baseline_bytes = 40 * MIB

    session = run(pair(tmp_path, 1500, 2500), tmp_path, *options())

    (verdict,) = session.verdicts.values()
    (experiment,) = (json.loads(path.read_text()) for path in session.run.glob("*/experiment.json"))
    evidence = experiment["evidence"]
    assert session.code == 0, session.output
    assert verdict["peak_bytes"] == 4040 * MIB
    assert verdict["limit_bytes"] == 7500 * MIB
    assert evidence["baseline_bytes"] == 40 * MIB
    assert evidence["device"]["name"] == "8 GB of an NVIDIA H100 80GB HBM3 (simulated) (balloon 71.1 GiB)"
    assert evidence["device"]["total_bytes"] == EIGHT
    assert "balloon" in [gpu_process["owner"] for gpu_process in evidence["gpu_processes"]]
    assert "foreign" not in [gpu_process["owner"] for gpu_process in evidence["gpu_processes"]]
    assert "constrained_device" in {warning["code"] for warning in verdict["warnings"]}
    assert large_gpu.used_bytes() == 40 * MIB
    assert colocate(tmp_path, "verify", session.run).code == 0


@pytest.mark.slow
def test_memory_runs_out_as_on_the_small_gpu(large_gpu: FakeNvml, tmp_path: Path) -> None:
    """The same pair fits on the whole GPU and not on 8 GB of it."""
    session = run(pair(tmp_path, 5000, 4000), tmp_path, *options())

    (verdict,) = session.verdicts.values()
    assert session.code == 1, session.output
    assert "foreground_out_of_memory" in [reason["code"] for reason in verdict["reasons"]]
    assert large_gpu.used_bytes() == 0


def test_a_gpu_of_that_size_needs_no_balloon(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    with opened(FoundGpu("nvidia", fake_nvml.uuid(), EIGHT), tmp_path / "gpu", holder="group01") as device:
        assert isinstance(device, NvidiaDevice)


@pytest.mark.slow
def test_a_balloon_that_ends_in_the_middle_of_a_group_leaves_no_verdict(large_gpu: FakeNvml, tmp_path: Path) -> None:
    steps = ("--probe", "--steps=40", "--step-s=0.05")
    both = group(training("ours", "--hold=500", *steps), training("load", "--hold=500", "--repeat", *steps))
    directory = RunDirectory(tmp_path / "run_1").group("ours", 1, parallel=True).create()

    with (
        opened(FoundGpu("nvidia", large_gpu.uuid(), EIGHT), directory.virtual_gpu, holder="g", run="run_1") as device,
        observing(both, device, directory, plan="test") as observation,
    ):

        def kill_it_in_the_middle() -> bool:
            balloon = device.info.balloon
            if balloon is not None and balloon.pid is not None and len(observation.foreground_progress) > 4:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(balloon.pid, signal.SIGKILL)
            return False

        observation.preflight()
        observation.start_background()
        observation.run_foreground(enough=kill_it_in_the_middle)
        verdict = observation.conclude()

    assert verdict.outcome == "INCONCLUSIVE"
    assert verdict.codes == ("sensor_lost",)
    assert verdict.peak_bytes == 1000 * MIB, "none of the balloon's"


@pytest.mark.slow
def test_the_balloon_dies_with_the_run(large_gpu: FakeNvml, tmp_path: Path) -> None:
    words = arguments(pair(tmp_path, 1500, 2500), tmp_path, *options())
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as session:
        wait_until(lambda: large_gpu.used_bytes() > 70 * GIB + 2500 * MIB)
        session.kill()

    wait_until(lambda: large_gpu.used_bytes() == 0, 6)
