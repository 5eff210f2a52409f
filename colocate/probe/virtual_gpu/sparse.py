# SPDX-License-Identifier: Apache-2.0
"""Sparse tensors (COO) on the emulated device: indices and values are fake tensors with memory of their own.

torch has hardly any fake kernels for them, so the shapes of results are computed on the host, with zeros. Compressed
layouts (CSR, BSR) are refused.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils import _pytree as pytree

aten = torch.ops.aten

# What a fake sparse tensor answers by itself.
ANSWERED = {
    aten._indices.default,
    aten._values.default,
    aten.indices.default,
    aten.values.default,
    aten._nnz.default,
    aten.is_coalesced.default,
    aten.sparse_dim.default,
    aten.dense_dim.default,
    aten._sparse_coo_tensor_with_dims_and_tensors.default,
}
COPIES = {aten.clone.default, aten._coalesce.default, aten._to_copy.default, aten.mul.Tensor, aten.pow.Tensor_Scalar}
VIEWS = {aten.detach.default, aten.alias.default}


def parts(tensor: Any) -> tuple[Any, Any]:
    """Indices and values."""
    return tensor._indices(), tensor._values()


def concerns(args: Any) -> bool:
    """One of the arguments is sparse."""
    return any(isinstance(one, torch.Tensor) and one.layout is not torch.strided for one in args)


def run(emulator: Any, function: Any, args: Any, kwargs: Any, device: torch.device) -> Any:
    """Do an operator with a sparse argument; NotImplemented where the fake tensor knows the answer.

    The results have their memory when it returns.
    """
    if function in ANSWERED:
        return NotImplemented
    if any(one.layout not in (torch.strided, torch.sparse_coo) for one in args if isinstance(one, torch.Tensor)):
        raise emulator.unsupported(f"expected dense tensors or those of layout COO, found {function} of another layout")
    first = args[0]
    if any(one.alias_info is not None and one.alias_info.is_write for one in function._schema.arguments):
        return first
    target = torch.device(kwargs.get("device") or device)
    if function in VIEWS and first.layout is torch.sparse_coo:
        return _made(emulator, *parts(first), first)
    if function in COPIES and first.layout is torch.sparse_coo:
        if function is aten._coalesce.default:
            emulator.record.note("upper bound assumed for the entries of a sparse tensor: no index occurs twice")
        dtype = kwargs.get("dtype") or first.dtype
        with emulator.mode():
            indices, values = parts(first)
            indices, values = torch.empty_like(indices, device=target), torch.empty_like(values, device=target)
            return _made(emulator, indices, values.to(dtype), first)
    return _computed(emulator, function, args, kwargs)


def _made(emulator: Any, indices: Any, values: Any, like: Any) -> Any:
    with emulator.mode():
        return aten._sparse_coo_tensor_with_dims_and_tensors.default(
            like.sparse_dim(), like.dense_dim(), tuple(like.shape), indices, values, dtype=values.dtype,
            layout=torch.sparse_coo, device=values.device, is_coalesced=True,
        )  # fmt: skip


def _computed(emulator: Any, function: Any, args: Any, kwargs: Any) -> Any:
    """The shapes of any other operator."""

    def on_host(one: Any) -> Any:
        if isinstance(one, torch.device):
            return torch.device("cpu")
        if not isinstance(one, FakeTensor):
            return one
        if one.layout is torch.strided:
            return torch.zeros(tuple(one.shape), dtype=one.dtype)
        indices, values = (torch.zeros(tuple(part.shape), dtype=part.dtype) for part in parts(one))
        return torch.sparse_coo_tensor(indices, values, tuple(one.shape), is_coalesced=True, check_invariants=False)

    with unset_fake_temporarily(), torch._C._DisableTorchDispatch():
        found = function(*pytree.tree_map(on_host, args), **pytree.tree_map(on_host, kwargs))

    def on_device(one: Any) -> Any:
        if not isinstance(one, torch.Tensor):
            return one
        with emulator.mode():
            if one.layout is torch.strided:
                return torch.empty(tuple(one.shape), dtype=one.dtype, device="cuda")
            indices, values = (torch.empty(tuple(part.shape), dtype=part.dtype, device="cuda") for part in parts(one))
        return _made(emulator, indices, values, one)

    return pytree.tree_map(on_device, found)
