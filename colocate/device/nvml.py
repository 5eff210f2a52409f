"""An NVIDIA GPU, read through NVML. The only module that imports pynvml; knows nothing of trainings.

NVML orders GPUs by PCI bus and CUDA by speed, and ``CUDA_VISIBLE_DEVICES`` renumbers them again. A GPU is therefore
known by its UUID, and an index only serves for display.

A GPU in MIG mode is no GPU here, each of its instances is one: with memory and processes of its own, and with the
temperature and the throttling of the GPU that it is a part of.
"""

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pynvml

from colocate.device.base import DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.errors import DeviceError, DeviceLost, ImplausibleReading

LIBRARY = "libnvidia-ml.so.1"

_INSTANCE = "MIG-"
"""How the UUID of a MIG instance begins."""

# NVML's way to say that this GPU or this driver has no such reading (nvml.h). For a driver too old to know the
# function at all pynvml says FUNCTION_NOT_FOUND.
_NOT_REPORTED = frozenset(
    {
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
        pynvml.NVML_ERROR_NO_DATA,
        pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    }
)
# Early drivers under WSL answer the second memory struct with an unknown error and the first one properly.
_NO_SECOND_STRUCT = _NOT_REPORTED | {pynvml.NVML_ERROR_UNKNOWN}
_LOST = frozenset({pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED})

# A reading that no verdict rests on must not cost the others: whatever NVML says but that the GPU, or NVML, is gone.
_ANY_ERROR = frozenset(value for name, value in vars(pynvml).items() if name.startswith("NVML_ERROR_"))
_NOT_ESSENTIAL = _ANY_ERROR - _LOST - {pynvml.NVML_ERROR_UNINITIALIZED}

# nvml.h: nvmlComputeMode_t. In the others one process, or none, may use the GPU.
_COMPUTE_MODES = {1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}

# What the list of processes has in place of an instance's number where there are no instances (nvml.h).
_NO_INSTANCE = 0xFFFFFFFF

