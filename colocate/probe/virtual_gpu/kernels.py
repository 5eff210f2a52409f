# SPDX-License-Identifier: Apache-2.0
"""Operators that PyTorch's C++ code would choose with the help of a driver, chosen here instead.

Registered once for the CUDA keys: attention, recurrent layers, and the operators that a CPU build would take apart
although a CUDA build has one kernel for them. What these kernels then allocate is known in `operators`.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

aten = torch.ops.aten

# Operators that are composite and have a CUDA kernel of their own. A CPU build decomposes them under the CUDA key, into
# up to five temporaries (EfficientNet-B0: +35 %). Enumerated on a CUDA build; a test compares the list with the build
# at hand.
ONE_KERNEL = ("mish_backward", "silu_backward", "_fused_rms_norm")

LONGEST_FLASH_HEAD = 256  # sdp_utils.cpp: head dimensions above it do not take flash attention
MASK_ALIGNMENT = 8  # attention.cpp, pad_bias: rows of an additive mask, in elements

LSTM, GRU, TANH, RELU = 2, 3, 1, 0  # cudnnRNNMode_t

_libraries: list[Any] = []  # a library that is collected takes its kernels along


def register(assume: Callable[[torch.Tensor, bool], None]) -> None:
    """Install all kernels in this process.

    Args:
        assume: called with a tensor and the value that all its elements are to be taken for.
    """
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on a CUDA build they replace kernels that need a driver
        for name in ONE_KERNEL:
            if hasattr(torch.ops.aten, name) and not torch._C._dispatch_has_kernel_for_dispatch_key(
                f"aten::{name}", "CUDA"
            ):
                library.impl(name, _never_reached(name), "CUDA")
        _register(library, "scaled_dot_product_attention", attention)
        for name, mode in (("lstm", LSTM), ("gru", GRU), ("rnn_tanh", TANH), ("rnn_relu", RELU)):
            _register(library, f"{name}.input", recurrent(mode))
            _register(library, f"{name}.data", recurrent_packed(mode))
        _register(library, "ctc_loss.Tensor", ctc_loss)
        _register(library, "isfinite", verdict(lambda x: (x == x).mul(x.abs() != math.inf), True, assume))
        _register(library, "isinf", verdict(lambda x: x.abs() == math.inf, False, assume))
        _register(library, "_is_all_true", verdict(lambda x: x.all(), True, assume))  # what istft and others check
        _register(library, "isnan", verdict(lambda x: x != x, False, assume))


def _register(library: Any, name: str, kernel: Callable[..., Any]) -> None:
    for key in ("AutogradCUDA", "CUDA"):
        library.impl(name, kernel, key)


def _never_reached(name: str) -> Callable[..., Any]:
    def kernel(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"aten::{name} on the emulated device")

    return kernel


def verdict(
    compute: Callable[[torch.Tensor], torch.Tensor], value: bool, assume: Callable[[torch.Tensor, bool], None]
) -> Callable[..., Any]:
    """A test for overflow, computed as on a GPU and then answered: training on the emulated device never overflows."""

    def kernel(tensor: torch.Tensor) -> torch.Tensor:
        result = compute(tensor.detach())
        assume(result, value)
        return result

    return kernel


def ctc_loss(
    log_probabilities: Any, targets: Any, input_lengths: Any, target_lengths: Any, blank: int = 0, reduction: int = 1,
    zero_infinity: bool = False,
) -> Any:  # fmt: skip
    """Lengths are read to the host first, as ``LossCTC.cpp`` does for all but tensors like ours."""
    lengths = input_lengths.tolist(), target_lengths.tolist()
    return aten.ctc_loss.IntList(log_probabilities, targets, *lengths, blank, reduction, zero_infinity)


# --- attention ------------------------------------------------------------------------------------------------------


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Scaled dot-product attention as a recent GPU runs it.

    Flash for half precision without a mask, memory-efficient otherwise, plain mathematics where a program switches
    both off. Query, key and value are (batch, heads, length, head dimension). cuDNN's attention is not modelled.
    """
    if enable_gqa and key.shape[1] != query.shape[1]:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        zeros = torch.zeros_like(attn_mask, dtype=query.dtype)
        attn_mask = zeros.masked_fill_(attn_mask.logical_not(), float("-inf"))
    if attn_mask is None and _takes_flash(query):
        return _flash(query, key, value, dropout_p, is_causal, scale)
    if torch.backends.cuda.mem_efficient_sdp_enabled() and query.dim() == 4:
        return _memory_efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
    result = aten._scaled_dot_product_attention_math.default(
        query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale
    )
    output: torch.Tensor = result[0]
    return output


