# SPDX-License-Identifier: Apache-2.0
"""The blocks that the simulated allocator divides its segments into, and the pools that it caches free ones in."""

import bisect
import enum


class State(enum.Enum):
    """The state of a block: in use, cached, or an address range without memory (expandable only)."""

    USED = enum.auto()
    FREE = enum.auto()
    UNMAPPED = enum.auto()


class Block:
    """A stretch of a segment, linked to its neighbours. ``number`` is the owner's, and means nothing here."""

    __slots__ = ("following", "number", "pool", "preceding", "requested_bytes", "size", "start", "state")

    def __init__(self, pool: "Pool", start: int, size: int, state: State) -> None:
        self.pool = pool
        self.start = start
        self.size = size
        self.state = state
        self.requested_bytes = self.number = 0
        self.preceding: Block | None = None
        self.following: Block | None = None

    @property
    def end(self) -> int:
        """The first address behind the block."""
        return self.start + self.size

    def split(self, size: int) -> "Block":
        """Keep the first ``size`` bytes; the rest becomes the following block, of the same state."""
        rest = Block(self.pool, self.start + size, self.size - size, self.state)
        rest.preceding, rest.following = self, self.following
        if self.following is not None:
            self.following.preceding = rest
        self.following, self.size = rest, size
        return rest

    def absorb_following(self) -> None:
        """Take over the following block."""
        neighbour = self.following
        assert neighbour is not None
        self.size += neighbour.size
        self.following = neighbour.following
        if self.following is not None:
            self.following.preceding = self


class Pool:
    """The cached (free) blocks of one pool in order of size, then address, and the first block of each segment."""

    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.segments: dict[int, Block] = {}
        self.unmapped: list[tuple[int, Block]] = []  # in order of address
        self._free: list[tuple[int, int, Block]] = []

    def add(self, block: Block) -> None:
        """Put a free block into the cache."""
        bisect.insort(self._free, (block.size, block.start, block))

    def remove(self, block: Block) -> None:
        """Take a free block out of the cache."""
        index = bisect.bisect_left(self._free, (block.size, block.start))
        assert self._free[index][2] is block
        del self._free[index]

    def free_blocks(self) -> list[Block]:
        """The cached blocks, smallest first."""
        return [block for _, _, block in self._free]

    def best_fit(self, size: int, *, expandable: bool) -> Block | None:
        """The smallest cached block that holds ``size``; it stays in the cache.

        The last block of an expandable segment can grow, so it counts with the size that it can grow to: a hole of
        fixed size is preferred to it (``expandable_size`` in ``get_free_block``).
        """
        index = bisect.bisect_left(self._free, (size,))
        if index == len(self._free):
            return None
        if not expandable:
            return self._free[index][2]
        while index + 1 < len(self._free) and _can_grow_to(self._free[index + 1][2]) < _can_grow_to(
            self._free[index][2]
        ):
            index += 1
        return self._free[index][2]

    def segment_starting_with(self, block: Block) -> bool:
        """The block is a whole segment."""
        return block.preceding is None and block.following is None


def _can_grow_to(block: Block) -> int:
    behind = block.following
    return block.size + (behind.size if behind is not None and behind.state is State.UNMAPPED else 0)
