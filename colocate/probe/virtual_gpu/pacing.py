# SPDX-License-Identifier: Apache-2.0
"""Makes the two trainings of a group on the virtual GPU wait for each other, however slow the machine is.

An emulated epoch lasts a second or two. A background that evaluates, saves or starts again at that moment would have
made no step beside it, which says how busy the processors were and nothing of the GPU: the foreground waits for steps.
A background whose peak is known would take half of the processors for nothing: it makes a step for every step of the
foreground. Standard library only.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

# Seconds to wait for steps of the training beside which this one runs, a colon, the folder of its records.
BESIDE = "COLOCATE_BESIDE"

# For a background, the file that exists once its peak is known, empty until its foreground has ended.
READY = "COLOCATE_READY"

STEPS = 2  # the first may have begun before the foreground's
LOOK_S = 0.2


class Rest:
    """Lets a background go on step by step with its foreground, from the moment on at which its peak is known.

    Args:
        ready: File that exists from then on, and is no longer empty once the foreground has ended.
        beside: Folder of the records of the foreground's probe.
        most_s: How long to wait for a step of the foreground, which may be one that makes none.
        sleep: Lets that many seconds pass.
    """

    def __init__(self, ready: Path, beside: Path, most_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._ready = ready
        self._beside = beside
        self._most_s = most_s
        self._sleep = sleep
        self._before = 0

    def step(self) -> None:
        """Call after every step of an optimizer."""
        until_t = time.monotonic() + self._most_s
        while self._is_on() and time.monotonic() < until_t:
            steps = steps_of(self._beside)
            if steps > self._before:
                # As many steps as the foreground waits for may follow at once: else each would wait for the other.
                self._before = max(self._before + 1, steps - STEPS + 1)
                return
            self._sleep(LOOK_S)

    def _is_on(self) -> bool:
        try:
            return self._ready.stat().st_size == 0
        except OSError:
            return False


class Pace:
    """Waits once, at the second step of the foreground.

    Args:
        beside: Folder of the records of the background's probe.
        most_s: How long to wait; a background that makes no step for so long is no load, and the verdict says so.
        sleep: Lets that many seconds pass.
    """

    def __init__(self, beside: Path, most_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
        self._beside = beside
        self._most_s = most_s
        self._sleep = sleep
        self._before: int | None = None
        self._is_over = False

    def step(self) -> None:
        """Call after every step of an optimizer. Returns at once where the background has no optimizer."""
        if self._is_over:
            return
        if self._before is None:
            self._before = steps_of(self._beside)
            return
        self._is_over = True
        until_t = time.monotonic() + self._most_s
        while self._before and steps_of(self._beside) < self._before + STEPS and time.monotonic() < until_t:
            self._sleep(LOOK_S)


def pace_of_environment() -> Callable[[], None] | None:
    """What to call after every step of an optimizer; None for a program that runs alone."""
    if not os.environ.get(BESIDE):
        return None
    most_s, _, folder = os.environ[BESIDE].partition(":")
    ready = os.environ.get(READY)
    pace = Rest(Path(ready), Path(folder), float(most_s)) if ready else Pace(Path(folder), float(most_s))
    return pace.step


def steps_of(folder: Path) -> int:
    """Steps that all processes of a training have counted so far, the ended ones included.

    A record that cannot be read counts none: no training may fail because another one is watched.
    """
    steps = 0
    for one in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            steps += int(json.loads(one.read_bytes())["optimizer_steps"])
    return steps
