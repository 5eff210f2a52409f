# SPDX-License-Identifier: Apache-2.0
"""Start a training's first process below the supervisor, so that it cannot outlive it. Standard library only."""

import ctypes
import fcntl
import os
import resource
import signal
from typing import NoReturn, TypedDict

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Whatever the harness ignores, e.g. below nohup, must not be ignored by the training.
_RESET_SIGNALS = (
    *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ),
)

PIPE_BYTES = 1024 * 1024
"""The most that Linux grants to everybody: output does not wait for the supervisor to be scheduled."""

_libc = ctypes.CDLL(None, use_errno=True)


class Orders(TypedDict):
    """The program that the harness wants started; ``process_run`` is the value of `PROCESS_RUN` in ``env``."""

    argv: list[str]
    cwd: str
    env: dict[str, str]
    log: str
    process_run: str
    patterns: dict[str, str]
    max_processes: int


class LaunchError(Exception):
    """The training could not be started; says what was expected and what the system answered."""


def launch(orders: Orders, output: int) -> int:
    """Start a training in a session of its own with its output on a descriptor; returns its process number.

    Raises:
        LaunchError: there is no such folder or program, or the system refuses to start it.
    """
    answer, training_end = os.pipe()  # closes by itself when the program is executed
    supervisor = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        raise LaunchError(f"could not start {orders['argv'][0]}: {error.strerror}") from error
    if pid == 0:
        _become_training(orders, output, training_end, supervisor)
    os.close(training_end)
    failure = b"".join(iter(lambda: os.read(answer, 4096), b""))
    os.close(answer)
    if failure:
        os.waitpid(pid, 0)
        raise LaunchError(failure.decode(errors="replace"))
    return pid


def _become_training(orders: Orders, output: int, answer: int, supervisor: int) -> NoReturn:
    """The forked child up to the execution of the program, or up to saying why not. Never returns, never unwinds."""
    program, folder = orders["argv"][0], orders["cwd"]
    expected = f"{program}: expected a process"
    try:
        _detach(supervisor)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        expected = f"{folder}: expected a working directory"
        os.chdir(folder)
        expected = f"{program}: expected a program that can be started in {folder}"
        os.execvpe(program, orders["argv"], orders["env"])
    except OSError as error:
        os.write(answer, f"{expected}, got {error.strerror!r}".encode(errors="replace"))
    except BaseException as error:  # whatever it is, two supervisors must not go on from here
        os.write(answer, f"{expected}, got {error!r}".encode(errors="replace"))
    finally:
        os._exit(127)


def _detach(supervisor: int) -> None:
    """Clean signals, a session of its own, no core files, and SIGKILL from the kernel should the supervisor vanish.

    Core files of a training are as large as its memory. Numbers of processes and descriptors stay as they are: data
    loaders legitimately need many, and both limits count what other processes of the same user have.
    """
    signal.set_wakeup_fd(-1)
    for number in _RESET_SIGNALS:  # what the harness ignores, e.g. under nohup, must not be ignored by the training
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor:  # it ended before the line above could take effect
        os._exit(127)


def prctl(option: int, value: int) -> None:
    """Set a property of this process in the kernel.

    Raises:
        OSError: the kernel refuses.
    """
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def widen(pipe: int) -> None:
    """Make a pipe as large as this user may have it."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:  # a user may own so many pages of pipes only; 64 KiB do as well
        return
