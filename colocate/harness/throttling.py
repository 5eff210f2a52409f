# SPDX-License-Identifier: Apache-2.0
"""Detect that the driver slowed a GPU down for heat or power."""

from collections import Counter
from collections.abc import Iterator, Sequence

from colocate.results import VitalsReading

# nvml.h, nvmlClocksEventReason*; the others (idle, clocks that somebody set, displays) say nothing about distress.
REASONS = {
    0x04: "power limit",
    0x08: "slowed down by the hardware",
    0x20: "heat",
    0x40: "heat, by the hardware",
    0x80: "power brake",
}


def throttling(readings: Sequence[VitalsReading], start_s: float, end_s: float) -> str | None:
    """Say in how many readings between two instants the GPU was slowed down, and why; None if in none."""
    inside = [vitals.throttle_reasons for at_s, _, vitals in readings if start_s <= at_s <= end_s]
    found = [tuple(_names(reasons)) for reasons in inside if reasons is not None]
    counts = Counter(name for names in found for name in names)
    if not counts:
        return None
    why = ", ".join(f"{name} {count} times" for name, count in counts.most_common())
    return f"in {sum(map(bool, found))} of {len(found)} readings ({why})"


def _names(reasons: int) -> Iterator[str]:
    return (name for bit, name in REASONS.items() if reasons & bit)
