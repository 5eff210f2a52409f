"""The file in which a process tells the harness what its allocator saw.

Owns the format and when it is written; knows neither torch nor where the numbers come from. Nothing here may fail
into the training: a record that cannot be written is given up after one line on stderr.
"""

import atexit
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from .history import History

INTERVAL_S = 0.25

Readings = Callable[[], dict[str, Any]]


class Record:
    """What one process did, as ``<pid>.json``: written when something changed, at most every 0.25 s, and at exit.

    A forked child writes nothing, as DataLoaders' workers are such, until it makes an optimizer step or runs out of
    memory: then it is a training of its own, with a record of its own.

    Args:
        folder: where the file goes; None keeps the record in memory only.
        mode: ``cuda`` counts what a real allocator does, ``virtual`` what the simulated one does.
        torch_version: version of the torch that was imported.
    """

    def __init__(self, folder: str | None, mode: Literal["cuda", "virtual"], torch_version: str) -> None:
        self.path = Path(folder) / f"{os.getpid()}.json" if folder else None
        self.fields: dict[str, Any] = {
            "pid": os.getpid(),
            "started_t": time.monotonic(),
            "torch": torch_version,
            "mode": mode,
            "optimizer_steps": 0,
            "first_step_t": None,
            "last_step_t": None,
            "allocated_bytes": None,
            "reserved_bytes": None,
            "max_allocated_bytes": None,
            "max_reserved_bytes": None,
            "num_ooms": 0,
            "num_alloc_retries": 0,
            "last_oom": None,
            "history": [],
            "notes": [],
        }
        self._history = History()
        self.read: Readings = dict
        self._folder = folder
        self._pid = os.getpid()
        self._forked_t: float | None = None
        self._written: dict[str, Any] | None = None
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._forget)

    def keep_writing(self) -> None:
        """Write now, then from a thread of its own until the process ends, and once more at exit."""
        self.write()
        if self.path is None:
            return
        atexit.register(self.write)
        threading.Thread(target=self._write_forever, name="colocate-probe", daemon=True).start()

    def note(self, text: str) -> None:
        """Keep an assumption that was taken, once."""
        if text not in self.fields["notes"]:
            self.fields["notes"].append(text)

    def step(self) -> None:
        """An optimizer has made a step; the first one is a sign of life and written at once."""
        self._claim()
        now = time.monotonic()
        self.fields["optimizer_steps"] += 1
        self.fields["last_step_t"] = now
        if self.fields["first_step_t"] is None:
            self.fields["first_step_t"] = now
            self.write()

    def out_of_memory(
        self, message: str, *, requested_bytes: int | None, allocated_bytes: int | None, reserved_bytes: int | None
    ) -> None:
        """An allocation failed; written at once, since the program may swallow it or end."""
        self._claim()
        self.fields["last_oom"] = {
            "t": time.monotonic(),
            "requested_bytes": requested_bytes,
            "allocated_bytes": allocated_bytes,
            "reserved_bytes": reserved_bytes,
            "message": message,
        }
        self.write()

    def write(self) -> None:
        """Write what has changed since the last time; never raises."""
        if self.path is None:
            return
        try:
            with self._lock:
                self._write(self.path)
        except Exception as error:  # a full disk or a vanished folder must not end a training
            self.path = None
            print(f"colocate: probe record given up: {type(error).__name__}: {error}", file=sys.stderr)

    def _write(self, path: Path) -> None:
        read_t = time.monotonic()
        self.fields.update(self.read())
        self._history.add(read_t, self.fields, time.monotonic())
        self.fields["history"] = self._history.steps
        if self.fields == self._written:
            return
        self._written = {**self.fields, "notes": list(self.fields["notes"])}
        aside = path.with_suffix(".new")
        aside.write_text(json.dumps({**self._written, "t": time.monotonic()}))
        aside.replace(path)

    def _write_forever(self) -> None:
        while self.path is not None:
            time.sleep(INTERVAL_S)
            self.write()

    def _forget(self) -> None:
        self.path = None
        self._forked_t = time.monotonic()
        self._lock = threading.Lock()  # the parent's thread may have held the old one

    def _claim(self) -> None:
        """In a forked child that trains: begin a record of its own."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self.path = Path(self._folder) / f"{self._pid}.json" if self._folder else None
        self.fields.update(
            pid=self._pid, started_t=time.monotonic(), optimizer_steps=0, first_step_t=None, last_step_t=None
        )
        self._history = History(since_t=self._forked_t)  # before its first step it held memory, too
        self.keep_writing()