def _takes_flash(query: torch.Tensor) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    short = query.shape[-1] <= LONGEST_FLASH_HEAD
    return half and short and query.dim() == 4 and bool(torch.backends.cuda.flash_sdp_enabled())


def _flash(query: Any, key: Any, value: Any, dropout_p: float, is_causal: bool, scale: float | None) -> torch.Tensor:
    head = query.shape[-1]
    scale = scale if scale is not None else head**-0.5
    padding = -head % 8  # the kernel wants multiples of 8
    if padding:
        query, key, value = (functional.pad(operand, (0, padding)) for operand in (query, key, value))
    output: torch.Tensor = aten._scaled_dot_product_flash_attention.default(
        query, key, value, dropout_p, is_causal, False, scale=scale
    )[0]
    return output[..., :head] if padding else output


def _memory_efficient(
    query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool, scale: float | None
) -> torch.Tensor:
    keeps_statistics = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad)
    if mask is not None:
        # In this order (attention.cpp, preprocess_mask): a mask shared by heads or samples is padded only once.
        padding = -mask.shape[-1] % MASK_ALIGNMENT
        if padding:
            mask = functional.pad(mask, (0, padding))[..., : key.shape[2]]
        mask = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    output: torch.Tensor = aten._scaled_dot_product_efficient_attention.default(
        query, key, value, mask, keeps_statistics, dropout_p, is_causal, scale=scale
    )[0]
    return output


# --- recurrent layers -----------------------------------------------------------------------------------------------


def recurrent(mode: int) -> Callable[..., Any]:
    """The layers of one kind as one cuDNN call; a CPU build would run them step by step."""

    def kernel(
        sequence: Any,
        state: Any,
        parameters: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        hidden, cell = state if mode == LSTM else (state, None)
        return _cudnn_rnn(
            sequence, hidden, cell, parameters, has_biases, mode, num_layers, dropout, train, bidirectional,
            batch_first=batch_first, batch_sizes=[],
        )  # fmt: skip

    return kernel


def recurrent_packed(mode: int) -> Callable[..., Any]:
    """The same for a packed sequence: data (sum of lengths, features) and the batch size of each time step."""

    def kernel(
        data: Any,
        batch_sizes: Any,
        state: Any,
        parameters: Any,
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> Any:
        hidden, cell = state if mode == LSTM else (state, None)
        return _cudnn_rnn(
            data, hidden, cell, parameters, has_biases, mode, num_layers, dropout, train, bidirectional,
            batch_first=False, batch_sizes=batch_sizes.tolist(),
        )  # fmt: skip

    return kernel


def _cudnn_rnn(
    sequence: Any,
    hidden: Any,
    cell: Any,
    parameters: Any,
    has_biases: bool,
    mode: int,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    *,
    batch_first: bool,
    batch_sizes: list[int],
) -> Any:
    size = parameters[1].shape[-1]  # weight_hh: (gates x hidden, projection or hidden)
    hidden_size = hidden.shape[-1] if cell is None else cell.shape[-1]
    projection = size if size != hidden_size else 0
    output, last_hidden, last_cell, _, _ = aten._cudnn_rnn.default(
        sequence, list(parameters), 4 if has_biases else 2, None, hidden, cell, mode, hidden_size, projection,
        num_layers, batch_first, dropout, train, bidirectional, batch_sizes, None,
    )  # fmt: skip
    return (output, last_hidden, last_cell) if mode == LSTM else (output, last_hidden)
