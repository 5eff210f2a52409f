# SPDX-License-Identifier: Apache-2.0
"""The NVML library itself: load it, ask it, and say in words what its answers mean.

Knows no device. What NVML cannot tell is None, what fails is an error that names the cure.
"""

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any

import pynvml

from colocate.errors import DeviceError, DeviceLost

LIBRARY = "libnvidia-ml.so.1"

# NVML's way to say that this GPU or this driver has no such reading (nvml.h). For a driver too old to know the
# function at all pynvml says FUNCTION_NOT_FOUND.
NOT_REPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
# Early drivers under WSL answer the second memory struct with an unknown error and the first one properly.
NO_SECOND_STRUCT = NOT_REPORTED | {pynvml.NVML_ERROR_UNKNOWN}
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})

# A reading that no verdict rests on must not cost the others: whatever NVML says but that the GPU, or NVML, is gone.
_ANY_ERROR = frozenset(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
NOT_ESSENTIAL = _ANY_ERROR - _LOST - {pynvml.NVML_ERROR_UNINITIALIZED}

CURES = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver, or use --device virtual",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "load the driver (sudo modprobe nvidia) or, in a container, pass the GPU in (--gpus all); nvidia-smi must work"
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the driver was updated while the old kernel module stayed loaded: reboot, or end everything that uses the "
        "GPU and reload the module (sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia; sudo modprobe nvidia)"
    ),
    # https://github.com/NVIDIA/nvidia-container-toolkit/issues/48
    pynvml.NVML_ERROR_UNKNOWN: (
        "in a container this is what remains after 'systemctl daemon-reload' on the host took /dev/nvidia* away: "
        "restart the container; otherwise look for Xid lines in dmesg"
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "the GPU fell off the bus (Xid 79 in dmesg): reboot the machine, then check its power supply, seating and heat"
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: "reset the GPU (sudo nvidia-smi --gpu-reset -i UUID) or reboot the machine",
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "this user may not open the GPU: look at owner and mode of /dev/nvidia* and at the container's device rules"
    ),
    pynvml.NVML_ERROR_OPERATING_SYSTEM: "the operating system forbids it: look at control groups and container rules",
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "this driver is too old for the question: update it",
}


def library_present() -> bool:
    """Say whether this machine has an NVML library; one that is there but fails is found by opening a GPU.

    Raises:
        DeviceError: there is a library but it cannot be loaded, for example because it is for another processor.
    """
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if f"{LIBRARY}: cannot open shared object file" in str(error):
            return False
        raise DeviceError(f"{LIBRARY}: expected a library that loads, found {error}; reinstall the driver") from error
    return True


def init() -> None:
    """NVML counts: every call needs one of :func:`shutdown`."""
    ask_library("a working NVIDIA driver", pynvml.nvmlInit)


def shutdown() -> None:
    """Let go of NVML once."""
    with contextlib.suppress(pynvml.NVMLError):  # as a lost GPU makes it fail: the reason is known already
        pynvml.nvmlShutdown()


def ask_library(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """The answer of a function that concerns no single GPU.

    Raises:
        DeviceError: NVML failed. Names the cure.
    """
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise failure(f"NVML: expected {what}", error) from error


def failure(expectation: str, error: Any) -> DeviceError:
    """Our error for NVML's: its own words, its number and the cure where one is known."""
    cure = CURES.get(error.value)
    message = f"{expectation}, NVML said {str(error)!r} ({error.value})" + (f"; {cure}" if cure else "")
    return DeviceLost(message) if error.value in _LOST else DeviceError(message)


def reported(handle: Any, function: Callable[..., Any], not_reported: frozenset[int], *arguments: Any) -> Any:
    """The answer about a GPU, or None where NVML says with one of these errors that it has none.

    Raises:
        pynvml.NVMLError: any other error.
    """
    try:
        return function(handle, *arguments)
    except pynvml.NVMLError as error:
        if error.value in not_reported:
            return None
        raise


def within(least: int, most: int, value: int | None) -> int | None:
    """The value where it can be true, else None."""
    return value if value is not None and least <= value <= most else None


def is_divided(handle: Any) -> bool:
    """The GPU is in MIG mode: nothing computes on it but on its instances."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:  # a GPU without the mode, or a driver without the question
        return False


def instances(handle: Any) -> list[Any]:
    """The MIG instances of a GPU; numbers that are not given out have none."""
    found = []
    with contextlib.suppress(pynvml.NVMLError):
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return found
