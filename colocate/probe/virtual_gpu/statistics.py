# SPDX-License-Identifier: Apache-2.0
"""``torch.cuda.memory_stats()`` out of the simulated allocator, with all the keys that programs and trainers read."""

from collections import Counter, OrderedDict
from typing import Any

from .allocator import CachingAllocator, Level
from .blocks import State

# Not simulated, and nothing of it on most GPUs: no limit for splitting, no synchronisation while memory is freed.
NONE_OF = ("num_sync_all_streams", "oversize_allocations", "oversize_segments")
METRICS = ("current", "peak", "allocated", "freed")


def statistics(allocator: CachingAllocator) -> "OrderedDict[str, Any]":
    """Every key of ``memory_stats()``; of single pools only what is current, which stands for their peaks, too."""
    result: OrderedDict[str, Any] = OrderedDict()
    levels: dict[str, Level] = {
        "allocation": allocator.allocations,
        "active": allocator.allocations,
        "segment": allocator.segments,
        "allocated_bytes": allocator.allocated,
        "active_bytes": allocator.allocated,
        "reserved_bytes": allocator.reserved,
        "requested_bytes": allocator.requested,
    }
    for name, level in levels.items():
        values = (level.current, level.peak, level.grown, level.grown - level.current)
        result.update({f"{name}.all.{metric}": value for metric, value in zip(METRICS, values, strict=True)})
    now = _by_pool(allocator)
    for pool in ("all", "small_pool", "large_pool"):
        for name in (*levels, "inactive_split", "inactive_split_bytes"):
            for metric in METRICS:
                value = now[name, pool] if metric != "freed" else 0
                result.setdefault(f"{name}.{pool}.{metric}", value)
    result["num_alloc_retries"] = allocator.num_alloc_retries
    result["num_ooms"] = allocator.num_ooms
    result["num_device_alloc"] = allocator.segments.grown
    result["num_device_free"] = allocator.segments.grown - allocator.segments.current
    result["max_split_size"] = allocator.settings.max_split_bytes or -1
    result["num_sync_all_streams"] = 0
    for name in NONE_OF[1:]:
        result.update({f"{name}.{metric}": 0 for metric in METRICS})
    return OrderedDict(sorted(result.items()))


def _by_pool(allocator: CachingAllocator) -> "Counter[tuple[str, str]]":
    """What blocks and segments of each pool are now."""
    found: Counter[tuple[str, str]] = Counter()
    for block in allocator.blocks():
        for pool in ("all", "small_pool" if block.pool.small else "large_pool"):
            if block.preceding is None:
                found["segment", pool] += 1
            if block.state is not State.UNMAPPED:
                found["reserved_bytes", pool] += block.size
            if block.state is State.USED:
                found["requested_bytes", pool] += block.requested_bytes
                for name in ("allocation", "active"):
                    found[name, pool] += 1
                    found[f"{'allocated' if name == 'allocation' else name}_bytes", pool] += block.size
            elif block.state is State.FREE and (block.preceding is not None or block.following is not None):
                found["inactive_split", pool] += 1
                found["inactive_split_bytes", pool] += block.size
    return found


def summary(allocator: CachingAllocator) -> str:
    """``memory_summary()``, without its table."""
    return "\n".join(f"{name}: {value}" for name, value in statistics(allocator).items())
