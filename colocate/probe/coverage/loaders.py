# SPDX-License-Identifier: Apache-2.0
"""Short passes over the data: a DataLoader yields its first batches, those worth jumping to, and its last one.

``len(loader)`` stays what it is, and a batch that is jumped to has its true number: ``enumerate`` counts on as if the
batches in between had been there. The cut is made in the order of indices, so that no batch is loaded in vain and
workers, samplers and batch samplers stay as they are. How far a pass goes is decided in `coverage`.
"""

import builtins
import dis
import inspect
import itertools
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from ..origin import OURS
from ..record import Record
from .coverage import Coverage
from .longest import Longest, are_of_one_size, size_of
from .passes import Pass
from .source import frames

# Indices that a pass may be walked through for its last batch, about a second; a sampler may have ten billion.
WALKED = 5_000_000

# What no loader is below of.
PLAIN = {list, tuple, dict, set, str, range, zip, torch.Tensor}
WHOLE = enumerate

GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def cut_loaders(batches: int, record: Record, coverage: Coverage) -> None:
    """Cut every pass of every DataLoader of this process: to ``batches`` batches, or as many as `coverage` wants."""
    record.fields["batches_per_pass"] = batches
    whole_sampler = DataLoader._index_sampler.fget
    give = _BaseDataLoaderIter.__next__
    longest = Longest(coverage)

    def cut_sampler(loader: Any) -> Any:
        return CutPasses(loader, whole_sampler(loader), batches, record, coverage, longest)

    def give_and_count(iterator: Any) -> Any:
        indices = iterator._sampler_iter
        if not isinstance(indices, Indices):
            return give(iterator)
        frame = _consumer()
        indices.asked(frame)
        if isinstance(iterator, _MultiProcessingDataLoaderIter) and iterator._send_idx == iterator._rcvd_idx:
            iterator._try_put_index()  # workers have nothing to do: the pass had not said yet that it goes on
        began_t = time.monotonic()
        try:
            batch = give(iterator)
        except StopIteration:
            indices.ended()
            raise
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            indices.waited((time.monotonic() - began_t) * iterator._num_workers)
        indices.measured(batch)
        coverage.collected.came(batch)
        Enumerate.jumped += indices.gave(frame)
        return batch

    DataLoader._index_sampler = property(cut_sampler)
    _BaseDataLoaderIter.__next__ = give_and_count
    builtins.enumerate = Enumerate  # type: ignore[misc]


class Enumerate(enumerate):  # type: ignore[type-arg]
    """``enumerate`` that counts the batches which a loader below it has left out."""

    jumped = 0

    def __new__(cls, iterable: Iterable[Any], start: int = 0) -> Any:
        """The original for what surely is no loader."""
        return WHOLE(iterable, start) if type(iterable) in PLAIN else super().__new__(cls, iterable, start)

    def __init__(self, iterable: Iterable[Any], start: int = 0) -> None:
        self._more = 0

    def __next__(self) -> tuple[int, Any]:
        """The next pair, its number moved by what was left out so far."""
        before = Enumerate.jumped
        number, one = super().__next__()
        self._more += Enumerate.jumped - before
        return number + self._more, one


class CutPasses:
    """An index sampler whose passes are cut; everything else is the original's.

    Loaders with persistent workers hold their iterator, which holds this: a strong reference back would leave their
    workers to the garbage collector, which closes their queues too early, so that each takes five seconds to end.
    """

    def __init__(
        self, loader: Any, whole: Any, batches: int, record: Record, coverage: Coverage, longest: Longest
    ) -> None:
        self._whole = whole
        self._loader = weakref.ref(loader)
        self._arguments = batches, record, coverage, longest

    def __len__(self) -> int:
        return len(self._whole)

    def __iter__(self) -> "Indices":
        told = isinstance(sys._getframe(1).f_locals.get("self"), _BaseDataLoaderIter)
        return Indices(self._whole, self._loader(), *self._arguments, told=told)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)