_CURES = {
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
    """Whether this machine has an NVML library at all; one that is there but fails is found out by opening a GPU.

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


def is_simulated(info: DeviceInfo) -> bool:
    """Whether a GPU comes from the fake NVML library of the tests; its numbers must not pass for measured ones."""
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
        _init()
        try:
            self._handle = self._find()
            self._whole = self._find_whole()
            self._instance = self._find_instance()
            self._refuse_divided()
            self._refuse_exclusive()
            self._read_memory, source = self._choose_memory()
            self._total_bytes = 0
            self._total_bytes = self.memory().total_bytes
            self._info = self._describe(source)
        except BaseException:
            _shutdown()
            raise
        self._open = True

    def __enter__(self) -> "NvidiaDevice":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def info(self) -> DeviceInfo:
        """What this GPU is; ``memory_source`` says which of NVML's two memory structs is read."""
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
            memory = self._read_memory()
        except pynvml.NVMLError as error:
            raise _failure(f"{self._uuid}: expected memory", error) from error
        total_bytes = self._total_bytes or memory.total_bytes
        if total_bytes <= 0 or memory.total_bytes != total_bytes or not 0 <= memory.used_bytes <= total_bytes:
            raise ImplausibleReading(
                f"{self._uuid}: expected memory in use between 0 and {total_bytes} bytes, "
                f"found {memory.used_bytes} of {memory.total_bytes}"
            )
        return memory

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
        # The widest bounds that a GPU can need: today's largest take 1.4 kW and throttle below 110 degrees Celsius.
        return Vitals(
            power_mw=_within(0, 10_000_000, self._of_a_whole_gpu("power", pynvml.nvmlDeviceGetPowerUsage)),
            temperature_c=_within(0, 150, self._temperature_c()),
            memory_temperature_c=_within(1, 150, self._memory_temperature_c()),
            utilization_percent=_within(0, 100, utilization.gpu if utilization else None),
            memory_utilization_percent=_within(0, 100, utilization.memory if utilization else None),
            energy_mj=self._of_a_whole_gpu("energy", pynvml.nvmlDeviceGetTotalEnergyConsumption),
            throttle_reasons=self._throttle_reasons(),
        )

    def processes(self) -> tuple[DeviceProcess, ...] | None:
        """Who holds memory, programs that draw included; None where the driver does not tell.

        In a container the driver may list the pids of the host, or list no memory: ``used_bytes`` is then None.
        Check by hand: ``nvidia-smi --query-compute-apps=pid,used_memory --format=csv`` (MiB).

        Raises:
            DeviceLost: the GPU is gone.
            DeviceError: NVML did not answer. Names the GPU's UUID and NVML's own message.
        """
        computing = self._reported("processes", pynvml.nvmlDeviceGetComputeRunningProcesses_v3)
        if computing is None:  # drivers before R510
            computing = self._reported("processes", pynvml.nvmlDeviceGetComputeRunningProcesses_v2)
        if computing is None:
            return None
        drawing = self._if_told("processes that draw", pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3) or []
        # A program that computes and draws is in both lists with the same number.
        by_pid = {row.pid: self._holder(row, draws=True) for row in drawing if self._is_here(row)}
        by_pid |= {row.pid: self._holder(row) for row in computing if self._is_here(row)}
        return tuple(by_pid[pid] for pid in sorted(by_pid))

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        """Who computes on the other GPUs of the machine: UUID and process id; a GPU that does not answer has nobody.

        Check by hand: ``nvidia-smi --query-compute-apps=gpu_uuid,pid --format=csv``.
        """
        found = []
        for index in range(self._ask("the number of GPUs", pynvml.nvmlDeviceGetCount)):
            with contextlib.suppress(pynvml.NVMLError):
                whole = pynvml.nvmlDeviceGetHandleByIndex(index)
                for handle in _instances(whole) if _is_divided(whole) else [whole]:
                    uuid = pynvml.nvmlDeviceGetUUID(handle)
                    if uuid != self._uuid:
                        found += [(uuid, row.pid) for row in pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)]
        return tuple(found)

    def process_peak_bytes(self, pid: int) -> int | None:
        """The most memory that a process ever held, by the driver's accounting, in bytes; None where it is off.

        Also after the process has ended. Turn accounting on with ``sudo nvidia-smi -i UUID --accounting-mode=1``;
        check by hand: ``nvidia-smi --query-accounted-apps=pid,max_memory_usage --format=csv`` (MiB).

        Raises:
            DeviceLost: the GPU is gone.
            DeviceError: NVML did not answer. Names the GPU's UUID and NVML's own message.
        """
        if self._whole is not None:  # whose maximum, that of the instance or of the GPU, is told nowhere
            return None
        reported = _NOT_REPORTED | {pynvml.NVML_ERROR_NOT_FOUND}
        stats = self._reported(
            f"accounting of pid {pid}", pynvml.nvmlDeviceGetAccountingStats, pid, not_reported=reported
        )
        # A process on the list has a context, so none can have held nothing.
        return _within(1, self._total_bytes, stats.maxMemoryUsage) if stats else None

    def close(self) -> None:
        """Lets go of NVML; every later reading raises `DeviceError`. Closing twice is allowed."""
        if self._open:
            self._open = False
            _shutdown()

    # --- asking NVML

    def _find(self) -> Any:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(self._uuid.encode())
        except pynvml.NVMLError as error:
            expectation = f"{self._uuid}: expected a GPU with this UUID"
            if error.value != pynvml.NVML_ERROR_NOT_FOUND:
                raise _failure(expectation, error) from error
            raise DeviceError(f"{expectation}, found none; nvidia-smi -L lists the GPUs of this machine") from error

    def _ask(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except pynvml.NVMLError as error:
            raise _failure(f"{self._uuid}: expected {what}", error) from error

    def _reported(
        self, what: str, function: Callable[..., Any], *arguments: Any, not_reported: frozenset[int] = _NOT_REPORTED
    ) -> Any:
        """The answer about this GPU, or None where NVML says that it has none."""
        try:
            return function(self._handle, *arguments)
        except pynvml.NVMLError as error:
            if error.value in not_reported:
                return None
            raise _failure(f"{self._uuid}: expected {what}", error) from error

    def _if_told(self, what: str, function: Callable[..., Any] | None, *arguments: Any) -> Any:
        """The answer of a reading that no verdict rests on, or None; also for a function that pynvml has not."""
        return None if function is None else self._reported(what, function, *arguments, not_reported=_NOT_ESSENTIAL)

    def _of_the_board(self, what: str, function: Callable[..., Any] | None, *arguments: Any) -> Any:
        """The answer about the GPU that this is, or is an instance of, if there is one; see `_if_told`."""
        handle = self._whole or self._handle
        return self._if_told(what, function and (lambda _, *rest: function(handle, *rest)), *arguments)

    # --- memory

    def _choose_memory(self) -> tuple[Callable[[], Memory], str]:
        """The struct that this driver answers: the second keeps what the driver reserves apart, the first does not."""
        memory = self._reported(
            "memory", pynvml.nvmlDeviceGetMemoryInfo, pynvml.nvmlMemory_v2, not_reported=_NO_SECOND_STRUCT
        )
        if memory is not None:
            return self._memory_v2, "nvml v2"
        self._ask("memory", pynvml.nvmlDeviceGetMemoryInfo, self._handle)
        return self._memory_v1, "nvml v1, used includes what the driver keeps"

    def _memory_v2(self) -> Memory:
        found = pynvml.nvmlDeviceGetMemoryInfo(self._handle, pynvml.nvmlMemory_v2)
        return Memory(found.used, found.total, found.reserved, found.free)

    def _memory_v1(self) -> Memory:
        found = pynvml.nvmlDeviceGetMemoryInfo(self._handle)
        return Memory(found.used, found.total, None, found.free)

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
        numbers = [pynvml.nvmlDeviceGetGpuInstanceId(handle) for handle in _instances(self._whole)]
        if numbers.count(number) > 1:
            raise DeviceError(
                f"{self._uuid}: expected a MIG instance with memory of its own, found {numbers.count(number)} compute "
                f"instances in GPU instance {number}; make one that takes all of it (sudo nvidia-smi mig -cci)"
            )
        return number

    def _refuse_divided(self) -> None:
        if self._whole is None and _is_divided(self._handle):
            raise DeviceError(
                f"{self._uuid}: expected a whole GPU, found MIG mode on; name one of its instances (nvidia-smi -L), "
                "make some (sudo nvidia-smi mig -cgi PROFILE -C), or turn it off (sudo nvidia-smi -i UUID -mig 0)"
            )

    def _is_here(self, row: Any) -> bool:
        """A process of the list is not one of another instance, whatever the driver lists for this one."""
        return self._instance is None or getattr(row, "gpuInstanceId", None) in (self._instance, _NO_INSTANCE, None)

    def _of_a_whole_gpu(self, what: str, function: Callable[..., Any]) -> Any:
        """A reading that counts all instances of a GPU together, and therefore says nothing about one."""
        return None if self._whole is not None else self._if_told(what, function)

    def _refuse_exclusive(self) -> None:
        """A group is two processes: in a mode for one the second would fail, and look as if it had not fitted."""
        mode = _COMPUTE_MODES.get(self._of_the_board("compute mode", pynvml.nvmlDeviceGetComputeMode) or 0)
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

    def _temperature_c(self) -> int | None:
        # nvmlDeviceGetTemperature goes away with CUDA 14; drivers before R570 have nothing else.
        newer = getattr(pynvml, "nvmlDeviceGetTemperatureV", None)  # pynvml knows it since R570
        reported: int | None = self._of_the_board("temperature", newer, pynvml.NVML_TEMPERATURE_GPU)
        if reported is None:
            reported = self._of_the_board("temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU)
        return reported

    def _memory_temperature_c(self) -> int | None:
        reported = self._of_the_board(
            "memory temperature", pynvml.nvmlDeviceGetFieldValues, [pynvml.NVML_FI_DEV_MEMORY_TEMP]
        )
        return None if reported is None or reported[0].nvmlReturn else int(reported[0].value.uiVal)

    def _throttle_reasons(self) -> int | None:
        # Renamed in CUDA 12.2; the old name stays for drivers that lack the new one.
        reported: int | None = self._of_the_board("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksEventReasons)
        if reported is None:
            reported = self._of_the_board("throttle reasons", pynvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        return reported

    def _holder(self, row: Any, draws: bool = False) -> DeviceProcess:
        # pynvml makes None of NVML's "not available". Nobody is on the list with nothing: 0 is what newer drivers
        # show inside containers.
        return DeviceProcess(row.pid, _within(1, self._total_bytes, row.usedGpuMemory), draws)


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
    _init()
    try:
        count = _ask_library("the number of GPUs", pynvml.nvmlDeviceGetCount)
        found = [gpu for index in range(count) for gpu in _look_at(index)]
    finally:
        _shutdown()
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
        handle = _ask_library(f"GPU {index}", pynvml.nvmlDeviceGetHandleByIndex, index)
        instances = _instances(handle) if _is_divided(handle) else []
        if instances:
            return [_opened(instance, None) for instance in instances]
        return [_opened(handle, index)]
    except DeviceError as error:
        return [error]


def _opened(handle: Any, index: int | None) -> DeviceInfo | DeviceError:
    try:
        name = "its UUID" if index is None else f"the UUID of GPU {index}"
        with NvidiaDevice(_ask_library(name, pynvml.nvmlDeviceGetUUID, handle)) as device:
            return replace(device.info, index=index)
    except DeviceError as error:
        return error


def _is_divided(handle: Any) -> bool:
    """The GPU is in MIG mode: nothing computes on it but on its instances."""
    try:
        return bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    except pynvml.NVMLError:  # a GPU without the mode, or a driver without the question
        return False


def _instances(handle: Any) -> list[Any]:
    """The MIG instances of a GPU; numbers that are not given out have none."""
    found = []
    with contextlib.suppress(pynvml.NVMLError):
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):
                found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
    return found


# --- NVML itself


def _init() -> None:
    """NVML counts: every call needs one of :func:`_shutdown`."""
    _ask_library("a working NVIDIA driver", pynvml.nvmlInit)


def _shutdown() -> None:
    # Nothing depends on it and the reason is known already: a lost GPU makes this fail too.
    try:
        pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return


def _ask_library(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        raise _failure(f"NVML: expected {what}", error) from error


def _failure(expectation: str, error: Any) -> DeviceError:
    """Our error for NVML's: its own words, its number and the cure where one is known."""
    cure = _CURES.get(error.value)
    message = f"{expectation}, NVML said {str(error)!r} ({error.value})" + (f"; {cure}" if cure else "")
    return DeviceLost(message) if error.value in _LOST else DeviceError(message)


def _within(least: int, most: int, value: int | None) -> int | None:
    """The value where it can be true, else None."""
    return value if value is not None and least <= value <= most else None
