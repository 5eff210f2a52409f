"""A training as the process side sees it: one argument says how it misbehaves. Standard library only, starts at once.

Every mode prints ``ready`` when it has done what the tests wait for.
"""

import os
import signal
import sys
import time
from pathlib import Path


def say(*words: object) -> None:
    print(*words, flush=True)


def idle() -> None:
    while True:
        signal.pause()


def idle_after_ready() -> None:
    say("ready")
    idle()


def ignore_term() -> None:
    # Not print(): the signal may come while "ready" is still being printed, and a buffer cannot be entered twice.
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"asked to end\n"))
    say("ready")
    idle()


def clean_end_on_term() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    say("ready")
    idle()


def grandchildren(number: str) -> None:
    for _ in range(int(number)):
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            idle()
    say("ready")
    idle()


def become_daemon(pid_file: str) -> None:
    """All of a daemon: double fork, a session of its own, no descriptors, no environment, deaf to SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            os.closerange(0, 64)
            Path(pid_file).with_suffix(".new").write_text(str(os.getpid()))
            Path(pid_file).with_suffix(".new").rename(pid_file)
            os.execve("/bin/sleep", ["sleep", "1000"], {})
        os._exit(0)
    os.wait()


def daemon(pid_file: str) -> None:
    become_daemon(pid_file)
    say("ready")
    idle()


def daemon_and_exit(pid_file: str) -> None:
    become_daemon(pid_file)
    while not Path(pid_file).exists():
        time.sleep(0.01)
    say("ready")


def slow_child_and_exit(pipe_s: str) -> None:
    """Leave a child that ends by itself a little later, as data loaders do."""
    if os.fork() == 0:
        time.sleep(float(pipe_s))
        os._exit(0)


def close_output() -> None:
    say("ready")
    os.closerange(0, 3)
    idle()


def rabbit() -> None:
    """Fork and let the parent exit, again and again: its number has changed before anybody can use it."""
    if os.fork() == 0:
        say("ready")
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            if os.fork():
                os._exit(0)
    idle()


def bomb(number: str, width: str = "8") -> None:
    """Multiply, each process in a session of its own and deaf to SIGTERM, up to so many; gone by itself in a minute."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(60)
    left = int(number)
    while left > 1:
        share = max(1, left // int(width))
        left -= share
        if os.fork() == 0:
            os.setsid()
            signal.alarm(60)
            left = share
    idle_after_ready()


def flood(num_bytes: str) -> None:
    line = b"epoch 1 step 000123 loss 2.3456 lr 0.001 samples/s 1234.5\n" * 1000
    left = int(num_bytes)
    while left > 0:
        left -= os.write(1, line[:left])


def one_line(num_bytes: str) -> None:
    """A line without end, its last words an out-of-memory."""
    left = int(num_bytes)
    piece = b"x" * 65536
    while left > 0:
        left -= os.write(1, piece[:left])
    os.write(1, b" CUDA out of memory. Tried to allocate 1 GiB")


def odd_bytes() -> None:
    os.write(1, b"start\n\x00\xff\xfe\x80\n")
    for percent in range(0, 101, 10):
        os.write(1, b"\r%3d%%|####|" % percent)
    os.write(2, b"\nlast \xc3\xa9\n")


def out_of_memory() -> None:
    say("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23 GiB")
    sys.exit(1)


def many_matches(number: str) -> None:
    for step in range(int(number)):
        print("step", step)


def busy(seconds: str) -> None:
    """Work in a child that the first process waits for."""
    if os.fork() == 0:
        until = time.process_time() + float(seconds)
        block = bytearray(40_000_000)
        while time.process_time() < until:
            block[0] += 1
            block[0] = 0
        os._exit(0)
    os.wait()


def take_memory(mib: str) -> None:
    """In a child, which the kernel may kill."""
    child = os.fork()
    if child == 0:
        block = bytearray(int(mib) * 1024**2)
        os._exit(block[0])
    sys.exit(1 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) else 0)


def show_start() -> None:
    """What a training was given at its start."""
    say("session", os.getsid(0) == os.getpid())
    say("cookie", os.environ.get("COLOCATE_COOKIE"))
    say("folder", Path.cwd())
    say("input", repr(sys.stdin.read()))


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
