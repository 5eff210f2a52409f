# SPDX-License-Identifier: Apache-2.0
"""Processes of this machine, read from /proc: identities that survive PID reuse, trees, and our own processes.

Imports the standard library only, because the supervisor imports it and has to start within some 50 ms.
Linux only. Knows no GPU and no training.
"""

import os
import pwd
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

COOKIE = "COLOCATE_COOKIE"

KILL_WAIT_S = 10.0
"""How long a process may take to vanish after SIGKILL before it counts as unkillable.

The kernel frees a dying process' memory before it is gone, and the NVIDIA driver tears down its context: seconds, not
minutes. What takes longer sits in an uninterruptible call (state D).
"""

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # linux/proc_ns.h, PROC_PID_INIT_INO
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.02
_PRINTED_COMMAND = 120
_SCRIPTS = (".py", ".sh", ".pl", ".rb", ".js", ".jl", ".R")
_STATES = {"Z": "zombie", "D": "uninterruptible sleep", "T": "stopped", "t": "traced"}


class ProcessId(NamedTuple):
    """A process and no other that gets its number later; valid until the next boot (see :func:`boot_id`).

    ``start_time`` is in clock ticks since boot, as in field 22 of ``/proc/PID/stat``.
    """

    pid: int
    start_time: int


class _Stat(NamedTuple):
    id: ProcessId
    parent: int
    state: str
    name: str


def boot_id() -> str:
    """The kernel's name for this boot: a process identity of another boot means nothing now."""
    return (read("/proc/sys/kernel/random/boot_id") or b"").decode().strip()


def identify(pid: int) -> ProcessId | None:
    """The identity of a process by its number, zombies included; None when there is none."""
    stat = _stat(pid)
    return stat.id if stat else None


def is_alive(process: ProcessId) -> bool:
    """The very process still runs; a zombie does not."""
    stat = _stat(process.pid)
    return stat is not None and stat.id == process and stat.state not in "ZX"


def descendants(*pids: int) -> frozenset[ProcessId]:
    """Everything below these processes now, themselves excluded.

    One pass over /proc is no snapshot: a process whose parent ends meanwhile can be missed once.
    Ask again, or wait for children, before concluding that nothing is left.
    """
    children: dict[int, list[ProcessId]] = {}
    for stat in filter(None, map(_stat, _pids())):
        children.setdefault(stat.parent, []).append(stat.id)
    found: set[ProcessId] = set()
    waiting = list(pids)
    while waiting:
        below = [child for child in children.get(waiting.pop(), ()) if child not in found]
        found.update(below)
        waiting += [child.pid for child in below]
    return frozenset(found)


def num_tasks() -> int | None:
    """Count the tasks of this machine, threads included: the cheapest sign that processes multiply."""
    words = (read("/proc/loadavg") or b"").split()
    return int(words[3].partition(b"/")[2]) if len(words) > 3 and b"/" in words[3] else None


def with_cookie(prefix: str) -> list[ProcessId]:
    """Live processes whose cookie is ``prefix`` or lies below it, in order of start; the caller itself excluded.

    Prefixes end at a slash: ``run/group01`` finds ``run/group01/foreground`` but nothing of ``run/group010``; the
    empty prefix finds every process that carries a cookie. Only processes of the same user can be read.
    """
    below = prefix.rstrip("/") + "/"
    found = _with_variable(COOKIE)
    return [process for process, value in found if not prefix or value == prefix or value.startswith(below)]


def with_variable(name: str, value: str) -> list[ProcessId]:
    """Live processes that were started with this environment variable at this value; the caller itself excluded."""
    return [process for process, found in _with_variable(name) if found == value]


def cookie_of(pid: int) -> str | None:
    """The cookie that a process was started with; None without one or when its environment cannot be read."""
    return variable_of(pid, COOKIE)


def variable_of(pid: int, name: str) -> str | None:
    """An environment variable as a process was started with it; None without it or when it cannot be read."""
    start = name.encode() + b"="
    for entry in (read(f"/proc/{pid}/environ") or b"").split(b"\0"):
        if entry.startswith(start):
            return os.fsdecode(entry[len(start) :])
    return None


def owner_of(pid: int) -> int | None:
    """The user id that a process belongs to; None when it is gone."""
    for line in (read(f"/proc/{pid}/status") or b"").splitlines():
        if line.startswith(b"Uid:"):
            return int(line.split()[1])
    return None


def ancestors(pid: int) -> Iterator[int]:
    """The numbers of the processes above one, its parent first."""
    stat = _stat(pid)
    while stat is not None and stat.parent > 0:
        yield stat.parent
        stat = _stat(stat.parent)


def arguments(pid: int) -> tuple[str, ...]:
    """The words of a process' command line; () when it is gone, a zombie or of the kernel."""
    words = (read(f"/proc/{pid}/cmdline") or b"").rstrip(b"\0")
    return tuple(os.fsdecode(word) for word in words.split(b"\0")) if words else ()


def with_open(prefix: str) -> list[ProcessId]:
    """Live processes that have a file open whose path begins so; those of other users only where we may look."""
    found = (identify(pid) for pid in sorted(_pids()) if pid != os.getpid() and has_open(pid, prefix))
    return [process for process in found if process is not None]


def sees_all_processes() -> bool:
    """We are in the machine's own PID namespace: the numbers that a driver tells are ours. False in most containers."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino == _INITIAL_PID_NAMESPACE
    except OSError:
        return False


def has_own_numbers(pid: int) -> bool:
    """A process is in another PID namespace than we are: the numbers that it tells mean nothing here."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink() != Path("/proc/self/ns/pid").readlink()
    except OSError:  # gone, or of another user
        return False


