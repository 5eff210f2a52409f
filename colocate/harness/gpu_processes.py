# SPDX-License-Identifier: Apache-2.0
"""Track which processes hold GPU memory: of each training, left by an earlier run, or foreign.

The driver gives process ids. A process is ours when it descends from a supervisor of ours or carries our cookie. A
number means the same process only together with its start time.

A number that /proc does not know has ended meanwhile, or cannot be seen: it is another user's, another container's, or
a number of the host that is given to a container. One that is listed again and still not seen is foreign, unless the
numbers are the host's. Of those nobody can tell whose each is, only how many there are: more than we have processes
means that a foreign one is among them. A process that happens to have one of these numbers here is not accused.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from colocate.device import DeviceProcess
from colocate.plan import ROLES, Role
from colocate.process import SUPERVISES, Process, ProcessId, procfs
from colocate.verdict import GpuProcess, Listed, Listing, Owner

ProcessList = tuple[float, tuple[DeviceProcess, ...]]

DEVICE_FILES = "/dev/nvidia"
"""What every program that uses an NVIDIA GPU has open."""

# Files that a process of a framework has mapped, and the values of its variables that keep it from taking memory ahead.
_LIBRARIES = {
    "/jaxlib/": "JAX",
    "/jax_plugins/": "JAX",
    "/libtensorflow": "TensorFlow",
    "/_pywrap_tensorflow": "TensorFlow",
}
_OFF: dict[str, dict[str, tuple[str, ...]]] = {
    "JAX": {"XLA_PYTHON_CLIENT_PREALLOCATE": ("false", "0"), "XLA_PYTHON_CLIENT_ALLOCATOR": ("platform",)},
    "TensorFlow": {"TF_FORCE_GPU_ALLOW_GROWTH": ("true",)},
}
_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # the second is the older name

SEEN_AGAIN_S = 0.5
"""One of ours that ended between a list and the look at it is not on a list that is read so much later."""

MOST_LISTINGS = 1024
"""What is kept of the lists; of more, every second one."""

_Key = tuple[int, int | None]


class GpuProcesses:
    """Keeps book of the processes that were seen on the GPU during one group.

    ``place`` is where its record goes: two runs that began in the same second have the same name and groups. ``clock``
    tells the seconds that lists are given; without one it is when the latest list was read.
    """

    def __init__(
        self, run: str, group: str, place: Path | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        self._prefix = f"{run}/{group}/"
        self._suffix = "" if place is None else f"/{hashlib.sha256(os.fsencode(place.absolute())).hexdigest()[:12]}"
        self._seen: dict[_Key, GpuProcess] = {}
        self._taken = 0
        self._since_s = self.listed_s = 0.0
        self._numbers_of_the_host = False
        self._clock = clock or (lambda: self.listed_s)
        self._unseen_s: dict[int, float] = {}
        self._tree_before: dict[int, Role] = {}
        self._too_many_since_s: float | None = None
        self.listings: list[Listing] = []
        self._listed: dict[Role, list[tuple[float, int]]] = {role: [] for role in ROLES}

    def cookie(self, role: Role) -> str:
        """Return the cookie of one training's processes."""
        return self._prefix + role + self._suffix

    def foreign_processes(self, listed: Iterable[DeviceProcess]) -> list[ProcessId]:
        """The processes on the GPU that are not ours. One that only draws is part of the baseline."""
        found = map(procfs.identify, _computing(listed))
        return [one for one in found if one is not None and self._owner(one.pid, {}) == "foreign"]

    def unseen(self, listed: Iterable[DeviceProcess]) -> frozenset[int]:
        """The numbers on a list that compute and belong to nobody who can be seen here."""
        return frozenset(pid for pid in _computing(listed) if procfs.identify(pid) is None or self._is_by_chance(pid))

    def begin(self, elapsed_s: float) -> None:
        """Forget the processes that were there before the group."""
        self._since_s = elapsed_s
        self._seen.clear()
        self.listings.clear()

    def take(self, lists: Sequence[ProcessList], members: Mapping[Role, Sequence[Process]]) -> bool:
        """Enter the process lists that are new since the last call; whether there were any."""
        new = lists[self._taken :]
        if not new:
            return False
        self._taken, self.listed_s = len(lists), lists[-1][0]
        pids = {one.pid: role for role, ours in members.items() for latest in ours[-1:] for one in latest.tree()}
        for elapsed_s, listed in new:
            if elapsed_s >= self._since_s:
                for process in (process for process in listed if not process.draws):
                    self._enter(elapsed_s, process, pids)
                self._add_up(elapsed_s, listed)
        self._count(*new[-1], {**self._tree_before, **pids})
        self._tree_before = pids
        return True

    def _add_up(self, elapsed_s: float, listed: Iterable[DeviceProcess]) -> None:
        """Enter what each training holds by this list; unknown if the driver does not report one process."""
        listed = [process for process in listed if not process.balloon]
        by_role: dict[Role, Listed] = {}
        for role in ROLES:
            sizes = [process.used_bytes for process in listed if process.pid in self.pids(role)]
            known = [size for size in sizes if size is not None]
            by_role[role] = Listed(len(sizes), sum(known) if len(known) == len(sizes) else None)
            self._listed[role] += [(elapsed_s, sum(known))] if len(known) == len(sizes) else []
        used_bytes = sum(process.used_bytes or 0 for process in listed)
        self.listings.append(Listing(elapsed_s, used_bytes, **by_role))
        if len(self.listings) > MOST_LISTINGS:
            del self.listings[1::2]

    def listed(self, role: Role) -> tuple[tuple[float, int], ...]:
        """Return what a training held by the driver's lists, as pairs of second and bytes."""
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
        return any(one.owner not in ("unknown", "balloon") for one in self._seen.values())

    def pids(self, role: Role) -> frozenset[int]:
        """The processes of this member that were seen on the GPU."""
        return frozenset(one.pid for one in self._seen.values() if one.owner == role)

    def held_bytes(self, role: Role) -> int | None:
        """The most that one process of this member held by the driver's list; None where it does not tell."""
        known = [h.max_used_bytes for h in self._seen.values() if h.owner == role and h.max_used_bytes is not None]
        return max(known, default=None)

    def _enter(self, elapsed_s: float, process: DeviceProcess, pids: Mapping[int, Role]) -> None:
        key = self._key(process.pid)
        earlier = self._seen.get(key)
        if earlier is None:
            owner = "balloon" if process.balloon else self._owner(process.pid, pids)
            name, (framework, share) = procfs.describe(process.pid), _framework(process.pid)
            seen = GpuProcess(process.pid, owner, name, elapsed_s, elapsed_s, start_time=key[1])
            earlier = replace(seen, framework=framework, share=share)
        elif earlier.owner == "unknown" and self._is_foreign_now(earlier, elapsed_s):
            earlier = replace(earlier, owner="foreign", name=f"{earlier.name}, which cannot be seen from here")
        known = [used for used in (earlier.max_used_bytes, process.used_bytes) if used is not None]
        self._seen[key] = replace(earlier, last_s=elapsed_s, max_used_bytes=max(known, default=None))

    def _count(self, elapsed_s: float, listed: Iterable[DeviceProcess], pids: Mapping[int, Role]) -> None:
        """Where the driver tells the host's numbers: more of them than we have processes on GPUs."""
        if not self._numbers_of_the_host:
            return
        numbers = sorted(_computing(listed))
        ours = sum(bool(procfs.has_open(pid, DEVICE_FILES)) for pid in pids) or len(pids)
        if len(numbers) <= ours or any(pid in pids or self.ours(pid) is not None for pid in numbers):
            self._too_many_since_s = None
            return
        since_s = self._too_many_since_s
        self._too_many_since_s = elapsed_s if since_s is None else since_s
        if since_s is None or elapsed_s - since_s < SEEN_AGAIN_S:
            return  # one of ours may have ended between the list and the look at it
        name = f"one of {len(numbers)} processes, pids {', '.join(map(str, numbers))}, which cannot be seen from here"
        found = GpuProcess(numbers[0], "foreign", f"{name}; ours are {ours}", since_s, elapsed_s)
        first_s = self._seen.setdefault((0, None), found).first_s
        self._seen[0, None] = replace(found, first_s=first_s)

    def _is_by_chance(self, pid: int) -> bool:
        """In a container: a process of this number is here and has no GPU open, so the number is the host's."""
        return not procfs.sees_all_processes() and procfs.has_open(pid, DEVICE_FILES) is False

    def _key(self, pid: int) -> _Key:
        """The process of this number now; of one that has ended since the driver listed it, the last that we knew."""
        process = procfs.identify(pid)
        if process is not None:
            return (pid, process.start_time)
        return next((key for key in reversed(self._seen) if key[0] == pid), (pid, None))

    def _is_foreign_now(self, earlier: GpuProcess, elapsed_s: float) -> bool:
        """On a list that was read after we looked and saw nobody of this number, and the numbers are ours."""
        if procfs.identify(earlier.pid) is not None:
            self._unseen_s.pop(earlier.pid, None)
            return False
        looked_s = self._unseen_s.setdefault(earlier.pid, self._clock())
        return elapsed_s > looked_s and not self._numbers_of_the_host

    def _owner(self, pid: int, pids: Mapping[int, Role]) -> Owner:
        role = pids.get(pid) or self.ours(pid)
        if role is not None:
            return role
        if procfs.is_hidden(pid):
            return "foreign"
        is_unseen = procfs.identify(pid) is None
        if (is_unseen and not procfs.sees_all_processes()) or self._is_by_chance(pid):
            # Inside a container such a number is the host's, and from then on one that exists here is so by chance.
            known = any(one.owner in ROLES for one in self._seen.values())
            self._numbers_of_the_host = self._numbers_of_the_host or not known
        if is_unseen:
            self._unseen_s.setdefault(pid, self._clock())
        return "unknown" if is_unseen or self._numbers_of_the_host else "foreign"


