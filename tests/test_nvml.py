"""What a GPU promises, of the scripted GPU and of the NVML code on the simulated one; a real GPU if there is one."""

import os
import subprocess
import sys
import time
from pathlib import Path

import fake_nvml as fakes
import pynvml
import pytest
from doubles import FakeDevice
from fake_nvml import MIB, NOT_AVAILABLE, NOT_SUPPORTED, UNSUPPORTED

from colocate.device.base import DeviceProcess
from colocate.device.nvml import NvidiaDevice, is_simulated, survey_devices
from colocate.device.select import choose_device, visible_devices
from colocate.errors import DeviceError, DeviceLost, ImplausibleReading

MEMORY = "nvmlDeviceGetMemoryInfo_v2"


@pytest.fixture
def device(fake_nvml):
    with NvidiaDevice(fake_nvml.uuid()) as device:
        yield device


# --- the contract


@pytest.fixture(params=["scripted", "nvml"])
def any_device(request):
    """Two kinds of a GPU of 8192 MiB on which pid 4000000 holds 500 MiB."""
    if request.param == "scripted":
        gpu_process = DeviceProcess(4_000_000, 500 * MIB)
        yield FakeDevice([500 * MIB], processes=[gpu_process], peaks={4_000_000: 500 * MIB})
        return
    fake = request.getfixturevalue("fake_nvml")
    fake.state.gpus[0].accounting = 1
    fake.foreign(500 * MIB)
    with NvidiaDevice(fake.uuid()) as device:
        yield device


def test_a_gpu_keeps_its_contract(any_device):
    keeps_contract(any_device)
    memory = any_device.memory()

    assert (memory.used_bytes, memory.total_bytes) == (500 * MIB, 8192 * MIB)
    assert any_device.processes() == (DeviceProcess(4_000_000, 500 * MIB),)
    assert any_device.process_peak_bytes(4_000_000) == 500 * MIB
    assert any_device.process_peak_bytes(1) is None
    any_device.close()
    any_device.close()
    for reading in (any_device.memory, any_device.vitals, any_device.processes):
        with pytest.raises(DeviceError):
            reading()


def keeps_contract(device):
    """What holds for every GPU, also for a real one that somebody uses."""
    memory, vitals, info = device.memory(), device.vitals(), device.info
    assert info.uuid
    assert info.name
    assert info.memory_source
    assert info.basis == "measured"
    assert 0 <= memory.used_bytes <= memory.total_bytes == info.total_bytes
    assert memory.reserved_bytes is None or 0 <= memory.reserved_bytes < memory.total_bytes
    assert vitals.utilization_percent is None or 0 <= vitals.utilization_percent <= 100
    assert vitals.power_mw is None or vitals.power_mw >= 0
    later = device.vitals()
    assert vitals.energy_mj is None or later.energy_mj >= vitals.energy_mj
    for process in device.processes() or ():
        assert process.pid > 0
        assert process.used_bytes is None or 0 < process.used_bytes <= memory.total_bytes


REAL_GPU = """
import sys
sys.path[:0] = sys.argv[1:]
from colocate.device.nvml import NvidiaDevice, is_simulated, survey_devices
from test_nvml import keeps_contract
for info in survey_devices().devices:
    assert not is_simulated(info), info
    with NvidiaDevice(info.uuid) as device:
        keeps_contract(device)
        print(device.info, device.memory(), device.vitals())
"""


