# SPDX-License-Identifier: Apache-2.0
"""Survey all NVIDIA GPUs of a machine, and why some of them do not answer."""

from dataclasses import dataclass, replace
from typing import Any

import pynvml

from colocate.device.base import DeviceInfo
from colocate.device.nvml import NvidiaDevice
from colocate.device.nvml_library import ask_library, init, instances, is_divided, shutdown
from colocate.errors import DeviceError


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs of a machine in NVML's order, and for each that does not answer the reason."""

    devices: tuple[DeviceInfo, ...]
    failures: tuple[DeviceError, ...] = ()

    def answering(self) -> tuple[DeviceInfo, ...]:
        """The GPUs.

        Raises:
            DeviceError: none answers although there are some.
        """
        if self.failures and not self.devices:
            raise self.failures[0]
        return self.devices


def survey_devices() -> Survey:
    """Every GPU that NVML knows, in place of one in MIG mode its instances.

    One that does not answer is no reason to do without the others.

    Raises:
        DeviceError: NVML itself does not work. Names the cure.
    """
    init()
    try:
        count = ask_library("the number of GPUs", pynvml.nvmlDeviceGetCount)
        found = [gpu for index in range(count) for gpu in _look_at(index)]
    finally:
        shutdown()
    failures = tuple(gpu for gpu in found if isinstance(gpu, DeviceError))
    return Survey(tuple(gpu for gpu in found if isinstance(gpu, DeviceInfo)), failures)


def list_devices() -> tuple[DeviceInfo, ...]:
    """Every GPU that answers, in NVML's order.

    Raises:
        DeviceError: NVML does not work, or no GPU answers although there are some.
    """
    return survey_devices().answering()


def _look_at(index: int) -> list[DeviceInfo | DeviceError]:
    """The GPU with this index, or its instances; for each that does not answer the reason."""
    try:
        handle = ask_library(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
        divided = instances(handle) if is_divided(handle) else []
        if divided:
            return [_opened(instance, None) for instance in divided]
        return [_opened(handle, index)]
    except DeviceError as error:
        return [error]


def _opened(handle: Any, index: int | None) -> DeviceInfo | DeviceError:
    try:
        name = "its UUID" if index is None else f"the UUID of GPU {index}"
        with NvidiaDevice(ask_library(name, pynvml.nvmlDeviceGetUUID, handle)) as device:
            return replace(device.info, index=index)
    except DeviceError as error:
        return error