def _framework(pid: int) -> tuple[str | None, float | None]:
    """A framework in a process that takes memory in advance, and the share of the GPU if its environment says so."""
    part = procfs.maps(pid, _LIBRARIES)
    if part is None:
        return None, None
    name = _LIBRARIES[part]
    if any((procfs.variable_of(pid, variable) or "").lower() in values for variable, values in _OFF[name].items()):
        return None, None
    told = next(filter(None, (procfs.variable_of(pid, one) for one in _SHARES)), "") if name == "JAX" else ""
    return name, float(told) if re.fullmatch(r"0?\.\d{1,6}|1(\.0*)?", told) else None


def _computing(listed: Iterable[DeviceProcess]) -> list[int]:
    """The numbers on a list that neither draw only nor are the balloon's."""
    return [process.pid for process in listed if not (process.draws or process.balloon)]


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
    above = (word for pid in procfs.ancestors(process.pid) for word in procfs.arguments(pid))
    return not any(word.startswith(SUPERVISES) for word in above)


def is_being_ended(process: ProcessId) -> bool:
    """A training of ours below a supervisor, which may be about to end it because its harness has died."""
    return procfs.cookie_of(process.pid) is not None


def unlisted(listed: Iterable[DeviceProcess], folder: str = DEVICE_FILES) -> list[ProcessId]:
    """Processes that use a GPU but are not on the driver's list, such as a forked data loader with its memory."""
    known = {process.pid for process in listed}
    return [process for process in procfs.with_open(folder) if process.pid not in known]
