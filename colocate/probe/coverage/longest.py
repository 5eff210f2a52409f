# SPDX-License-Identifier: Apache-2.0
"""Finds the batch of a pass that is the largest by shape, by looking at samples on the CPU ahead of the run.

Only the data set is asked, on the CPU, with the random state put back afterwards. Where that cannot be done, or takes
too long, and batches that are run differ in shape, the largest may be missed: that is a doubt.
"""

import random
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import GeneratorType
from typing import Any, Protocol

import torch
from torch.utils.data import Subset, TensorDataset, default_collate

PASSES = 4  # of one data set in which the largest batch is looked for
MOST_NESTED = 4

# Samples, spread over the whole set, that are enough to say that all have one size; and where batches are stacked,
# which fails for samples of different sizes.
ENOUGH_OF_ONE_SIZE = 48
ENOUGH_TO_STACK = 12
LOOK_AT_ONE_SIZE = 0.2  # share of the time for a look that goes into samples of one size

# So many of the largest samples that differ by no more than this share, out of so many, show where sizes end.
CROWD = 10
CROWDED = 1.05
LEAST_FOR_A_CROWD = 200

# Sizes of which the largest is not more than this above the smallest count as one: images with a few boxes each.
ONE_SIZE = 1.01


class Budgeted(Protocol):
    """Who grants processor time, and hears of doubts; `coverage.Coverage`."""

    rising: dict[Any, str]

    @property
    def look_s(self) -> float:
        """Seconds for one look."""

    def doubt(self, code: str, text: str) -> None:
        """Something may be larger than was seen."""


class Longest:
    """Looks at the samples of each data set once, and at the order of each pass."""

    def __init__(self, coverage: Budgeted) -> None:
        self._coverage = coverage
        self._sizes: dict[int, tuple[Any, dict[Any, int]]] = {}
        self._passes: dict[int, int] = {}
        self._batches: dict[Any, list[int]] = {}

    def batches(self, loader: Any, order: Sequence[Any]) -> list[int]:
        """The positions of the largest batches of a pass; empty where all are alike or nobody can tell.

        Args:
            loader: whose data set is asked.
            order: the indices of every batch, or of every sample where the loader makes no batches.
        """
        data = loader.dataset
        self._passes[id(data)] = self._passes.get(id(data), 0) + 1
        if _is_of_one_size(data) or not order or self._passes[id(data)] > PASSES:
            return []
        known = self._sizes.get(id(data))
        if known is None:
            known = self._sizes[id(data)] = (data, self._look(data, order, _are_stacked(loader, order)))
        sizes = known[1]
        if len(set(sizes.values())) < 2:
            return []
        longest = [max((sizes.get(index, 0) for index in _indices(one)), default=0) for one in order]
        together = [sum(sizes.get(index, 0) for index in _indices(one)) for one in order]
        padded = [most * len(_indices(one)) for most, one in zip(longest, order, strict=True)]
        found = {max(range(len(order)), key=measure.__getitem__) for measure in (longest, together, padded)}
        return sorted(found)

    def compare(self, key: tuple[Any, ...], batch_size: int) -> None:
        """Take note of a pass whose batches are larger than those of all before it; the key begins with its place."""
        sizes = self._batches.setdefault(key, [])
        sizes.append(batch_size)
        self._coverage.rising.pop(key, None)
        if sizes == sorted(sizes) and batch_size > sizes[0]:
            grown = f"grew from {sizes[0]} to {batch_size} samples"
            self._coverage.rising[key] = f"the batches of the loop at {key[0]} {grown}"

    def is_unknown(self, data: Any) -> bool:
        """Say whether the sizes of a data set's samples could not be looked at ahead of the run."""
        known = self._sizes.get(id(data))
        return not _is_of_one_size(data) and (known is None or not known[1])

    def _look(self, data: Any, order: Sequence[Any], stacked: bool) -> dict[Any, int]:
        """The sizes of samples: few where all are of one size, otherwise as many as the budget allows."""
        everything = list(dict.fromkeys(index for one in order for index in _indices(one)))
        if _has_state(data):
            return {}
        sizes: dict[Any, int] = {}
        began_s, enough = time.process_time(), ENOUGH_TO_STACK if stacked else ENOUGH_OF_ONE_SIZE
        most = least = 0
        with _state_kept(data):
            for index in _spread(everything):
                try:
                    size = size_of(data[index])
                except Exception:  # its own error is for the program to meet
                    return {}
                if size is None:
                    return {}
                sizes[index] = size
                most, least = max(most, size), min(least or size, size)
                if len(sizes) < enough:
                    continue
                share = 1.0 if not are_of_one_size((least, most)) else 0.0 if stacked else LOOK_AT_ONE_SIZE
                if time.process_time() - began_s > share * self._coverage.look_s:
                    break
        if len(sizes) < len(everything) and not _are_bounded(sizes.values(), len(everything)):
            seen = f"{len(sizes):,} of {len(everything):,} samples of {type(data).__name__} were looked at"
            self._coverage.doubt("longest_batch_unseen", f"batches differ in shape, and only {seen}")
        return sizes