class Indices:
    """The indices of one pass, batch by batch.

    An iterator that may say that there is nothing yet and go on later: workers ask ahead, and how far the pass goes is
    decided when the program asks.
    """

    def __init__(
        self,
        whole: Any,
        loader: Any,
        batches: int,
        record: Record,
        coverage: Coverage,
        longest: Longest,
        *,
        told: bool,
    ) -> None:
        # An iterable data set only counts how often it is asked.
        ordered = not isinstance(loader.dataset, IterableDataset)
        self._whole = whole
        self._least = max(1, batches - 1)
        self._record = record
        self._longest = longest
        self._coverage = coverage
        self._length = _length(whole) if ordered else _length(loader)
        self._per_batch = getattr(whole, "batch_size", None) or 1
        self._data = type(loader.dataset), _length(loader.dataset)
        far = self._length is not None and self._length * self._per_batch > WALKED
        self._far = far
        self._indices: Iterator[Any] = iter(whole)
        self._pass = Pass(self._length, ordered and self._length is not None)
        if ordered and self._length is not None and not far:
            known = list(itertools.islice(self._indices, self._length))
            self._indices = itertools.chain(known, self._indices)
            self._pass.largest = longest.batches(loader, known)
        self._next = 0  # the next position of the original
        self._granted = min(self._least, 1 << 62 if self._length is None else self._length)
        self._targets: list[int] | None = None
        # Of batches that nobody could look at ahead only those that are run are known.
        self._is_unseen = not ordered or far or longest.is_unknown(loader.dataset)
        self._sizes: set[int] = set()
        self._out: list[int] = []  # positions handed to the loader and not yet to the program
        self._is_told = told  # whoever fetches the batches goes through `asked`

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._targets is not None:
            return self._target(self._targets.pop(0)) if self._targets else self._stop()
        if self._next >= self._granted and self._is_told:
            self._stop()
        if self._next >= self._granted:  # nobody tells how it is used: a plain cut
            self._targets = [] if self._length is None else [self._length - 1] * (self._next < self._length)
            return next(self)
        return self._target(self._next)

    def asked(self, frame: Any) -> None:
        """The program asks for its next batch."""
        first = self._pass.known is None
        self._coverage.asked(self._pass, looping(frame))
        if first:
            self._longest.compare((self._pass.place, *self._data), self._per_batch)
            self._granted = max(self._next, min(self._granted, self._coverage.least(self._pass, self._least)))
        if self._out or self._next < self._granted or self._targets is not None:
            return
        if not _may_end(frame) or self._coverage.wants_more(self._pass, self._least):
            self._granted += 1
        elif self._length is None or self._next < self._length:
            self._record.fields["passes_cut"] += 1
            if not are_of_one_size(self._sizes):
                seen = "could not be looked at ahead of the run"
                self._coverage.doubt("longest_batch_unseen", f"batches differ in shape, and the rest of them {seen}")
            self._targets = self._coverage.cut(self._pass, looping(frame))

    def measured(self, batch: Any) -> None:
        """Take note of a batch's size; the largest of a cut pass may be missing if they differ."""
        if self._is_unseen and self._targets is None and (size := size_of(batch)) is not None:
            self._sizes.add(size)

    def gave(self, frame: Any) -> int:
        """The program has got a batch; how many were left out before it."""
        return self._coverage.gave(self._pass, self._out.pop(0), looping(frame)) if self._out else 0

    def waited(self, seconds: float) -> None:
        """The program has waited, for so many seconds of its workers: their time is this machine's, too."""
        self._pass.asked_s -= seconds

    def ended(self) -> None:
        """The program has asked for more than there is."""
        self._coverage.ended(self._pass)

    def _stop(self) -> Any:
        raise StopIteration

    def _target(self, position: int) -> Any:
        if self._far and position > self._next:
            indices = self._near(position)
        else:
            indices = next(itertools.islice(self._indices, position - self._next, None))
        self._next = position + 1
        self._out.append(position)
        if isinstance(indices, list):
            self._pass.samples += len(indices)
            self._coverage.collected.batch_sizes.add(len(indices))
        return indices

    def _near(self, position: int) -> Any:
        """A batch far away, taken from here; the last one as short as the last of the whole pass."""
        assert self._length is not None
        self._record.note(f"a pass of {self._length} batches: the last is taken from its beginning, in its own length")
        indices = next(self._indices)
        if position < self._length - 1 or not isinstance(self._whole, BatchSampler):
            return indices
        return indices[: len(self._whole.sampler) - (self._length - 1) * self._per_batch]


def _length(sized: Any) -> int | None:
    """None where the end is unknown or will never come."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def _consumer() -> Any:
    """The frame that asks for a batch, without ours."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None and _is_ours(frame):
        frame = frame.f_back
    return frame


def looping(frame: Any) -> Any:
    """The frame whose loop it is in the end: neither ours nor a generator's that hands the batches on."""
    while frame.f_back is not None and (frame.f_code.co_flags & GENERATOR or _is_ours(frame)):
        frame = frame.f_back
    return frame


def _is_ours(frame: Any) -> bool:
    return bool(frame.f_code.co_filename.startswith(OURS))


def _may_end(frame: Any) -> bool:
    """Whether the program can do with a pass that ends early: in a loop, or where it expects the end.

    A bare ``next(iterator)`` would raise StopIteration where the program counts on a batch.
    """
    for one in frames(frame):
        code = one.f_code
        opcode = dis.opname[code.co_code[one.f_lasti]] if one.f_lasti >= 0 else ""
        explicit = opcode != "FOR_ITER" and not _is_ours(one) and {"next", "__next__"} & set(code.co_names)
        if explicit and "StopIteration" not in code.co_names:
            return False
        if not code.co_flags & GENERATOR and not _is_ours(one):
            return True
    return True
