# SPDX-License-Identifier: Apache-2.0
"""Tensors and modules that move between host and emulated device and stay the same Python objects.

A fake tensor cannot take the place of a real one's data, as ``parameter.data = ...`` asks for. Where one would become
the other, the two Python objects exchange what is behind them, so that optimizers, tied weights, hooks and weak
references keep what they refer to. Lazy parameters and subclasses of tensors are part of this.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .dispatch import Emulator

# What torch itself wrote onto a fake tensor; everything else in its __dict__ is the program's.
FAKE_TENSOR_ATTRIBUTES = {"fake_device", "fake_mode", "constant", "pytype", "dispatch_keys", "real_tensor"}

WISHED = "_colocate_wished"  # device and type that a lazy parameter is to have once its shape is known


def install_moving(emulator: Emulator) -> None:
    """Patch modules, ``Tensor.data``, lazy parameters and subclasses in this process."""
    memo = emulator.fake_mode.fake_tensor_converter.meta_converter

    def forget() -> None:
        """Drop what the fake mode remembers of tensors that are about to be exchanged."""
        memo.tensor_memo.clear()
        memo.storage_memo.clear()

    _move_modules(forget)
    _assign_data(forget)
    _materialise_lazily()
    _keep_subclasses()
    FakeTensor.__deepcopy__ = deep_copy


def exchange(one: Any, other: Any) -> None:
    """Exchange class, attributes and content of two tensors, whoever refers to them.

    ``torch.utils.swap_tensors`` does the same and refuses tensors with weak references.
    """
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _move_modules(forget: Callable[[], None]) -> None:
    """Moved parameters stay the same objects, as on a GPU; plain torch would make new ones."""

    def apply(module: torch.nn.Module, function: Callable[[Any], Any], recurse: bool = True) -> torch.nn.Module:
        if recurse:
            for child in module.children():
                child._apply(function, recurse)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _moved(parameter, function, forget)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                lazy = isinstance(buffer, UninitializedTensorMixin)
                module._buffers[name] = _wish(buffer, function) if lazy else function(buffer)
        return module

    torch.nn.Module._apply = apply
    # cuDNN's one buffer for all weights of a recurrent layer is not modelled.
    torch.nn.RNNBase.flatten_parameters = lambda self: None


def _moved(parameter: Any, function: Callable[[Any], Any], forget: Callable[[], None]) -> Any:
    """The same parameter with the data that the function makes of it."""
    if isinstance(parameter, UninitializedTensorMixin):
        return _wish(parameter, function)
    gradient = parameter.grad
    with torch.no_grad():
        data = function(parameter)
        moved_gradient = function(gradient) if gradient is not None else None
    if data is parameter:
        return parameter
    if isinstance(data, FakeTensor) or isinstance(parameter, FakeTensor):
        parameter.grad = gradient = None
        _replace(parameter, data, forget)
    else:
        parameter.data = data
    if moved_gradient is not None:
        parameter.grad = moved_gradient.requires_grad_(False)
    return parameter


def _replace(tensor: Any, data: Any, forget: Callable[[], None]) -> None:
    """Let a tensor have other data, of the other kind or on the other device."""
    requires_grad, attributes = tensor.requires_grad, dict(tensor.__dict__)
    data = data.detach()
    if isinstance(tensor, torch.nn.Parameter):
        replacement = torch.nn.Parameter(data, requires_grad=requires_grad)
    else:
        replacement = data.requires_grad_(requires_grad)
    del data
    forget()
    exchange(tensor, replacement)
    for name, value in attributes.items():  # HF marks tied or decayed parameters
        if name not in tensor.__dict__ and name not in FAKE_TENSOR_ATTRIBUTES:
            setattr(tensor, name, value)


def _assign_data(forget: Callable[[], None]) -> None:
    """``tensor.data = other`` also where one lies on the host and the other on the emulated device."""
    data = torch._C.TensorBase.data

    def get(tensor: Any) -> Any:
        return data.__get__(tensor)

    def assign(tensor: Any, value: Any) -> None:
        if isinstance(tensor, FakeTensor) == isinstance(value, FakeTensor):
            data.__set__(tensor, value)
        else:
            _replace(tensor, value, forget)

    torch.Tensor.data = property(get, assign)


# --- lazy parameters --------------------------------------------------------------------------------------------------


def _wish(tensor: Any, function: Callable[[Any], Any]) -> Any:
    """A lazy parameter or buffer, which has no data to be moved, remembers where it is to be."""
    sample = function(torch.empty(0, dtype=tensor.data.dtype))
    tensor.__dict__[WISHED] = sample.device, sample.dtype
    return tensor


def _materialise_lazily() -> None:
    materialise = UninitializedTensorMixin.materialize

    def materialise_as_wished(tensor: Any, shape: Any, device: Any = None, dtype: Any = None) -> None:
        wished_device, wished_dtype = tensor.__dict__.pop(WISHED, (None, None))
        device, dtype = device or wished_device, dtype or wished_dtype
        if device is None or torch.device(device).type != "cuda":
            materialise(tensor, shape, device, dtype)
        else:
            tensor.data = torch.empty(shape, device=device, dtype=dtype or tensor.data.dtype)

    UninitializedTensorMixin.materialize = materialise_as_wished


# --- subclasses -------------------------------------------------------------------------------------------------------

_subclasses: dict[type, type] = {}


def _emulated(kind: type) -> type:
    """A subclass of tensors whose instances are fake as well."""
    if kind is torch.Tensor or issubclass(kind, FakeTensor):
        return FakeTensor if kind is torch.Tensor else kind
    if kind not in _subclasses:
        made = types.new_class(kind.__name__, (kind, FakeTensor), {}, lambda body: None)
        made.__module__, made.__qualname__ = kind.__module__, kind.__qualname__
        _subclasses[kind] = made
    return _subclasses[kind]


def _keep_subclasses() -> None:
    """``as_subclass`` of a fake tensor: MONAI, fastai, Kornia and torchvision mark their images with it."""
    as_subclass, make_subclass = torch.Tensor.as_subclass, torch.Tensor._make_subclass

    def as_emulated_subclass(tensor: Any, kind: type) -> Any:
        if not isinstance(tensor, FakeTensor):
            return as_subclass(tensor, kind)
        with torch._C.DisableTorchFunctionSubclass():
            made = torch.ops.aten.alias.default(tensor)
        made.__class__ = _emulated(kind)
        return made

    def make_emulated_subclass(kind: type, data: Any, require_grad: bool = False, **options: Any) -> Any:
        if not isinstance(data, FakeTensor):
            return make_subclass(kind, data, require_grad, **options)
        with torch._C.DisableTorchFunctionSubclass():
            made = data.detach().requires_grad_(require_grad)
        if kind is torch.nn.Parameter:
            made._is_param = True
        else:
            made.__class__ = _emulated(kind)
        return made

    torch.Tensor.as_subclass = as_emulated_subclass
    # torch._dynamo compares the signature of what it finds here with its own.
    torch.Tensor._make_subclass = staticmethod(lambda *args, **kwargs: make_emulated_subclass(*args, **kwargs))


def deep_copy(tensor: Any, memo: dict[int, Any]) -> Any:
    """A copy with memory of its own and the same role, as ``Tensor.__deepcopy__`` makes it."""
    if id(tensor) in memo:
        return memo[id(tensor)]
    if not tensor.is_leaf:
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol at the moment.")
    with torch.no_grad():
        copy = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, requires_grad=tensor.requires_grad)
    else:
        copy.requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = copy
    if tensor.grad is not None:
        copy.grad = deep_copy(tensor.grad, memo)
    return copy
