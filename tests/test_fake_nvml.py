"""The simulated NVML library and the stand-in training are what the other tests take them for."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pynvml
import pytest
from fake_nvml import GPU_IS_LOST, MIB, FakeNvml, GpuFull, State
from fake_nvml.build import missing_symbols, real_symbols
from waiting import wait_until

STAND_IN = Path(__file__).parent / "programs" / "stand_in.py"


@pytest.fixture
def gpu(fake_nvml):
    """The handle of the one GPU."""
    pynvml.nvmlInit()
    yield pynvml.nvmlDeviceGetHandleByIndex(0)
    pynvml.nvmlShutdown()


@pytest.fixture
def start():
    """Starts stand-ins in a process group of their own, and ends what is left of them."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, str(STAND_IN), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def used_mib(gpu):
    return pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2).used / MIB


def test_the_library_has_every_symbol_agrees_on_its_state_and_says_that_it_is_simulated(fake_nvml_library, gpu):
    library = ctypes.CDLL(str(fake_nvml_library))

    assert library.fake_nvml_state_size() == ctypes.sizeof(State)
    assert len(real_symbols()) >= 31
    assert all(hasattr(library, name) for name in [*missing_symbols(), *real_symbols()])
    assert "simulated" in pynvml.nvmlSystemGetDriverVersion()
    assert "simulated" in pynvml.nvmlSystemGetNVMLVersion()
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetFanSpeed(gpu)


def test_the_two_memory_structs_differ_by_what_the_driver_keeps_and_a_full_gpu_refuses(fake_nvml, gpu):
    fake_nvml.allocate(1000 * MIB)
    first, second = pynvml.nvmlDeviceGetMemoryInfo(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)
    assert first.used == 1200 * MIB
    assert (second.used, second.reserved) == (1000 * MIB, 200 * MIB)
    assert first.free == second.free == 8192 * MIB - 1200 * MIB

    fake_nvml.foreign(5000 * MIB)
    with pytest.raises(GpuFull) as caught:
        fake_nvml.allocate(4000 * MIB)
    assert caught.value.free_bytes == 2992 * MIB
    assert used_mib(gpu) == 6000


def test_processes_share_the_gpu_and_their_memory_goes_with_them(fake_nvml, gpu, start):
    """Four that want 3000 MiB each at once: two get it, and what a killed one held is free before anybody waits."""
    processes = [start("--hold", 3000, "--never-ready") for _ in range(4)]
    wait_until(lambda: [process.poll() for process in processes].count(1) == 2 and used_mib(gpu) == 6000)
    holding = {process.pid for process in processes if process.poll() is None}

    assert {row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)} == holding
    for pid in holding:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: used_mib(gpu) == 0)
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    fake_nvml.allocate(100 * MIB)
    next(one for one in fake_nvml.state.processes if one.pid == os.getpid()).start_ticks += 1
    assert used_mib(gpu) == 0, "a process of the same number that began at another time holds nothing"


def test_leaked_memory_stays_and_belongs_to_nobody_and_accounting_knows_the_peak(fake_nvml, gpu, start):
    fake_nvml.state.gpus[0].accounting = 1
    process = start("--hold", 300, "--peak", 900, "--leak")
    process.wait()
    stats = pynvml.nvmlDeviceGetAccountingStats(gpu, process.pid)

    assert used_mib(gpu) == 300
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    assert (stats.maxMemoryUsage, stats.isRunning) == (900 * MIB, 0)


def test_a_fault_comes_after_so_many_good_calls_and_so_many_times(fake_nvml, gpu):
    fake_nvml.fail("nvmlDeviceGetPowerUsage", GPU_IS_LOST, after=2, times=1)
    answers = []
    for _ in range(5):
        try:
            answers.append(pynvml.nvmlDeviceGetPowerUsage(gpu))
        except pynvml.NVMLError_GpuIsLost:
            answers.append("lost")

    assert answers == [60_000, 60_000, "lost", 60_000, 60_000]
    assert fake_nvml.calls("nvmlDeviceGetPowerUsage") == 5


def test_a_fault_can_hit_one_gpu_only_and_a_family_of_functions(fake_nvml, gpu):
    fake_nvml.add_gpu()
    fake_nvml.fail("nvmlDeviceGet*", GPU_IS_LOST, gpu=1)

    assert pynvml.nvmlDeviceGetName(gpu)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByIndex(1)

    fake_nvml.heal()
    assert pynvml.nvmlDeviceGetHandleByIndex(1)


def test_a_handle_of_an_earlier_machine_is_invalid(fake_nvml, gpu, tmp_path, monkeypatch):
    with FakeNvml.create(tmp_path / "other.state", fake_nvml.library) as other:
        other.add_gpu()
        monkeypatch.setenv("FAKE_NVML_STATE", str(other.path))
        pynvml.nvmlInit()

        with pytest.raises(pynvml.NVMLError_InvalidArgument):
            pynvml.nvmlDeviceGetName(gpu)
        pynvml.nvmlShutdown()


# --- the stand-in training


def test_a_stand_in_tells_an_epoch_and_an_out_of_memory_as_a_training_does(fake_nvml, start, tmp_path, monkeypatch):
    (tmp_path / "probe").mkdir()
    monkeypatch.setenv("COLOCATE_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setenv("COLOCATE_PROBE", str(tmp_path / "probe"))
    start("--steps", 3, "--full-steps", 30, "--step-s", 0.001, "--probe", "--hold", 200, "--context", 50).wait()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "probe").glob("*.json"))

    assert list(dict.fromkeys(event["event"] for event in events)) == ["ready", "phase", "step", "epoch_end", "end"]
    assert [event["phase"] for event in events if event["event"] == "phase"] == ["train", "evaluate", "save"]
    epoch = next(event for event in events if event["event"] == "epoch_end")
    assert (epoch["steps"], epoch["steps_full"], epoch["cut"], events[-1]["exit"]) == (3, 30, True, "ok")
    assert (record["optimizer_steps"], record["max_reserved_bytes"]) == (3, 150 * MIB)

    process = start("--hold", 9000)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 8.79 GiB. GPU 0" in errors


def test_a_stand_in_can_leave_a_child_behind_or_its_session(fake_nvml, start):
    process = start("--hold", 100, "--fork", "--fork-hold", 40, "--step-s", 0.01)
    assert process.wait() == 0
    assert fake_nvml.used_bytes() == 40 * MIB
    os.killpg(process.pid, signal.SIGKILL)
    wait_until(lambda: fake_nvml.used_bytes() == 0)

    daemon = start("--daemonise", "--hold", 100, "--step-s", 0.05)
    assert daemon.wait() == 0
    wait_until(lambda: fake_nvml.used_bytes() == 100 * MIB)
    wait_until(lambda: fake_nvml.used_bytes() == 0)
