"""Kills its own process at the k-th thing that a harness does to the world: a file written, renamed, made, removed, or
a process started. Put on the path as ``sitecustomize`` of a test's session; it sees Python's audit events, so that the
harness needs no hook for it.

``COLOCATE_TEST_KILL`` is ``k:folder``: only files below the folder count. With k = 0 it only counts, into
``folder.count``. Trainings and supervisors do not inherit the variable.
"""

import os
import signal
import sys


def install(place: int, folder: str) -> None:
    """Count from now on."""
    harness = os.getpid()
    seen = 0

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if not _counts(event, arguments, folder) or os.getpid() != harness:
            return
        seen += 1
        if seen == place:
            os.kill(harness, signal.SIGKILL)
        if place == 0:
            os.write(plan_verdict, f"{seen} {event} {arguments[0]}\n".encode())

    plan_verdict = os.open(folder + ".count", os.O_WRONLY | os.O_CREAT | os.O_APPEND) if place == 0 else -1
    sys.addaudithook(hear)


def _counts(event: str, arguments: tuple[object, ...], folder: str) -> bool:
    if event == "subprocess.Popen":
        return True
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        return bool(writes) and _below(arguments[0], folder)
    return event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") and _below(arguments[0], folder)


def _below(path: object, folder: str) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(folder)  # type: ignore[arg-type]


if "COLOCATE_TEST_KILL" in os.environ:
    number, _, below = os.environ["COLOCATE_TEST_KILL"].partition(":")
    install(int(number), below)
