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
from colocate.device.base import BalloonInfo, Basis, Device, DeviceInfo, DeviceProcess, Vitals
from colocate.device.cpu_energy import CpuEnergyMeter
from colocate.device.deadline import Deadline
from colocate.device.lock import locked
from colocate.device.nvml import NvidiaDevice, is_simulated, survey_devices
from colocate.device.nvml_library import LIBRARY, library_present
from colocate.device.quarantine import Quarantine
from colocate.device.select import choose_device, refuse_hidden_library
