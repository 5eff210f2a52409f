# SPDX-License-Identifier: Apache-2.0
"""Runs every operator: the host's for real, the device's as shapes, with what they allocate.

Owns the order of events inside one operator: copies of operands, results, workspace, release. Which operators need
what is known in `operators`, true values in `values`, blocks in `memory`.
"""

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import fake_impls, fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
    unset_fake_temporarily,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..coverage.decisions import Decisions, calling_frame, place_of
from ..record import Record
from . import operators, sparse
from .kernels import ONE_KERNEL
from .memory import DeviceMemory
from .shapes import KnownShapes
from .trace import WORKSPACES
from .values import KnownValues

aten = torch.ops.aten

_DEVICE_OF = torch.ops.prim.device.default

HALF = (torch.float16, torch.bfloat16)

NO_FAKE_KERNEL = (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)


class UnsupportedError(RuntimeError):
    """The program does something that has no counterpart on the emulated device."""


# The most that is computed on the host to learn the shape of a result.
MOST_COMPUTED_BYTES = 1 << 28


def compute_on_host(fake_mode: Any, function: Any, flat_args: Any, structure: Any, refused: Exception) -> Any:
    """In place of torch's ``run_fallback_kernel``: an operator without a fake kernel tells its shapes on the host.

    It computes with zeros, on the CPU and not on a device that is not there.
    """
    mutates = any(one.alias_info is not None for one in function._schema.arguments)
    if mutates or torch.Tag.inplace_view in function.tags or not _is_cheap_on_host(flat_args):
        raise refused
    with unset_fake_temporarily(), torch._C._DisableTorchDispatch():
        args, kwargs = pytree.tree_unflatten(list(map(_zeros_on_host, flat_args)), structure)
        try:
            found = function(*args, **kwargs)
        except Exception as error:
            raise refused from error

    def on_device(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        return torch.empty_strided(one.size(), one.stride(), dtype=one.dtype, device=operators.DEVICE)

    with fake_mode:
        return pytree.tree_map(on_device, found)


def fails_on_host(function: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator that raised here does so on the CPU too, with zeros: then a GPU would refuse it as well."""
    flat_args, structure = pytree.tree_flatten((args, kwargs))
    if not _is_cheap_on_host(flat_args):
        return False
    with unset_fake_temporarily(), torch._C._DisableTorchDispatch():
        host_args, host_kwargs = pytree.tree_unflatten(list(map(_zeros_on_host, flat_args)), structure)
        try:
            function(*host_args, **host_kwargs)
        except Exception:
            return True
    return False


def _is_cheap_on_host(flat_args: Any) -> bool:
    return sum(operators.size_bytes(one) for one in flat_args if isinstance(one, FakeTensor)) <= MOST_COMPUTED_BYTES


def _zeros_on_host(one: Any) -> Any:
    if isinstance(one, FakeTensor):
        return torch.zeros(tuple(one.shape), dtype=one.dtype)
    return torch.device("cpu") if isinstance(one, torch.device) else one


fake_impls.run_fallback_kernel = fake_tensor.run_fallback_kernel = compute_on_host


class Emulator:
    """The emulated device of this process, shared by all its threads."""

    def __init__(self, memory: DeviceMemory, record: Record, workspace_bytes: int) -> None:
        self.memory = memory
        self.record = record
        self.decisions = Decisions(record, self.assume_more)
        self.values = KnownValues(memory, self.decisions)
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.fake_mode.cache_enabled = False  # its memory of results costs more than it saves behind ours
        self._shapes = KnownShapes(self.fake_mode)
        self.moved: Callable[[Any], None] = lambda tensor: None  # told of each tensor of the host that comes
        self._workspace_bytes = workspace_bytes
        self._handles_with_workspace: set[tuple[int, int]] = set()

    @property
    def workspaces_bytes(self) -> int:
        """Return the workspaces that cuBLAS handles hold by now."""
        return self._workspace_bytes * len(self._handles_with_workspace)

    def run(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Do one operator that concerns the device."""
        try:
            return self._run(function, types, args, kwargs)
        except (torch.OutOfMemoryError, UnsupportedError):
            raise
        except Exception as error:
            if "error_raised" not in self.record.fields and not fails_on_host(function, args, kwargs):
                self._note_error(function, error)
            raise

    def _note_error(self, function: Any, error: Exception) -> None:
        """A program that goes on after an error here may have left out what a GPU would have done."""
        frame = calling_frame()
        if frame is not None:
            text = f"{function} raised {type(error).__name__} at {place_of(frame)}, and the program went on"
            self.record.fields["error_raised"] = text

    def _run(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function in HOST_READS:
            answer = HOST_READS[function](self, args, kwargs)
            if answer is not NotImplemented:
                return answer
        elif operators.is_plain(function):
            known = self._shapes.known(function, args, kwargs)
            if known is not NotImplemented:
                return self._followed(function, args, kwargs, known)
        if sparse.concerns(args):
            result = sparse.run(self, function, args, kwargs, operators.DEVICE)
            if result is not NotImplemented:
                return result
        copies = [self.memory.malloc(num_bytes) for num_bytes in operators.copies_before(function, args)]
        try:
            result = self._followed(function, args, kwargs, self._compute(function, types, args, kwargs))
            self._take_workspace(function, args, kwargs, result)
            return result
        finally:
            for block in copies:
                self.memory.free(block)

    def _followed(self, function: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """The same results, with memory, and with their values as far as the host knows them."""
        fresh: list[Any] = []
        result = self._registered(result, fresh)
        self.values.follow(function, args, kwargs, fresh, result)
        return result

    def mode(self) -> "EmulationMode":
        """A context within which operators of this thread are emulated, for use inside an operator."""
        return EmulationMode(self)

    def unsupported(self, reason: str) -> UnsupportedError:
        """An error to raise, after the record and the terminal have been told."""
        self.record.fields["unsupported"] = self.record.fields["unsupported"] or reason
        self.record.write()
        print(f"colocate: not emulated: {reason}; it needs a real GPU", file=sys.stderr, flush=True)
        return UnsupportedError(reason)

    def assume_more(self) -> None:
        """From now on the program may hold less on a GPU: what it has held until now stays certain."""
        if self.record.fields.get("certain_reserved_bytes") is None:
            self.record.fields["certain_reserved_bytes"] = self.memory.allocator.reserved.highest

    def _compute(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if operators.returns_nothing(function):
            return None
        try:
            selection = operators.selection(function, args)
            if selection is not None:
                with self.fake_mode:
                    return selection(self._count, *args, **kwargs)
            replacement = operators.replacement(function)
            if replacement is not None:
                if (known := self._by_values(function, args, kwargs)) is not None:
                    return known
                self._note_upper_bound(function)
                with self.fake_mode:
                    return replacement(*args, **kwargs)
            args = _with_stand_ins(self, function, args)
            return self._shapes.dispatch(function, types, args, kwargs)
        except NO_FAKE_KERNEL as error:
            if (values := self.values.compute(function, args, kwargs)) is not None:  # the host can tell the size
                with self.fake_mode:
                    return operators.empty(tuple(values.shape), values.dtype)
            reason = f"expected operators with a fake kernel, found {function} ({type(error).__name__})"
            raise self.unsupported(reason) from error

    def _by_values(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Results whose size depends on values, where all values are known; None otherwise."""
        if operators.operator_name(function) not in operators.BY_VALUES:
            return None
        found = self.values.compute_all(function, args, kwargs)
        if found is None:
            return None
        with self.fake_mode:
            made = [operators.empty(tuple(one.shape), one.dtype) for one in found]
        for one, values in zip(self._registered(made, []), found, strict=True):
            self.values.remember(one, values)
        return made[0] if len(made) == 1 else tuple(made)

    def _count(self, mask: Any) -> int:
        """Elements of a mask that are set, or all of them where nobody knows."""
        with unset_fake_temporarily():
            known = self.values.of(mask) if isinstance(mask, FakeTensor) else mask
            if known is not None:
                return int(known.count_nonzero())
        self.record.note("upper bound assumed for a selection by values that are not known")
        self.assume_more()
        return int(mask.numel())

    def _note_upper_bound(self, function: Any) -> None:
        name = operators.operator_name(function)
        if name in operators.UPPER_BOUNDS:
            self.record.note(f"upper bound assumed for the result of {name}")
            self.assume_more()

    def _registered(self, result: Any, fresh: list[Any]) -> Any:
        """The same results, their new storages having blocks now; what lies on the host becomes a real tensor."""
        if isinstance(result, FakeTensor):
            if result.fake_device.type != "cuda":
                return self._host_tensor(result)
            if result.layout is not torch.strided:
                for part in sparse.parts(result):
                    self.memory.register(part)
                return result
            if self.memory.register(result) is not None:
                fresh.append(result)
            return result
        if type(result) in (tuple, list):
            return type(result)(self._registered(one, fresh) for one in result)
        return result

    def _host_tensor(self, tensor: Any) -> Any:
        fill = 1 if tensor.dtype.is_floating_point or tensor.dtype.is_complex else 0
        return torch.full(tuple(tensor.shape), fill, dtype=tensor.dtype)

    def _take_workspace(self, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        if function in operators.CUDNN and torch.backends.cudnn.enabled:
            self.memory.load_cudnn()
        if function in operators.MATRIX_PRODUCTS:
            if result.dtype in HALF:
                self.record.fields["half"] = True
            # One workspace per cuBLAS handle and stream; the backward pass has a thread and a handle of its own.
            if (handle := (threading.get_ident(), self.memory.stream)) not in self._handles_with_workspace:
                self._handles_with_workspace.add(handle)
                self.memory.mark(self.memory.malloc(self._workspace_bytes), WORKSPACES)
        elif function in operators.CONVOLUTIONS:
            self.record.fields["convolutions"] = True
            if torch.backends.cudnn.benchmark:
                self.record.note("cudnn.benchmark is on: every plan is tried, with the largest workspace among them")
            self.memory.convolved(operators.convolution(function, args, result))
        elif num_bytes := operators.workspace_after(function, args, kwargs):
            self.memory.mark(block := self.memory.malloc(num_bytes), WORKSPACES)
            self.memory.free(block)


class EmulationMode(TorchDispatchMode):  # type: ignore[misc]  # torch is untyped here
    """Sends operators of one thread to the emulator if a tensor or the wished device is the emulated one."""

    def __init__(self, emulator: Emulator) -> None:
        super().__init__()
        self._emulator = emulator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch for every operator below autograd."""
        if func is _DEVICE_OF and isinstance(args[0], FakeTensor):  # most calls: torch asks where a tensor is
            return args[0].device
        if _is_composed(func):
            with self:  # autograd, which takes such an operator apart, is not there in inference mode, nor behind it
                return func.decompose(*args, **(kwargs or {}))
        inference = torch.is_inference_mode_enabled()
        if inference and func.is_view and isinstance(args[0], FakeTensor) and not args[0].is_inference():
            with torch.inference_mode(False), torch.no_grad():  # a view is what its base is
                return self._emulator.run(func, types, args, kwargs or {})
        if any(map(_takes_operators_apart, types)):
            return NotImplemented  # its own code is next, and what that calls comes here
        for one in types:
            if issubclass(one, FakeTensor):
                return self._emulator.run(func, types, args, kwargs or {})
        if kwargs:
            if kwargs.get("pin_memory"):  # needs a driver; for a GPU's memory it makes no difference
                kwargs = {**kwargs, "pin_memory": False}
            device = kwargs.get("device")
            if device is not None and _is_emulated(torch.device(device)):
                return self._emulator.run(func, types, args, kwargs)
        if self._emulator.values.on_host:
            return self._emulator.values.run_on_host(func, args, kwargs or {})
        return func(*args, **kwargs) if kwargs else func(*args)


@functools.cache
def _is_composed(function: Any) -> bool:
    """Say whether an operator is made of others and has no kernel of its own on a GPU."""
    composed = "CompositeImplicitAutograd"
    known = function.namespace == "aten" and function.name().removeprefix("aten::") not in ONE_KERNEL
    return bool(known and torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), composed))


@functools.cache
def _takes_operators_apart(kind: Any) -> bool:
    """Tell whether a kind of tensor stands for others, as quantised weights and 8-bit optimizer states do."""
    return not issubclass(kind, FakeTensor) and kind.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl


def wrong_device(index: int) -> Exception:
    """What CUDA says to a number that no GPU has, and why there is none."""
    kind: type[Exception] = getattr(torch, "AcceleratorError", RuntimeError)
    return kind(
        f"CUDA error: invalid device ordinal\ncolocate: the program asks for cuda:{index}; a training sees one GPU, "
        "cuda:0, on a virtual one and on a real one"
    )


def _is_emulated(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    if device.index:
        raise wrong_device(device.index)
    return True


def _with_stand_ins(emulator: Emulator, function: Any, args: Any) -> Any:
    """Arguments of a transfer or a factory, in which host tensors are replaced by fake ones without data."""
    if not args or not isinstance(args[0], torch.Tensor) or isinstance(args[0], FakeTensor):
        return args
    if len(args) > 1 and any(isinstance(arg, FakeTensor) for arg in args[1:]):
        return args
    real = args[0]
    emulator.moved(real)
    with emulator.fake_mode:
        stand_in = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device="cpu")
    return (stand_in, *args[1:])


# --- operators that bring something to the host ---------------------------------------------------------------------


def _equal(emulator: Emulator, args: Any, kwargs: Any) -> Any:
    return emulator.values.equal(args[0], args[1])


def _copy(emulator: Emulator, args: Any, kwargs: Any) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, FakeTensor):
        return target.copy_(emulator.values.read(source))
    if not isinstance(source, FakeTensor):  # host to device, into memory that is already there
        emulator.values.follow(aten.copy_.default, args, kwargs, [], target)
        return target
    return NotImplemented


def _to_host(emulator: Emulator, args: Any, kwargs: Any) -> Any:
    device = kwargs.get("device")
    if device is None or torch.device(device).type != "cpu":
        return NotImplemented
    values = emulator.values.read(args[0])
    dtype = kwargs.get("dtype") or args[0].dtype
    return (
        values
        if values.dtype is dtype
        else emulator.values.run_on_host(aten._to_copy.default, (values,), {"dtype": dtype})
    )


HOST_READS = {
    aten._local_scalar_dense.default: lambda emulator, args, kwargs: emulator.values.scalar(args[0]),
    aten.equal.default: _equal,
    aten.allclose.default: _equal,
    aten.copy_.default: _copy,
    aten._to_copy.default: _to_host,
}
