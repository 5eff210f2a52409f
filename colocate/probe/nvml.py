# SPDX-License-Identifier: Apache-2.0
"""NVML as the virtual GPU answers it: the functions of ``pynvml``, replaced when a program imports it.

Standard library only. A function that has no answer here raises "not supported", as on a GPU that lacks the sensor.
"""

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

from .nvidia_smi import CUDA, DRIVER
from .virtual_gpu.state import VirtualGpu

HANDLE = "virtual GPU 0"
CONSTANT = {
    "nvmlInit": None,
    "nvmlInitWithFlags": None,
    "nvmlShutdown": None,
    "nvmlDeviceGetCount": 1,
    "nvmlSystemGetDriverVersion": DRIVER,
    "nvmlSystemGetNVMLVersion": f"13.{DRIVER}",
    "nvmlSystemGetCudaDriverVersion": int(float(CUDA) * 1000),
    "nvmlSystemGetCudaDriverVersion_v2": int(float(CUDA) * 1000),
    "nvmlDeviceGetIndex": 0,
    "nvmlDeviceGetMinorNumber": 0,
    "nvmlDeviceGetTemperature": 40,
    "nvmlDeviceGetPowerUsage": 30_000,
    "nvmlDeviceGetEnforcedPowerLimit": 220_000,
    "nvmlDeviceGetPowerManagementLimit": 220_000,
    "nvmlDeviceGetTotalEnergyConsumption": 0,
    "nvmlDeviceGetFanSpeed": 0,
    "nvmlDeviceGetPerformanceState": 8,
    "nvmlDeviceGetClockInfo": 210,
    "nvmlDeviceGetMaxClockInfo": 2100,
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
}
HANDLES = ("nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByUUID", "nvmlDeviceGetHandleByPciBusId")
PROCESSES = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")


def answer_for(gpu_path: str) -> Callable[[ModuleType], None]:
    """What to do with the module once it is imported."""

    def replace(module: Any) -> None:
        @cache
        def gpu() -> VirtualGpu:
            # Opened when first asked: torch itself imports pynvml, and its hook ends a program without the file.
            return VirtualGpu.open(gpu_path)

        def not_supported(*args: Any, **options: Any) -> Any:
            raise module.NVMLError(module.NVML_ERROR_NOT_SUPPORTED)

        def by_index(index: Any = 0, *rest: Any) -> str:
            if index not in (0, "0", gpu().uuid, gpu().uuid.encode()) and not str(index).endswith("01:00.0"):
                raise module.NVMLError(module.NVML_ERROR_INVALID_ARGUMENT)
            return HANDLE

        def memory(handle: Any, version: Any = None) -> SimpleNamespace:
            used = gpu().used_bytes()
            return SimpleNamespace(total=gpu().total_bytes, used=used, free=gpu().total_bytes - used, reserved=0)

        def processes(handle: Any) -> list[SimpleNamespace]:
            return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in gpu().processes()]

        for name in [one for one in dir(module) if one.startswith("nvml") and callable(getattr(module, one))]:
            if not isinstance(getattr(module, name), type):
                setattr(module, name, not_supported)
        for name, value in CONSTANT.items():
            setattr(module, name, _constantly(value))
        for name in HANDLES:
            setattr(module, name, by_index)
        for name in PROCESSES:
            for version in ("", "_v2", "_v3"):
                setattr(module, name + version, processes if "Compute" in name else lambda handle: [])
        module.nvmlDeviceGetMemoryInfo = memory
        module.nvmlDeviceGetName = lambda handle: gpu().name
        module.nvmlDeviceGetUUID = lambda handle: gpu().uuid
        module.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=0, memory=0)
        module.nvmlDeviceGetCudaComputeCapability = lambda handle: tuple(gpu().capability or (8, 6))
        module.nvmlDeviceGetPciInfo = _constantly(SimpleNamespace(busId="00000000:01:00.0", bus=1, device=0))

    return replace


def _constantly(value: Any) -> Callable[..., Any]:
    return lambda *args, **options: value


def install(watcher: Any) -> None:
    """Wait for the module."""
    watcher.when("pynvml", answer_for(os.environ["COLOCATE_VIRTUAL_GPU"]))
