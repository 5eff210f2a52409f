# SPDX-License-Identifier: Apache-2.0
"""Memory of single operators beyond their results, and results whose size depends on values.

First the workspaces and temporaries that an operator allocates and that its fake kernel does not show; then
`REPLACED`, which computes results where torch has no fake kernel or refuses to guess a shape. Sources are given per
rule; convolution workspaces are left out on purpose, because only cuDNN on the GPU knows them.
"""

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from .convolutions import Convolution

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)

Count = Callable[[Any], int]  # elements of a tensor that are not zero, or as many as they can be

KIB = 1024
MIB = 1024 * KIB

# --- cuBLAS ---------------------------------------------------------------------------------------------------------

MATRIX_PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.addbmm.default,
    aten.mv.default,
    aten.addmv.default,
    aten.dot.default,
    aten.linear.default,
    aten._addmm_activation.default,
}

DEFAULT_WORKSPACE_BYTES = 8_519_680  # ":4096:2:16:8" KiB x count, CublasHandlePool.cpp
HOPPER_WORKSPACE_BYTES = 32 * MIB  # compute capability 9, 10 and 12


def matrix_workspace_bytes(capability_major: int, default_bytes: int | None = None) -> int:
    """The workspace of one cuBLAS handle, taken from the allocator at its first use and never returned.

    ``default_bytes`` is the GPU's, where the program configures nothing else.
    """
    configured = os.environ.get("CUBLAS_WORKSPACE_CONFIG", "")
    sizes = [int(part) for part in configured.strip(":").split(":") if part.isdigit()]
    if sizes and len(sizes) % 2 == 0:
        return sum(size * KIB * count for size, count in zip(sizes[::2], sizes[1::2], strict=True))
    if default_bytes is not None:
        return default_bytes
    return HOPPER_WORKSPACE_BYTES if capability_major >= 9 else DEFAULT_WORKSPACE_BYTES


# --- temporaries that fake kernels do not show ----------------------------------------------------------------------

CONVOLUTIONS = {aten.convolution.default, aten.convolution_backward.default}


def copies_before(function: Any, args: Any) -> list[int]:
    """Bytes of the contiguous copies that a kernel makes of its operands before it allocates its result.

    cuDNN wants one memory format for all operands (``cudnn_conv_suggest_memory_format``), and 3-D inputs are made
    contiguous and viewed as 4-D (``at::_convolution``). On VulBERTa's CNN these copies are a quarter of the peak.
    """
    if function is aten.convolution.default:
        operands, weight = [args[0], args[1]], args[1]
    elif function is aten.convolution_backward.default:
        operands, weight = [args[0], args[1], args[2]], args[2]
    else:
        return []
    layout = _convolution_layout(operands[-2], weight)
    return [size_bytes(operand) for operand in operands if not operand.is_contiguous(memory_format=layout)]


def _convolution_layout(data: Any, weight: Any) -> torch.memory_format:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(data.dim())
    if channels_last is not None:
        for operand in (data, weight):
            if operand.is_contiguous(memory_format=channels_last) and not operand.is_contiguous():
                return channels_last
    return torch.contiguous_format


def convolution(function: Any, args: Any, result: Any) -> Convolution:
    """The facts of a call of one of `CONVOLUTIONS`."""
    backward = function is aten.convolution_backward.default
    output, data, weight = args[:3] if backward else (result, *args[:2])
    stride, _, dilation, transposed, _, groups = args[4:10] if backward else args[3:9]
    return Convolution(
        backward=backward,
        transposed=bool(transposed),
        channels_last=_convolution_layout(data, weight) is not torch.contiguous_format,
        benchmark=bool(torch.backends.cudnn.benchmark),
        element_bytes=int(data.element_size()),
        groups=int(groups),
        input_channels=int(data.shape[1]),
        output_channels=int(output.shape[1]),
        input_bytes=size_bytes(data),
        weight_bytes=size_bytes(weight),
        output_bytes=size_bytes(output),
        kernel=tuple(weight.shape[2:]),
        stride=tuple(stride),
        dilation=tuple(dilation),
    )


def workspace_after(function: Any, args: Any, kwargs: Any) -> int:
    """Bytes of workspace that a kernel takes once its results are allocated, and returns at its end.

    For cuDNN's recurrent layers about 1.5 times the weights: from the byte counts in PyTorch issue 2895.
    """
    if function in SORTS:
        return _sorting(args[0], args[1] if len(args) > 1 and function is aten.sort.default else kwargs.get("dim", -1))
    if function in RECURRENT:
        return int(1.5 * sum(size_bytes(weight) for weight in args[1]))
    if function in CTC_BACKWARD:
        return size_bytes(args[6])  # log_beta, as large as log_alpha (LossCTC.cu)
    return 0


def _sorting(tensor: Any, dim: int) -> int:
    """Two lists of numbers beside the keys, and the keys once more (SortStable.cu); nothing for a short dimension."""
    length = tensor.shape[dim] if tensor.dim() else 1
    if length <= SHORT_SORT:
        return 0
    one_by_one = length == tensor.numel() or length >= LONG_SORT
    return int(length if one_by_one else tensor.numel()) * (16 + int(tensor.element_size()))


