"""Trainings as the runner sees them: `programs/proc_member.py`, started in one of its modes."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colocate.process import procfs
from colocate.process.runner import Command, Process, start, stop_all

PROGRAMS = Path(__file__).with_name("programs")
PYTHON = (sys.executable, "-I", "-S")

Begin = Callable[..., Process]


@contextmanager
def beginning(folder: Path, cookie: str) -> Iterator[Begin]:
    """A function that starts them; whatever the test does, nothing with its cookie is left."""
    started: list[Process] = []

    def begin(*mode: object, argv: tuple[str, ...] = (), **options: Any) -> Process:
        words = argv or (*PYTHON, str(PROGRAMS / "proc_member.py"), *map(str, mode))
        command = Command(words, folder, dict(os.environ))
        options = {"log": folder / f"{len(started)}.log", "patterns": {"ready": "^ready$"}, **options}
        started.append(start(command, cookie=cookie, **options))
        return started[-1]

    yield begin
    stop_all(started, grace_s=0.0)
    assert procfs.with_cookie(cookie) == []
