# SPDX-License-Identifier: Apache-2.0
"""Runs a program that must not outlive whoever started it: ``python attached.py LOG COOKIE PROGRAM ...``.

It gets a session of its own, so that Ctrl-C in the terminal does not reach it, a file for what it says on standard
error, and SIGTERM when the starting thread ends, however that happens. Standard library only; loads in some 20 ms.
"""

import ctypes
import os
import signal
import sys

COOKIE = "COLOCATE_WORKER"
"""Environment variable by which a worker and everything that starts it can be found."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(log: str, cookie: str, *argv: str) -> None:
    """Become the program.

    Raises:
        OSError: there is no such program, or the log cannot be written.
    """
    os.environ[COOKIE] = cookie
    said = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    os.dup2(said, 2)
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(*sys.argv[1:])
