"""Who holds memory on the GPU: ours, told apart by member, what an earlier run left, or a foreign process.

The driver gives process ids. A process is ours when it descends from a supervisor of ours or carries our cookie. A
number means the same process only together with its start time. One that /proc does not know is no foreign process: a
container may be given the host's numbers, or it has ended meanwhile.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from colocate.device import DeviceProcess
from colocate.plan import ROLES, Role
from colocate.process import SUPERVISES, Process, ProcessId, procfs
from colocate.verdict import GpuProcess, Owner

ProcessList = tuple[float, tuple[DeviceProcess, ...]]

DEVICE_FILES = "/dev/nvidia"
"""What every program that uses an NVIDIA GPU has open."""

_Key = tuple[int, int | None]


class GpuProcesses:
    """Keeps book of the processes that were seen on the GPU during one group.

    ``place`` is where its record goes: two runs that began in the same second have the same name and groups.
    """

    def __init__(self, run: str, group: str, place: Path | None = None) -> None:
        self._prefix = f"{run}/{group}/"
        self._suffix = "" if place is None else f"/{hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:12]}"
        self._seen: dict[_Key, GpuProcess] = {}
        self._taken = 0
        self._since_s = self.listed_s = 0.0
        self._numbers_of_the_host = False
        self._listed: dict[Role, list[tuple[float, int]]] = {role: [] for role in ROLES}

    def cookie(self, role: Role) -> str:
        """What marks the processes of one member."""
        return self._prefix + role + self._suffix

    def foreign_processes(self, listed: Iterable[DeviceProcess]) -> list[ProcessId]:
        """The processes on the GPU that are not ours. One that only draws is part of the baseline."""
        found = (procfs.identify(one.pid) for one in listed if not (one.draws or one.balloon))
        return [one for one in found if one is not None and self._owner(one.pid, {}) == "foreign"]

    def begin(self, elapsed_s: float) -> None:
        """Who was there before, and was waited for or ended, has nothing to do with the group."""
        self._since_s = elapsed_s
        self._seen.clear()

    def take(self, lists: Sequence[ProcessList], members: Mapping[Role, Sequence[Process]]) -> bool:
        """Enter the process lists that are new since the last call; whether there were any."""
        new = lists[self._taken :]
        if not new:
            return False
        self._taken, self.listed_s = len(lists), lists[-1][0]
        pids: dict[int, Role] = {one.pid: role for role, ours in members.items() for p in ours[-1:] for one in p.tree()}
        for elapsed_s, listed in ((elapsed_s, listed) for elapsed_s, listed in new if elapsed_s >= self._since_s):
            for process in listed:
                if not process.draws:
                    self._enter(elapsed_s, process, pids)
            self._add_up(elapsed_s, listed)
        return True

    def _add_up(self, elapsed_s: float, listed: Iterable[DeviceProcess]) -> None:
        """What each member holds by this list; it is not told where the driver does not tell of one process."""
        for role in ROLES:
            own = [process.used_bytes for process in listed if process.pid in self.pids(role)]
            if None not in own:
                self._listed[role].append((elapsed_s, sum(used for used in own if used is not None)))

    def listed(self, role: Role) -> tuple[tuple[float, int], ...]:
        """What this member held by the driver's lists, each as its second and the bytes."""
        return tuple(self._listed[role])

    def ours(self, pid: int) -> Role | None:
        """The member that a process belongs to by its cookie; None for any other."""
        cookie = procfs.cookie_of(pid) or ""
        return next((role for role in ROLES if cookie == self.cookie(role)), None)

    @property
    def seen(self) -> tuple[GpuProcess, ...]:
        """Everybody who held memory, in order of appearance."""
        return tuple(self._seen.values())

    @property
    def attributed(self) -> bool:
        """The driver named a process that we know."""
        return any(gpu_process.owner not in ("unknown", "balloon") for gpu_process in self._seen.values())

    def pids(self, role: Role) -> frozenset[int]:
        """The processes of this member that were seen on the GPU."""
        return frozenset(gpu_process.pid for gpu_process in self._seen.values() if gpu_process.owner == role)

    def held_bytes(self, role: Role) -> int | None:
        """The most that one process of this member held by the driver's list; None where it does not tell."""
        known = [h.max_used_bytes for h in self._seen.values() if h.owner == role and h.max_used_bytes is not None]
        return max(known, default=None)

    def _enter(self, elapsed_s: float, process: DeviceProcess, pids: Mapping[int, Role]) -> None:
        key = self._key(process.pid)
        earlier = self._seen.get(key)
        if earlier is None:
            owner = "balloon" if process.balloon else self._owner(process.pid, pids)
            name = procfs.describe(process.pid)
            earlier = GpuProcess(process.pid, owner, name, elapsed_s, elapsed_s, start_time=key[1])
        known = [used for used in (earlier.max_used_bytes, process.used_bytes) if used is not None]
        self._seen[key] = replace(earlier, last_s=elapsed_s, max_used_bytes=max(known, default=None))

    def _key(self, pid: int) -> _Key:
        """The process of this number now; of one that has ended since the driver listed it, the last that we knew."""
        process = procfs.identify(pid)
        if process is not None:
            return (pid, process.start_time)
        return next((key for key in reversed(self._seen) if key[0] == pid), (pid, None))

    def _owner(self, pid: int, pids: Mapping[int, Role]) -> Owner:
        if pid in pids:
            return pids[pid]
        role = self.ours(pid)
        if role is not None:
            return role
        if procfs.identify(pid) is None:
            # Inside a container such a number is the host's, and from then on one that exists here is so by chance.
            self._numbers_of_the_host = self._numbers_of_the_host or not procfs.sees_all_processes()
            return "unknown"
        return "unknown" if self._numbers_of_the_host else "foreign"


def is_left_behind(process: ProcessId, run: str) -> bool:
    """A training of an earlier run of ours that nobody watches any more."""
    cookie = procfs.cookie_of(process.pid)
    return cookie is not None and not cookie.startswith(f"{run}/") and is_unwatched(process)


def is_unwatched(process: ProcessId) -> bool:
    """A process with our cookie, of our user, and without a supervisor above it.

    That of a run that goes on is there, and that of a run that has just died ends its trainings by itself.
    """
    if procfs.cookie_of(process.pid) is None or procfs.owner_of(process.pid) != os.getuid():
        return False
    return not any(_supervises(pid) for pid in procfs.ancestors(process.pid))


def is_being_ended(process: ProcessId) -> bool:
    """A training of ours below a supervisor, which may be about to end it because its harness has died."""
    return procfs.cookie_of(process.pid) is not None


def unlisted(listed: Iterable[DeviceProcess], folder: str = DEVICE_FILES) -> list[ProcessId]:
    """Processes that use a GPU but are not on the driver's list, such as a forked data loader with its memory."""
    known = {process.pid for process in listed}
    return [process for process in procfs.with_open(folder) if process.pid not in known]


def _supervises(pid: int) -> bool:
    return any(word.startswith(SUPERVISES) for word in procfs.arguments(pid))
