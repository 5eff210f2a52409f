# SPDX-License-Identifier: Apache-2.0
"""One GPU: a real one through NVML, a virtual one, or a larger one constrained to a smaller size."""

from colocate.device.acquire import (
    FoundGpu,
    FoundGpus,
    as_asked,
    find_gpus,
    fresh,
    new_virtual,
    opened,
    smaller,
)
from colocate.device.base import BalloonInfo, Basis, Device, DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.device.cpu_energy import CpuEnergyMeter
from colocate.device.deadline import Deadline
from colocate.device.lock import locked
from colocate.device.nvml import NvidiaDevice, is_simulated, survey_devices
from colocate.device.nvml_library import LIBRARY, library_present
from colocate.device.quarantine import Quarantine
from colocate.device.select import choose_device, refuse_hidden_library

__all__ = [
    "LIBRARY",
    "BalloonInfo",
    "Basis",
    "CpuEnergyMeter",
    "Deadline",
    "Device",
    "DeviceInfo",
    "DeviceProcess",
    "FoundGpu",
    "FoundGpus",
    "Memory",
    "NvidiaDevice",
    "Quarantine",
    "Vitals",
    "as_asked",
    "choose_device",
    "find_gpus",
    "fresh",
    "is_simulated",
    "library_present",
    "locked",
    "new_virtual",
    "opened",
    "refuse_hidden_library",
    "smaller",
    "survey_devices",
]
