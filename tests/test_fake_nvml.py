import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fake_nvml as fakes
import pynvml
import pytest
from fake_nvml import GPU_IS_LOST, HIDDEN, LEAKS, MIB, NOT_SUPPORTED, FakeNvml, GpuFull, State
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

    def start(*options, **environment):
        command = [sys.executable, str(STAND_IN), *map(str, options)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=pipe,
            stderr=pipe,
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


def test_c_and_python_agree_on_the_state_file(fake_nvml_library):
    assert ctypes.CDLL(str(fake_nvml_library)).fake_nvml_state_size() == ctypes.sizeof(State)


def test_every_symbol_that_pynvml_knows_is_there(fake_nvml_library):
    library = ctypes.CDLL(str(fake_nvml_library))

    assert len(real_symbols()) >= 31
    assert all(hasattr(library, name) for name in [*missing_symbols(), *real_symbols()])


def test_a_function_that_is_not_simulated_is_not_supported(gpu):
    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetFanSpeed(gpu)


def test_the_versions_say_that_all_this_is_simulated(gpu):
    assert "simulated" in pynvml.nvmlSystemGetDriverVersion()
    assert "simulated" in pynvml.nvmlSystemGetNVMLVersion()


def test_without_a_state_file_the_driver_is_not_loaded(fake_nvml_library, monkeypatch):
    monkeypatch.delenv("FAKE_NVML_STATE", raising=False)

    with pytest.raises(pynvml.NVMLError_DriverNotLoaded):
        pynvml.nvmlInit()


def test_the_two_memory_structs_differ_by_what_the_driver_keeps(fake_nvml, gpu):
    fake_nvml.allocate(1000 * MIB)
    first, second = pynvml.nvmlDeviceGetMemoryInfo(gpu), pynvml.nvmlDeviceGetMemoryInfo(gpu, pynvml.nvmlMemory_v2)

    assert first.used == 1200 * MIB
    assert (second.used, second.reserved) == (1000 * MIB, 200 * MIB)
    assert first.free == second.free == 8192 * MIB - 1200 * MIB


def test_a_full_gpu_refuses_and_keeps_what_was_held(fake_nvml, gpu):
    fake_nvml.foreign(5000 * MIB)
    fake_nvml.allocate(2000 * MIB)

    with pytest.raises(GpuFull) as caught:
        fake_nvml.allocate(3000 * MIB)

    assert caught.value.free_bytes == 2992 * MIB
    assert used_mib(gpu) == 7000


def test_processes_that_allocate_at_once_never_get_more_than_the_gpu_has(fake_nvml, gpu, start):
    processes = [start("--hold", 3000, "--never-ready") for _ in range(4)]
    wait_until(lambda: [process.poll() for process in processes].count(1) == 2 and used_mib(gpu) == 6000)

    assert len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)) == 2


def test_a_child_sees_the_same_gpu_through_the_environment(fake_nvml):
    program = "import pynvml; pynvml.nvmlInit(); print(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(0)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == fake_nvml.uuid()


def test_memory_goes_with_its_process_even_before_the_parent_has_waited(fake_nvml, gpu, start):
    process = start("--hold", 700, "--never-ready")
    wait_until(lambda: used_mib(gpu) == 700)
    assert [row.pid for row in pynvml.nvmlDeviceGetComputeRunningProcesses(gpu)] == [process.pid]

    process.kill()
    wait_until(lambda: used_mib(gpu) == 0)

    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []
    assert fake_nvml.used_bytes() == 0


def test_a_reused_pid_is_another_process(fake_nvml, gpu):
    fake_nvml.allocate(100 * MIB)
    fake_nvml.state.processes[0].start_ticks += 1

    assert used_mib(gpu) == 0


def test_leaked_memory_stays_and_belongs_to_nobody(fake_nvml, gpu, start):
    process = start("--hold", 300, "--leak")
    process.wait()
    assert used_mib(gpu) == 300
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []

    fake_nvml.state.processes[0].flags &= ~LEAKS
    assert used_mib(gpu) == 0


def test_a_hidden_process_holds_memory_off_the_list(fake_nvml, gpu):
    fake_nvml.allocate(100 * MIB, flags=HIDDEN)

    assert used_mib(gpu) == 100
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(gpu) == []


def test_accounting_knows_the_peak_after_the_end(fake_nvml, gpu, start):
    fake_nvml.state.gpus[0].accounting = 1
    process = start("--hold", 100, "--peak", 900)
    process.wait()

    stats = pynvml.nvmlDeviceGetAccountingStats(gpu, process.pid)
    assert (stats.maxMemoryUsage, stats.isRunning) == (900 * MIB, 0)


def test_the_energy_counter_follows_the_power(fake_nvml, gpu):
    fake_nvml.state.gpus[0].energy_since_ns -= 10 * 10**9

    energy_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - 1_000_000
    assert 10 * 60_000 <= energy_mj < 20 * 60_000


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


def test_other_tools_show_the_simulated_gpu(fake_nvml):
    pytest.importorskip("nvitop")
    done = subprocess.run([sys.executable, "-m", "nvitop", "-1"], capture_output=True, text=True, check=True)

    assert "8192MiB" in done.stdout
    assert "simulated" in done.stdout


