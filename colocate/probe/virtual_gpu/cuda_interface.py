# SPDX-License-Identifier: Apache-2.0
"""Answer ``torch.cuda`` and ``torch.accelerator`` by the simulated allocator.

Owns the patches of these two modules and the made-up properties of the GPU. Streams and events do nothing but keep
time: all work on the emulated device is done when the call returns.
"""

import re
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol

import torch

from ..record import Record
from .dispatch import wrong_device
from .memory import DeviceMemory
from .operators import DEVICE
from .state import VirtualGpu
from .statistics import statistics, summary

# Compute capabilities by name (developer.nvidia.com/cuda-gpus); the first match counts.
CAPABILITIES = (
    (r"RTX PRO|RTX 50|5090|5080|5070", (12, 0)),
    (r"B100|B200|GB200", (10, 0)),
    (r"H100|H200|GH200", (9, 0)),
    (r"RTX 40|Ada|L40|\bL4\b", (8, 9)),
    (r"A100|A30\b", (8, 0)),
    (r"RTX 20|\bT4\b|GTX 16", (7, 5)),
    (r"V100", (7, 0)),
    (r"GTX 10|P40|P4\b", (6, 1)),
)
# What sensors of the GPU tell: idle, as nothing is computed on it.
SENSORS = {"utilization": 0, "memory_usage": 0, "temperature": 40, "power_draw": 30_000, "clock_rate": 1700}

NUM_STREAMS = 32  # CUDAStream.cpp: streams of one priority come from a pool of 32, in turn
DEFAULT_CAPABILITY = (8, 6)  # RTX 30, the generation of the study that this project answers to


def capability_of(gpu: VirtualGpu) -> tuple[int, int]:
    """Compute capability of a GPU: what its state says, else what its name lets expect."""
    if gpu.capability is not None:
        return gpu.capability
    return next((found for pattern, found in CAPABILITIES if re.search(pattern, gpu.name)), DEFAULT_CAPABILITY)


class Device(Protocol):
    """The emulated device as far as this module needs it."""

    memory: DeviceMemory
    record: Record
    awake: bool

    def wake(self) -> None:
        """Start the emulation of operators."""


def install_cuda_interface(device: Device, gpu: VirtualGpu, unsupported: Callable[[str], Exception]) -> None:
    """Replace the functions of ``torch.cuda`` and ``torch.accelerator`` that would ask a driver."""
    properties = properties_of(gpu)
    cuda: dict[str, Any] = {
        **_presence(device, properties),
        **_memory_functions(device, gpu),
        **_random_state(),
        **_streams(device.memory),
        **_refusals(unsupported),
    }
    for name, function in cuda.items():
        for module in (torch.cuda, torch.cuda.memory, torch.cuda.random, torch.cuda.streams):
            if module is torch.cuda or hasattr(module, name):
                setattr(module, name, function)
    accelerator = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "current_device_index": lambda: 0,
        "current_device_idx": lambda: 0,
        "set_device_index": _constantly(None),
        "set_device_idx": _constantly(None),
        "get_memory_info": cuda["mem_get_info"],
        "get_device_capability": lambda device=None: {"supported_dtypes": set()},
    }
    module = getattr(torch, "accelerator", None)  # new in 2.6
    if module is not None:
        for name in set(cuda) & set(dir(module)):
            accelerator.setdefault(name, cuda[name])
        for name, function in accelerator.items():
            setattr(module, name, function)
    torch.Tensor.record_stream = _constantly(None)
    for name in ("range_push", "range_pop", "range_start", "range_end", "mark"):
        setattr(torch.cuda.nvtx, name, lambda *args, **kwargs: 0)
    for name in ("start", "stop"):
        setattr(torch.cuda.profiler, name, _constantly(None))


