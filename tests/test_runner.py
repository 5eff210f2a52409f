"""The runner with real processes: however a training ends or misbehaves, it is told, and nothing stays behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from members import PROGRAMS, Begin
from waiting import wait_until

from colocate.errors import TrainingError
from colocate.process import procfs
from colocate.process.exit_status import Exit
from colocate.process.procfs import ProcessId
from colocate.process.runner import Command, Process, start, stop_all
from colocate.process.supervisor import PROCESS_RUN

MIB = 1024**2


def wait_ready(process: Process) -> Process:
    wait_until(lambda: process.poll() or process.matches)
    assert process.exit is None
    return process


def ended(process: Process) -> Exit:
    found = process.wait(300.0)
    assert found is not None
    return found


# How it ends


def test_an_end_is_told_by_its_code_or_the_name_of_its_signal(begin: Begin) -> None:
    process = begin(argv=("sh", "-c", "exit 7"))
    found = ended(process)
    assert (found.code, found.signal, found.stopped, found.unkillable, found.ok) == (7, None, False, False, False)
    assert process.started_t <= found.ended_s <= time.monotonic()
    assert process.tree() == frozenset()

    crash = ended(begin(argv=("sh", "-c", "kill -SEGV $$")))
    assert (crash.code, crash.signal, crash.ok) == (None, "SIGSEGV", False)


def test_what_cannot_be_started_is_an_error(begin: Begin, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/interpreter\n")
    script.chmod(0o755)
    elsewhere = Command(("true",), tmp_path / "missing", dict(os.environ))
    for said, making in {
        r"^no-such: expected a program .* got 'No such file or directory'$": lambda: begin(argv=("no-such",)),
        r"got 'Permission denied'$": lambda: begin(argv=("/etc/passwd",)),
        "script: expected a program": lambda: begin(argv=(str(script),)),
        r"missing: expected a working directory, got 'No such file or directory'$": lambda: start(
            elsewhere, log=tmp_path / "log", cookie="none"
        ),
        "nowhere: expected a folder for the log, found none": lambda: begin("idle", log=tmp_path / "nowhere" / "log"),
        "could not write the log .*: Is a directory": lambda: begin("idle", log=tmp_path),
        r"^pattern 'loss': expected a regular expression, got '\('": lambda: begin("idle", patterns={"loss": "("}),
    }.items():
        with pytest.raises(TrainingError, match=said):
            making()


# What it is given


def test_a_training_starts_with_a_clean_state(begin: Begin, tmp_path: Path, cookie: str) -> None:
    """No descriptor, no ignored signal, no input and no core file are inherited."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a script has started with &
    try:
        process, shell = (
            begin("show_start"),
            begin(argv=("sh", "-c", "grep SigIgn /proc/self/status; ls /proc/self/fd; ulimit -c")),
        )
    finally:
        signal.signal(signal.SIGINT, before)
    ended(process)
    ended(shell)

    assert process.last_lines() == ("session True", f"cookie {cookie}", f"folder {tmp_path}", "input ''")
    # The fourth descriptor is ls reading the folder.
    assert shell.last_lines() == ("SigIgn:\t0000000000000000".expandtabs(4), "0", "1", "2", "3", "0")