def is_hidden(pid: int) -> bool:
    """There is a process of this number, and /proc does not show it: another user's, mounted with hidepid."""
    try:
        with suppress(PermissionError):
            os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    return identify(pid) is None


def has_open(pid: int, prefix: str) -> bool | None:
    """A process has a file open whose path begins so; None where its files may not be looked at."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    return any(_link(link).startswith(prefix) for link in links)


def maps(pid: int, parts: Iterable[str]) -> str | None:
    """The first of some parts of names that occurs among the files that a process has mapped; None without any."""
    mapped = read(f"/proc/{pid}/maps") or b""
    return next((part for part in parts if part.encode() in mapped), None)


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def send(process: ProcessId, signal_number: int) -> bool:
    """Signal this very process; False when it is gone.

    Raises:
        PermissionError: it belongs to somebody else.
    """
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    except OSError:  # no pidfd here (a kernel before 5.3, a container's filter) or no descriptor left
        return _send_by_number(process, signal_number)
    try:
        if identify(process.pid) != process:
            return False
        signal.pidfd_send_signal(handle, signal_number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def end(processes: Iterable[ProcessId], grace_s: float) -> list[ProcessId]:
    """End processes and all below them: SIGTERM, up to ``grace_s`` seconds, SIGKILL; returns those that are left.

    A process may outlive this in an uninterruptible call, or because it belongs to another user, which is not waited
    for. The caller itself is spared.
    """
    targets = set(processes)
    targets |= descendants(*(process.pid for process in targets if is_alive(process)))
    targets = {process for process in targets if process.pid != os.getpid()}
    alive = _wait_until_gone(_reached(targets, signal.SIGTERM, signal.SIGCONT), grace_s)
    targets |= alive | descendants(*(process.pid for process in alive))
    _wait_until_gone(_reached(targets, signal.SIGKILL), KILL_WAIT_S)
    return sorted(filter(is_alive, targets))


def describe(pid: int) -> str:
    """A process for a message: ``pid 1234 (python train.py), user alice, started 2025-01-31 12:00:00 UTC``.

    Never raises: what has vanished meanwhile is said to be gone, what cannot be read is left out.
    """
    stat = _stat(pid)
    if stat is None:
        return f"pid {pid} ({'hidden from this user' if is_hidden(pid) else 'gone'})"
    parts = [f"pid {pid} ({_command(pid) or stat.name})", _user(pid), f"started {_started(stat.id)}"]
    if stat.state in _STATES:
        parts.append(f"state {stat.state} ({_STATES[stat.state]})")
    return ", ".join(part for part in parts if part)


def read(path: str) -> bytes | None:
    """A whole file of /proc or of a control group; None when it, or the process, is not there or not ours to read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return b"".join(iter(lambda: os.read(descriptor, 1 << 16), b""))
    except OSError:  # the process ended between open and read
        return None
    finally:
        os.close(descriptor)


def _stat(pid: int) -> _Stat | None:
    text = read(f"/proc/{pid}/stat")
    if not text:
        return None
    # The name stands in parentheses and may itself contain them, spaces and newlines: everything counts from the last.
    name_end = text.rindex(b")")
    name = text[text.index(b"(") + 1 : name_end].decode(errors="replace")
    fields = text[name_end + 2 :].split()
    return _Stat(ProcessId(pid, int(fields[19])), int(fields[1]), fields[0].decode(), name)


def _pids() -> Iterator[int]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


def _with_variable(name: str) -> Iterator[tuple[ProcessId, str]]:
    for pid in sorted(_pids()):
        value = None if pid == os.getpid() else variable_of(pid, name)
        process = None if value is None else identify(pid)
        if value is not None and process is not None:
            yield process, value


def _send_by_number(process: ProcessId, signal_number: int) -> bool:
    """Without a pidfd a reused number is ruled out but for the microseconds between the check and the signal."""
    if identify(process.pid) != process:
        return False
    try:
        os.kill(process.pid, signal_number)
    except ProcessLookupError:
        return False
    return True


def _reached(processes: Iterable[ProcessId], *signal_numbers: int) -> set[ProcessId]:
    """Signal them; those that were alive and may be signalled, for whom it is worth waiting."""
    reached = set()
    for process in filter(is_alive, processes):
        with suppress(PermissionError):
            if all(send(process, number) for number in signal_numbers):
                reached.add(process)
    return reached


def _wait_until_gone(processes: set[ProcessId], timeout_s: float) -> set[ProcessId]:
    deadline = time.monotonic() + timeout_s
    alive = set(filter(is_alive, processes))
    while alive and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        alive = set(filter(is_alive, alive))
    return alive


def _command(pid: int) -> str:
    """The program and its script or module, without arguments: those of other people may hold what is secret."""
    words = (*arguments(pid), "")
    title = words[0].split(" ")[0]  # a program that gave itself a title has all in one word
    names = (
        f"-m {following}" if word == "-m" else following.rpartition("/")[2]
        for word, following in pairwise(words)
        if word == "-m" or following.endswith(_SCRIPTS)
    )
    shown = [title.rpartition("/")[2], *islice(names, 1)]
    text = "".join(letter if letter.isprintable() else "?" for letter in " ".join(shown))
    return text if len(text) <= _PRINTED_COMMAND else text[: _PRINTED_COMMAND - 3] + "..."


def _user(pid: int) -> str:
    number = owner_of(pid)
    if number is None:
        return ""
    try:
        return f"user {pwd.getpwuid(number).pw_name}"
    except KeyError:  # usual in containers
        return f"user {number}"


def _started(process: ProcessId) -> str:
    for line in (read("/proc/stat") or b"").splitlines():
        if line.startswith(b"btime "):
            started = int(line.split()[1]) + process.start_time / _TICKS_PER_S
            return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return "at an unknown time"