def test_the_fake_refuses_a_process_with_another_library(fake_nvml_library, tmp_path):
    copy = tmp_path / fake_nvml_library.name
    copy.write_bytes(fake_nvml_library.read_bytes())

    with pytest.raises(RuntimeError, match="expected to be the first"):
        fakes.preload(copy)


# --- the stand-in training


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """Makes stand-ins write their events and their probe's record, and reads them."""
    events, probe = tmp_path / "events.jsonl", tmp_path / "probe"
    probe.mkdir()
    monkeypatch.setenv("COLOCATE_EVENTS", str(events))
    monkeypatch.setenv("COLOCATE_PROBE", str(probe))

    class Told:
        def events(self):
            return [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []

        def names(self):
            return [event["event"] for event in self.events()]

        def probe(self):
            return json.loads(next(probe.glob("*.json")).read_text())

    return Told()


def test_a_stand_in_tells_an_epoch_from_ready_to_end(fake_nvml, start, reported):
    process = start("--steps", 3, "--full-steps", 30, "--step-s", 0.001, "--probe", "--hold", 200, "--context", 50)
    process.wait()

    assert process.returncode == 0
    assert list(dict.fromkeys(reported.names())) == ["ready", "phase", "step", "epoch_end", "end"]
    assert [event["phase"] for event in reported.events() if event["event"] == "phase"] == ["train", "evaluate", "save"]
    epoch = next(event for event in reported.events() if event["event"] == "epoch_end")
    assert (epoch["steps"], epoch["steps_full"], epoch["cut"]) == (3, 30, True)
    assert reported.events()[-1]["exit"] == "ok"
    assert reported.probe()["optimizer_steps"] == 3
    assert reported.probe()["max_reserved_bytes"] == 150 * MIB


def test_a_stand_in_runs_out_of_memory_as_pytorch_does(fake_nvml, start, reported):
    process = start("--hold", 9000, "--probe")
    _, errors = process.communicate()

    assert process.returncode == 1
    assert "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 8.79 GiB. GPU 0" in errors
    assert reported.events()[-1]["exit"] == "out_of_memory"
    assert reported.probe()["num_ooms"] == 1


def test_a_swallowed_out_of_memory_only_shows_in_log_and_probe(fake_nvml, start, reported):
    process = start("--oom-swallowed", "--probe")
    output, _ = process.communicate()

    assert process.returncode == 0
    assert "CUDA out of memory" in output
    assert reported.events()[-1]["exit"] == "ok"
    assert reported.probe()["num_ooms"] == 1


@pytest.mark.parametrize(
    ("options", "code", "last"),
    [
        (["--fail-at", 2], 1, "error"),
        (["--die-at", 2], -signal.SIGSEGV, None),
        (["--exit-code", 3], 3, "error"),
        (["--stub", "--step-s", 0.01], 0, None),
        (["--oom-at", 2], 1, "out_of_memory"),
        (["--cpu"], 0, "ok"),
        (["--silent"], 0, None),
        (["--close-output"], 0, "ok"),
        (["--flood", 100_000, "--binary"], 0, "ok"),
    ],
)
def test_a_stand_in_ends_as_it_is_told(fake_nvml, start, reported, options, code, last):
    process = start("--step-s", 0.005, *options)
    process.communicate()

    ends = [event["exit"] for event in reported.events() if event["event"] == "end"]
    assert (process.returncode, ends) == (code, [last] if last else [])
    assert fake_nvml.used_bytes() == 0


@pytest.mark.parametrize("option", [["--never-ready"], ["--hang-at", 1], ["--repeat", "--ignore-term"]])
def test_a_stand_in_that_does_not_end_holds_its_memory_until_it_is_killed(fake_nvml, start, reported, option):
    process = start("--hold", 100, "--step-s", 0.005, *option)
    wait_until(lambda: fake_nvml.used_bytes() == 100 * MIB)

    if "--ignore-term" in option:
        process.terminate()
        seen = len(reported.events())
        wait_until(lambda: len(reported.events()) > seen + 1)
    process.kill()
    process.wait()
    assert fake_nvml.used_bytes() == 0


def test_a_stand_in_can_leave_a_child_behind(fake_nvml, start):
    process = start("--hold", 100, "--fork", "--fork-hold", 40, "--step-s", 0.05)
    assert process.wait() == 0
    assert fake_nvml.used_bytes() == 40 * MIB

    os.killpg(process.pid, signal.SIGKILL)
    wait_until(lambda: fake_nvml.used_bytes() == 0)


def test_a_stand_in_can_leave_its_session_and_go_on(fake_nvml, start, reported):
    process = start("--daemonise", "--hold", 100)

    assert process.wait() == 0
    wait_until(lambda: "end" in reported.names())
    assert {event["pid"] for event in reported.events()} != {process.pid}
    wait_until(lambda: fake_nvml.used_bytes() == 0)


def test_a_machine_without_supported_readings_says_so(fake_nvml, gpu):
    fake_nvml.fail("nvmlDeviceGetMemoryInfo_v2", NOT_SUPPORTED)

    with pytest.raises(pynvml.NVMLError_NotSupported):
        used_mib(gpu)