def test_an_environment_of_any_size_and_bytes_and_paths_from_where_the_harness_is_arrive(
    tmp_path: Path, cookie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("inside").mkdir()
    env = {"PATH": os.environ["PATH"], "BIG": "x" * 100_000, "ODD": os.fsdecode(b"\xff\xfe")}
    command = Command(("sh", "-c", 'printf "%s" "$ODD"; echo ${#BIG}; pwd'), Path("inside"), env)
    with start(command, log=Path("log"), cookie=cookie) as process:
        ended(process)

    assert (tmp_path / "log").read_bytes() == b"\xff\xfe100000\n%s\n" % bytes(tmp_path / "inside")


# How it is ended


def test_stopping_asks_first_and_then_kills(begin: Begin) -> None:
    polite, deaf = wait_ready(begin("clean_end_on_term")), wait_ready(begin("ignore_term"))
    os.kill(polite.pid, signal.SIGSTOP)  # a suspended training is asked as well

    found = polite.stop(grace_s=600.0)
    assert (found.code, found.stopped, found.ok) == (0, True, False)
    assert polite.stop() is found

    found = deaf.stop(grace_s=0.1)
    assert (found.signal, found.stopped) == ("SIGKILL", True)
    assert deaf.last_lines() == ("ready", "asked to end")


def test_what_ended_by_itself_before_the_stop_arrived_was_not_stopped(begin: Begin) -> None:
    process = begin(argv=("sh", "-c", "sleep 0.1; exit 3"))
    process._supervisor.send_signal(signal.SIGSTOP)  # so that it finds the end and the order at the same time
    wait_until(lambda: not procfs.is_alive(process.id))
    process.request_stop()
    process._supervisor.send_signal(signal.SIGCONT)

    found = process.stop()
    assert (found.code, found.stopped) == (3, False)


def test_a_stopped_process_tree_is_gone_to_the_last(begin: Begin, tmp_path: Path) -> None:
    """Also a daemon: double fork, own session, no descriptors, no environment; the supervisor is its subreaper."""
    family, pid_file = wait_ready(begin("grandchildren", 5)), tmp_path / "daemon"
    with_daemon = wait_ready(begin("daemon", pid_file))
    wait_until(pid_file.exists)
    daemon = procfs.identify(int(pid_file.read_text()))
    whole = family.tree()
    assert len(whole) == 6
    assert family.id in whole
    assert daemon in with_daemon.tree()

    stop_all([family, with_daemon], grace_s=0.05)
    assert not any(map(procfs.is_alive, [*whole, daemon]))


@pytest.mark.slow
def test_what_outlives_the_first_process_is_ended_and_named(begin: Begin, tmp_path: Path) -> None:
    process, soon = begin("daemon_and_exit", tmp_path / "daemon"), begin("slow_child_and_exit", 0.2)
    found = ended(process)

    (leftover,) = process.leftovers
    assert leftover.startswith(f"pid {(tmp_path / 'daemon').read_text()} (sleep), user ")
    assert (found.code, found.stopped) == (0, False)
    assert ended(soon).ok
    assert soon.leftovers == (), "a child that ends by itself soon is none"


def test_closing_its_output_or_forking_without_end_hides_no_training(begin: Begin) -> None:
    process = wait_ready(begin("close_output"))
    assert process.wait(0.2) is None
    assert process.stop().signal == "SIGTERM"

    assert not wait_ready(begin("rabbit")).stop(grace_s=0.05).unkillable


@pytest.mark.slow
def test_a_fork_bomb_is_ended_and_a_training_within_its_limit_is_left_alone(begin: Begin) -> None:
    """300 processes in 300 sessions, none of which hears SIGTERM, where 100 are allowed."""
    process = begin("bomb", 300, max_processes=100)
    found = ended(process)
    assert (found.stopped, found.unkillable) == (True, False)
    assert "expected at most 100 processes at once, found" in str(process.too_many)

    many = wait_ready(begin("bomb", 20, max_processes=20))
    assert many.stop(0.0).stopped
    assert many.too_many is None


@pytest.mark.slow
def test_several_are_stopped_in_the_time_of_one(begin: Begin) -> None:
    members = [wait_ready(begin("ignore_term")) for _ in range(3)]
    grace_s = 1.0
    started = time.monotonic()
    stop_all(members, grace_s)

    assert grace_s <= time.monotonic() - started < 3 * grace_s  # one after the other
    assert [member.exit and member.exit.signal for member in members] == ["SIGKILL"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_stop_finishes_what_an_interrupted_one_began(begin: Begin, number: int) -> None:
    process = wait_ready(begin("ignore_term"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(number, interrupt)
    striking = threading.Timer(0.2, os.kill, (os.getpid(), number))
    try:
        striking.start()
        with pytest.raises(KeyboardInterrupt):
            process.stop(grace_s=600.0)
    finally:
        striking.join()
        signal.signal(number, before)

    assert process.exit is None
    assert process.stop(grace_s=0.0).signal == "SIGKILL"


def test_an_end_that_was_lost_by_an_interrupt_is_told_again(begin: Begin) -> None:
    """Ctrl-C may strike between reading from the supervisor and keeping what was read."""
    process = wait_ready(begin("idle_after_ready"))
    process.request_stop()
    os.set_blocking(process._events, True)
    wait_until(lambda: b'"exit"' in os.read(process._events, 1 << 16))
    os.set_blocking(process._events, False)

    assert process.stop().stopped


# What it prints


def test_the_log_has_every_byte_and_last_lines_are_text(begin: Begin) -> None:
    process = begin("odd_bytes")
    assert ended(process).ok

    data = process.log.read_bytes()
    assert data.startswith(b"start\n\x00\xff\xfe\x80\n\r  0%|####|\r 10%")
    assert process.last_lines() == ("start", "\ufffd" * 4, "100%|####|", "last é")
    assert process.output_bytes == len(data)
    assert process.last_output_t is not None
    assert process.started_t <= process.last_output_t <= time.monotonic()


def test_an_out_of_memory_in_the_output_is_reported_without_being_asked_for(begin: Begin) -> None:
    process = begin("out_of_memory", patterns={})
    found = ended(process)

    assert found.code == 1
    assert process.match_counts == {"out of memory, raised: PyTorch (gpu)": 1}
    (match,) = process.matches
    assert match.text.startswith("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    assert process.started_t <= match.t <= found.ended_s + 1


def test_matches_are_few_but_their_count_is_exact(begin: Begin) -> None:
    process = begin("many_matches", 20_000, patterns={"step": r"^step \d+$"})
    ended(process)

    assert process.match_counts["step"] == 20_000
    assert 10 <= len(process.matches) <= 40  # ten a second, and it takes less than three


def test_a_megabyte_without_newline_is_searched_to_its_end(begin: Begin) -> None:
    process = begin("one_line", MIB)
    ended(process)

    assert process.match_counts["out of memory, reported: PyTorch (gpu)"] == 1


@pytest.mark.slow
def test_a_flood_fills_neither_memory_nor_disk(begin: Begin) -> None:
    process = begin("flood", 200 * MIB)
    supervisor = process._supervisor.pid
    peak_kib = 0

    def over() -> bool:
        nonlocal peak_kib
        if process.poll() is None:
            status = Path(f"/proc/{supervisor}/status").read_text()
            peak_kib = int(status.split("VmHWM:")[1].split()[0])
        return process.exit is not None

    wait_until(over)

    assert process.output_bytes == 200 * MIB
    assert peak_kib < 40 * 1024
    data = process.log.read_bytes()
    assert data.startswith(b"epoch 1 step")
    assert b"\n[colocate: %d bytes left out]\n" % (192 * MIB) in data
    assert len(data) < 8 * MIB + 100


def test_a_full_disk_does_not_end_the_training(begin: Begin) -> None:
    process = begin(argv=("sh", "-c", "for i in 1 2 3; do echo CUDA error: out of memory; done"), log=Path("/dev/full"))

    assert ended(process).ok
    assert process.log_failed == "could not write the log /dev/full: No space left on device"
    assert process.match_counts["out of memory, raised: CUDA (gpu)"] == 3


def test_processor_time_and_memory_of_the_whole_tree_are_told(begin: Begin) -> None:
    found = ended(begin("busy", 0.3))

    assert found.cpu_s is not None
    assert 0.3 <= found.cpu_s < 1.5
    assert found.max_rss_bytes is not None
    assert 40_000_000 <= found.max_rss_bytes < 200_000_000
    assert found.host_oom_kills is None or found.host_oom_kills >= 0


# Who dies first


@contextmanager
def harness(tmp_path: Path, *modes: str, keep_pipes_open: str = "no") -> Iterator[tuple[Any, dict[str, Any]]]:
    argv = [sys.executable, str(PROGRAMS / "proc_harness.py"), str(tmp_path), keep_pipes_open, *modes]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def everything(tmp_path: Path) -> list[ProcessId]:
    return procfs.with_cookie(str(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("keep_pipes_open", ["no", "yes"])
def test_sigkill_of_the_harness_leaves_nothing_alive(tmp_path: Path, keep_pipes_open: str) -> None:
    """Not even when a process forked off the harness holds the pipes to the supervisors open."""
    pid_file = tmp_path / "daemon"
    modes = ("ignore_term", "grandchildren 2", f"daemon {pid_file}")
    with harness(tmp_path, *modes, keep_pipes_open=keep_pipes_open) as (process, facts):
        wait_until(lambda: len(everything(tmp_path)) == 5 and pid_file.exists())
        supervisors = [identity for pid in facts["supervisors"] if (identity := procfs.identify(pid))]
        trees = [tree for pid in facts["supervisors"] for tree in procfs.descendants(pid)]
        assert (len(supervisors), len(trees)) == (3, 6)

        process.kill()

        try:
            wait_until(lambda: not any(map(procfs.is_alive, [*supervisors, *trees])))
            assert everything(tmp_path) == []
        finally:
            if facts["gpu_process"]:
                os.kill(facts["gpu_process"], signal.SIGKILL)


def test_sigkill_of_the_supervisor_is_told_and_leaves_nothing_alive(begin: Begin) -> None:
    """Grandchildren are found by their environment, and by the tree that was known before."""
    process = wait_ready(begin("grandchildren", 2))
    whole = procfs.with_variable(PROCESS_RUN, process._process_run)
    assert set(whole) == process.tree()
    assert len(whole) == 3

    process._supervisor.kill()
    found = ended(process)

    assert not any(map(procfs.is_alive, whole))
    assert (found.code, found.signal, found.stopped) == (None, "SIGKILL", False)
    assert "expected to outlive the training, it was ended by signal 9" in str(process.supervisor_lost)


def test_sigkill_of_the_supervisor_ends_the_first_process_without_anybody_s_help(tmp_path: Path) -> None:
    with harness(tmp_path, "ignore_term") as (process, facts):
        first = procfs.identify(facts["pids"][0])
        assert first is not None
        wait_until(lambda: "ready" in (tmp_path / "0.log").read_text())
        process.send_signal(signal.SIGSTOP)

        os.kill(facts["supervisors"][0], signal.SIGKILL)

        wait_until(lambda: not procfs.is_alive(first))


def test_a_stopped_supervisor_is_woken_and_ends_its_training(begin: Begin) -> None:
    process = wait_ready(begin("ignore_term"))
    process._supervisor.send_signal(signal.SIGSTOP)

    found = process.stop(grace_s=0.0)

    assert (found.signal, found.stopped) == ("SIGKILL", True)
    assert process.supervisor_lost is None
