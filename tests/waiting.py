"""Wait for a condition of the outside world, with a limit that only a broken program reaches."""

import time
from collections.abc import Callable

LIMIT_S = 120.0


def wait_until(condition: Callable[[], object], limit_s: float = LIMIT_S) -> float:
    """Return as soon as the condition holds, with the seconds it took; fail when it does not within the limit."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > limit_s:
            raise AssertionError(f"expected within {limit_s:g} s: {condition}")
        time.sleep(0.005)
    return time.monotonic() - started
