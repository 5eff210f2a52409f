# SPDX-License-Identifier: Apache-2.0
"""Makes a torch without a GPU believe that a CUDA device exists, so that fake tensors can live on it.

Owns the only code that touches torch's memory: about three pointers, through ctypes. Forward and backward of fake
``cuda`` tensors need a device guard and two or three answers of the CUDA hooks ("is CUDA built?", "is there a
context?"); a CPU build has neither, a CUDA build without a driver has a guard that asks the driver. Both get ours, one
function of machine code that says 1 to everything. Everything here is private to torch, so `emulation` proves that it
works before a program relies on it; `scripts/torch-versions` tries the range.
"""

import ctypes
import mmap
import platform
import sys
from pathlib import Path

import torch

OLDEST = (2, 4)
NEWEST_TRIED = (2, 14)
CUDA = 1  # c10::DeviceType::CUDA

GUARD_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
GET_CUDA_HOOKS = "_ZN2at6detail12getCUDAHooksEv"  # at::detail::getCUDAHooks()

POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
VTABLE_HEADER = 2  # Itanium C++ ABI: offset to top and type information precede the functions
VTABLE_FUNCTIONS = 80  # more than AcceleratorHooksInterface and CUDAHooksInterface have together

# mov eax, 1; xor edx, edx; ret: the type CUDA, one device, true, and by System V's rules for small structures also the
# device cuda:0 and its default stream. Whatever a guard is asked for, that is an answer.
ONE = bytes((0xB8, 1, 0, 0, 0, 0x31, 0xD2, 0xC3))

# Slots of the questions in ATen/detail/AcceleratorHooksInterface.h, from a version on; those of 2.4 and 2.5 that ask
# whether there is CUDA at all are in CUDAHooksInterface.h.
YES_SLOTS = {(2, 4): (2, 12), (2, 6): (2, 4)}  # hasPrimaryContext and hasCUDA; isBuilt and hasPrimaryContext


def _keep_forever(*objects: object) -> None:
    """Torch points to these from now on, and still does when the interpreter takes its modules down."""
    for one in objects:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(one))


class GuardError(Exception):
    """This torch, or this machine, is not one that the emulation knows how to prepare."""


def install() -> None:
    """Prepare this process; a second call changes nothing.

    Raises:
        GuardError: the machine or torch's layout is not the expected one.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        found = f"{sys.platform} on {platform.machine()}"
        raise GuardError(f"virtual GPU: expected Linux on x86-64, found {found}")
    version = torch_version()
    if version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise GuardError(f"virtual GPU: expected torch {oldest} or newer, found {torch.__version__}")
    try:
        one = _executable(ONE)
        _install_guard(one)
        _answer_hooks(one, YES_SLOTS[max(known for known in YES_SLOTS if known <= version)])
    except (OSError, ValueError, AttributeError) as error:
        raise GuardError(f"virtual GPU: expected torch's known layout, found {error}") from error
    if not _accelerator_is_cuda():
        raise GuardError(f"virtual GPU: expected torch to report a CUDA device, torch {torch.__version__} does not")


def torch_version() -> tuple[int, int]:
    """Major and minor version of the torch at hand."""
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _accelerator_is_cuda() -> bool:
    """Ask torch, which can tell since 2.6 and says nothing instead of raising since 2.7; before, `prove` finds out."""
    if torch_version() < (2, 7):
        return True
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == "cuda"


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def _executable(code: bytes) -> int:
    """The address of machine code in memory of its own, which can be run and not written any more.

    Raises:
        OSError: the system allows no such memory.
    """
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    memory.write(code)
    _keep_forever(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory that cannot be made executable")
    return address


def _install_guard(one: int) -> None:
    """Register a guard for CUDA all of whose functions are the same."""
    registry = (ctypes.c_void_p * 32).in_dll(_library("libc10.so"), GUARD_REGISTRY)
    vtable = (ctypes.c_void_p * 64)(*([one] * 64))
    instance = (ctypes.c_void_p * 4)(ctypes.addressof(vtable))
    _keep_forever(vtable, instance)
    registry[CUDA] = ctypes.addressof(instance)


def _answer_hooks(one: int, slots: tuple[int, ...]) -> None:
    """Give the CUDA hooks a copy of their own vtable in which some functions say yes."""
    get_hooks = getattr(_library("libtorch_cpu.so"), GET_CUDA_HOOKS)
    get_hooks.restype, get_hooks.argtypes = ctypes.c_void_p, []
    hooks = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    original = hooks[0]
    size = VTABLE_HEADER + VTABLE_FUNCTIONS
    source = (ctypes.c_void_p * size).from_address((original or 0) - VTABLE_HEADER * POINTER_BYTES)
    vtable = (ctypes.c_void_p * size)(*source)
    for slot in slots:
        vtable[VTABLE_HEADER + slot] = one
    _keep_forever(vtable)
    hooks[0] = ctypes.addressof(vtable) + VTABLE_HEADER * POINTER_BYTES
    if not _accelerator_is_cuda():
        hooks[0] = original
