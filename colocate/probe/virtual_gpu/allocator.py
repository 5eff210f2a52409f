# SPDX-License-Identifier: Apache-2.0
"""PyTorch's CUDA caching allocator as arithmetic: which blocks and segments a sequence of requests leads to.

Owns no memory and knows neither torch nor the GPU: segments come from a :class:`Backing` that may refuse. The rules
are those of the native allocator (``c10/cuda/CUDACachingAllocator.cpp`` and ``c10/core/AllocatorConfig.h`` of
PyTorch 2.13), for one device. Sizes are bytes, addresses are made up.
"""

import bisect
from collections.abc import Iterator
from typing import Protocol

from .allocator_settings import (
    LARGE_SEGMENT_BYTES,
    MIN_BLOCK_BYTES,
    ROUND_LARGE_BYTES,
    SMALL_BYTES,
    SMALL_SEGMENT_BYTES,
    Settings,
    round_up,
)
from .blocks import Block, Pool, State

_ADDRESS_SPACE_BYTES = 1 << 50  # the virtual range of an expandable segment: never the limit


class OutOfMemory(Exception):
    """No segment for a request, not even after all cached blocks were given back."""

    def __init__(self, requested_bytes: int) -> None:
        super().__init__(f"allocator: expected room for {requested_bytes} bytes, found none")
        self.requested_bytes = requested_bytes


class Backing(Protocol):
    """The source of segments."""

    def obtain(self, num_bytes: int) -> bool:
        """Take memory for a segment; False when there is not enough."""

    def give_back(self, num_bytes: int) -> None:
        """Return the memory of a segment."""


class Unlimited:
    """A backing that never refuses."""

    def obtain(self, num_bytes: int) -> bool:
        """Always True."""
        return True

    def give_back(self, num_bytes: int) -> None:
        """Nothing to do."""


class Level:
    """A quantity that goes up and down, with its peaks.

    ``peak`` is what a program sees and resets; ``highest`` is the truth since the start, which nobody resets: a
    program that calls ``reset_peak_memory_stats()`` must not hide its own maximum. ``grown`` is the sum of all that it
    ever went up.
    """

    __slots__ = ("current", "grown", "highest", "peak")

    def __init__(self) -> None:
        self.current = self.peak = self.highest = self.grown = 0

    def change(self, difference: int) -> None:
        """Move the level up or down."""
        self.current += difference
        self.grown += max(0, difference)
        if self.current > self.peak:
            self.peak = self.current
            self.highest = max(self.highest, self.peak)

    def reset_peak(self) -> None:
        """Start the program-visible peak anew."""
        self.peak = self.current


