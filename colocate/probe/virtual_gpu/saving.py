# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of tensors without data: a file holds shapes, and known values where there are any.

Real tensors are saved as ever. A file with fake tensors can be loaded by any process under the emulation, and by no
other.
"""

import contextvars
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from ..overlay import redirected
from .dispatch import Emulator
from .operators import DEVICE

_map_location: contextvars.ContextVar[Any] = contextvars.ContextVar("map_location", default=None)


def install_saving(emulator: Emulator) -> None:
    """Teach ``torch.save`` and ``torch.load`` to deal with the emulated device."""

    def reduce(tensor: Any, protocol: Any) -> Any:
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        known = emulator.values.of(tensor.detach())
        shape = tuple(tensor.shape), tuple(tensor.stride())
        return rebuild, (*shape, tensor.dtype, tensor.requires_grad, is_parameter, known)

    FakeTensor.__reduce_ex__ = reduce
    torch.serialization.add_safe_globals([rebuild])
    load_real = torch.load

    save_real = torch.save

    def save(obj: Any, f: Any, *args: Any, **kwargs: Any) -> None:
        save_real(obj, redirected(f, writes=True), *args, **kwargs)

    torch.save = save

    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        origins: dict[int, str] = {}

        def keep_on_host(storage: Any, origin: str) -> Any:
            origins[storage._cdata] = origin
            return storage

        token = _map_location.set(map_location)
        try:
            loaded = load_real(redirected(f), keep_on_host, *args, **kwargs)
        finally:
            _map_location.reset(token)

        def place(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
                return value
            origin = origins.get(value.untyped_storage()._cdata, "cpu")
            return value.to(DEVICE) if target(map_location, origin) == "cuda" else value

        return pytree.tree_map(place, loaded)

    torch.load = load
    for name, writes in (("save", True), ("load", False)):
        setattr(torch.jit, name, _redirected(getattr(torch.jit, name), position=int(writes), writes=writes))
    torch.jit.ScriptModule.save = _redirected(torch.jit.ScriptModule.save, position=1, writes=True)


def _redirected(function: Any, *, position: int, writes: bool) -> Any:
    """The function with the path among its arguments replaced by where the program's files are."""

    def call(*args: Any, **kwargs: Any) -> Any:
        given = list(args)
        if len(given) > position:
            given[position] = redirected(given[position], writes=writes)
        if "f" in kwargs:
            kwargs["f"] = redirected(kwargs["f"], writes=writes)
        return function(*given, **kwargs)

    return call


def rebuild(
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    dtype: torch.dtype,
    requires_grad: bool,
    is_parameter: bool,
    known: torch.Tensor | None,
) -> torch.Tensor:
    """A tensor of a checkpoint again, on the device that ``map_location`` names."""
    device = DEVICE if target(_map_location.get(), "cuda:0") == "cuda" else torch.device("cpu")
    tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
    if known is not None:
        tensor.copy_(known)
    elif device.type == "cpu":
        tensor.fill_(1)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad=requires_grad)
    return tensor.requires_grad_(requires_grad)


def target(map_location: Any, origin: str) -> str:
    """``"cuda"`` or ``"cpu"``: where a tensor from ``origin`` goes. A function is taken to mean the host."""
    if isinstance(map_location, dict):
        map_location = map_location.get(origin)
    if map_location is None:
        return origin.partition(":")[0]
    if callable(map_location):
        return "cpu"
    return str(torch.device(map_location).type)
