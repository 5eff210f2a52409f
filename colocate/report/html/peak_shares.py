# SPDX-License-Identifier: Apache-2.0
"""Who holds how much of a peak: foreground, background, and what the GPU held anyway.

On the virtual GPU these are the members' own highest demands, whose sum is the peak. On a real GPU they are what the
driver or PyTorch told of each member at its own highest moment; the rest is what neither of them accounts for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from colocate.plan import ROLES, Role
from colocate.results import GroupResult
from colocate.verdict import Allocator, Member, own_peak_bytes


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


def shares(row: GroupResult) -> Shares | None:
    """The parts of a group's peak; None without a peak."""
    peak = row.peak_bytes
    if peak is None:
        return None
    own = {role: own_bytes(row, role) for role in ROLES}
    room = max(0, peak - (row.evidence.baseline_bytes or 0))
    background = None if own["background"] is None else min(own["background"], room)
    foreground = None if own["foreground"] is None else min(own["foreground"], room - (background or 0))
    rest = peak - (foreground or 0) - (background or 0)
    return Shares(peak, foreground, background, rest, sum(size or 0 for size in own.values()) > room)


def own_bytes(row: GroupResult, role: Role) -> int | None:
    """The most that a member held or asked for, CUDA context included where it is known; None where nobody told."""
    member = row.evidence.member(role)
    if member is None:
        return None
    if row.basis == "predicted":
        wanted = max(_demands(member.wanted), default=None)
        demand = max(_demands(member.allocators), default=None)
        asked = None if demand is None else demand + (_unmet(member) if wanted is None else 0)
        return max(filter(None, (asked, wanted)), default=None)
    return max(filter(None, (own_peak_bytes(member), member.held_bytes)), default=None)


def _demands(allocators: Iterable[Allocator]) -> Iterator[int]:
    for one in allocators:
        if one.max_reserved_bytes is not None and one.context_bytes is not None:
            yield one.max_reserved_bytes + one.context_bytes


def _unmet(member: Member) -> int:
    return max((event.requested_bytes or 0 for event in member.out_of_memory), default=0)
