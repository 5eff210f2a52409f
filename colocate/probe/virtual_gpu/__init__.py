# SPDX-License-Identifier: Apache-2.0
"""The emulated CUDA device: an allocator, a shared state file, and the patches that make PyTorch use them."""

from .state import CONTEXT_RANGE_BYTES, VirtualGpu
from .trace import AllocationTrace, Composition, composition, floor_bytes, no_workspace

__all__ = [
    "CONTEXT_RANGE_BYTES",
    "AllocationTrace",
    "Composition",
    "VirtualGpu",
    "composition",
    "floor_bytes",
    "no_workspace",
]