@pytest.mark.gpu
def test_a_real_gpu_keeps_the_contract():
    """In a process of its own: this one may have the fake library loaded."""
    tests = Path(__file__).parent
    look = "from colocate.device.nvml import survey_devices; raise SystemExit(0 if survey_devices().devices else 1)"
    if subprocess.run([sys.executable, "-c", look], capture_output=True, check=False, cwd=tests.parent).returncode:
        pytest.skip("no NVIDIA GPU with a working driver")
    done = subprocess.run(
        [sys.executable, "-c", REAL_GPU, str(tests), str(tests.parent)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


# --- memory


def test_memory_excludes_what_the_driver_keeps(fake_nvml, device):
    fake_nvml.allocate(500 * MIB)
    memory = device.memory()

    assert (memory.used_bytes, memory.reserved_bytes, memory.free_bytes) == (500 * MIB, 200 * MIB, 7492 * MIB)
    assert device.info.memory_source == "nvml v2"


@pytest.mark.parametrize("code", [NOT_SUPPORTED, fakes.FUNCTION_NOT_FOUND, fakes.UNKNOWN])
def test_a_driver_without_the_second_struct_is_read_by_the_first(fake_nvml, code):
    """Early drivers under WSL answer the second struct with an unknown error."""
    fake_nvml.allocate(500 * MIB)
    fake_nvml.fail(MEMORY, code)

    with NvidiaDevice(fake_nvml.uuid()) as device:
        memory = device.memory()
        assert (memory.used_bytes, memory.reserved_bytes, memory.free_bytes) == (700 * MIB, None, 7492 * MIB)
        assert device.info.memory_source == "nvml v1, used includes what the driver keeps"


@pytest.mark.parametrize("name", ["NVIDIA GB10", "NVIDIA Jetson AGX Thor", "Orin (nvgpu)", "as large as the machine"])
def test_unified_memory_is_refused_in_words(fake_nvml, name):
    """GB10, DGX Spark, Jetson: both structs say Not Supported, or the total is all RAM, or too little of it."""
    gpu = fake_nvml.state.gpus[0]
    if name == "as large as the machine":
        gpu.total_bytes = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    else:
        gpu.name = name.encode()
    with pytest.raises(DeviceError, match=r"found unified memory, which the processors use too.*--device virtual"):
        NvidiaDevice(fake_nvml.uuid())

    fake_nvml.fail("nvmlDeviceGetMemoryInfo*", NOT_SUPPORTED)
    (failure,) = survey_devices().failures
    assert "unified memory" in str(failure)


def test_a_number_of_memory_that_cannot_be_true_is_an_error(fake_nvml, device):
    """More in use than there is, or a total that changes."""
    for nonsense in (17 * 10**12, 2**63, 8192 * MIB + 1):
        fake_nvml.heal()
        fake_nvml.answer(MEMORY, nonsense)
        with pytest.raises(ImplausibleReading, match=f"{fake_nvml.uuid()}: expected memory in use between 0 and"):
            device.memory()
    fake_nvml.heal()
    fake_nvml.state.gpus[0].total_bytes = 17 * 10**12
    with pytest.raises(ImplausibleReading):
        device.memory()


# --- failures


@pytest.mark.parametrize(
    ("code", "error", "cure"),
    [
        (fakes.GPU_IS_LOST, DeviceLost, "Xid 79"),
        (fakes.RESET_REQUIRED, DeviceLost, ""),
        (fakes.UNKNOWN, DeviceError, "daemon-reload"),
        (fakes.NO_PERMISSION, DeviceError, "/dev/nvidia"),
        (fakes.LIBRARY_MISMATCH, DeviceError, "reboot"),
    ],
)
def test_an_error_names_the_gpu_what_nvml_said_and_the_cure(fake_nvml, device, code, error, cure):
    fake_nvml.fail("nvmlDeviceGet*", code)

    with pytest.raises(error, match=rf"^{fake_nvml.uuid()}: expected memory, NVML said '.+' \({code}\); .*{cure}"):
        device.memory()
    for reading in (device.vitals, device.processes) if error is DeviceLost else ():
        with pytest.raises(DeviceLost, match=fake_nvml.uuid()):
            reading()


def test_what_cannot_be_opened_says_why_and_lets_go_of_nvml(fake_nvml):
    with pytest.raises(DeviceError, match="GPU-unknown: expected a GPU with this UUID, found none; nvidia-smi -L"):
        NvidiaDevice("GPU-unknown")
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        pynvml.nvmlDeviceGetCount()
    fake_nvml.fail("nvmlDeviceGetMemoryInfo*", NOT_SUPPORTED)
    with pytest.raises(DeviceError, match="expected a GPU that tells its memory, NVML said 'Not Supported'"):
        NvidiaDevice(fake_nvml.uuid())

    for code, cure in {
        fakes.DRIVER_NOT_LOADED: "modprobe", fakes.LIBRARY_MISMATCH: "reboot", fakes.UNKNOWN: "restart the container"
    }.items():  # fmt: skip
        fake_nvml.heal()
        fake_nvml.fail("nvmlInitWithFlags", code)
        said = rf"^NVML: expected a working NVIDIA driver, NVML said .* \({code}\); .*{cure}"
        with pytest.raises(DeviceError, match=said):
            survey_devices()


def test_a_gpu_in_mig_mode_is_no_gpu(fake_nvml):
    fake_nvml.state.gpus[0].mig = 1

    with pytest.raises(DeviceError, match=r"expected a whole GPU, found MIG mode on; name one of its instances"):
        NvidiaDevice(fake_nvml.uuid())
    assert [type(failure) for failure in survey_devices().failures] == [DeviceError]


# --- MIG


@pytest.fixture
def divided(fake_nvml):
    """The GPU in MIG mode, with two instances."""
    fake_nvml.add_instance("1g.2gb", total_bytes=2048 * MIB)
    fake_nvml.add_instance("2g.4gb", total_bytes=4096 * MIB)
    return fake_nvml


def test_the_instances_of_a_gpu_are_listed_in_its_place(divided):
    whole = divided.add_gpu()
    devices = survey_devices().devices

    assert [(device.uuid, device.index) for device in devices] == [
        (divided.uuid(1), None),
        (divided.uuid(2), None),
        (whole.uuid.decode(), 1),
    ]
    assert [device.total_bytes // MIB for device in devices] == [2048, 4096, 8192]
    assert [device.instance_of for device in devices] == [divided.uuid(0), divided.uuid(0), None]


def test_an_instance_has_memory_and_processes_of_its_own(divided, monkeypatch):
    divided.foreign(100 * MIB, gpu=1, pid=4_000_001)
    divided.foreign(300 * MIB, gpu=2, pid=4_000_002)

    with NvidiaDevice(divided.uuid(1)) as instance:
        keeps_contract(instance)
        assert instance.memory().used_bytes == 100 * MIB
        assert instance.processes() == (DeviceProcess(4_000_001, 100 * MIB),)
        assert instance.processes_elsewhere() == ((divided.uuid(2), 4_000_002),)
        # Some drivers list all processes of the GPU for each of its instances.
        whole, listed = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetComputeRunningProcesses_v3
        monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses_v3", lambda handle: listed(whole(0)))
        assert [process.pid for process in instance.processes()] == [4_000_001]


def test_an_instance_has_the_heat_of_its_gpu_and_neither_its_power_nor_its_energy(divided):
    gpu = divided.state.gpus[0]
    gpu.temperature_c, gpu.throttle_reasons, gpu.accounting = 71, 0x20, 1

    with NvidiaDevice(divided.uuid(1)) as instance:
        vitals = instance.vitals()
        assert (vitals.temperature_c, vitals.throttle_reasons) == (71, 0x20)
        assert (vitals.power_mw, vitals.energy_mj, vitals.utilization_percent) == (None, None, None)
        assert instance.info.accounting is None
        assert instance.process_peak_bytes(1) is None


def test_compute_instances_that_share_their_memory_are_no_gpus(fake_nvml):
    for _ in range(2):
        fake_nvml.add_instance("1c.2g.4gb", total_bytes=4096 * MIB, instance=3)
    survey = survey_devices()

    assert survey.devices == ()
    assert "found 2 compute instances in GPU instance 3" in str(survey.failures[0])


# --- vitals


def test_vitals_are_what_the_gpu_tells(fake_nvml, device):
    gpu = fake_nvml.state.gpus[0]
    gpu.power_mw, gpu.temperature_c, gpu.memory_temperature_c, gpu.throttle_reasons = 150_000, 61, 80, 4
    vitals = device.vitals()

    assert (vitals.power_mw, vitals.temperature_c, vitals.memory_temperature_c) == (150_000, 61, 80)
    assert (vitals.utilization_percent, vitals.memory_utilization_percent) == (30, 10)
    assert vitals.throttle_reasons == 4
    assert vitals.energy_mj >= 1_000_000


def test_vitals_that_a_gpu_cannot_tell_or_that_cannot_be_true_are_none(fake_nvml, device):
    gpu = fake_nvml.state.gpus[0]
    gpu.power_mw = gpu.temperature_c = gpu.utilization_percent = UNSUPPORTED
    gpu.energy_supported = 0
    vitals = device.vitals()
    assert [vitals.power_mw, vitals.temperature_c, vitals.utilization_percent] == [None, None, None]
    assert [vitals.memory_temperature_c, vitals.memory_utilization_percent, vitals.energy_mj] == [None, None, None]

    for function, field in {
        "nvmlDeviceGetUtilizationRates": "utilization_percent",
        "nvmlDeviceGetTemperatureV": "temperature_c",
        "nvmlDeviceGetPowerUsage": "power_mw",
        "nvmlDeviceGetFieldValues": "memory_temperature_c",
    }.items():
        fake_nvml.answer(function, 2**31 - 1)
        assert getattr(device.vitals(), field) is None


def test_a_reading_that_fails_does_not_cost_the_others_and_old_names_are_tried(fake_nvml, device, monkeypatch):
    """In some sandboxes and virtual machines single questions end in an unknown error."""
    fake_nvml.fail("nvmlDeviceGetTotalEnergyConsumption", fakes.UNKNOWN)
    fake_nvml.fail("nvmlDeviceGetCurrentClocks*", fakes.UNKNOWN)
    vitals = device.vitals()
    assert (vitals.energy_mj, vitals.throttle_reasons) == (None, None)
    assert (vitals.power_mw, vitals.temperature_c) == (60_000, 45)

    fake_nvml.heal()
    for function in ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"):
        fake_nvml.fail(function, fakes.FUNCTION_NOT_FOUND)
    assert (device.vitals().temperature_c, device.vitals().throttle_reasons) == (45, 0)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")  # an older pynvml
    assert device.vitals().temperature_c == 45


# --- processes


def test_all_processes_are_listed_once_also_those_that_draw(fake_nvml, device):
    fake_nvml.foreign(30 * MIB, pid=4_000_002, flags=fakes.GRAPHICS)
    fake_nvml.foreign(100 * MIB, pid=4_000_001, flags=fakes.BOTH)
    both = (DeviceProcess(4_000_001, 100 * MIB), DeviceProcess(4_000_002, 30 * MIB, draws=True))
    assert device.processes() == both

    for pid in range(4_000_003, 4_000_043):
        fake_nvml.foreign(MIB, pid=pid)
    assert len(device.processes()) == 42
    fake_nvml.fail("nvmlDeviceGetGraphicsRunningProcesses*", fakes.UNKNOWN)
    assert len(device.processes()) == 41


def test_memory_of_a_process_that_the_driver_does_not_tell_is_none(fake_nvml, device):
    """Under WSL there is no number, in containers with newer drivers it is 0."""
    fake_nvml.foreign(100 * MIB)
    for reported in (NOT_AVAILABLE, 0, 17 * 10**12):
        fake_nvml.heal()
        fake_nvml.answer("nvmlDeviceGetComputeRunningProcesses_v3", reported)
        assert device.processes() == (DeviceProcess(4_000_000, None),)


def test_a_driver_without_a_process_list_tells_none_and_not_nobody(fake_nvml, device):
    fake_nvml.fail("nvmlDeviceGetComputeRunningProcesses*", NOT_SUPPORTED)
    assert device.processes() is None

    fake_nvml.heal()
    fake_nvml.fail("nvmlDeviceGetComputeRunningProcesses*", fakes.UNKNOWN)
    with pytest.raises(DeviceError, match="expected processes"):
        device.processes()


# --- which GPUs


def test_every_gpu_is_listed_in_the_drivers_order(fake_machine):
    for total in (8192, 40960):
        fake_machine.add_gpu(total_bytes=total * MIB)
    devices = survey_devices().devices

    assert [device.total_bytes // MIB for device in devices] == [8192, 40960]
    assert [device.index for device in devices] == [0, 1]
    assert (devices[0].cuda_version, devices[0].driver_version) == ("13.0", "580.00 (simulated)")
    assert is_simulated(devices[0])


def test_a_gpu_that_does_not_answer_leaves_the_others_and_none_at_all_is_an_error(fake_machine):
    fake_machine.add_gpu()
    fake_machine.add_gpu()
    fake_machine.fail("nvmlDeviceGetHandleBy*", fakes.GPU_IS_LOST, gpu=0)
    survey = survey_devices()
    assert [device.uuid for device in survey.devices] == [fake_machine.uuid(1)]
    assert isinstance(survey.failures[0], DeviceLost)

    fake_machine.fail("nvmlDeviceGetUUID", fakes.GPU_IS_LOST)
    with pytest.raises(DeviceLost):
        choose_device("nvidia")


def test_gpus_are_selected_as_cuda_does(fake_machine):
    for uuid in ("GPU-aa-1", "GPU-bb-2", "GPU-aa-3"):
        fake_machine.add_gpu(uuid=uuid)
    expected = {None: [0, 1, 2], "": [], "-1": [], "0": [0], "2,0": [2, 0], "1,-1,0": [1], "1,7,0": [1], "1,1": []}
    expected |= {"1gpu, 2": [1, 2], "GPU-bb": [1], "GPU-bb,GPU-aa-1": [1, 0], "GPU-aa": [], "GPU-bb,GPU-bb": []}
    expected |= {"GPU-bb,GPU-no,GPU-aa-1": [1], "GPU-bb,0": [1], "none": []}
    devices = survey_devices().devices

    assert {one: [device.index for device in visible_devices(devices, one)] for one in expected} == expected


def test_indices_of_different_gpus_are_ambiguous_without_an_order(fake_machine):
    """CUDA numbers by speed and NVML by bus, so index 0 may be another GPU for each."""
    fake_machine.add_gpu(name="slow (simulated)")
    fake_machine.add_gpu(name="fast (simulated)")

    with pytest.raises(DeviceError, match="CUDA_DEVICE_ORDER=PCI_BUS_ID"):
        visible_devices(survey_devices().devices, "0")
    assert [device.index for device in visible_devices(survey_devices().devices, "0", order="PCI_BUS_ID")] == [0]
    assert [device.index for device in visible_devices(survey_devices().devices, fake_machine.uuid(1))] == [1]


def test_a_selector_names_instances_by_uuid_and_by_nothing_else(divided):
    first, second = divided.uuid(1), divided.uuid(2)

    devices = survey_devices().devices
    assert [device.uuid for device in visible_devices(devices, f"{second},{first[:12]}")] == [second, first]
    assert visible_devices(devices, divided.uuid(0)) == ()
    with pytest.raises(DeviceError, match="expected UUIDs on a machine with MIG instances, found '0'"):
        visible_devices(devices, "0")


def test_a_library_that_does_not_load_is_told_from_none(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"not a library")
    program = "from colocate.device.nvml_library import library_present; library_present()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "DeviceError: libnvidia-ml.so.1: expected a library that loads" in done.stderr


# --- what real drivers do, and the fake did not at first


def test_a_gpu_can_be_opened_whatever_it_does_not_tell_of_itself(fake_nvml):
    for name in ("AccountingMode", "Index", "MigMode", "ComputeMode"):
        for code in (fakes.UNKNOWN, fakes.NO_PERMISSION, NOT_SUPPORTED):
            fake_nvml.heal()
            fake_nvml.fail(f"nvmlDeviceGet{name}", code)
            with NvidiaDevice(fake_nvml.uuid()) as device:
                assert device.memory().total_bytes == 8192 * MIB, (name, code)


def test_a_gpu_for_one_process_only_is_refused(fake_nvml):
    """The second training would fail to start, and the pair would pass for one that does not fit."""
    for mode, name in ((1, "exclusive thread"), (2, "prohibited"), (3, "exclusive process")):
        fake_nvml.state.gpus[0].compute_mode = mode
        said = f"found {name}: two trainings cannot share the GPU; .* -c DEFAULT"
        with pytest.raises(DeviceError, match=said):
            NvidiaDevice(fake_nvml.uuid())


# --- lists of processes as drivers really tell them


@pytest.fixture
def two_processes(fake_nvml):
    for number, size in ((4_000_001, 500), (4_000_002, 700)):
        fake_nvml.foreign(size * MIB, pid=number)
    return fake_nvml


def test_a_driver_that_shuffles_its_rows_is_asked_for_its_second_list(two_processes, device):
    """Drivers 535.43 to 535.8x: the second row began eight bytes too early, so nobody known was on the GPU."""
    two_processes.state.gpus[0].lists = fakes.SHUFFLED
    rows = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(pynvml.nvmlDeviceGetHandleByIndex(0))
    assert rows[1].pid not in (4_000_001, 4_000_002)

    assert device.processes() == (DeviceProcess(4_000_001, 500 * MIB), DeviceProcess(4_000_002, 700 * MIB))
    assert device.processes_trouble() is None


@pytest.mark.parametrize("pids", [(0, 7), (7, 7), (7, 734_003_200)], ids=["no process", "twice", "beyond all numbers"])
def test_a_list_that_cannot_be_true_is_not_reported(two_processes, device, pids, monkeypatch):
    def told(handle):
        rows = [pynvml.c_nvmlProcessInfo_v2_t(pid=pid, usedGpuMemory=MIB, gpuInstanceId=2**32 - 1) for pid in pids]
        return rows

    for version in ("v2", "v3"):
        monkeypatch.setattr(pynvml, f"nvmlDeviceGetComputeRunningProcesses_{version}", told)
    assert device.processes() is None
    assert "names processes that cannot exist" in device.processes_trouble()


def test_before_r510_the_other_gpus_are_asked_for_their_second_list(two_processes):
    """They used to say that nobody was there."""
    two_processes.add_gpu()
    for gpu in two_processes.state.gpus[:2]:
        gpu.lists = fakes.WITHOUT_V3
    with NvidiaDevice(two_processes.uuid(1)) as other:
        assert [pid for _, pid in other.processes_elsewhere()] == [4_000_001, 4_000_002]
    with NvidiaDevice(two_processes.uuid(0)) as device:
        assert [one.pid for one in device.processes()] == [4_000_001, 4_000_002]


def test_what_the_driver_accounted_for_an_earlier_process_of_a_number_does_not_count(fake_nvml, device):
    fake_nvml.allocate(500 * MIB)  # by this process
    assert (device.process_peak_bytes(os.getpid()), device.info.accounting) == (None, False)
    fake_nvml.state.gpus[0].accounting = 1
    now = time.time()
    assert device.process_peak_bytes(os.getpid(), since=now - 24 * 3600) == 500 * MIB
    assert device.process_peak_bytes(os.getpid(), since=now + 60) is None
    assert device.process_peak_bytes(os.getpid()) == 500 * MIB
    fake_nvml.fail("nvmlDeviceGetAccountingStats", fakes.NO_PERMISSION)  # another user's, or in a container
    assert device.process_peak_bytes(os.getpid()) is None
