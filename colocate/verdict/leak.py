# SPDX-License-Identifier: Apache-2.0
"""Memory that grows for as long as a training runs: how much per epoch, and how long until the limit.

Pure. Asked of what the allocator of a measured training reserved over time. A healthy training rises in its first steps
and then stays; an allocator's cache rises now and then. A leak rises through the whole time, at one rate.
"""

from collections.abc import Sequence
from itertools import pairwise

from colocate.verdict.step_function import Step

# The time is divided into so many equal parts; the first ones are for warming up.
PARTS = 10
WARMING_UP = 4

# The largest rise from one part to the next is at most so many times the smallest, or it is no steady growth.
STEADY = 3.0

LEAST_BYTES = 64 << 20  # an allocator's segments are up to 20 MiB, of which any program may want one more


def steady_growth_bytes(held: Sequence[Step], start_s: float, end_s: float) -> int | None:
    """What a training would go on to add in as much time again, in bytes; None where it does not grow steadily.

    Args:
        held: from each second on, so many bytes; never below what was held.
        start_s: the first step of the training.
        end_s: its last.
    """
    if end_s <= start_s or not held:
        return None
    part_s = (end_s - start_s) / PARTS
    levels = [_level(held, start_s + part * part_s) for part in range(WARMING_UP, PARTS + 1)]
    rises = [after - before for before, after in pairwise(levels)]
    if min(rises) <= 0 or max(rises) > STEADY * min(rises) or sum(rises) < LEAST_BYTES:
        return None
    return round(sum(rises) * PARTS / len(rises))


def _level(held: Sequence[Step], at_s: float) -> int:
    """What was held at an instant."""
    return next((size for since_s, size in reversed(held) if since_s <= at_s), 0)
