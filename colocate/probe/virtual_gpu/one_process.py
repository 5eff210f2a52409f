# SPDX-License-Identifier: Apache-2.0
"""``torch.distributed`` with one process: what ``torchrun`` starts on a machine with one GPU.

All collectives of one process leave every tensor as it is, or copy it. gloo stands in for NCCL, whose own buffers are
not modelled. Several processes that exchange tensors of the device are refused.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from ..overlay import redirected
from .dispatch import Emulator

LEAVE = ("all_reduce", "broadcast", "reduce", "all_reduce_coalesced", "isend", "irecv")
# Collectives that write their first argument from their second.
COPY = (
    "all_gather",
    "all_gather_into_tensor",
    "_all_gather_base",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "_reduce_scatter_base",
    "all_to_all",
    "all_to_all_single",
    "scatter",
)


def install_one_process(emulator: Emulator) -> None:
    """Patch ``torch.distributed`` in this process, where the build has it."""
    if not dist.is_available():
        return
    _initialise(emulator)
    for name in LEAVE:
        _replace(name, lambda *args: None)
    for name in COPY:
        _replace(name, _copy)
    _replace("gather", lambda tensor, into=None, *args: _copy(into, tensor) if into else None)
    _exchange_objects()
    _replace_reducer()


class Done:
    """The handle of a collective that is over."""

    def wait(self, *args: Any) -> bool:
        """It is over."""
        return True

    def is_completed(self) -> bool:
        """It is over."""
        return True

    def get_future(self) -> Any:
        """A future that is done."""
        future: Any = torch.futures.Future()
        future.set_result([])
        return future


def _set(name: str, function: Any) -> None:
    for module in (dist, dist.distributed_c10d):
        if hasattr(module, name):
            setattr(module, name, function)


def _initialise(emulator: Emulator) -> None:
    initialise, backend_of = dist.init_process_group, dist.get_backend
    asked: list[str] = []

    def initialise_one(backend: Any = None, init_method: Any = None, *args: Any, **options: Any) -> None:
        given = args[1] if len(args) > 1 else options.get("world_size", -1)
        size = given if given != -1 else int(os.environ.get("WORLD_SIZE", "-1"))
        of_device = backend is None or "nccl" in str(backend).lower()
        if size != 1 and of_device:
            found = f"{size} processes" if size > 1 else "an unknown number of processes"
            raise emulator.unsupported(f"expected a program of one process, found {found} of torch.distributed")
        if size != 1:
            initialise(backend, init_method, *args, **options)
            return
        if isinstance(init_method, str) and init_method.startswith("file://"):
            init_method = f"file://{redirected(init_method.removeprefix('file://'), writes=True, keep=True)}"
        options.pop("device_id", None)
        options.pop("pg_options", None)
        if of_device:
            emulator.record.note("one process of torch.distributed: the buffers of NCCL are not modelled")
        initialise("gloo", init_method, *args, **options)
        asked[:] = [str(backend or "nccl").lower()]

    def backend_asked_for(group: Any = None) -> str:
        return asked[0] if asked else backend_of(group)

    _set("init_process_group", initialise_one)
    _set("get_backend", backend_asked_for)
    _set("is_nccl_available", lambda: True)
    barrier = dist.barrier
    _set("barrier", lambda group=None, async_op=False, device_ids=None: barrier(group, async_op))


def _replace(name: str, do: Callable[..., Any]) -> None:
    """Answer a collective here if it concerns the device."""
    collective = getattr(dist, name, None)
    if collective is None:
        return

    def collect(*args: Any, **options: Any) -> Any:
        given = pytree.tree_leaves((args, options))
        if not any(isinstance(one, FakeTensor) for one in given):
            return collective(*args, **options)
        tensors = [one for one in (*args, *options.values()) if isinstance(one, torch.Tensor | list)]
        do(*tensors)
        return Done() if options.get("async_op") else None

    _set(name, collect)


def _copy(into: Any, source: Any = None, *rest: Any) -> None:
    for target, tensor in zip(_listed(into), _listed(source), strict=False):
        target.copy_(tensor.view(target.shape) if tensor.numel() == target.numel() else tensor)


def _listed(tensors: Any) -> list[Any]:
    return list(tensors) if isinstance(tensors, list | tuple) else [tensors]


def _exchange_objects() -> None:
    """Objects travel as bytes on the device, whose values would be lost."""

    def alone(function: Callable[..., Any], here: Callable[..., None]) -> Callable[..., Any]:
        def exchange(*args: Any, **options: Any) -> Any:
            return here(*args, *options.values()) if dist.get_world_size() == 1 else function(*args, **options)

        return exchange

    def keep(into: Any, source: Any = None, *rest: Any) -> None:
        if into:
            into[0] = source[0] if isinstance(source, list) else source

    def take(into: Any, source: Any = None, *rest: Any) -> None:
        if into:
            into[0] = source

    _set("all_gather_object", alone(dist.all_gather_object, take))
    _set("gather_object", alone(dist.gather_object, lambda source, into=None, *rest: take(into, source)))
    _set("broadcast_object_list", alone(dist.broadcast_object_list, lambda *args: None))
    _set("scatter_object_list", alone(dist.scatter_object_list, keep))


# --- DistributedDataParallel ------------------------------------------------------------------------------------------


class Buckets:
    """Stands for the reducer of ``DistributedDataParallel``: holds a second copy of all gradients, in buckets."""

    def __init__(self, parameters: Any, indices: Any, *rest: Any) -> None:
        gradients_are_views = bool(rest[5]) if len(rest) > 5 else False
        self._held = []
        if not gradients_are_views:
            for bucket in indices:
                some = [parameters[index] for index in bucket]
                size = sum(one.numel() for one in some)
                self._held.append(torch.empty(size, dtype=some[0].dtype, device=some[0].device))

    def __getattr__(self, name: str) -> Any:
        """Everything else that is called does nothing, and answers None."""
        return lambda *args, **options: None


def _replace_reducer() -> None:
    reducer, logger = dist.Reducer, dist.Logger
    verify, broadcast = dist._verify_params_across_processes, dist._broadcast_coalesced
    register, register_builtin = dist._register_comm_hook, dist._register_builtin_comm_hook

    def on_device(tensors: Any) -> bool:
        return any(isinstance(one, FakeTensor) for one in tensors)

    def unless_here(function: Any, concerns: Callable[..., bool]) -> Any:
        return lambda *args, **options: None if concerns(*args) else function(*args, **options)

    dist.Reducer = lambda *args, **options: (Buckets if on_device(args[0]) else reducer)(*args, **options)
    dist.Logger = lambda one: Buckets([], []) if isinstance(one, Buckets) else logger(one)
    dist._verify_params_across_processes = unless_here(verify, lambda group, tensors, *rest: on_device(tensors))
    dist._broadcast_coalesced = unless_here(broadcast, lambda group, tensors, *rest: on_device(tensors))
    dist._register_comm_hook = unless_here(register, lambda one, *rest: isinstance(one, Buckets))
    dist._register_builtin_comm_hook = unless_here(register_builtin, lambda one, *rest: isinstance(one, Buckets))
