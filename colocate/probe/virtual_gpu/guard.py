"""Makes a torch without a GPU believe that a CUDA device may exist, so that fake tensors can live on it.

Owns the only code that touches torch's memory: about three pointers, through ctypes. Forward and backward of fake
``cuda`` tensors need a device guard and two answers of the CUDA hooks ("is CUDA built?", "is there a context?"); a
CPU build has neither, a CUDA build without a driver lacks the answers. Tried on Linux x86-64 with torch 2.11 to 2.15;
everything here is private to torch, so `emulation` proves that it works before a program relies on it.
"""

import ctypes
import platform
import sys
from pathlib import Path

import torch

CUDA = 1  # c10::DeviceType::CUDA

GUARD_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
GET_CUDA_HOOKS = "_ZN2at6detail12getCUDAHooksEv"  # at::detail::getCUDAHooks()

POINTER_BYTES = ctypes.sizeof(ctypes.c_void_p)
VTABLE_HEADER = 2  # Itanium C++ ABI: offset to top and type information precede the functions
VTABLE_FUNCTIONS = 80  # more than AcceleratorHooksInterface and CUDAHooksInterface have together
IS_BUILT, HAS_PRIMARY_CONTEXT = 2, 4  # slots in AcceleratorHooksInterface.h
GUARD_TYPE = 2  # slot of DeviceGuardImplInterface::type(), behind the two destructors; for CUDA it returns 1


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
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        raise GuardError(f"virtual GPU: expected torch 2.11 or newer, found {torch.__version__}")
    try:
        _answer_hooks(_install_guard())
    except (OSError, ValueError, AttributeError) as error:
        raise GuardError(f"virtual GPU: expected torch's known layout, found {error}") from error
    if not _accelerator_is_cuda():
        raise GuardError(f"virtual GPU: expected torch to report a CUDA device, torch {torch.__version__} does not")


def _accelerator_is_cuda() -> bool:
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type == "cuda"


def _library(name: str) -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))


def _install_guard() -> int:
    """The address of a CUDA device guard that does nothing.

    torch brings one (``FakeGuardImpl``) and installs it where a registered guard sees no device. On a CPU build none
    is registered, so a placeholder is registered first, all of whose functions return 0.
    """
    registry = (ctypes.c_void_p * 32).in_dll(_library("libc10.so"), GUARD_REGISTRY)
    torch._C._ensureCUDADeviceGuardSet()
    if not registry[CUDA]:
        placeholder = _object_without_devices()
        registry[CUDA] = placeholder
        torch._C._ensureCUDADeviceGuardSet()
        if registry[CUDA] == placeholder:
            registry[CUDA] = None
            raise ValueError("no fake device guard")
    return int(registry[CUDA] or 0)


def _object_without_devices() -> int:
    returns_zero = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda this: 0)
    function = ctypes.cast(returns_zero, ctypes.c_void_p).value
    vtable = (ctypes.c_void_p * 64)(*([function] * 64))
    instance = (ctypes.c_void_p * 4)(ctypes.addressof(vtable))
    _keep_forever(returns_zero, vtable, instance)
    return ctypes.addressof(instance)


def _answer_hooks(guard: int) -> None:
    """Give the CUDA hooks a copy of their own vtable in which two functions say yes.

    ``FakeGuardImpl<CUDA>::type()`` compiles to "return 1", which serves as both: no compiler is needed.
    """
    get_hooks = getattr(_library("libtorch_cpu.so"), GET_CUDA_HOOKS)
    get_hooks.restype, get_hooks.argtypes = ctypes.c_void_p, []
    hooks = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    functions = ctypes.cast(ctypes.c_void_p.from_address(guard).value or 0, ctypes.POINTER(ctypes.c_void_p))
    original = hooks[0]
    size = VTABLE_HEADER + VTABLE_FUNCTIONS
    source = (ctypes.c_void_p * size).from_address((original or 0) - VTABLE_HEADER * POINTER_BYTES)
    vtable = (ctypes.c_void_p * size)(*source)
    vtable[VTABLE_HEADER + IS_BUILT] = vtable[VTABLE_HEADER + HAS_PRIMARY_CONTEXT] = functions[GUARD_TYPE]
    _keep_forever(vtable)
    hooks[0] = ctypes.addressof(vtable) + VTABLE_HEADER * POINTER_BYTES
    if not _accelerator_is_cuda():
        hooks[0] = original
