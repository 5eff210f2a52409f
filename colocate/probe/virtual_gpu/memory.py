# SPDX-License-Identifier: Apache-2.0
"""The memory of the emulated device in this process: storages on one side, the shared GPU on the other.

Owns which storage holds which block, and this process's claim on the GPU. Knows tensors only by their storages; what
is allocated when is decided in `dispatch`. Safe for several threads, and for storages that die at any instant,
garbage collection in the middle of an allocation included.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch

from .allocator import CachingAllocator, OutOfMemory
from .allocator_settings import Settings
from .blocks import Block
from .convolutions import Convolution
from .state import GpuFull
from .trace import AllocationTrace

GIB = 1024**3
MIB = 1024**2


class Gpu(Protocol):
    """The interface of a virtual GPU; `state.VirtualGpu` is the one that processes share."""

    total_bytes: int
    context_bytes: int
    cudnn_context_bytes: int

    def claim(self, used_bytes: int) -> None:
        """Say what this process holds from now on; raises `gpu.GpuFull`."""

    @property
    def free_bytes(self) -> int:
        """Return the free memory."""

    def processes(self) -> list[tuple[int, int]]:
        """Return who holds how many bytes."""


class Observer(Protocol):
    """Receives every request to the allocator; see `trace`."""

    def allocated(self, number: int, num_bytes: int, stream: int) -> None:
        """A block was handed out."""

    def freed(self, number: int) -> None:
        """A block came back."""

    def convolved(self, call: Convolution) -> None:
        """A convolution ran."""

    def emptied(self) -> None:
        """The cache was given back."""


class Context:
    """This process's claim on the GPU: the context, then every segment. The allocator's backing."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.claimed_bytes = 0
        self.has_cudnn = False

    def create(self) -> None:
        """Claim the context.

        Raises:
            GpuFull: there is not even room for that.
        """
        if not self.claimed_bytes:
            self.gpu.claim(self.gpu.context_bytes)
            self.claimed_bytes = self.gpu.context_bytes

    def load_cudnn(self) -> int:
        """The first use of cuDNN adds its kernels to the context: the bytes that found no room, if so."""
        if self.has_cudnn:
            return 0
        self.has_cudnn = True
        added_bytes = self.gpu.cudnn_context_bytes - self.gpu.context_bytes
        return 0 if added_bytes == 0 or self.obtain(added_bytes) else added_bytes

    def obtain(self, num_bytes: int) -> bool:
        """Take memory for a segment; False when the processes on the GPU leave too little."""
        try:
            self.create()
            self.gpu.claim(self.claimed_bytes + num_bytes)
        except GpuFull:
            return False
        self.claimed_bytes += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Return the memory of a segment."""
        self.claimed_bytes -= num_bytes
        self.gpu.claim(self.claimed_bytes)


class Held:
    """The block behind a storage, and the storage's values where they are known, or only ``assumed`` (see `values`)."""

    __slots__ = ("assumed", "block", "known", "num_bytes", "reference")

    def __init__(self, block: Block, num_bytes: int, reference: weakref.ref[Any]) -> None:
        self.block = block
        self.num_bytes = num_bytes
        self.reference = reference
        self.known: Any = None
        self.assumed = False


