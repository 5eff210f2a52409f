# SPDX-License-Identifier: Apache-2.0
"""An NVIDIA GPU, read through NVML, and a survey of all of a machine. Knows nothing of trainings.

NVML orders GPUs by PCI bus and CUDA by speed, and ``CUDA_VISIBLE_DEVICES`` renumbers them again. A GPU is therefore
known by its UUID, and an index only serves for display.

A GPU in MIG mode is no GPU here, each of its instances is one: with memory and processes of its own, and with the
temperature and the throttling of the GPU that it is a part of.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pynvml

from colocate.device import nvml_processes
from colocate.device.base import DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.device.nvml_library import (
    NO_SECOND_STRUCT,
    NOT_ESSENTIAL,
    NOT_REPORTED,
    ask_library,
    failure,
    init,
    instances,
    is_divided,
    reported,
    shutdown,
    within,
)
from colocate.errors import DeviceError, ImplausibleReading

_INSTANCE = "MIG-"
"""How the UUID of a MIG instance begins."""

# nvml.h: nvmlComputeMode_t. In the others one process, or none, may use the GPU.
_COMPUTE_MODES = {1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}

# GPUs without memory of their own: they and the processors share the machine's. Their drivers tell no memory at all, or
# all of the machine's, or too little of it.
_UNIFIED = re.compile(r"\b(GB10|DGX Spark|Jetson|Thor|Orin|Xavier|Tegra)\b", re.IGNORECASE)
_UNIFIED_TEXT = (
    "found unified memory, which the processors use too: how much of it trainings hold cannot be told from what "
    "everything else holds; measure on a GPU with memory of its own, or predict with --device virtual --gpu SIZE"
)
_SAME_SIZE = 0.001  # so far apart are a GPU's size and the machine's where they are one memory


def is_simulated(info: DeviceInfo) -> bool:
    """Say whether a GPU comes from the tests' fake NVML library; its numbers must not pass for measured ones."""
    return "simulated" in (info.driver_version or "")


