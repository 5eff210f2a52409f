# SPDX-License-Identifier: Apache-2.0
"""Replays what one process of a program showed in a dry run: its memory, its steps, its events and its output.

The same program beside another one would show the same again, and importing PyTorch for that takes most of a dry run.
Where the GPU has no room for what was recorded, the process becomes the program itself. Standard library only.

The recording is JSON: ``record`` is what the probe wrote last, ``events`` and ``output`` are lines, ``began_t`` and
``ended_t`` monotonic seconds, ``ends`` says whether the program ended by itself, ``argv`` how it is started, and
``note`` where all that was seen.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..record import Record
from ..start import EVENTS, PROBE, VIRTUAL_GPU
from .pacing import pace_of_environment
from .state import GpuFull, VirtualGpu

LONGEST_S = 1.0  # a replay takes no longer, however long the dry run took
STEP_EVERY_S = 0.1  # of a program that trains on until it is ended

# Fields of the record that say when, or how far; they are filled again as the replay goes on.
OF_ITS_COURSE = frozenset(
    {"pid", "started_t", "t", "history", "optimizer_steps", "first_step_t", "last_step_t", "allocated_bytes"}
    | {"reserved_bytes", "reserved_grown_bytes", "max_allocated_bytes", "max_reserved_bytes"}
)

Act = Callable[[], object]


class Replay:
    """One recorded process, in the environment of a training on the virtual GPU."""

    def __init__(self, recording: dict[str, Any]) -> None:
        self._recording = recording
        self._last = recording["record"]
        self._gpu = VirtualGpu.open(os.environ[VIRTUAL_GPU])
        self._record = Record(os.environ[PROBE], "virtual", self._last["torch"])
        self._record.fields.update(
            {name: value for name, value in self._last.items() if name not in OF_ITS_COURSE},
            reserved_grown_bytes=0,
        )
        self._record.note(recording["note"])
        pace = pace_of_environment()
        self._pace = pace if self._recording["ends"] else None  # a step that costs nothing need not wait for others

    def run(self) -> None:
        """Do in their order, and in a shorter time, all that the program did; then train on if it did not end."""
        print(f"colocate: {self._recording['note']}", flush=True)
        self._record.keep_writing()
        last_t, whole_s = self._recording["began_t"], self._recording["ended_t"] - self._recording["began_t"]
        shorter = min(1.0, LONGEST_S / whole_s) if whole_s else 0.0
        for at_t, act in sorted(self._acts(), key=lambda one: one[0]):
            time.sleep(max(0.0, at_t - last_t) * shorter)  # from act to act, for one may have to wait for its turn
            act()
            last_t = at_t
        self._record.fields.update({name: self._last.get(name) for name in ("allocated_bytes", "max_allocated_bytes")})
        self._record.write()
        while not self._recording["ends"]:
            time.sleep(STEP_EVERY_S)
            self._step()
            self._tell(*[one for one in self._recording["events"] if one["event"] == "step"][-1:])

    def _acts(self) -> Iterator[tuple[float, Act]]:
        """What the program did, each with its time in the dry run."""
        recording, last = self._recording, self._last
        for at_t, size in last["history"]:
            yield at_t, partial(self._hold, size)
        for at_t in _spread(last["first_step_t"], last["last_step_t"], last["optimizer_steps"]):
            yield at_t, self._step
        for event in recording["events"]:
            yield event["t"], partial(self._tell, event)
        output = recording["output"]
        for at_t, line in zip(_spread(recording["began_t"], recording["ended_t"], len(output)), output, strict=True):
            yield at_t, partial(print, line, flush=True)

    def _hold(self, reserved_bytes: int) -> None:
        fields = self._record.fields
        self._gpu.claim(self._last["context_bytes"] + reserved_bytes)
        fields["reserved_grown_bytes"] += max(0, reserved_bytes - (fields["reserved_bytes"] or 0))
        fields["reserved_bytes"] = reserved_bytes
        fields["max_reserved_bytes"] = max(reserved_bytes, fields["max_reserved_bytes"] or 0)
        self._record.write()

    def _step(self) -> None:
        self._record.step()
        self._record.write()
        if self._pace is not None:
            self._pace()

    def _tell(self, *events: dict[str, Any]) -> None:
        for event in events:
            with Path(os.environ[EVENTS]).open("a") as file:
                file.write(json.dumps({**event, "t": time.monotonic(), "pid": os.getpid()}) + "\n")


def _spread(first_t: float | None, last_t: float | None, count: int) -> list[float]:
    """So many instants from the first to the last one, of which only these two are known."""
    if first_t is None or last_t is None:
        return []
    return [first_t + (last_t - first_t) * place / max(1, count - 1) for place in range(count)]


def main() -> None:
    """Replay the recording that the command line names."""
    recording = json.loads(Path(sys.argv[1]).read_bytes())
    try:
        Replay(recording).run()
    except GpuFull as full:
        print(f"colocate: not replayed, the program itself is run: {full}", flush=True)
        os.execvp(recording["argv"][0], recording["argv"])
