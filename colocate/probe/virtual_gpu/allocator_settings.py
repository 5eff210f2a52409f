# SPDX-License-Identifier: Apache-2.0
"""The sizes that PyTorch's native allocator works with, and the options that change them. Sizes are bytes."""

import re
from dataclasses import dataclass, replace

KIB = 1024
MIB = 1024 * KIB

MIN_BLOCK_BYTES = 512  # kMinBlockSize: every size is a multiple of it
SMALL_BYTES = MIB  # kSmallSize: the largest request that the small pool serves
SMALL_SEGMENT_BYTES = 2 * MIB  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 * MIB  # kLargeBuffer: what requests below kMinLargeAlloc share
MIN_LARGE_BYTES = 10 * MIB  # kMinLargeAlloc: from here on a request gets a segment of its own
ROUND_LARGE_BYTES = 2 * MIB  # kRoundLarge: ... rounded up to this
ROUNDUP_INTERVALS = 16  # kRoundUpPowerOfTwoIntervals: from 1 MiB on, one for each power of two


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of ``PYTORCH_ALLOC_CONF`` that move a peak; divisions are one number or one for each interval."""

    expandable_segments: bool = False
    max_split_bytes: int | None = None
    roundup_power2_divisions: int | tuple[int, ...] = 0
    large_segment_bytes: int = LARGE_SEGMENT_BYTES

    @classmethod
    def parse(cls, text: str) -> "tuple[Settings, list[str]]":
        """Settings of a value such as ``"expandable_segments:True,max_split_size_mb:128"``.

        Returns:
            The settings, and one sentence for each option that the simulation leaves out.
        """
        settings, notes = cls(), []
        for option in filter(None, (part.strip() for part in re.split(r",(?![^\[]*\])", text))):
            name, _, value = option.partition(":")
            try:
                settings = settings._with(name.strip(), value.strip())
            except (KeyError, ValueError):
                notes.append(f"allocator option not simulated: {option!r}")
        return settings, notes

    def _with(self, name: str, value: str) -> "Settings":
        if name == "expandable_segments":
            return replace(self, expandable_segments={"true": True, "false": False}[value.lower()])
        if name == "max_split_size_mb":
            return replace(self, max_split_bytes=int(value) * MIB)
        if name == "roundup_power2_divisions":
            divisions = _divisions(value[1:-1]) if value.startswith("[") else int(value)
            return replace(self, roundup_power2_divisions=divisions)
        if name == "large_segment_size_mb":
            return replace(self, large_segment_bytes=int(value) * MIB)
        if name == "backend" and value == "native":
            return self
        raise KeyError(name)

    def rounded(self, num_bytes: int) -> int:
        """The size of the block that a request is served with."""
        if num_bytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        divisions = self._divisions_at(num_bytes)
        if divisions > 1 and num_bytes > MIN_BLOCK_BYTES * divisions:
            return _next_division(num_bytes, divisions)
        return round_up(num_bytes, MIN_BLOCK_BYTES)

    def _divisions_at(self, num_bytes: int) -> int:
        given = self.roundup_power2_divisions
        if isinstance(given, int):
            return given
        return given[min(max(0, num_bytes.bit_length() - MIB.bit_length()), ROUNDUP_INTERVALS - 1)]

    def segment_bytes(self, size: int) -> int:
        """The size of the segment that is requested for a block of this size."""
        if size <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if size < MIN_LARGE_BYTES:
            return self.large_segment_bytes
        return round_up(size, ROUND_LARGE_BYTES)


def _divisions(text: str) -> tuple[int, ...]:
    """The numbers of a list such as ``256:1,512:2,>:4``, sizes in MiB (``parseRoundUpPower2Divisions``).

    The first goes for smaller sizes too; what follows ``>`` goes from the last size on, that one included.
    """
    found: list[int] = []
    table = [0] * ROUNDUP_INTERVALS
    for entry in text.split(","):
        size, _, number = entry.partition(":")
        if size.strip() == ">":
            first = found[-1] if found else 0
            table[first:] = [int(number)] * (ROUNDUP_INTERVALS - first)
            continue
        place = min(int(size).bit_length() - 1, ROUNDUP_INTERVALS - 1)
        start = place if found else 0
        table[start : place + 1] = [int(number)] * (place + 1 - start)
        found.append(place)
    return tuple(table)


def round_up(size: int, multiple: int) -> int:
    """The next multiple, or the size itself where it is one."""
    return -(-size // multiple) * multiple


def _next_division(size: int, divisions: int) -> int:
    """The next of ``divisions`` equal steps between two powers of two (``roundup_power2_next_division``)."""
    if size & (size - 1) == 0:
        return size
    floor = 1 << (size.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    return floor << 1 if step == 0 else round_up(size, step)