def size_of(sample: Any, nested: int = MOST_NESTED) -> int | None:
    """How large a sample is: elements of its arrays, characters, numbers; None for one that lies on the device."""
    if isinstance(sample, torch.Tensor):
        return None if sample.device.type != "cpu" else sample.numel()
    shape = getattr(sample, "shape", None)
    if isinstance(shape, tuple):
        return _product(shape)
    if isinstance(sample, str | bytes):
        return len(sample)
    if isinstance(sample, int | float | bool | None.__class__):
        return 1
    if isinstance(sample, Mapping):
        return _sum(sample.values(), nested)
    if isinstance(sample, list | tuple):
        if sample and isinstance(sample[0], int | float):
            return len(sample)
        return _sum(sample, nested)
    size = getattr(sample, "size", None)
    if isinstance(size, tuple):  # an image of Pillow
        return _product(size)
    return _sum(vars(sample).values(), nested) if hasattr(sample, "__dict__") else 1


def _sum(parts: Any, nested: int) -> int | None:
    if not nested:
        return 0
    sizes = [size_of(one, nested - 1) for one in parts]
    return None if None in sizes else sum(one or 0 for one in sizes)


def _product(shape: tuple[Any, ...]) -> int:
    product = 1
    for length in shape:
        product *= int(length)
    return product


def _indices(batch: Any) -> list[Any]:
    """The samples of a batch; a loader without batches has one index in its place."""
    return list(batch) if isinstance(batch, list | tuple) else [batch]


def are_of_one_size(sizes: Collection[int]) -> bool:
    """Say whether sizes differ by so little that it moves no peak."""
    return not sizes or max(sizes) <= ONE_SIZE * min(sizes)


def _are_bounded(sizes: Collection[int], out_of: int) -> bool:
    """Say whether a sample that was not looked at is hardly larger than those that were.

    They are all of one size, or so many were looked at that the largest of them crowd below some limit.
    """
    largest = sorted(sizes)[-CROWD:]
    enough = len(sizes) >= max(LEAST_FOR_A_CROWD, out_of / 2)
    return are_of_one_size(sizes) or (enough and largest[-1] <= CROWDED * largest[0])


def _are_stacked(loader: Any, order: Sequence[Any]) -> bool:
    """Batches of several samples are stacked as they are, which fails for different sizes."""
    return getattr(loader, "collate_fn", None) is default_collate and len(_indices(order[0])) > 1


def _is_of_one_size(data: Any) -> bool:
    """Its samples are rows of tensors."""
    while isinstance(data, Subset):
        data = data.dataset
    return isinstance(data, TensorDataset)


def _has_state(data: Any) -> bool:
    """Asking it moves something that cannot be put back: an iterator, a generator, an open file."""
    held = vars(data).values() if hasattr(data, "__dict__") else ()
    return any(isinstance(one, GeneratorType | Iterator) or hasattr(one, "fileno") for one in held)


def _spread(indices: list[Any]) -> Iterator[Any]:
    """All of them, such that the first ones come from everywhere."""
    stride = max(1, len(indices) // ENOUGH_OF_ONE_SIZE)
    for first in range(stride):
        yield from indices[first::stride]


@contextmanager
def _state_kept(data: Any) -> Iterator[None]:
    """Put back the attributes of a data set, and the random state of torch, Python, numpy and its own generators."""
    numpy = sys.modules.get("numpy")
    own = list(vars(data).values()) if hasattr(data, "__dict__") else []
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = numpy.random.get_state() if numpy is not None else None
    pythons = [(one, one.getstate()) for one in own if isinstance(one, random.Random)]
    torches = [(one, one.get_state()) for one in own if isinstance(one, torch.Generator)]
    numpys = [(one, one.bit_generator.state) for one in own if hasattr(one, "bit_generator")]
    legacy = [(one, one.get_state()) for one in own if numpy is not None and isinstance(one, numpy.random.RandomState)]
    attributes = dict(vars(data)) if hasattr(data, "__dict__") else None
    try:
        yield
    finally:
        if attributes is not None:  # such as a file that is opened at the first sample, for each worker anew
            vars(data).clear()
            vars(data).update(attributes)
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        for one, state in pythons:
            one.setstate(state)
        for one, state in [*torches, *legacy]:
            one.set_state(state)
        for one, state in numpys:
            one.bit_generator.state = state
