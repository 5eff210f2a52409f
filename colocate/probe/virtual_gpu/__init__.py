# SPDX-License-Identifier: Apache-2.0
"""The emulated CUDA device: an allocator, a shared state file, and the patches that make PyTorch use them.

- the GPU: `state`, a file that the processes of a group share, in which `pacing` has them wait for each other;
- its memory: `allocator` with `blocks` and `allocator_settings`, told as PyTorch tells it by `statistics`; `memory`
  joins it to the program's storages; `convolutions` bounds workspaces;
- tensors without data: `emulation` puts the process on the GPU, `guard` makes torch believe that it is there, and
  `dispatch` runs every operator, by `operators`, `kernels`, `sparse` and `shapes`, with the `values` that are known;
- what is patched around them: `cuda_interface`, `framework`, `moving`, `saving`, `one_process`, `compilers`,
  `libraries`, `quantised`;
- what a prediction reads: `trace`, with `attribution`; `replay` shows a dry run again.
"""

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