class NvidiaDevice:
    """One NVIDIA GPU or MIG instance, known by its UUID (see :class:`colocate.device.base.Device` for the readings).

    A context manager: NVML is let go of on leaving. The readings are safe to use from several threads.

    Args:
        uuid: The GPU's UUID as ``nvidia-smi -L`` prints it.

    Raises:
        DeviceError: NVML does not work, there is no such GPU, or it does not tell its memory. Names the cure.
    """

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid
        init()
        try:
            self._handle = self._find()
            self._whole = self._find_whole()
            self._instance = self._find_instance()
            self._refuse_divided()
            self._refuse_exclusive()
            self._struct, source = self._choose_struct()
            self._total_bytes = 0
            self._total_bytes = self.memory().total_bytes
            self._refuse_unified()
            self._info = self._describe(source)
        except BaseException:
            shutdown()
            raise
        self._open = True

    def __enter__(self) -> "NvidiaDevice":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def info(self) -> DeviceInfo:
        """Return what this GPU is; ``memory_source`` says which of NVML's two memory structs is read."""
        return self._info

    def prepare(self) -> None:
        """Nothing: a whole GPU is what it is."""

    def memory(self) -> Memory:
        """Memory in use on the GPU by all processes together, in bytes.

        Check by hand: ``nvidia-smi --query-gpu=memory.used --format=csv`` (MiB).

        Raises:
            DeviceLost: the GPU is gone.
            ImplausibleReading: the numbers cannot be true.
            DeviceError: NVML did not answer. Names the GPU's UUID and NVML's own message.
        """
        try:
            found = pynvml.nvmlDeviceGetMemoryInfo(self._handle, *self._struct)
        except pynvml.NVMLError as error:
            raise failure(f"{self._uuid}: expected memory", error) from error
        total_bytes = self._total_bytes or found.total
        if total_bytes <= 0 or found.total != total_bytes or not 0 <= found.used <= total_bytes:
            raise ImplausibleReading(
                f"{self._uuid}: expected memory in use between 0 and {total_bytes} bytes, "
                f"found {found.used} of {found.total}"
            )
        return Memory(found.used, found.total, getattr(found, "reserved", None), found.free)

    def vitals(self) -> Vitals:
        """Power, temperatures, utilisation, throttling and the energy counter; None for what the GPU does not tell.

        A value that cannot be true counts as not told, and so does one that NVML fails to read. Of a MIG instance
        temperatures and throttling are those of its GPU; power and energy are None, because the GPU has them for all
        its instances together. Check by hand:
        ``nvidia-smi --query-gpu=power.draw,temperature.gpu,utilization.gpu --format=csv``.

        Raises:
            DeviceLost: the GPU is gone.
            DeviceError: NVML was let go of.
        """
        utilization = self._if_told("utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        memory_c = self._of_the_board("memory temperature", ["FieldValues"], [pynvml.NVML_FI_DEV_MEMORY_TEMP])
        # nvmlDeviceGetTemperature goes away with CUDA 14; drivers, and pynvml, before R570 have nothing else.
        temperature_c = self._of_the_board("temperature", ["TemperatureV", "Temperature"], pynvml.NVML_TEMPERATURE_GPU)
        # Renamed in CUDA 12.2; the old name stays for drivers that lack the new one.
        reasons = self._of_the_board("throttle reasons", ["CurrentClocksEventReasons", "CurrentClocksThrottleReasons"])
        # The widest bounds that a GPU can need: today's largest take 1.4 kW and throttle below 110 degrees Celsius.
        return Vitals(
            power_mw=within(0, 10_000_000, self._of_a_whole_gpu("power", pynvml.nvmlDeviceGetPowerUsage)),
            temperature_c=within(0, 150, temperature_c),
            memory_temperature_c=(
                within(1, 150, int(memory_c[0].value.uiVal)) if memory_c and not memory_c[0].nvmlReturn else None
            ),
            utilization_percent=within(0, 100, utilization.gpu if utilization else None),
            memory_utilization_percent=within(0, 100, utilization.memory if utilization else None),
            energy_mj=self._of_a_whole_gpu("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption),
            throttle_reasons=reasons,
        )

    def processes(self) -> tuple[DeviceProcess, ...] | None:
        """List the processes that hold memory, graphics included, or None if the driver does not report them.

        In a container the driver may list the pids of the host, or list no memory: ``used_bytes`` is then None.
        Check by hand: ``nvidia-smi --query-compute-apps=pid,used_memory --format=csv`` (MiB).

        Raises:
            DeviceLost: the GPU is gone.
            DeviceError: NVML did not answer. Names the GPU's UUID and NVML's own message.
        """
        return nvml_processes.processes(self._reported, self._total_bytes, self._instance)

    def processes_trouble(self) -> str | None:
        """Say why the driver's process list is not believed, or None if it is, or there is none.

        Raises:
            DeviceError: NVML did not answer.
        """
        return nvml_processes.SHUFFLED if nvml_processes.is_shuffled(self._reported) else None

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        """List who computes on the machine's other GPUs: UUID and process id; a GPU that does not answer has none.

        Check by hand: ``nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv``.
        """
        found = []
        for index in range(self._ask("the number of GPUs", pynvml.nvmlDeviceGetCount)):
            with contextlib.suppress(pynvml.NVMLError):
                whole = pynvml.nvmlDeviceGetHandleByIndex(index)
                for handle in instances(whole) if is_divided(whole) else [whole]:
                    uuid = pynvml.nvmlDeviceGetUUID(handle)
                    if uuid != self._uuid:
                        found += [(uuid, pid) for pid in nvml_processes.computing_pids(handle)]
        return tuple(found)

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        """The most memory that a process ever held, by the driver's accounting, in bytes; None where it is off.

        ``since`` is when that process began, at the earliest, in Unix time: an earlier one of its number does not
        count. Also after the process has ended. Turn accounting on with
        ``sudo nvidia-smi -i UUID --accounting-mode=1``; check by hand:
        ``nvidia-smi --query-accounted-apps=pid,max_memory_usage --format=csv`` (MiB).

        Raises:
            DeviceLost: the GPU is gone.
            DeviceError: NVML did not answer. Names the GPU's UUID and NVML's own message.
        """
        if self._whole is not None:  # whose maximum, that of the instance or of the GPU, is told nowhere
            return None
        return nvml_processes.peak_bytes(self._reported, pid, self._total_bytes, since)

    def close(self) -> None:
        """Lets go of NVML; every later reading raises `DeviceError`. Closing twice is allowed."""
        if self._open:
            self._open = False
            shutdown()

    # --- asking NVML

    def _find(self) -> Any:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(self._uuid.encode())
        except pynvml.NVMLError as error:
            expectation = f"{self._uuid}: expected a GPU with this UUID"
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise failure(expectation, error) from error
            raise DeviceError(f"{expectation}, found none; nvidia-smi -L lists the GPUs of this machine") from error

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            raise failure(f"{self._uuid}: expected {what}", error) from error

    def _reported(
        self, what: str, function: Callable[..., Any], *arguments: Any, not_reported: frozenset[int] = NOT_REPORTED
    ) -> Any:
        """The answer about this GPU, or None where NVML says that it has none."""
        return self._ask(what, reported, self._handle, function, not_reported, *arguments)

    def _if_told(self, what: str, function: Callable[..., Any]) -> Any:
        """The answer of a reading that no verdict rests on, or None."""
        return self._reported(what, function, not_reported=NOT_ESSENTIAL)

    def _of_the_board(self, what: str, names: list[str], *arguments: Any) -> Any:
        """As `_if_told`, about the GPU that this is, or is an instance of: of the first function that has an answer."""
        for function in (getattr(pynvml, f"nvmlDeviceGet{name}", None) for name in names):
            handle = self._whole or self._handle
            found = function and self._ask(what, reported, handle, function, NOT_ESSENTIAL, *arguments)
            if found is not None:
                return found
        return None

    # --- memory

    def _choose_struct(self) -> tuple[tuple[int, ...], str]:
        """The struct that this driver answers: the second keeps what the driver reserves apart, the first does not."""
        memory = self._reported(
            "memory", pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlMemory_v2, not_reported=NO_SECOND_STRUCT
        )
        if memory is not None:
            return (pynvml.nvmlMemory_v2,), "nvml v2"
        if self._reported("memory", pynvml.nvmlDeviceGetMemoryInfo) is None:
            name = self._if_told("name", pynvml.nvmlDeviceGetName) or "its name unknown"
            # A GPU that has none of its own is the usual reason.
            text = f"NVML said 'Not Supported' ({name}): {_UNIFIED_TEXT}"
            raise DeviceError(f"{self._uuid}: expected a GPU that tells its memory, {text}")
        return (), "nvml v1, used includes what the driver keeps"

    def _refuse_unified(self) -> None:
        name = str(self._if_told("name", pynvml.nvmlDeviceGetName) or "")
        machine_bytes = _machine_bytes()
        same = machine_bytes is not None and abs(self._total_bytes - machine_bytes) <= _SAME_SIZE * machine_bytes
        if self._whole is None and (_UNIFIED.search(name) or same):
            raise DeviceError(f"{self._uuid}: expected a GPU with memory of its own ({name}), {_UNIFIED_TEXT}")

    # --- the rest

    def _find_whole(self) -> Any:
        """The GPU that this is an instance of; None where this is a whole GPU."""
        if not self._uuid.startswith(_INSTANCE):
            return None
        return self._ask("its GPU", pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle, self._handle)

    def _find_instance(self) -> int | None:
        """The number of the GPU instance, whose memory this is.

        Raises:
            DeviceError: another compute instance has the same memory: neither has a use, or a peak, of its own.
        """
        if self._whole is None:
            return None
        number: int = self._ask("its instance", pynvml.nvmlDeviceGetGpuInstanceId, self._handle)
        numbers = [pynvml.nvmlDeviceGetGpuInstanceId(handle) for handle in instances(self._whole)]
        if numbers.count(number) > 1:
            raise DeviceError(
                f"{self._uuid}: expected a MIG instance with memory of its own, found {numbers.count(number)} compute "
                f"instances in GPU instance {number}; make one that takes all of it (sudo nvidia-smi mig -cci)"
            )
        return number

    def _refuse_divided(self) -> None:
        if self._whole is None and is_divided(self._handle):
            raise DeviceError(
                f"{self._uuid}: expected a whole GPU, found MIG mode on; name one of its instances (nvidia-smi -L), "
                "make some (sudo nvidia-smi mig -cgi PROFILE -C), or turn it off (sudo nvidia-smi -i UUID -mig 0)"
            )

    def _of_a_whole_gpu(self, what: str, function: Callable[..., Any]) -> Any:
        """A reading that counts all instances of a GPU together, and therefore says nothing about one."""
        return None if self._whole is not None else self._if_told(what, function)

    def _refuse_exclusive(self) -> None:
        """A group is two processes: in a mode for one the second would fail, and look as if it had not fitted."""
        mode = _COMPUTE_MODES.get(self._of_the_board("compute mode", ["ComputeMode"]) or 0)
        if mode is not None:
            raise DeviceError(
                f"{self._uuid}: expected compute mode default, found {mode}: two trainings cannot share the GPU; "
                "change it (sudo nvidia-smi -i UUID -c DEFAULT), or wait for who set it"
            )

    def _describe(self, memory_source: str) -> DeviceInfo:
        cuda = self._system("CUDA version", pynvml.nvmlSystemGetCudaDriverVersion)
        accounting = self._of_a_whole_gpu("accounting mode", pynvml.nvmlDeviceGetAccountingMode)
        return DeviceInfo(
            kind="nvidia",
            uuid=self._uuid,
            name=self._ask("name", pynvml.nvmlDeviceGetName, self._handle),
            total_bytes=self._total_bytes,
            basis="measured",
            memory_source=memory_source,
            driver_version=self._system("driver version", pynvml.nvmlSystemGetDriverVersion),
            nvml_version=self._system("NVML version", pynvml.nvmlSystemGetNVMLVersion),
            cuda_version=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
            index=self._of_a_whole_gpu("index", pynvml.nvmlDeviceGetIndex),
            accounting=None if accounting is None else bool(accounting),
            instance_of=None if self._whole is None else self._ask("its GPU", pynvml.nvmlDeviceGetUUID, self._whole),
        )

    def _system(self, what: str, function: Callable[[], Any]) -> Any:
        return self._if_told(what, lambda handle: function())


def _machine_bytes() -> int | None:
    """The memory of the machine, None where it cannot be read."""
    try:
        return int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Survey:
    """The GPUs of a machine in NVML's order, and for each that does not answer the reason."""

    devices: tuple[DeviceInfo, ...]
    failures: tuple[DeviceError, ...]


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