def size_bytes(tensor: Any) -> int:
    """Bytes of a tensor's elements."""
    return int(tensor.numel()) * int(tensor.element_size())


# --- results that are replaced --------------------------------------------------------------------------------------


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    """An uninitialised tensor on the device; call it inside the fake mode."""
    return torch.empty(shape, dtype=dtype, device=DEVICE)


def nonzero(count: Count, tensor: Any) -> Any:
    """Positions of the elements that are not zero."""
    return empty((count(tensor), tensor.dim()), torch.int64)


def masked_select(count: Count, tensor: Any, mask: Any) -> Any:
    """The elements under the mask, or all where the mask is broadcast."""
    whole = math.prod(torch.broadcast_shapes(tensor.shape, mask.shape))
    selected = count(mask) if mask.numel() == whole else whole
    return empty((selected,), tensor.dtype)


def index(count: Count, tensor: Any, indices: Any) -> Any:
    """Indexing with masks among the indices: each mask stands for the positions that it selects."""
    plain: list[Any] = []
    for one in indices:
        if _is_mask(one):
            selected = count(one)
            plain += [empty((selected,), torch.int64) for _ in range(one.dim())]
        else:
            plain.append(one)
    return aten.index.Tensor(tensor, plain)


def unique(tensor: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False) -> Any:
    """Return the result as if all elements differed."""
    inverse = empty(tuple(tensor.shape) if return_inverse else (0,), torch.int64)
    counts = empty((tensor.numel() if return_counts else 0,), torch.int64)
    return empty((tensor.numel(),), tensor.dtype), inverse, counts


def unique_dim(
    tensor: Any, dim: int, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
) -> Any:
    """As if all slices differed."""
    size = tensor.shape[dim]
    inverse = empty((size if return_inverse else 0,), torch.int64)
    return empty(tuple(tensor.shape), tensor.dtype), inverse, empty((size if return_counts else 0,), torch.int64)


def unique_consecutive(
    tensor: Any, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None
) -> Any:
    """As if all neighbours differed."""
    if dim is not None:
        return unique_dim(tensor, dim, True, return_inverse, return_counts)
    return unique(tensor, True, return_inverse, return_counts)


def bincount(tensor: Any, weights: Any = None, minlength: int = 0) -> Any:
    """As long as the program asks for, as a confusion matrix has it: no value is above."""
    return empty((max(1, minlength),), torch.int64 if weights is None else weights.dtype)


def least_squares(left: Any, right: Any, rcond: float | None = None, *, driver: str | None = None) -> Any:
    """A matrix of full rank, as the only driver of CUDA (gels) demands."""
    *batch, rows, columns = left.shape
    width = right.shape[-1]
    residuals = (*batch, width) if rows > columns else (0,)
    numbers = empty((*batch, columns, width), left.dtype), empty(residuals, left.dtype)
    return (*numbers, empty((0,), torch.int64), empty((0,), left.dtype))


def ctc_loss(log_probabilities: Any, targets: Any, input_lengths: Any, target_lengths: Any, *options: Any) -> Any:
    """The losses, and what is kept for the backward pass (``LossCTC.cu``): all states of all steps."""
    steps = log_probabilities.shape[0]
    batch = log_probabilities.shape[1] if log_probabilities.dim() == 3 else 1
    longest = targets.shape[1] if targets.dim() == 2 else targets.numel()
    if isinstance(target_lengths, list | tuple) and any(target_lengths):
        longest = max(target_lengths)
    dtype = log_probabilities.dtype
    return empty((batch,), dtype), empty((batch, steps, 2 * longest + 1), dtype)


def ctc_loss_backward(gradient: Any, log_probabilities: Any, *rest: Any) -> Any:
    """The gradient of the log-probabilities; its temporary is in `workspace_after`."""
    return empty(tuple(log_probabilities.shape), log_probabilities.dtype)