def properties_of(gpu: VirtualGpu) -> SimpleNamespace:
    """The result of ``get_device_properties()``: the GPU's name and size, else those of a mid-range GPU."""
    major, minor = capability_of(gpu)
    return SimpleNamespace(
        name=gpu.name,
        major=major,
        minor=minor,
        total_memory=gpu.total_bytes,
        multi_processor_count=46,
        max_threads_per_multi_processor=1536,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_multiprocessor=102400,
        warp_size=32,
        L2_cache_size=4 << 20,
        is_integrated=False,
        is_multi_gpu_board=False,
        gcnArchName="",
        uuid=gpu.uuid,
        pci_bus_id=1,
        pci_device_id=0,
        pci_domain_id=0,
        shared_memory_per_block_optin=101376,
        clock_rate=1_700_000,
        memory_clock_rate=9_500_000,
        memory_bus_width=256,
        max_threads_per_block=1024,
    )


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Takes anything and does nothing."""


def _only_the_first(device: Any) -> None:
    """There is one GPU, number 0."""
    index = device if isinstance(device, int) else torch.device(device).index
    if index is not None and index > 0:
        raise wrong_device(index)


def _constantly(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _presence(device: Device, properties: SimpleNamespace) -> dict[str, Any]:
    capability = (properties.major, properties.minor)
    return {
        "_lazy_init": device.wake,
        "init": device.wake,
        "is_available": lambda: True,
        "is_initialized": lambda: device.awake,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _only_the_first,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "synchronize": _constantly(None),
        "ipc_collect": _constantly(None),
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: capability,
        "get_device_properties": lambda device=None: properties,
        "get_arch_list": lambda: [f"sm_{properties.major}{properties.minor}"],
        "is_bf16_supported": lambda including_emulation=True: properties.major >= 8 or including_emulation,
        "is_tf32_supported": lambda: properties.major >= 8,
        "can_device_access_peer": lambda device, peer: False,
        "is_current_stream_capturing": lambda: False,
    }


def _memory_functions(device: Device, gpu: VirtualGpu) -> dict[str, Any]:
    memory = device.memory

    def free_and_total(index: Any = None) -> tuple[int, int]:
        device.wake()  # on a GPU too, this call makes the context
        tell_that_it_asked(gpu.free_bytes)
        return gpu.free_bytes, gpu.total_bytes

    def tell_that_it_asked(free_bytes: int) -> None:
        device.record.fields.update(asked_free_bytes=free_bytes, asked_reserved_bytes=memory.allocator.reserved.current)

    def reset_peaks(device: Any = None) -> None:
        memory.settle().reset_peaks()

    def limit_to(fraction: float, index: Any = None) -> None:
        memory.allocator.limit_bytes = int(fraction * gpu.total_bytes)
        tell_that_it_asked(memory.allocator.limit_bytes)

    return {
        "memory_allocated": lambda device=None: memory.settle().allocated.current,
        "memory_reserved": lambda device=None: memory.settle().reserved.current,
        "memory_cached": lambda device=None: memory.settle().reserved.current,
        "max_memory_allocated": lambda device=None: memory.settle().allocated.peak,
        "max_memory_reserved": lambda device=None: memory.settle().reserved.peak,
        "max_memory_cached": lambda device=None: memory.settle().reserved.peak,
        "reset_peak_memory_stats": reset_peaks,
        "reset_max_memory_allocated": reset_peaks,
        "reset_max_memory_cached": reset_peaks,
        "reset_accumulated_memory_stats": _constantly(None),
        "memory_stats": lambda device=None: statistics(memory.settle()),
        "memory_summary": lambda device=None, abbreviated=False: summary(memory.settle()),
        "mem_get_info": free_and_total,
        "empty_cache": memory.empty_cache,
        "set_per_process_memory_fraction": limit_to,
        "get_per_process_memory_fraction": lambda device=None: (
            1.0 if memory.allocator.limit_bytes is None else memory.allocator.limit_bytes / gpu.total_bytes
        ),
        "memory_snapshot": lambda mempool_id=None: [],
        "_snapshot": lambda device=None: {"segments": [], "device_traces": []},
        "_dump_snapshot": lambda filename="dump_snapshot.pickle": None,
        "_record_memory_history": _constantly(None),
        "memory_stats_as_nested_dict": lambda device=None: {},
        "host_memory_stats": lambda: {},
        "reset_peak_host_memory_stats": _constantly(None),
        "reset_accumulated_host_memory_stats": _constantly(None),
        "list_gpu_processes": lambda device=None: "GPU:0\nno processes are running",
        "device_memory_used": lambda device=None: gpu.used_bytes(),
        "get_allocator_backend": lambda: "native",
        **{name: _constantly(value) for name, value in SENSORS.items()},
    }


def _random_state() -> dict[str, Any]:
    def state(device: Any = "cuda") -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    return {
        "manual_seed": _constantly(None),
        "manual_seed_all": _constantly(None),
        "seed": _constantly(None),
        "seed_all": _constantly(None),
        "initial_seed": lambda: 0,
        "get_rng_state": state,
        "get_rng_state_all": lambda: [state()],
        "set_rng_state": _constantly(None),
        "set_rng_state_all": _constantly(None),
    }


class Stream:
    """A stream on which everything is done at once, but whose memory is its own.

    Also a context manager, as ``torch.cuda.stream()`` returns one.
    """

    memory: DeviceMemory  # set in the subclass that a process gets
    _last = 0

    def __init__(self, *args: Any, number: int | None = None, **kwargs: Any) -> None:
        if number is None:
            Stream._last = Stream._last % NUM_STREAMS + 1
            number = Stream._last
        self.device = DEVICE
        self.cuda_stream = self.stream_id = number
        self.device_index = 0
        self.device_type = 1
        self.priority = 0
        self._before: list[int] = []

    def __enter__(self) -> "Stream":
        self._before.append(self.memory.stream)
        self.memory.stream = self.stream_id
        return self

    def __exit__(self, *error: object) -> None:
        self.memory.stream = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return hash(self.stream_id)

    def query(self) -> bool:
        """Return at once: all work is done."""
        return True

    def is_capturing(self) -> bool:
        """No graph is ever captured."""
        return False

    def record_event(self, event: "Event | None" = None) -> "Event":
        """The given event, or a new one, recorded now."""
        event = event or Event()
        event.record()
        return event

    synchronize = wait_event = wait_stream = _nothing


class Event:
    """An event that remembers the time of its recording."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._recorded_s = time.monotonic()

    def record(self, stream: Any = None) -> None:
        """Remember the time."""
        self._recorded_s = time.monotonic()

    def elapsed_time(self, later: "Event") -> float:
        """Milliseconds of host time between two recordings: no time of a GPU."""
        return 1000 * (later._recorded_s - self._recorded_s)

    def query(self) -> bool:
        """Return at once: all work is done."""
        return True

    synchronize = wait = _nothing


