# SPDX-License-Identifier: Apache-2.0
"""What a program collects on the host during a pass that was cut, and takes to the device later: it is too short.

Features of a whole data set, say, that are compared with each other on the GPU. Collected is what lies in a container
that grows from batch to batch; it is recognised on its way to the device by its number of rows.
"""

import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from .growth import LEAST_GROWTH_BYTES, UNKNOWN_STEPS, variables_in_sight
from .passes import Pass
from .source import frames

Key = tuple[int, str]

MODULES = os.path.join("torch", "nn", "modules", "module.py")  # noqa: PTH118


class Grown(NamedTuple):
    """A container that grew during a cut pass: its length, stacked and joined, and how many of its batches were run."""

    lengths: set[int]
    place: str
    run: int
    whole: int | None


class Collected:
    """Follows the containers of a program through its passes.

    Args:
        doubt: told, as code and text, where something too short comes to the device.
    """

    def __init__(self, doubt: Callable[[str, str], None]) -> None:
        self._doubt = doubt
        self._grown: dict[Key, Grown] = {}
        self.batch_sizes: set[int] = set()  # a tensor with so many rows is a batch
        self._of_batch: set[int] = set()

    def look(self, one: Pass, frame: Any) -> None:
        """A step of a pass is over: remember the containers in sight, and which have grown since its first step."""
        run = len(one.highest)
        if run > 1 and not one.is_cut:
            return
        containers = {
            (id(owner), name): value
            for owner, name, value in variables_in_sight(frame)
            if isinstance(value, list | deque | dict)
        }
        if run == 1:
            one.containers = {key: len(value) for key, value in containers.items()}
        for key, value in containers.items():
            if len(value) > one.containers.get(key, len(value)):
                self._grown[key] = Grown({len(value), _rows(value)}, one.place, run, one.whole)
        if run > 1:  # also what lies in no variable, such as the list of a comprehension
            self._grown[0, one.place] = Grown({one.samples}, one.place, run, one.whole)

    def came(self, batch: Any) -> None:
        """A loader has handed out a batch, whose tensors are nothing that was collected."""
        tensors = (one for one in tree_leaves(batch) if isinstance(one, torch.Tensor))
        self._of_batch = {one.untyped_storage()._cdata for one in tensors if one.layout is torch.strided}

    def moved(self, tensor: Any) -> None:
        """A tensor of the host comes to the device."""
        if isinstance(tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return
        if tensor.untyped_storage()._cdata in self._of_batch:
            return
        for one in self._grown.values():
            if one.lengths & {*tensor.shape[:1]} - self.batch_sizes:
                left = UNKNOWN_STEPS if one.whole is None else one.whole - one.run
                grows = tensor.numel() * tensor.element_size() * left / one.run >= LEAST_GROWTH_BYTES
                if grows and not _is_of_module():
                    text = f"what the loop at {one.place} collects on the host comes to the GPU after {one.run} of"
                    self._doubt("longest_batch_unseen", f"{text} {one.whole or 'an unknown number of'} batches")


def _is_of_module() -> bool:
    """A module is moved, with buffers such as encodings of positions, whose rows are as many by chance."""
    codes = (frame.f_code for frame in frames(sys._getframe(1)))
    return next((code.co_name in ("_apply", "convert") for code in codes if code.co_filename.endswith(MODULES)), False)


def _rows(container: Any) -> int:
    """Rows of the tensors and arrays in a container, if they are joined."""
    shapes = [getattr(one, "shape", ()) for one in (container.values() if isinstance(container, dict) else container)]
    return sum(int(shape[0]) if isinstance(shape, tuple) and shape else 1 for shape in shapes)
