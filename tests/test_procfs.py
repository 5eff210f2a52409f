"""Processes: identities that survive PID reuse, trees, and what is ours."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from colocate.process import control_group, procfs
from colocate.process.procfs import COOKIE, ProcessId

ROOT = Path(__file__).parents[1]
MEMBER = str(ROOT / "tests/programs/proc_member.py")


@contextmanager
def running(*argv: str | Path, **options: Any) -> "Iterator[subprocess.Popen[bytes]]":
    with subprocess.Popen(argv, **options) as process:
        try:
            yield process
        finally:
            process.kill()  # or a failed test would wait for its end for ever


@contextmanager
def member(*arguments: str, cookie: str | None = None) -> "Iterator[subprocess.Popen[bytes]]":
    env = {**os.environ, **({COOKIE: cookie} if cookie else {})}
    argv = [sys.executable, "-I", "-S", MEMBER, *arguments]
    with running(*argv, env=env, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process


def identity(pid: int) -> ProcessId:
    found = procfs.identify(pid)
    assert found is not None
    return found


@pytest.fixture
def family() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with three children that ignore SIGTERM."""
    with member("grandchildren", "3", cookie="run/group01/foreground") as process:
        yield process
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_process_is_identified_until_it_ends() -> None:
    """Another one with the same number is another process; one that nobody has waited for is a zombie."""
    assert len(procfs.boot_id()) == 36
    with member("ignore_term") as process:
        found = identity(process.pid)
        earlier = found._replace(start_time=1)
        assert procfs.is_alive(found)
        assert not procfs.is_alive(earlier)
        assert not procfs.send(earlier, signal.SIGKILL)
        assert process.poll() is None
        process.kill()
        wait_until(lambda: not procfs.is_alive(found))

        assert procfs.identify(process.pid) == found
        assert procfs.describe(process.pid).endswith("state Z (zombie)")
    assert procfs.identify(process.pid) is None
    assert procfs.send(found, signal.SIGKILL) is False
    assert procfs.describe(2**22 + 1) == f"pid {2**22 + 1} (gone)"


def test_descendants_and_a_cookie_find_the_whole_family_and_only_whole_words_count(
    family: "subprocess.Popen[bytes]",
) -> None:
    below = procfs.descendants(family.pid)
    expected = {identity(family.pid), *below}
    assert (len(below), len(expected)) == (3, 4)
    assert below < procfs.descendants(os.getpid())

    for prefix in ("run", "run/", "run/group01", "run/group01/foreground", ""):
        assert expected <= set(procfs.with_cookie(prefix))
    for prefix in ("ru", "run/group0", "run/group01/foreground/x"):
        assert not procfs.with_cookie(prefix)
    found = [procfs.cookie_of(pid) for pid in (family.pid, 1, 2**22 + 1)]
    assert found == ["run/group01/foreground", None, None]


def test_ending_a_process_ends_what_is_below_it_and_does_not_ask_for_ever(family: "subprocess.Popen[bytes]") -> None:
    whole = {identity(family.pid), *procfs.descendants(family.pid)}
    assert procfs.end([identity(family.pid)], grace_s=0.1) == []
    assert not any(map(procfs.is_alive, whole))

    with member("clean_end_on_term") as process:
        process.send_signal(signal.SIGSTOP)
        assert procfs.end([identity(process.pid)], grace_s=60.0) == [], "one that is stopped is asked as well"
        assert process.wait() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else and come back")
def test_a_process_of_somebody_else_is_returned_at_once() -> None:
    with member("ignore_term") as process:
        found = identity(process.pid)
        os.setresuid(65534, 65534, 0)
        try:
            started = time.monotonic()
            assert procfs.end([found], grace_s=60.0) == [found]
        finally:
            os.setresuid(0, 0, 0)
        assert time.monotonic() - started < procfs.KILL_WAIT_S


END_ALL_BELOW = """
import os, subprocess, sys
from colocate.process import control_group, procfs
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
assert child.stdout.readline() == b"ready\\n"
print(procfs.end([procfs.identify(os.getpid())], grace_s=0.0), child.wait())
"""


def test_ending_everything_below_us_spares_ourselves() -> None:
    """In a process of its own, for below the one that runs the tests there may be what other tests still use."""
    command = [sys.executable, "-c", END_ALL_BELOW, sys.executable, "-I", "-S", MEMBER, "ignore_term"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout == f"[] {-signal.SIGKILL}\n"


def test_a_description_names_program_user_and_start(family: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    text = procfs.describe(family.pid)
    assert text.startswith(f"pid {family.pid} (")
    assert "proc_member.py)" in text, "its arguments may be somebody's secrets"
    assert ", user " in text
    assert text.endswith(" UTC")

    program = tmp_path / "a) R (b c"
    program.symlink_to("/bin/sleep")
    with running("a\x1b[31mb\nc", "1000", executable=program) as process:
        # The kernel lets the parent go on a moment before it has put the new command line in place.
        wait_until(lambda: "a?[31mb?c" in procfs.describe(process.pid))
        assert Path(f"/proc/{process.pid}/comm").read_text().startswith("a)")
        assert procfs.is_alive(identity(process.pid))
        assert identity(process.pid) in procfs.descendants(os.getpid())


V2, V1 = (
    "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
    "31 24 0:27 {} /sys/fs/cgroup/{} ro - cgroup cgroup rw,{}",
)


@pytest.mark.parametrize(
    ("mounts", "groups", "expected"),
    [
        (V2, "0::/user.slice/job", ["/sys/fs/cgroup/user.slice/job/memory.events"]),
        (V2, "0::/", ["/sys/fs/cgroup/memory.events"]),
        (
            V1.format("/docker/a1", "memory", "memory"),
            "4:memory:/docker/a1\n0::/docker/a1",
            ["/sys/fs/cgroup/memory/memory.oom_control"],
        ),
        (V1.format("/", "cpu", "cpu"), "4:cpu:/x\n", []),
    ],
)
def test_the_control_group_is_found(
    monkeypatch: pytest.MonkeyPatch, mounts: str, groups: str, expected: list[str]
) -> None:
    files = {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": groups}
    monkeypatch.setattr(control_group, "read", lambda path: files[path].encode())

    assert list(control_group._oom_files()) == expected
