"""One GPU: a real one through NVML, a virtual one, or a larger one constrained to a smaller size."""

from colocate.device import nvml
from colocate.device.acquire import (
    FoundGpu,
    FoundGpus,
    as_asked,
    find_gpus,
    fresh,
    gpu,
    new_virtual,
    opened,
    refuse_instance,
    smaller,
)
from colocate.device.base import Basis, Device, DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.device.cpu_energy import POWERCAP, CpuEnergyMeter
from colocate.device.deadline import Deadline
from colocate.device.lock import locked
from colocate.device.nvml import NvidiaDevice, is_simulated, list_devices
from colocate.device.quarantine import Quarantine
from colocate.device.select import choose_device, refuse_hidden_library

__all__ = [
    "POWERCAP",
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
    "gpu",
    "is_simulated",
    "list_devices",
    "locked",
    "new_virtual",
    "nvml",
    "opened",
    "refuse_hidden_library",
    "refuse_instance",
    "smaller",
]
