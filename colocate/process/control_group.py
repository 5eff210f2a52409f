# SPDX-License-Identifier: Apache-2.0
"""What the kernel counts for this process' control group. Standard library only; the supervisor imports it."""

from collections.abc import Iterator

from colocate.process.procfs import read


def host_oom_kills() -> int | None:
    """Processes of this process' control group that the kernel has killed for host memory so far.

    The count is of the whole group: everything else in the same container or job is included, so only a difference
    over time means something, and only together with an end by SIGKILL. Where the group does not count, as the root
    group of cgroup v2, it is that of the whole machine. None where neither can be read.
    """
    for path in (*_oom_files(), "/proc/vmstat"):
        for line in (read(path) or b"").splitlines():
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return None


def _oom_files() -> Iterator[str]:
    """Return the file in which the control group counts OOM kills (v1: memory.oom_control, v2: memory.events)."""
    groups = _control_groups()
    for line in (read("/proc/self/mountinfo") or b"").decode(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup" and "memory" in kind[2].split(",") and "memory" in groups:
            yield f"{_group_folder(fields[4], fields[3], groups['memory'])}/memory.oom_control"
        elif kind[0] == "cgroup2" and "" in groups:
            yield f"{_group_folder(fields[4], fields[3], groups[''])}/memory.events"


def _control_groups() -> dict[str, str]:
    """This process' path per controller; the key of the one tree of cgroup v2 is empty."""
    groups: dict[str, str] = {}
    for line in (read("/proc/self/cgroup") or b"").decode(errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _group_folder(mount_point: str, mount_root: str, path: str) -> str:
    """The folder of a group below a mount that may itself show only a part of the tree, as in a container."""
    inside = path.removeprefix(mount_root) if mount_root != "/" else path
    return f"{mount_point}/{inside.strip('/')}".rstrip("/")
