"""Who holds memory on the card: ours, told apart by member, or a stranger.

The driver gives process ids. A process is ours when it descends from a supervisor of ours or carries our cookie; one
that /proc does not know (a container sees host ids, or it has ended meanwhile) stays unattributed and is no stranger.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from colocate.device import DeviceProcess
from colocate.evidence import Holder, Owner, Role
from colocate.processes import cookie_of, describe, identify
from colocate.runner import Process

ProcessList = tuple[float, tuple[DeviceProcess, ...]]


class Holders:
    """Keeps book of the processes that were seen on the card during one group."""

    def __init__(self, run: str, group: str) -> None:
        self._prefix = f"{run}/{group}/"
        self._seen: dict[int, Holder] = {}
        self._taken = 0

    def cookie(self, role: Role) -> str:
        """What marks the processes of one member."""
        return self._prefix + role

    def strangers(self, processes: Iterable[DeviceProcess]) -> list[str]:
        """Descriptions of the processes that are not ours."""
        return [describe(process.pid) for process in processes if self._owner(process.pid, {}) == "foreign"]

    def take(self, lists: Sequence[ProcessList], members: Mapping[Role, Sequence[Process]]) -> None:
        """Enter the process lists that are new since the last call."""
        new = lists[self._taken :]
        if not new:
            return
        self._taken = len(lists)
        pids: dict[int, Role] = {one.pid: role for role, ours in members.items() for p in ours[-1:] for one in p.tree()}
        for elapsed_s, processes in new:
            for process in processes:
                self._enter(elapsed_s, process, pids)

    @property
    def seen(self) -> tuple[Holder, ...]:
        """Everybody who held memory, in order of appearance."""
        return tuple(self._seen.values())

    def holds(self, role: Role) -> bool:
        """A process of this member was seen on the card."""
        return any(holder.owner == role for holder in self._seen.values())

    def held_bytes(self, role: Role) -> int | None:
        """The most that one process of this member held by the driver's list; None where it does not tell."""
        known = [h.max_used_bytes for h in self._seen.values() if h.owner == role and h.max_used_bytes is not None]
        return max(known, default=None)

    def _enter(self, elapsed_s: float, process: DeviceProcess, pids: Mapping[int, Role]) -> None:
        earlier = self._seen.get(process.pid)
        owner = earlier.owner if earlier else self._owner(process.pid, pids)
        if owner is None:
            return
        if earlier is None:
            earlier = Holder(process.pid, owner, describe(process.pid), elapsed_s, elapsed_s)
        known = [used for used in (earlier.max_used_bytes, process.used_bytes) if used is not None]
        self._seen[process.pid] = replace(earlier, last_s=elapsed_s, max_used_bytes=max(known, default=None))

    def _owner(self, pid: int, pids: Mapping[int, Role]) -> Owner | None:
        if pid in pids:
            return pids[pid]
        if identify(pid) is None:
            return None
        cookie = cookie_of(pid) or ""
        if cookie == self.cookie("foreground"):
            return "foreground"
        return "background" if cookie == self.cookie("background") else "foreign"
