"""How fast the worst meeting of two long traces is found, beside trying the shifts one by one.

Two made-up trainings at 20 samples a second: each holds its level while it trains, more while it evaluates after every
epoch, and a spike at each checkpoint; `--wild` makes every sample differ, as nothing real does. Three ways, in one run:
colocate on steps (equal neighbours merged), colocate on every sample, and every shift at every sample as in a
two-line program, on a stretch short enough to end; its time grows with the square and is carried forward, which the
table says.

Usage: python benchmarks/alignment.py [--hours 4]
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from colocate.verdict.memory_history import Steps
from colocate.verdict.worst_case_peak import worst_alignment

HZ = 20
BY_HAND_SAMPLES = 2000


def samples(hours: float, epoch_s: float, wild: bool, seed: int) -> list[int]:
    """Bytes, one per tick."""
    chance = random.Random(seed)
    found = []
    for tick in range(round(hours * 3600 * HZ)):
        at = tick / HZ % epoch_s
        level = 2000 if at < epoch_s * 0.9 else 2700
        if epoch_s - at < 0.2:
            level = 3100
        found.append(level * 2**20 + (chance.randrange(2**20) if wild else 0))
    return found


def by_hand(front: list[int], beside: list[int]) -> int:
    """Every shift at every sample."""
    best = 0
    for shift in range(len(beside)):
        best = max(best, max(map(sum, zip(front, beside[shift:], strict=False)), default=0))
    return best


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    result = work()
    return time.perf_counter() - begun, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=4.0)
    hours = parser.parse_args().hours
    print(f"{'traces':<8}{'samples':>9}{'steps':>9}{'merging':>10}{'aligning':>10}{'by hand':>14}{'ratio':>9}")
    for wild in (False, True):
        ours, load = samples(hours, 61.0, wild, 1), samples(hours, 47.0, wild, 2)
        ticks = [number / HZ for number in range(len(ours))]
        merging_s, traces = timed(
            lambda: [Steps.of(zip(ticks, sizes, strict=True), len(ours) / HZ) for sizes in (ours, load)]  # noqa: B023
        )
        aligning_s, found = timed(lambda: worst_alignment(*traces, earliest_s=0.0))  # noqa: B023
        short_s, _ = timed(lambda: by_hand(ours[:BY_HAND_SAMPLES], load[:BY_HAND_SAMPLES]))  # noqa: B023
        hand_s = short_s * (len(ours) / BY_HAND_SAMPLES) ** 2
        ratio = hand_s / (merging_s + aligning_s)
        name = "wild" if wild else "usual"
        print(
            f"{name:<8}{len(ours):>9}{len(traces[0].steps):>9}{merging_s * 1000:>7.0f} ms{aligning_s * 1000:>7.1f} ms"
            f"{hand_s / 3600:>12.1f} h{ratio:>9.0f}"
        )
        assert found.total_bytes >= max(ours) + 2000 * 2**20
    print(f"by hand: measured on {BY_HAND_SAMPLES} samples of each, carried forward with the square of their number")


if __name__ == "__main__":
    main()
