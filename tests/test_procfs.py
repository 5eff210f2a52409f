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


def test_the_boot_has_a_name() -> None:
    assert len(procfs.boot_id()) == 36
    assert procfs.boot_id() == procfs.boot_id()


def test_a_process_is_identified_until_it_ends() -> None:
    with member("ignore_term") as process:
        found = identity(process.pid)
        assert procfs.is_alive(found)
        process.kill()
        wait_until(lambda: not procfs.is_alive(found))  # a zombie, as nobody has waited for it

        assert procfs.identify(process.pid) == found
    assert procfs.identify(process.pid) is None


def test_another_process_with_the_same_number_is_another_process() -> None:
    with member("ignore_term") as process:
        earlier = identity(process.pid)._replace(start_time=1)

        assert not procfs.is_alive(earlier)
        assert not procfs.send(earlier, signal.SIGKILL)
        assert process.poll() is None


def test_a_vanished_process_cannot_be_signalled() -> None:
    with member("ignore_term") as process:
        found = identity(process.pid)
        process.kill()

    assert procfs.send(found, signal.SIGKILL) is False


def test_descendants_are_found_and_the_process_itself_is_not(family: "subprocess.Popen[bytes]") -> None:
    found = procfs.descendants(family.pid)

    assert len(found) == 3
    assert family.pid not in {process.pid for process in found}
    assert found < procfs.descendants(os.getpid())


def test_a_cookie_finds_the_whole_family_and_only_whole_words_count(family: "subprocess.Popen[bytes]") -> None:
    expected = {identity(family.pid), *procfs.descendants(family.pid)}

    for prefix in ("run", "run/", "run/group01", "run/group01/foreground", ""):
        assert expected <= set(procfs.with_cookie(prefix))
    for prefix in ("ru", "run/group0", "run/group01/foreground/x"):
        assert not procfs.with_cookie(prefix)
    assert procfs.cookie_of(family.pid) == "run/group01/foreground"


def test_a_process_without_cookie_has_none() -> None:
    assert procfs.cookie_of(1) is None
    assert procfs.cookie_of(2**22 + 1) is None


def test_ending_a_process_ends_what_is_below_it_and_does_not_ask_for_ever(family: "subprocess.Popen[bytes]") -> None:
    whole = {identity(family.pid), *procfs.descendants(family.pid)}

    assert procfs.end([identity(family.pid)], grace_s=0.1) == []
    assert not any(map(procfs.is_alive, whole))


def test_ending_waits_no_longer_than_it_takes() -> None:
    with member("clean_end_on_term") as process:
        assert procfs.end([identity(process.pid)], grace_s=60.0) == []

        assert process.wait() == 0


def test_a_stopped_process_is_ended_too() -> None:
    with member("clean_end_on_term") as process:
        process.send_signal(signal.SIGSTOP)

        assert procfs.end([identity(process.pid)], grace_s=60.0) == []
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


def test_a_description_names_program_user_and_start(family: "subprocess.Popen[bytes]") -> None:
    text = procfs.describe(family.pid)

    assert text.startswith(f"pid {family.pid} (")
    assert "proc_member.py)" in text, "its arguments may be somebody's secrets"
    assert ", user " in text
    assert text.endswith(" UTC")


def test_a_description_tells_the_state_of_a_zombie() -> None:
    with member("ignore_term") as process:
        found = identity(process.pid)
        process.kill()
        wait_until(lambda: not procfs.is_alive(found))

        assert procfs.describe(process.pid).endswith("state Z (zombie)")


def test_describing_what_is_gone_does_not_raise() -> None:
    assert procfs.describe(2**22 + 1) == f"pid {2**22 + 1} (gone)"


def test_control_characters_in_a_command_line_do_not_reach_the_message() -> None:
    with running("a\x1b[31mb\nc", "1000", executable="/bin/sleep") as process:
        # The kernel lets the parent go on a moment before it has put the new command line in place.
        wait_until(lambda: "a?[31mb?c" in procfs.describe(process.pid))


def test_a_name_with_parentheses_and_spaces_is_read(tmp_path: Path) -> None:
    program = tmp_path / "a) R (b c"
    program.symlink_to("/bin/sleep")
    with running(program, "1000") as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text().startswith("a)"))

        assert procfs.is_alive(identity(process.pid))
        assert identity(process.pid) in procfs.descendants(os.getpid())


def test_the_count_of_host_out_of_memory_kills_is_a_count_or_unknown() -> None:
    found = control_group.host_oom_kills()

    assert found is None or found >= 0


@pytest.mark.parametrize(
    ("mounts", "groups", "expected"),
    [
        (
            "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "0::/user.slice/job",
            ["/sys/fs/cgroup/user.slice/job/memory.events"],
        ),
        ("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/", ["/sys/fs/cgroup/memory.events"]),
        (
            "31 24 0:27 /docker/a1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
            "4:memory:/docker/a1\n0::/docker/a1",
            ["/sys/fs/cgroup/memory/memory.oom_control"],
        ),
        (
            "31 24 0:27 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu",
            "4:cpu:/x\n",
            [],
        ),
    ],
)
def test_the_control_group_is_found(
    monkeypatch: pytest.MonkeyPatch, mounts: str, groups: str, expected: list[str]
) -> None:
    files = {"/proc/self/mountinfo": mounts, "/proc/self/cgroup": groups}
    monkeypatch.setattr(control_group, "read", lambda path: files[path].encode())

    assert list(control_group._oom_files()) == expected
