"""The virtual GPU: what processes claim together, and what the device reports of it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colocate.device.base import Memory, Vitals
from colocate.device.virtual import VirtualDevice
from colocate.errors import DeviceError
from colocate.probe.virtual_gpu.state import CONTEXT_BYTES, GpuFull, VirtualGpu

MIB = 1024**2
REPOSITORY = Path(__file__).parents[1]

HOLDER = """
import sys
from colocate.probe.virtual_gpu.state import GpuFull, VirtualGpu
gpu = VirtualGpu.open(sys.argv[1])
for line in sys.stdin:
    try:
        gpu.claim(int(line))
        print("held", flush=True)
    except GpuFull as full:
        print("full", full.requested_bytes, full.free_bytes, flush=True)
"""


@pytest.fixture
def gpu(tmp_path):
    return VirtualGpu.create(
        tmp_path / "GPU.json", name="Virtual 8 GB", total_bytes=1000 * MIB, baseline_bytes=100 * MIB
    )


class GpuProcess:
    """Another process that claims what it is told."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.pid = process.pid

    def claim(self, num_bytes: int) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(num_bytes, file=self.process.stdin, flush=True)
        return self.process.stdout.readline().strip()


@contextmanager
def gpu_process(gpu: VirtualGpu) -> Iterator[GpuProcess]:
    command = [sys.executable, "-c", HOLDER, str(gpu.path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield GpuProcess(process)
        finally:
            process.kill()


def test_a_claim_replaces_the_one_before_and_less_may_always_be_claimed(gpu):
    assert (gpu.used_bytes(), gpu.free_bytes, gpu.processes()) == (100 * MIB, 900 * MIB, [])
    assert gpu.context_bytes == CONTEXT_BYTES

    gpu.claim(900 * MIB)
    gpu.claim(899 * MIB)  # of a full GPU
    gpu.claim(200 * MIB)

    assert gpu.processes() == [(os.getpid(), 200 * MIB)]
    assert gpu.used_bytes() == 300 * MIB
    assert gpu.process_max_bytes(os.getpid()) == 900 * MIB
    assert gpu.max_used_bytes() == 1000 * MIB


def test_two_processes_share_one_gpu(gpu):
    with gpu_process(gpu) as other:
        assert other.claim(600 * MIB) == "held"
        gpu.claim(300 * MIB)

        assert other.claim(601 * MIB) == f"full {MIB} 0"
        assert gpu.used_bytes() == 1000 * MIB
        with pytest.raises(GpuFull, match="found 0 free"):
            gpu.claim(301 * MIB)
        assert gpu.used_bytes() == 1000 * MIB, "a refused claim changes nothing"
        other.claim(0)
        assert (gpu.used_bytes(), gpu.max_used_bytes()) == (400 * MIB, 1000 * MIB)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_memory_of_a_dead_process_is_free(gpu, end):
    with gpu_process(gpu) as other:
        other.claim(800 * MIB)
        other.process.send_signal(end)
        # Not reaped yet: a zombie, whose entry in /proc is still there, holds nothing either.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)

        assert gpu.used_bytes() == 100 * MIB
        assert gpu.processes() == []
        gpu.claim(900 * MIB)
    assert gpu.process_max_bytes(other.pid) == 800 * MIB, "its maximum is remembered"


def test_a_reused_process_id_does_not_inherit_memory(gpu):
    gpu.claim(500 * MIB)
    state = json.loads(gpu.path.read_text())
    state["holdings"][0][1] = "1"
    gpu.path.write_text(json.dumps(state))

    assert gpu.used_bytes() == 100 * MIB


def test_concurrent_claims_lose_nothing(gpu):
    with gpu_process(gpu) as one, gpu_process(gpu) as two:
        for number in range(50):
            for each in (one, two):
                print(number * MIB, file=each.process.stdin, flush=True)
        for each in (one, two):
            answers = [each.process.stdout.readline().strip() for _ in range(50)]
            assert answers == ["held"] * 50

        assert sorted(gpu.processes()) == sorted([(one.pid, 49 * MIB), (two.pid, 49 * MIB)])


def test_the_device_reports_a_prediction(gpu):
    device = VirtualDevice(gpu.path)
    gpu.claim(250 * MIB)

    assert device.info.basis == "predicted"
    assert device.info.kind == "virtual"
    assert device.info.uuid == gpu.uuid
    assert device.info.memory_source == "virtual GPU"
    assert device.memory() == Memory(350 * MIB, 1000 * MIB)
    assert device.vitals() == Vitals()
    assert [(one.pid, one.used_bytes) for one in device.processes()] == [(os.getpid(), 250 * MIB)]
    assert device.process_peak_bytes(os.getpid()) == 250 * MIB
    assert device.process_peak_bytes(1) is None
    device.close()


def test_a_missing_state_file_is_a_device_error(tmp_path, gpu):
    with pytest.raises(DeviceError, match="expected its state file"):
        VirtualDevice(tmp_path / "missing.json")
    device = VirtualDevice(gpu.path)
    gpu.path.write_text("[]")
    with pytest.raises(ValueError, match="expected the state of a virtual GPU"):
        VirtualGpu.open(gpu.path)
    gpu.path.unlink()
    with pytest.raises(DeviceError, match="expected its state file"):
        device.memory()


def test_a_copy_has_the_figures_but_nobody_on_it_and_gives_four_times_as_much(tmp_path):
    """A GPU that refused nothing let a search for the largest batch go on until a size overflowed."""
    gpu = VirtualGpu.create(tmp_path / "gpu", name="small", total_bytes=1000 * MIB, baseline_bytes=100 * MIB)
    gpu.claim(500 * MIB)

    copy = gpu.copy(tmp_path / "copy", refuses=False)

    assert (copy.name, copy.total_bytes, copy.used_bytes()) == ("small", 1000 * MIB, 100 * MIB)
    copy.claim(3900 * MIB)
    assert copy.used_bytes() == 4000 * MIB
    with pytest.raises(GpuFull):
        copy.claim(3901 * MIB)