def non_maximum_suppression(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Return the result as if no box were suppressed."""
    return empty((boxes.shape[0],), torch.int64)


def pack_padded_sequence(sequence: Any, lengths: Any, batch_first: bool) -> Any:
    """Packing: the lengths are on the host, so the sizes are true."""
    steps, batch = (sequence.shape[1], sequence.shape[0]) if batch_first else sequence.shape[:2]
    with unset_fake_temporarily():
        outline = torch.zeros((batch, steps, 1) if batch_first else (steps, batch, 1))
        data, batch_sizes = aten._pack_padded_sequence.default(outline, lengths, batch_first)
    return empty((data.shape[0], *sequence.shape[2:]), sequence.dtype), batch_sizes


def cudnn_rnn(
    sequence: Any, weight: Any, stride: int, buffer: Any, hidden: Any, cell: Any, mode: int, hidden_size: int,
    projection: int, num_layers: int, batch_first: bool, dropout: float, train: bool, bidirectional: bool,
    batch_sizes: list[int], dropout_state: Any,
) -> Any:  # fmt: skip
    """Results of cuDNN's recurrent layers, with the reserve that is kept for the backward pass."""
    directions = 2 if bidirectional else 1
    features = (projection or hidden_size) * directions
    dtype = sequence.dtype
    if batch_sizes:
        output_shape: tuple[int, ...] = (sequence.shape[0], features)
        positions = sequence.shape[0]
    else:
        output_shape = (sequence.shape[0], sequence.shape[1], features)
        positions = sequence.shape[0] * sequence.shape[1]
    reserve_bytes = _reserve_elements(mode, positions, hidden_size, num_layers, directions) * sequence.element_size()
    return (
        empty(output_shape, dtype),
        empty(tuple(hidden.shape), dtype),
        empty(tuple(cell.shape) if cell is not None else (0,), dtype),
        empty((reserve_bytes if train else 0,), torch.uint8),
        empty((0,), dtype),
    )


def _reserve_elements(mode: int, positions: int, hidden_size: int, num_layers: int, directions: int) -> int:
    """Return what cuDNN keeps of the forward pass: per layer four gates and the cell (LSTM) or six values (GRU).

    Fits the byte counts of PyTorch issue 2895, with what passes between layers. Old cuDNN, without dropout; not
    confirmed on a GPU of today.
    """
    per_layer = {2: 5, 3: 6}.get(mode, 1)
    return directions * positions * hidden_size * (per_layer * num_layers + num_layers - 1)


def cudnn_rnn_backward(sequence: Any, weight: Any, stride: int, buffer: Any, hidden: Any, cell: Any, *rest: Any) -> Any:
    """Gradients of the recurrent layers; those of the weights lie in one buffer."""
    dtype = sequence.dtype
    buffer = empty((sum(one.numel() for one in weight),), dtype)
    gradients, offset = [], 0
    for one in weight:
        gradients.append(buffer[offset : offset + one.numel()].view(one.shape))
        offset += one.numel()
    cell_gradient = empty(tuple(cell.shape) if cell is not None else (0,), dtype)
    return empty(tuple(sequence.shape), dtype), empty(tuple(hidden.shape), dtype), cell_gradient, gradients


CTC_BACKWARD = {aten._ctc_loss_backward.default, aten._ctc_loss_backward.Tensor}
SORTS = {aten.sort.default, aten.sort.stable}
SHORT_SORT, LONG_SORT = 4096, 1_000_000  # elements: sorted in place, and each of several by itself
RECURRENT = {aten._cudnn_rnn.default, aten._cudnn_rnn_backward.default}
CUDNN = CONVOLUTIONS | RECURRENT

REPLACED: dict[str, Callable[..., Any]] = {
    "aten::_unique2": unique,
    "aten::unique_dim": unique_dim,
    "aten::unique_consecutive": unique_consecutive,
    "aten::bincount": bincount,
    "aten::linalg_lstsq": least_squares,
    "aten::_ctc_loss": ctc_loss,
    "aten::_ctc_loss_backward": ctc_loss_backward,
    "aten::_use_cudnn_ctc_loss": lambda *operands: False,
    "aten::_use_miopen_ctc_loss": lambda *operands: False,
    "aten::_pack_padded_sequence": pack_padded_sequence,
    "aten::_cudnn_rnn": cudnn_rnn,
    "aten::_cudnn_rnn_backward": cudnn_rnn_backward,
    "torchvision::nms": non_maximum_suppression,
}
SELECTIONS: dict[str, Callable[..., Any]] = {"aten::nonzero": nonzero, "aten::masked_select": masked_select}
UPPER_BOUNDS = {"aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "torchvision::nms"}
# Whose sizes the host can tell where the values are known.
BY_VALUES = {*UPPER_BOUNDS, "aten::bincount"}


def replacement(function: Any) -> Callable[..., Any] | None:
    """The rule that computes this operator's result, if there is one."""
    return REPLACED.get(operator_name(function))


def selection(function: Any, args: Any) -> Callable[..., Any] | None:
    """The rule for a result that is as long as a mask has elements set; its first argument is a `Count`."""
    if function is aten.index.Tensor:
        return index if any(_is_mask(one) for one in args[1]) else None
    return SELECTIONS.get(operator_name(function))


@functools.cache
def is_plain(function: Any) -> bool:
    """Its results are all that it allocates, and shapes say what they are."""
    special = MATRIX_PRODUCTS | CONVOLUTIONS | RECURRENT | CTC_BACKWARD | SORTS | {aten.index.Tensor}
    name = operator_name(function)
    return not (function in special or name in REPLACED or name in SELECTIONS or returns_nothing(function))


@functools.cache
def returns_nothing(function: Any) -> bool:
    """The operator only writes its arguments, as multi-tensor optimizers do: nothing to compute, nothing allocated."""
    return not function._schema.returns


@functools.cache
def operator_name(function: Any) -> str:
    """The operator without its overload, such as ``aten::index``."""
    return str(function.name()).partition(".")[0]


def _is_mask(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.dtype in (torch.bool, torch.uint8)
