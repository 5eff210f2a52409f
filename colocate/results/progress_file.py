# SPDX-License-Identifier: Apache-2.0
"""``progress.json`` of a group while it runs: the GPU's memory now and at most, and what is going on.

For whoever looks on, from another process or another machine; nothing of it enters the record. The steps of the
trainings stand in their own files of events. Knows neither GPUs nor trainings. What of a run waits in a cluster's
queue is told the same way, in a file of the run.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "progress.json"
QUEUE = "tasks/queue.json"
EVERY_S = 1.0


class Heartbeat:
    """Writes the file when asked to, about once a second; that it cannot be written costs nobody anything."""

    def __init__(self, folder: Path, **facts: Any) -> None:
        self._path = folder / NAME
        self._facts = facts
        self._due_t = 0.0
        self._stage = ""

    def is_due(self, stage: str) -> bool:
        """Return whether it is time to write again, or there is something new."""
        return stage != self._stage or time.monotonic() >= self._due_t

    def beat(self, stage: str, **facts: Any) -> None:
        """Tell what is going on."""
        self._due_t, self._stage = time.monotonic() + EVERY_S, stage
        tell(self._path, {**self._facts, "stage": stage, **facts})


def tell(path: Path, facts: Mapping[str, Any]) -> None:
    """Put this and the time of day into a file, whole or not at all; that it cannot be written costs nobody."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError, ValueError):
        aside.write_text(json.dumps({"at": time.time(), **facts}), encoding="utf-8")
        aside.replace(path)
