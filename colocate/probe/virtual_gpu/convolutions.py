# SPDX-License-Identifier: Apache-2.0
"""Estimate the workspace that cuDNN's chosen plan may need for a convolution.

Nobody but cuDNN on the GPU knows it; kept here are the facts of a call, and a guess that bounds what its plans take.
Standard library only: predictions are replayed without torch.
"""

from math import prod
from typing import NamedTuple

# Times the operands of one call. A plan that turns them into its own memory format needs them once; Winograd's
# transforms of a 3x3 convolution are 2.25 times as large as what they transform (tiles of 4x4 become 6x6). With
# cudnn.benchmark, every plan is tried, and PyTorch allocates the largest workspace among them (Conv_v8.cpp); 6 was
# the smallest of 2, 4, 6 and 8 that left few timm models above their interval.
OPERANDS = 2
OPERANDS_IN_BENCHMARK = 6


class Convolution(NamedTuple):
    """One call of a convolution, forward or backward; sizes in bytes, shapes without batch and channels."""

    backward: bool
    transposed: bool
    channels_last: bool
    benchmark: bool
    element_bytes: int
    groups: int
    input_channels: int
    output_channels: int
    input_bytes: int
    weight_bytes: int
    output_bytes: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def depthwise(self) -> bool:
        """Say whether it has one filter per channel: torch's own kernel for that needs no workspace."""
        return self.groups > 1 and self.groups == self.input_channels

    @property
    def pointwise(self) -> bool:
        """A 1x1 convolution: a matrix product."""
        return prod(self.kernel) == 1

    @property
    def operand_bytes(self) -> int:
        """Input, weights and output together: what a plan needs that turns them into another memory format."""
        return self.input_bytes + self.weight_bytes + self.output_bytes


def workspace_bound(call: Convolution) -> int:
    """Bytes that a call is taken to need at most; see docs/prediction-accuracy.md for how often that held.

    Matrix products and one filter per channel need little: torch's own kernels, or plans without a workspace.
    """
    if call.depthwise or call.pointwise:
        return 0
    return (OPERANDS_IN_BENCHMARK if call.benchmark else OPERANDS) * call.operand_bytes
