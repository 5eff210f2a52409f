import subprocess
import sys
from pathlib import Path

import pytest
from fake_nvml import DRIVER_NOT_LOADED, GPU_IS_LOST

from colocate.device.acquire import find_gpus
from colocate.device.lock import locked
from colocate.device.select import choose_device
from colocate.errors import DeviceError

WITHOUT_LIBRARY = """
import ctypes
try:
    ctypes.CDLL("libnvidia-ml.so.1")
except OSError:
    from colocate.device.select import choose_device
    print(choose_device({kind!r}))
else:
    print("this machine has a driver")
"""


def choice_without_library(kind):
    """A process of its own: this one may have the fake library loaded."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBRARY.format(kind=kind)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    if "this machine has a driver" in done.stdout:
        pytest.skip("this machine has an NVML library")
    return done


def test_auto_takes_the_gpus_where_the_library_is_and_says_that_they_are_simulated(fake_nvml):
    choice = choose_device("auto")

    assert (choice.kind, choice.uuids) == ("nvidia", (fake_nvml.uuid(),))
    assert choice.sentence.startswith("pretending to measure (simulated NVML) on")
    assert fake_nvml.uuid() in choice.sentence


def test_without_a_library_auto_is_the_virtual_gpu_and_says_so_and_a_gpu_is_missed():
    done = choice_without_library("auto")

    assert "kind='virtual', devices=()" in done.stdout
    assert "predicting on a virtual GPU; no number is measured on a GPU" in done.stdout
    assert "NVML Shared Library Not Found" in choice_without_library("nvidia").stderr


def test_a_driver_that_fails_or_hidden_gpus_are_an_error_and_not_a_virtual_gpu(fake_nvml):
    for hidden in ("", "-1", "7"):
        said = f"CUDA_VISIBLE_DEVICES: expected at least one GPU .* found '{hidden}'; unset"
        with pytest.raises(DeviceError, match=said):
            choose_device("auto", {"CUDA_VISIBLE_DEVICES": hidden})
    fake_nvml.fail("*", DRIVER_NOT_LOADED)
    for kind in ("auto", "nvidia"):
        with pytest.raises(DeviceError, match="modprobe"):
            choose_device(kind)
    assert choose_device("virtual").kind == "virtual", "which asks no driver"


def test_only_visible_gpus_that_answer_are_taken_in_their_order(fake_machine):
    with pytest.raises(DeviceError, match="expected at least one GPU, found none"):
        choose_device("auto")
    for _ in range(3):
        fake_machine.add_gpu()
    choice = choose_device("auto", {"CUDA_VISIBLE_DEVICES": "2,0"})
    assert choice.uuids == (fake_machine.uuid(2), fake_machine.uuid(0))

    fake_machine.fail("nvmlDeviceGetHandleBy*", GPU_IS_LOST, gpu=0)
    choice = choose_device("nvidia")
    assert choice.uuids == (fake_machine.uuid(1), fake_machine.uuid(2))
    assert "left out: NVML: expected GPU 0" in choice.sentence


HALF_SET_UP = """
import sys
from pathlib import Path
from colocate.device import select
from colocate.device.select import choose_device
folder = Path(sys.argv[1])
(folder / "nvidia0").touch()
(folder / select.LIBRARY).touch()
select.DEVICE_FOLDER, select.LIBRARY_FOLDERS = str(folder), ("/nowhere", str(folder))
print(choose_device("auto"))
"""


def test_a_gpu_without_its_library_is_an_error_and_not_a_virtual_gpu(tmp_path):
    """The driver's libraries were mounted where the loader does not look; the run would have predicted in silence."""
    if "this machine has a driver" in choice_without_library("auto").stdout:
        pytest.skip("this machine has an NVML library")
    done = subprocess.run(
        [sys.executable, "-c", HALF_SET_UP, str(tmp_path)],
        env={"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )

    assert f"expected beside {tmp_path}/nvidia0, found no library that loads; add {tmp_path} to LD" in done.stderr


def test_a_gpu_that_is_too_small_is_refused_and_a_busy_one_counts_for_who_waits(fake_nvml):
    with pytest.raises(DeviceError, match=r"--gpu: expected a GPU of at least 1024 GB, found .*; leave --gpu away"):
        find_gpus("nvidia", gpu_bytes=2**40, small=True)
    with locked(fake_nvml.uuid(), "somebody else"):
        with pytest.raises(
            DeviceError, match=r"expected a free one, found none .*somebody.*; wait for one with --wait"
        ):
            find_gpus("nvidia", gpu_bytes=2**33)
        assert [gpu.uuid for gpu in find_gpus("nvidia", gpu_bytes=2**33, waits=True).free] == [fake_nvml.uuid()]