class CachingAllocator:
    """The allocator of one process on one device.

    ``allocated`` counts handed-out blocks, ``requested`` what was asked for before rounding, ``reserved`` the memory
    taken from the backing; ``allocations`` and ``segments`` are numbers of blocks in use and of pieces of memory taken.
    ``limit_bytes`` bounds ``reserved`` (``set_per_process_memory_fraction``).
    """

    def __init__(self, backing: Backing | None = None, settings: Settings | None = None) -> None:
        self.backing = backing or Unlimited()
        self.settings = settings or Settings()
        self.limit_bytes: int | None = None
        self.allocated, self.requested, self.reserved = Level(), Level(), Level()
        self.allocations, self.segments = Level(), Level()
        self.num_ooms = self.num_alloc_retries = 0
        self._pools: dict[tuple[int, bool], Pool] = {}
        self._next_address = 1 << 40

    # --- what a program does ----------------------------------------------------------------------------------------

    def malloc(self, num_bytes: int, stream: int = 0) -> Block:
        """A block for a request of at least one byte; each stream has pools of its own, whose blocks no other gets.

        Raises:
            OutOfMemory: the backing refused, and giving back the whole cache did not help.
        """
        size = self.settings.rounded(num_bytes)
        pool = self._pool(stream, size <= SMALL_BYTES)
        block = self._cached(pool, size) or self._new(pool, size)
        if block is None:
            self.num_ooms += 1
            raise OutOfMemory(num_bytes)
        if self._should_split(block, size):
            pool.add(block.split(size))
        block.state, block.requested_bytes = State.USED, num_bytes
        self.allocated.change(block.size)
        self.allocations.change(1)
        self.requested.change(num_bytes)
        return block

    def free(self, block: Block) -> None:
        """Take a block back into the cache and merge it with free neighbours of its segment."""
        self.allocated.change(-block.size)
        self.allocations.change(-1)
        self.requested.change(-block.requested_bytes)
        block.state = State.FREE
        block.pool.add(self._merged(block))

    def empty_cache(self) -> None:
        """Give every cached segment, or every cached page of an expandable one, back to the backing."""
        for pool in self._pools.values():
            for block in pool.free_blocks():
                self._release(block)

    def reset_peaks(self) -> None:
        """Start the program-visible peaks anew."""
        for level in (self.allocated, self.requested, self.reserved, self.allocations, self.segments):
            level.reset_peak()

    def blocks(self) -> Iterator[Block]:
        """Every block in order of address within its segment; for tests and reports."""
        for pool in self._pools.values():
            for first in pool.segments.values():
                block: Block | None = first
                while block is not None:
                    yield block
                    block = block.following

    # --- finding a block --------------------------------------------------------------------------------------------

    def _pool(self, stream: int, small: bool) -> Pool:
        pool = self._pools.get((stream, small))
        if pool is None:
            pool = self._pools[stream, small] = Pool(small=small)
        return pool

    def _cached(self, pool: Pool, size: int) -> Block | None:
        block = pool.best_fit(size, expandable=self.settings.expandable_segments)
        if block is None or self._too_large_to_lend(block, size):
            return None
        pool.remove(block)
        return block

    def _too_large_to_lend(self, block: Block, size: int) -> bool:
        """Blocks above ``max_split_size`` serve only requests that nearly fill them."""
        limit = self.settings.max_split_bytes
        if limit is None:
            return False
        if size < limit:
            return block.size >= limit
        return block.size >= size + LARGE_SEGMENT_BYTES

    def _should_split(self, block: Block, size: int) -> bool:
        rest = block.size - size
        if block.pool.small or self.settings.expandable_segments:
            return rest >= MIN_BLOCK_BYTES
        limit = self.settings.max_split_bytes
        return rest > SMALL_BYTES and (limit is None or size < limit)

    def _new(self, pool: Pool, size: int) -> Block | None:
        """Fresh memory; if there is none, give back what is cached and ask again, as the real allocator does."""
        block = self._acquire(pool, size)
        if block is None and self._release_oversized(pool, size):
            block = self._acquire(pool, size)
        if block is None:
            self.empty_cache()
            self.num_alloc_retries += 1
            block = self._acquire(pool, size)
        return block

    def _acquire(self, pool: Pool, size: int) -> Block | None:
        return self._expand(pool, size) if self.settings.expandable_segments else self._new_segment(pool, size)

    def _obtain(self, num_bytes: int) -> bool:
        if self.limit_bytes is not None and self.reserved.current + num_bytes > self.limit_bytes:
            return False
        if not self.backing.obtain(num_bytes):
            return False
        self.reserved.change(num_bytes)
        return True

    def _give_back(self, num_bytes: int) -> None:
        self.reserved.change(-num_bytes)
        self.backing.give_back(num_bytes)

    def _merged(self, block: Block) -> Block:
        """Merge this block with its neighbours of the same state, which leave the pool's lists."""
        following, preceding = block.following, block.preceding
        if following is not None and following.state is block.state:
            self._delist(following)
            block.absorb_following()
        if preceding is not None and preceding.state is block.state:
            self._delist(preceding)
            preceding.absorb_following()
            return preceding
        return block

    def _delist(self, block: Block) -> None:
        if block.state is State.FREE:
            block.pool.remove(block)
        else:
            block.pool.unmapped.remove((block.start, block))

    # --- segments of fixed size -------------------------------------------------------------------------------------

    def _new_segment(self, pool: Pool, size: int) -> Block | None:
        num_bytes = self.settings.segment_bytes(size)
        if not self._obtain(num_bytes):
            return None
        self.segments.change(1)  # PyTorch counts none that are expandable
        block = Block(pool, self._next_address, num_bytes, State.FREE)
        self._next_address += num_bytes + ROUND_LARGE_BYTES
        pool.segments[block.start] = block
        return block

    def _release(self, block: Block) -> None:
        if self.settings.expandable_segments:
            self._unmap(block)
        elif block.pool.segment_starting_with(block):
            block.pool.remove(block)
            del block.pool.segments[block.start]
            self.segments.change(-1)
            self._give_back(block.size)

    def _release_oversized(self, pool: Pool, size: int) -> bool:
        """Give back enough blocks above ``max_split_size`` for this request, before the whole cache must go."""
        limit = self.settings.max_split_bytes
        if limit is None:
            return False
        wanted = max(size, limit)
        oversized = [block for block in pool.free_blocks() if block.size >= limit]
        enough = next((block for block in oversized if block.size >= wanted), None)
        if enough is not None:
            self._release(enough)
            return True
        released = 0
        while oversized and released < wanted:
            block = oversized.pop()
            released += block.size
            self._release(block)
        return released >= wanted

    # --- expandable segments ----------------------------------------------------------------------------------------

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """Map pages behind a free block, or at the first gap, until ``size`` bytes are there."""
        block = self._growth_point(pool, size)
        if block.state is State.UNMAPPED:
            mapped = self._map(block, size)
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            gap = block.following
            assert gap is not None
            mapped = self._map(gap, size - block.size)
            if mapped is None:
                return None
            block = mapped
        pool.remove(block)
        return block

    def _growth_point(self, pool: Pool, size: int) -> Block:
        for _, gap in pool.unmapped:
            before = gap.preceding
            if before is not None and before.state is State.FREE:
                if before.size + gap.size >= size:
                    return before
            elif gap.size >= size:
                return gap
        start = round_up(self._next_address, self._page_bytes(pool))
        first = Block(pool, start, _ADDRESS_SPACE_BYTES, State.UNMAPPED)
        self._next_address = first.end
        pool.segments[first.start] = first
        bisect.insort(pool.unmapped, (first.start, first))
        return first

    def _map(self, gap: Block, size: int) -> Block | None:
        """Back the first pages of a gap; the free block they become part of, or None when the GPU is full."""
        num_bytes = min(gap.size, round_up(size, self._page_bytes(gap.pool)))
        if not self._obtain(num_bytes):
            return None
        self._delist(gap)
        if num_bytes < gap.size:
            rest = gap.split(num_bytes)
            bisect.insort(gap.pool.unmapped, (rest.start, rest))
        gap.state = State.FREE
        block = self._merged(gap)
        block.pool.add(block)
        return block

    def _unmap(self, block: Block) -> None:
        """Give back the pages that lie wholly inside a free block."""
        page = self._page_bytes(block.pool)
        start, end = round_up(block.start, page), block.end // page * page
        if start >= end:
            return
        pool = block.pool
        pool.remove(block)
        if end < block.end:
            pool.add(block.split(end - block.start))
        if start > block.start:
            inner = block.split(start - block.start)
            pool.add(block)
            block = inner
        block.state = State.UNMAPPED
        self._give_back(block.size)
        block = self._merged(block)
        bisect.insort(pool.unmapped, (block.start, block))

    def _page_bytes(self, pool: Pool) -> int:
        return SMALL_SEGMENT_BYTES if pool.small else self.settings.large_segment_bytes
