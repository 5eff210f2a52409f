"""Short passes over the data: every DataLoader yields its first batches and its last one.

All phases of a program are reached in seconds, and the short last batch is seen, which may decide a peak. The cut is
made in the order of indices, so that no batch is loaded in vain and workers, samplers and batch samplers stay as they
are.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ..record import Record

# Indices that a pass may be walked through for its last batch, about a second; a sampler may have ten billion.
WALKED = 5_000_000

FULL_LENGTH = "colocate_full_length"  # batches of a full pass; workloads report it


def cut_loaders(batches: int, record: Record) -> None:
    """Cut every pass of every DataLoader of this process to ``batches`` batches.

    ``len(loader)`` is the cut length; ``loader.colocate_full_length`` keeps the full one where it is known.
    """
    record.fields["batches_per_pass"] = batches
    whole_sampler = DataLoader._index_sampler.fget
    whole_length = DataLoader.__len__

    def cut_sampler(loader: Any) -> Any:
        return CutPass(whole_sampler(loader), batches, record, _has_order(loader))

    def full_length(loader: Any) -> int:
        if not _has_order(loader):
            return int(whole_length(loader))
        return len(whole_sampler(loader))

    def cut_length(loader: Any) -> int:
        return min(batches, full_length(loader))

    DataLoader._index_sampler = property(cut_sampler)
    DataLoader.__len__ = cut_length
    setattr(DataLoader, FULL_LENGTH, property(_or_no_attribute(full_length)))


def _has_order(loader: Any) -> bool:
    """The loader fetches by index; an iterable data set only counts how often it is asked."""
    return not isinstance(loader.dataset, IterableDataset)


def _or_no_attribute(length: Any) -> Any:
    def of(loader: Any) -> int:
        try:
            return int(length(loader))
        except TypeError as error:  # a sampler or data set without length
            raise AttributeError(FULL_LENGTH) from error

    return of


class CutPass:
    """An index sampler that gives the first indices and the last ones; everything else is the original's."""

    def __init__(self, whole: Any, batches: int, record: Record, ordered: bool) -> None:
        self._whole = whole
        self._batches = batches
        self._record = record
        self._ordered = ordered

    def __len__(self) -> int:
        return min(self._batches, len(self._whole))

    def __iter__(self) -> Iterator[Any]:
        length = self._full_length()
        if length is None:
            self._record.fields["passes_cut"] += 1
            yield from itertools.islice(self._whole, self._batches)
            return
        if length > self._batches:
            self._record.fields["passes_cut"] += 1
        per_batch = getattr(self._whole, "batch_size", None) or 1
        if length * per_batch > WALKED:
            yield from self._without_walking(length, per_batch)
            return
        for position, indices in zip(range(length), self._whole, strict=False):
            if position < self._batches - 1 or position == length - 1:
                yield indices

    def _without_walking(self, length: int, per_batch: int) -> Iterator[Any]:
        """As many batches from the beginning; the last as short as the last of the whole pass, where that is known."""
        self._record.note(f"a pass of {length} batches: the last is taken from its beginning, in the last one's length")
        for position, indices in enumerate(itertools.islice(self._whole, min(self._batches, length)), start=1):
            if position < self._batches or not isinstance(self._whole, BatchSampler):
                yield indices
            else:
                yield indices[: len(self._whole.sampler) - (length - 1) * per_batch]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def _full_length(self) -> int | None:
        """None where the end is unknown or will never come."""
        try:
            return len(self._whole) if self._ordered else None
        except TypeError:
            return None