class DeviceMemory:
    """Blocks of all live storages on the emulated device.

    Args:
        GPU: the GPU that this process shares with others.
        settings: the allocator's options.
        on_out_of_memory: told about every failed allocation: message and requested bytes.
        observers: told about all others, in order.
        trace: the observer that is also told what blocks hold; None where nobody asks.
    """

    def __init__(
        self,
        gpu: Gpu,
        settings: Settings,
        on_out_of_memory: Callable[[str, int], None],
        observers: tuple[Observer, ...] = (),
        trace: AllocationTrace | None = None,
    ) -> None:
        self.gpu = gpu
        self.context = Context(gpu)
        self.allocator = CachingAllocator(self.context, settings)
        self._on_out_of_memory = on_out_of_memory
        self.trace = trace
        self._observers = observers if trace is None else (*observers, trace)
        self._streams = threading.local()
        self._num_blocks = 0
        self._tried: set[Convolution] = set()
        self._held: dict[int, Held] = {}
        self._dead: deque[int] = deque()
        self._lock = threading.Lock()
        self._process = os.getpid()
        os.register_at_fork(after_in_child=self._leave_to_parent)

    @property
    def stream(self) -> int:
        """The number of the stream on which this thread works; 0 is the default one."""
        return getattr(self._streams, "number", 0)

    @stream.setter
    def stream(self, number: int) -> None:
        self._streams.number = number

    def register(self, tensor: Any) -> Held | None:
        """Give a tensor's storage its block, if it is new or has another size than before.

        Returns:
            The entry of a storage that was new; None for one that was known or is empty.

        Raises:
            torch.OutOfMemoryError: the GPU is full.
        """
        storage = tensor.untyped_storage()
        key, num_bytes = storage._cdata, storage.nbytes()
        held = self._held.get(key)
        if held is not None and held.reference() is not None:
            if held.num_bytes != num_bytes:
                self._resize(key, held, num_bytes)
            return None
        if num_bytes == 0:
            return None
        block = self.malloc(num_bytes)
        held = Held(block, num_bytes, weakref.ref(storage, lambda _: self._died(key)))
        self._held[key] = held
        return held

    def held(self, tensor: Any) -> Held | None:
        """The entry of a tensor's storage; None for a sparse tensor, which has several."""
        if tensor.layout is not torch.strided:
            return None
        return self._held.get(tensor.untyped_storage()._cdata)

    def address(self, storage: Any) -> int:
        """The made-up address of a storage on the device; 0 for an empty one."""
        held = self._held.get(storage._cdata)
        return held.block.start if held else 0

    def malloc(self, num_bytes: int) -> Block:
        """A block that belongs to no storage: a workspace or a temporary.

        Raises:
            torch.OutOfMemoryError: the GPU is full.
        """
        self.check_process()
        with self._lock:
            self._bury()
            try:
                block = self.allocator.malloc(num_bytes, self.stream)
                self._number(block, num_bytes)
                return block
            except OutOfMemory:
                pass
            finally:
                self._bury()
        self._refuse(num_bytes)

    def load_cudnn(self) -> None:
        """An operator of cuDNN runs.

        Raises:
            torch.OutOfMemoryError: the GPU has no room for what that adds to the context.
        """
        missing_bytes = self.context.load_cudnn()
        if missing_bytes:
            self.allocator.num_ooms += 1
            self._refuse(missing_bytes)

    def _refuse(self, num_bytes: int) -> NoReturn:
        message = self._full_message(num_bytes)
        self._on_out_of_memory(message, num_bytes)
        raise torch.OutOfMemoryError(message)

    def free(self, block: Block) -> None:
        """Return a block of :meth:`malloc`."""
        with self._lock:
            self._bury()
            self._free(block)
            self._bury()

    def mark(self, block: Block, kind: str) -> None:
        """Say what a block holds (`trace.KINDS`)."""
        if self.trace is not None:
            self.trace.kinds[block.number] = kind

    def mark_tensor(self, tensor: Any, kind: str) -> None:
        """Say what the block behind a tensor holds; nothing for one that has none here."""
        if self.trace is not None:
            held = self.held(tensor)
            if held is not None:
                self.trace.kinds[held.block.number] = kind

    def convolved(self, call: Convolution) -> None:
        """A convolution ran; its workspace is up to the observers.

        With cudnn.benchmark, cuDNN tries every plan of a call that is new, and PyTorch then gives the cache back, in
        which their workspaces were (``run_single_conv`` of ``Conv_v8.cpp``). One filter per channel is torch's own.
        """
        if call.benchmark and not call.depthwise and call not in self._tried:
            self._tried.add(call)
            self.empty_cache()
        with self._lock:
            self._bury()
            for observer in self._observers:
                observer.convolved(call)
            self._bury()

    def empty_cache(self) -> None:
        """Give the cached segments back to the GPU."""
        with self._lock:
            self._bury()
            self.allocator.empty_cache()
            for observer in self._observers:
                observer.emptied()
            self._bury()

    def settle(self) -> CachingAllocator:
        """The allocator, after every storage that died has been taken back."""
        with self._lock:
            self._bury()
            return self.allocator

    # --- storages that die ------------------------------------------------------------------------------------------

    def _died(self, key: int) -> None:
        """Called by the garbage collector, perhaps while this very thread allocates: so it never waits."""
        self._dead.append(key)
        if self._lock.acquire(blocking=False):
            try:
                self._bury()
            finally:
                self._lock.release()

    def _bury(self) -> None:
        while self._dead:
            held = self._held.pop(self._dead.popleft(), None)
            if held is not None:
                self._free(held.block)

    def _number(self, block: Block, num_bytes: int) -> None:
        self._num_blocks += 1
        block.number = self._num_blocks
        for observer in self._observers:
            observer.allocated(block.number, num_bytes, self.stream)

    def _free(self, block: Block) -> None:
        self.allocator.free(block)
        for observer in self._observers:
            observer.freed(block.number)

    def _resize(self, key: int, held: Held, num_bytes: int) -> None:
        held.known = None
        if num_bytes == 0:
            self._died(key)
            return
        block = self.malloc(num_bytes)
        self.free(held.block)
        held.block, held.num_bytes = block, num_bytes

    # --- processes --------------------------------------------------------------------------------------------------

    def check_process(self) -> None:
        """Refuse the device to a child of a process that has used it, in CUDA's words.

        Raises:
            RuntimeError: this is such a child.
        """
        if self._process != os.getpid():
            raise RuntimeError(
                "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must use the "
                "'spawn' start method"
            )

    def _leave_to_parent(self) -> None:
        """In a forked child, stop counting if the parent has used the GPU: storages that die there are not its own.

        As with CUDA, a child that was forked before may use it.
        """
        self._lock = threading.Lock()
        if self.context.claimed_bytes:
            self._dead = deque(maxlen=0)
        else:
            self._process = os.getpid()

    # --- what a full GPU says --------------------------------------------------------------------------------------

    def _full_message(self, num_bytes: int) -> str:
        """PyTorch's own words (``CUDACachingAllocator.cpp``), so that programs and people recognise them."""
        allocator, gpu = self.allocator, self.gpu
        others = "".join(
            f"Process {pid} has {_size(used)} memory in use. " for pid, used in gpu.processes() if pid != os.getpid()
        )
        cached = allocator.reserved.current - allocator.allocated.current
        return (
            f"CUDA out of memory. Tried to allocate {_size(num_bytes)}. GPU 0 has a total capacity of "
            f"{_size(gpu.total_bytes)} of which {_size(gpu.free_bytes)} is free. {others}"
            f"Including non-PyTorch memory, this process has {_size(self.context.claimed_bytes)} memory in use. "
            f"Of the allocated memory {_size(allocator.allocated.current)} is allocated by PyTorch, and "
            f"{_size(cached)} is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
            "setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for "
            "Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )


def _size(num_bytes: int) -> str:
    """Format a size as c10's ``format_size`` does."""
    if num_bytes <= 1024:
        return f"{num_bytes} bytes"
    if num_bytes <= MIB:
        return f"{num_bytes / 1024:.2f} KiB"
    if num_bytes <= GIB:
        return f"{num_bytes / MIB:.2f} MiB"
    return f"{num_bytes / GIB:.2f} GiB"