class DeviceContext:
    """``with torch.cuda.device(0)``: there is only one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if isinstance(given := next(iter(args), None), int | str | torch.device):
            _only_the_first(given)
        self.idx = self.prev_idx = 0

    def __enter__(self) -> "DeviceContext":
        return self

    def __exit__(self, *error: object) -> None:
        return None


def _streams(memory: DeviceMemory) -> dict[str, Any]:
    kind = type("Stream", (Stream,), {"memory": memory})

    def set_stream(stream: Any) -> None:
        if stream is not None:
            memory.stream = stream.stream_id

    return {
        "Stream": kind,
        "ExternalStream": kind,
        "Event": Event,
        "StreamContext": lambda stream: stream if stream is not None else DeviceContext(),
        "stream": lambda stream=None: stream if stream is not None else DeviceContext(),
        "current_stream": lambda device=None: kind(number=memory.stream),
        "default_stream": lambda device=None: kind(number=0),
        "set_stream": set_stream,
        "device": DeviceContext,
        "device_of": DeviceContext,
        "_DeviceGuard": DeviceContext,
    }


def _refusals(unsupported: Callable[[str], Exception]) -> dict[str, Any]:
    """Functions of which no honest stand-in exists."""

    def refused_function(name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            raise unsupported(f"expected eager operators, found torch.cuda.{name}")

        return refuse

    def refused_class(name: str) -> type:
        refuse = refused_function(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: refuse()})  # a type, for annotations

    functions = {name: refused_function(name) for name in ("make_graphed_callables", "_compile_kernel")}
    classes = {name: refused_class(name) for name in ("CUDAGraph", "graph", "CUDAPluggableAllocator", "MemPool")}
    return {**functions, **classes}
