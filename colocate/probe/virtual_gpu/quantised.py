# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes: quantised weights and optimizer states, whose operators run as the parts that allocate memory.

Its own fake kernels give results only. On a GPU a product with quantised weights holds the weights in full, and one of
8 bits its sums in 32 bits, for a moment: ``backends/cuda/ops.py`` and ``backends/default/ops.py`` of the library.
"""

from collections.abc import Callable
from typing import Any

import torch

from ..imports import AfterImport
from .dispatch import EmulationMode, Emulator

# Kernels that the library writes in torch's and its own operators. For a product with weights of 4 bits and at most
# 1,536 rows it takes another, which needs no memory, where a heuristic of the GPU model says so.
IN_PARTS = {
    ("bitsandbytes::gemm_4bit", "default"),
    ("bitsandbytes::int8_scaled_mm", "default"),
    ("bitsandbytes::int8_mixed_scaled_mm", "default"),
    ("bitsandbytes::int8_double_quant", "cuda"),
}


def prepare_quantisation(watcher: AfterImport, emulator: Emulator) -> None:
    """Wait for the library. Versions without operators, before 0.46, need a driver and fail as they do without one."""
    watcher.when("bitsandbytes._ops", lambda module: _run_in_parts(module, emulator))
    watcher.when("bitsandbytes.functional", lambda module: _keep_pages_on_the_device(module, emulator))


def _run_in_parts(module: Any, emulator: Emulator) -> None:
    if not hasattr(torch.library, "register_torch_dispatch"):  # what its kernels hold would be left out
        for operator, _ in IN_PARTS:
            setattr(torch.ops.bitsandbytes, operator.partition("::")[2], _Refused(emulator))
        return
    register = module.register_kernel

    def register_kernel(operator: str, backend: Any, function: Any = None, **options: Any) -> Any:
        if function is None:
            return lambda later: register_kernel(operator, backend, later, **options)
        if (operator, backend) in IN_PARTS:
            _compose(operator, function)
        return register(operator, backend, function, **options)

    module.register_kernel = register_kernel
    _compose("bitsandbytes::int8_vectorwise_quant", lambda *args, **kwargs: _rows_of_8_bits(emulator, *args, **kwargs))
    _compose("bitsandbytes::int8_mm_dequant", _sums_in_half_precision)


class _Refused:
    """Stands for an operator of a PyTorch that cannot run it as its parts."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def __getattr__(self, overload: str) -> Any:
        if overload.startswith("__"):
            raise AttributeError(overload)
        expected = "expected PyTorch 2.5 or newer for the quantised weights of bitsandbytes"
        raise self._emulator.unsupported(f"{expected}, found {torch.__version__}")


def _compose(operator: str, function: Callable[..., Any]) -> None:
    """Run an operator as this function, whose own operators are emulated."""

    def run(mode: EmulationMode, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with mode:
            return function(*args, **(kwargs or {}))

    torch.library.register_torch_dispatch(operator, EmulationMode, run)


def _rows_of_8_bits(emulator: Emulator, matrix: Any, threshold: float = 0.0) -> Any:
    """A matrix in 8 bits, a scale for each row, and columns with values above the threshold: nobody knows of any."""
    rows = torch.empty(matrix.numel() // matrix.shape[-1], device=matrix.device)
    quantised = torch.empty(matrix.shape, device=matrix.device, dtype=torch.int8)
    if not threshold:
        return quantised, rows, None
    emulator.record.note("no column above the threshold of LLM.int8() is assumed: each would be kept in half precision")
    (matrix.abs() >= threshold).any(dim=0)
    return quantised, rows, torch.empty(0, device=matrix.device, dtype=torch.int64)


def _sums_in_half_precision(sums: Any, rows: Any, columns: Any, dtype: Any = None, bias: Any = None) -> Any:
    """The kernel writes half precision, whatever is asked for."""
    return torch.empty_like(sums, dtype=torch.float16).to(dtype or torch.float16)


def _keep_pages_on_the_device(module: Any, emulator: Emulator) -> None:
    """States of a paged optimizer lie in managed memory, which the driver may move to the host when the GPU is full."""

    def get_paged(*shape: int, dtype: Any = torch.float32, device: Any = "cuda") -> Any:
        emulator.record.note("states of a paged optimizer are counted on the GPU; the driver may move them to the host")
        emulator.assume_more()
        return torch.zeros(shape, dtype=dtype, device=device)

    fill = module.fill
    module.get_paged = get_paged
    module.fill = lambda tensor, value, *options: tensor.fill_(value) if tensor.is_cuda else fill(tensor, value)
