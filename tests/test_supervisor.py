"""The supervisor by its protocol: a program of its own, spoken to as the harness speaks to it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from colocate.process import procfs, runner, supervisor

MEMBER = str(Path(__file__).with_name("programs") / "proc_member.py")


class Spoken:
    """One supervisor and the conversation with it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def order(self, **order: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order).encode() + b"\n")

    def hear(self, event: str) -> dict[str, Any]:
        """The next event of this name; events before it are passed over."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line != b"\n" and (heard := json.loads(line))["event"] == event:
                return dict(heard)
        raise AssertionError(f"expected {event!r}, the supervisor ended with {self.process.wait()}")


@contextmanager
def spoken(boot: str = runner._BOOT) -> Iterator[Spoken]:
    argv = [sys.executable, "-I", "-S", "-c", boot, str(Path(runner.__file__).parents[1])]
    with subprocess.Popen(argv, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as it:
        try:
            yield Spoken(it)
        finally:
            it.kill()


def orders(tmp_path: Path, *mode: str, **changes: Any) -> dict[str, Any]:
    process_run = f"life of {tmp_path}"
    argv = [sys.executable, "-I", "-S", MEMBER, *mode]
    whole = {
        "argv": argv,
        "cwd": str(tmp_path),
        "env": {supervisor.PROCESS_RUN: process_run},
        "log": str(tmp_path / "log"),
    }
    return {**whole, "process_run": process_run, "patterns": {"ready": "^ready$"}, "max_processes": 100, **changes}


def test_it_tells_start_and_end_again_and_again_until_the_harness_has_understood(tmp_path: Path) -> None:
    """A shorter grace counts, a longer one does not."""
    with spoken() as it:
        it.order(**orders(tmp_path, "ignore_term"))
        started, match = it.hear("started"), it.hear("match")
        for grace_s in (600.0, 0.0, 600.0):
            it.order(stop=grace_s)
        reported = it.hear("exit")

        assert procfs.identify(started["pid"]) is None
        assert started["t"] <= match["t"] <= reported["ended_t"]
        assert (match["name"], match["text"], match["count"]) == ("ready", "ready", 1)
        assert (reported["code"], reported["signal"], reported["stopped"]) == (None, "SIGKILL", True)
        assert reported["counts"] == {"ready": 1}
        it.order(stop=0.0)
        assert it.hear("exit") == reported
        it.order(leave=True)
        assert it.process.wait() == 0


def test_it_loads_nothing_of_the_package_but_what_it_needs() -> None:
    """Neither pydantic nor the package's own __init__: that is what makes it start in some 40 ms."""
    boot = runner._BOOT.replace("main()", "print(*sorted(sys.modules))")
    argv = [sys.executable, "-I", "-S", "-c", boot, str(Path(runner.__file__).parents[1])]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    ours = {name for name in loaded if name.startswith("colocate")}
    needed = ("channel", "control_group", "launch", "out_of_memory", "output", "procfs", "supervisor")
    assert ours == {"colocate", "colocate.process", *(f"colocate.process.{name}" for name in needed)}
    assert not {"pydantic", "psutil", "subprocess", "asyncio", "inspect", "logging"} & set(loaded)


def test_the_end_of_its_input_ends_the_tree(tmp_path: Path) -> None:
    with spoken() as it:
        it.order(**orders(tmp_path, "clean_end_on_term"))
        it.hear("match")
        assert it.process.stdin is not None
        it.process.stdin.close()

        assert it.process.wait(supervisor.ORPHAN_GRACE_S) == 0
        assert not procfs.with_variable(supervisor.PROCESS_RUN, f"life of {tmp_path}")


def test_a_signal_ends_the_tree_and_the_harness_learns_how(tmp_path: Path) -> None:
    with spoken() as it:
        it.order(**orders(tmp_path, "clean_end_on_term"))
        it.hear("match")
        it.process.terminate()

        reported = it.hear("exit")
        assert (reported["code"], reported["stopped"]) == (0, True)


@pytest.mark.slow
def test_a_harness_that_does_not_listen_holds_up_nothing(tmp_path: Path) -> None:
    """Nobody reads while more is told than a pipe holds; the training goes on and the counts are exact all the same."""
    with spoken() as it:
        number = 1000
        patterns = {f"pattern {i}": "step" for i in range(1000)}
        it.order(**orders(tmp_path, "many_matches", str(number), patterns=patterns))
        log = tmp_path / "log"
        wait_until(lambda: log.exists() and log.read_bytes().endswith(f"step {number - 1}\n".encode()))

        reported = it.hear("exit")
        assert reported["counts"] == dict.fromkeys(patterns, number)
        assert reported["output_bytes"] == log.stat().st_size


def test_a_mistake_of_ours_kills_the_tree_and_is_told(tmp_path: Path) -> None:
    with spoken() as it:
        it.order(**orders(tmp_path, "ignore_term"))
        it.hear("match")
        it.order(stop="soon")  # a number is expected

        assert "TypeError" in it.hear("crashed")["text"]
        assert it.process.wait() == 1
        assert not procfs.with_variable(supervisor.PROCESS_RUN, f"life of {tmp_path}")


@contextmanager
def control_group(controller: str) -> Iterator[Path]:
    """A group of cgroup v1 for as long as it is needed; skips where we may not make one."""
    folder = Path("/sys/fs/cgroup", controller, f"colocate-test-{os.getpid()}")
    if controller == "memory":  # below our own group, whose limits apply
        own = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().split() if ":memory:" in line]
        folder = Path(f"/sys/fs/cgroup/memory{''.join(own)}", folder.name)
    try:
        folder.mkdir()
    except OSError:
        pytest.skip(f"needs the right to make a control group of cgroup v1, {controller}")
    try:
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()


def test_a_kill_by_the_kernel_for_host_memory_is_counted(tmp_path: Path) -> None:
    """The exit code alone does not tell: here a data loader's process is killed, and the training fails with 1."""
    with control_group("memory") as folder, spoken() as it:
        (folder / "memory.limit_in_bytes").write_text(str(60 * 1024**2))
        (folder / "cgroup.procs").write_text(str(it.process.pid))
        it.order(**orders(tmp_path, "take_memory", "200"))
        reported = it.hear("exit")

    assert (reported["code"], reported["signal"]) == (1, None)
    assert reported["host_oom_kills"] == 1


def test_a_process_that_survives_sigkill_is_named(tmp_path: Path) -> None:
    impatient = runner._BOOT.replace("main()", "import colocate.process.procfs as p; p.KILL_WAIT_S = 0.2; main()")
    with control_group("freezer") as folder, spoken(impatient) as it:
        it.order(**orders(tmp_path, "ignore_term"))
        pid = it.hear("started")["pid"]
        it.hear("match")
        (folder / "cgroup.procs").write_text(str(pid))
        (folder / "freezer.state").write_text("FROZEN")
        try:
            it.order(stop=0.0)
            reported = it.hear("exit")
        finally:
            (folder / "freezer.state").write_text("THAWED")

        assert [process[0] for process in reported["unkillable"]] == [pid]
        assert (reported["code"], reported["signal"]) == (None, None)
        wait_until(lambda: procfs.describe(pid).endswith(("(gone)", "state Z (zombie)")))
