# SPDX-License-Identifier: Apache-2.0
"""Who holds how much of a peak: foreground, background, and what the GPU held anyway.

On the virtual GPU these are the members' own highest demands, whose sum is the peak. On a real GPU they are what the
driver or PyTorch told of each member at its own highest moment; the rest is what neither of them accounts for.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from colocate.plan import ROLES
from colocate.results import Row, mapping, number


@dataclass(frozen=True)
class Shares:
    """A peak in parts, in bytes; None is a member of which nothing is known.

    ``other_bytes`` is the baseline and the rest. ``clipped`` says that the members' own maxima add up to more than the
    peak, so they were not simultaneous.
    """

    peak_bytes: int
    foreground_bytes: int | None
    background_bytes: int | None
    other_bytes: int
    clipped: bool = False

    @property
    def known(self) -> bool:
        """At least one member's part is known."""
        return self.foreground_bytes is not None or self.background_bytes is not None


def shares(row: Row) -> Shares | None:
    """The parts of a row's peak; None without a peak."""
    peak = number(row.record.get("peak_bytes"))
    if peak is None:
        return None
    own = {role: own_bytes(row, role) for role in ROLES}
    room = max(0, peak - (row.baseline_bytes or 0))
    background = None if own["background"] is None else min(own["background"], room)
    foreground = None if own["foreground"] is None else min(own["foreground"], room - (background or 0))
    rest = peak - (foreground or 0) - (background or 0)
    return Shares(peak, foreground, background, rest, sum(size or 0 for size in own.values()) > room)


def own_bytes(row: Row, role: str) -> int | None:
    """The most that a member held or asked for, CUDA context included where it is known; None where nobody told."""
    member = row.member(role)
    allocators = [mapping(allocator) for allocator in member.get("allocators") or ()]
    if row.record.get("basis") == "predicted":
        wanted = max(_demands([mapping(one) for one in member.get("wanted") or ()]), default=None)
        demand = max(_demands(allocators), default=None)
        asked = None if demand is None else demand + (_unmet(member) if wanted is None else 0)
        return max(filter(None, (asked, wanted)), default=None)
    accounted: dict[Any, int] = {}
    for peak in map(mapping, member.get("process_peaks") or ()):
        accounted[peak.get("process_run")] = accounted.get(peak.get("process_run"), 0) + (
            number(peak.get("used_bytes")) or 0
        )
    reported = [*accounted.values(), number(member.get("held_bytes")), number(member.get("accounting_peak_bytes"))]
    reported += [number(allocator.get("max_reserved_bytes")) for allocator in allocators]
    return max(filter(None, reported), default=None)


def _demands(allocators: list[Mapping[str, Any]]) -> Iterator[int]:
    for allocator in allocators:
        reserved, context = number(allocator.get("max_reserved_bytes")), number(allocator.get("context_bytes"))
        if reserved is not None and context is not None:
            yield reserved + context


def _unmet(member: Mapping[str, Any]) -> int:
    asked = [number(mapping(event).get("requested_bytes")) or 0 for event in member.get("out_of_memory") or ()]
    return max(asked, default=0)
