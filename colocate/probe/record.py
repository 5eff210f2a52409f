# SPDX-License-Identifier: Apache-2.0
"""The file in which a process tells the harness what its allocator saw.

Owns the format and when it is written; knows neither torch nor where the numbers come from. Nothing here may fail
into the training: a record that cannot be written is given up after one line on stderr.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Literal  # noqa: UP035  this module runs on Python 3.8

from .history import History

INTERVAL_S = 0.25

Readings = Callable[[], Dict[str, Any]]  # noqa: UP006


def give_up(what: str, error: Exception, record: Record | None) -> None:
    """Say that this process is followed no more: on stderr, and in its record where that can be written.

    A line of its own, for the program may be in the middle of one; and without stderr the record still says it.
    """
    why = f"colocate: {what}: {type(error).__name__}: {error}"
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        print("\n" + why, file=sys.stderr)
    if record is not None:
        record.give_up(why)


class Record:
    """Writes the record of one process, ``<pid>.json``: after changes, at most every 0.25 s, and at exit.

    A forked child writes nothing, as DataLoaders' workers are such, until it uses CUDA, makes an optimizer step or runs
    out of memory: then it is a training of its own, with a record of its own.

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
            "ooms_raised": None,
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
        try:
            atexit.register(self.write)
            threading.Thread(target=self._write_forever, name="colocate-probe", daemon=True).start()
        except RuntimeError as error:  # no thread to be had, or the interpreter is ending
            give_up("probe record given up", error, self)

    def give_up(self, why: str) -> None:
        """Write once more, with the reason, that no later word of this process can be expected."""
        path, self.path = self.path, None
        self.read = dict
        self.fields["lost"] = why
        try:
            if path is not None:
                _write_aside(path, self.fields)
        except (OSError, TypeError, ValueError):
            pass  # stderr has it

    def note(self, text: str) -> None:
        """Keep an assumption that was taken, once."""
        if text not in self.fields["notes"]:
            self.fields["notes"].append(text)

    def step(self) -> None:
        """An optimizer has made a step; the first one is a sign of life and written at once."""
        self.claim()
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
        self.claim()
        self.fields["last_oom"] = {
            "t": time.monotonic(),
            "requested_bytes": requested_bytes,
            "allocated_bytes": allocated_bytes,
            "reserved_bytes": reserved_bytes,
            "message": message,
        }
        self.write()

    def raised(self) -> None:
        """An out-of-memory error reached Python; one that PyTorch catches itself never does."""
        self.claim()
        self.fields["ooms_raised"] = (self.fields["ooms_raised"] or 0) + 1
        self.write()

    def write(self) -> None:
        """Write what has changed since the last time; never raises."""
        if self.path is None:
            return
        try:
            with self._lock:
                self._write(self.path)
        except Exception as error:  # a full disk or a vanished folder must not end a training
            give_up("probe record given up", error, self)

    def _write(self, path: Path) -> None:
        read_t = time.monotonic()
        self.fields.update(self.read())
        self._history.add(read_t, self.fields, time.monotonic())
        self.fields["history"] = self._history.steps
        if self.fields == self._written:
            return
        self._written = {**self.fields, "notes": list(self.fields["notes"])}
        _write_aside(path, self._written)

    def _write_forever(self) -> None:
        while self.path is not None:
            time.sleep(INTERVAL_S)
            self.write()

    def _forget(self) -> None:
        self.path = None
        self._forked_t = time.monotonic()
        self._lock = threading.Lock()  # the parent's thread may have held the old one

    def claim(self) -> None:
        """In a forked child that uses the GPU: begin a record of its own."""
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        self.path = Path(self._folder) / f"{self._pid}.json" if self._folder else None
        self.fields.update(
            pid=self._pid, started_t=time.monotonic(), optimizer_steps=0, first_step_t=None, last_step_t=None
        )
        self._history = History(since_t=self._forked_t)  # before its first step it held memory, too
        self.keep_writing()


def _write_aside(path: Path, fields: dict[str, Any]) -> None:
    """Whole or not at all: the harness may read at any moment."""
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps({**fields, "t": time.monotonic()}))
    aside.replace(path)
