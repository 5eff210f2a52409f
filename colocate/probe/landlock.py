# SPDX-License-Identifier: Apache-2.0
"""Landlock: the Linux kernel refuses writes outside of some folders, for this process and all that it starts."""

import ctypes
import os
import stat

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # of every architecture
# Writing, removing, making anything, moving between folders, truncating: linux/landlock.h.
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13)) | 1 << 13 | 1 << 14
OF_A_FILE = 1 << 1 | 1 << 14
FIRST_WITH_ALL = 3  # ABI; before it files could be truncated, or not be moved at all
NO_NEW_PRIVILEGES = 38


def refuse_other_writes(writable: list[str]) -> bool:
    """Let the kernel refuse what Python does not redirect, for this process and its children; False where it cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(CREATE_RULESET, None, 0, 1) < FIRST_WITH_ALL:
        return False
    handled = ctypes.c_uint64(WRITES)
    rules = libc.syscall(CREATE_RULESET, ctypes.byref(handled), 8, 0)
    if rules < 0:
        return False
    for path in writable:
        _allow(libc, rules, path)
    refused = not libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) and not libc.syscall(RESTRICT_SELF, rules, 0)
    os.close(rules)
    return bool(refused)


def _allow(libc: ctypes.CDLL, rules: int, path: str) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    is_folder = stat.S_ISDIR(os.fstat(place).st_mode)

    class PathBeneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    rule = PathBeneath(WRITES if is_folder else OF_A_FILE, place)
    libc.syscall(ADD_RULE, rules, 1, ctypes.byref(rule), 0)
    os.close(place)
