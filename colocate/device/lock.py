# SPDX-License-Identifier: Apache-2.0
"""Lock a GPU for one run at a time: a lock file per UUID, held with flock. Knows no kind of GPU.

The kernel lets go of the lock when its holder dies, however it dies. All users of a machine share one folder, so that
they see each other's locks. Containers that share a GPU but no ``/tmp`` do not: give them a common folder by the
environment variable ``COLOCATE_LOCK_FOLDER``.
"""

import contextlib
import fcntl
import getpass
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from colocate.errors import DeviceError

FOLDER_VARIABLE = "COLOCATE_LOCK_FOLDER"
FOLDER = "/tmp/colocate-locks"
"""Not below TMPDIR or XDG_RUNTIME_DIR: those differ between users, and a GPU does not."""

_POLL_S = 0.1


@contextlib.contextmanager
def locked(uuid: str, holder: str, wait_s: float = 0.0, folder: Path | None = None) -> Iterator[None]:
    """Holds a GPU for as long as the context lasts. Not inherited by the programs that this process starts.

    Args:
        uuid: The GPU.
        holder: Who holds it, told to others that want it: the run and its plan, say.
        wait_s: Seconds to wait while somebody else holds it, which may be infinite.
        folder: Where the lock files are, if not in the folder of this machine.

    Raises:
        DeviceError: somebody else holds the GPU, or the lock file cannot be used. Names the holder.
    """
    folder = folder or Path(os.environ.get(FOLDER_VARIABLE, FOLDER))
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', uuid)}.lock"
    file = _open(path, uuid)
    try:
        _wait_for_lock(file, uuid, path, wait_s)
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, and only its words are missing
            record = {"pid": os.getpid(), "user": _user(), "since": time.time(), "holder": holder}
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(record).encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _wait_for_lock(file: int, uuid: str, path: Path, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline_s:
                raise DeviceError(
                    f"{uuid}: expected a GPU that no other run uses, found it held by {_read_holder(path)}; "
                    "wait for it to end, or choose another GPU with CUDA_VISIBLE_DEVICES"
                ) from None
        # flock has no time limit of its own, and a blocking one could not be interrupted from a thread.
        time.sleep(min(_POLL_S, max(0.0, deadline_s - time.monotonic())))


def _open(path: Path, uuid: str) -> int:
    """The lock file, made when it is not there, for everybody to write and without following a link.

    An existing file is opened without O_CREAT: in a sticky folder the kernel refuses that for a file of somebody else
    (fs.protected_regular, see proc_sys_fs(5)).
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o1777)  # mkdir obeys the umask; sticky, so that nobody can remove somebody else's lock
        for _ in range(2):
            with contextlib.suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            with contextlib.suppress(FileExistsError):  # somebody else was quicker: open theirs
                return _create(path)
        raise DeviceError(f"{path}: expected a lock file, found that it keeps disappearing")
    except OSError as error:
        raise DeviceError(
            f"{path}: expected a lock file for {uuid} that this user may open, found {error.strerror}; "
            "remove it or its folder as its owner"
        ) from error


def _create(path: Path) -> int:
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    os.fchmod(file, 0o666)
    return file


def _read_holder(path: Path) -> str:
    """The holder's own words. Between its locking and its writing there is nothing to read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        since = datetime.fromtimestamp(record["since"], UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return f"pid {record['pid']} of {record['user']} since {since} ({record['holder']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "an unknown process"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a uid without a name
        return f"uid {os.getuid()}"
