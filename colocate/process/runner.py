# SPDX-License-Identifier: Apache-2.0
"""Start, watch and end training processes. Knows no GPU and no pytest.

Every process run of a training runs under a process of `process.supervisor`, which this module starts and talks to.
Nothing here needs a thread: the caller's wait loop polls. All times are ``time.monotonic()`` in seconds. What is
started again when it has ended is `colocate.process.keep_alive`' business.

Ctrl-C may strike anywhere: the supervisor goes on ending a tree, and a second ``stop`` finishes what the first began.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from colocate.errors import TrainingError
from colocate.process import procfs
from colocate.process.exit_status import Exit
from colocate.process.output import Match, assemble, last_lines
from colocate.process.procfs import ProcessId
from colocate.process.supervisor import MAX_PROCESSES, PROCESS_RUN

GRACE_S = 10.0
"""From SIGTERM to SIGKILL: enough to write a checkpoint that is already half way."""
START_TIMEOUT_S = 60.0
SUPERVISES = "supervises "
"""With it begins the word of a supervisor's command line that names the cookie of its training."""
_ANSWER_S = 5.0
"""How long after all its deadlines a supervisor may keep silent before it counts as hung."""

# The package's own __init__ is not run: what it imports for users would cost the supervisor its quick start.
_BOOT = (
    "import sys\n"
    "for name in ('colocate', 'colocate.process'):\n"
    "    package = type(sys)(name)\n"
    "    package.__path__ = [sys.argv[1] + name.removeprefix('colocate').replace('.', '/')]\n"
    "    sys.modules[name] = package\n"
    "from colocate.process.supervisor import main; main()"
)


@dataclass(frozen=True, slots=True)
class Command:
    """A command to execute: program and arguments, working directory, and the complete environment."""

    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]

    def __str__(self) -> str:
        return " ".join(self.argv)


def start(
    command: Command,
    *,
    log: Path,
    cookie: str,
    patterns: Mapping[str, str] | None = None,
    max_processes: int = MAX_PROCESSES,
) -> "Process":
    """Start a training whose output, standard error included, goes to ``log``.

    Args:
        command: what to execute; `COLOCATE_COOKIE` and the mark of this process run are added to its environment.
        log: replaced if it exists; its folder must exist.
        cookie: ``<run id>/<group id>/<role>`` and what makes it unlike any other; by it a later run recognises what
            this one left behind.
        patterns: regular expressions for one line of output, by name, besides the words of `out_of_memory`.
        max_processes: a tree with more of them at once is killed.

    Raises:
        TrainingError: no such program, folder or interpreter, a pattern that is none, or no supervisor to be had.
    """
    searched = dict(patterns or {})
    _check(command, log, searched)
    process_run = uuid.uuid4().hex
    process = Process(command, log, process_run, _start_supervisor(log, cookie))
    try:
        process._begin(cookie, searched, max_processes)
    except BaseException:
        process._discard()
        raise
    return process


class Process:
    """One process run of a training, from its start until nothing of its process tree is left.

    As a context manager it always stops the whole tree. ``exit`` is set by :meth:`poll`, :meth:`wait` and
    :meth:`stop` when the tree is gone; its ``ended_s`` is the *monotonic* time at which the first process ended, for
    the caller to make relative.

    Attributes:
        id: the training's first process.
        started_t: when it was started.
        matches: lines with a pattern, at most ten a second and pattern; ``match_counts`` has them all at the end.
        last_output_t: when it last printed anything, up to half a second behind; None before the first output.
        leftovers: descriptions of descendants that outlived the first process and had to be ended.
        unkillable: processes that survived SIGKILL; the GPU must not be used before they are gone.
        too_many: why the tree was killed, if it had more processes at once than it may.
        log_failed: why the log could not be written, e.g. a full disk.
        slow_patterns: the names of patterns that were given up because they took too long.
        supervisor_lost: how the supervisor ended before its time; ``exit`` is then what must have happened.
    """

    def __init__(self, command: Command, log: Path, process_run: str, supervisor: "subprocess.Popen[bytes]") -> None:
        self.command = command
        self.log = log
        self.id = ProcessId(0, 0)
        self.started_t = time.monotonic()
        self.exit: Exit | None = None
        self.matches: list[Match] = []
        self.match_counts: dict[str, int] = {}
        self.last_output_t: float | None = None
        self.output_bytes: int | None = None
        self.leftovers: tuple[str, ...] = ()
        self.unkillable: tuple[ProcessId, ...] = ()
        self.too_many: str | None = None
        self.log_failed: str | None = None
        self.slow_patterns: list[str] = []
        self.supervisor_lost: str | None = None
        self._max_processes = MAX_PROCESSES
        self._process_run = process_run
        self._supervisor = supervisor
        self._arrived = b""
        self._failure: str | None = None
        self._stop_asked = False
        self._seen: set[ProcessId] = set()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Process pid {self.pid} ({self.command}), {self.exit or 'running'}>"

    @property
    def pid(self) -> int:
        """The number of the first process, 0 until it was started."""
        return self.id.pid

    def poll(self) -> Exit | None:
        """Read the supervisor's messages; return how the training ended, or None while anything of its tree runs."""
        while self.exit is None:
            try:
                data = os.read(self._events, 1 << 16)
            except BlockingIOError:
                break
            self._take(data) if data else self._lose()
        return self.exit

    def wait(self, timeout_s: float | None = None) -> Exit | None:
        """Do as :meth:`poll`, but wait up to ``timeout_s`` seconds, or for ever."""
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        while self.poll() is None and (left_s := deadline - time.monotonic()) > 0:
            self._wait_for_events(left_s)
        return self.exit

    def request_stop(self, grace_s: float = GRACE_S) -> None:
        """Have the whole tree ended without waiting for it: SIGTERM, ``grace_s`` seconds, SIGKILL."""
        if self.exit is None:
            self._stop_asked = True
            self._supervisor.send_signal(signal.SIGCONT)  # somebody may have stopped it, and it would not hear of this
            self._order({"stop": grace_s})

    def stop(self, grace_s: float = GRACE_S) -> Exit:
        """End the whole tree and wait until it is gone; does nothing to one that is.

        Returns within ``grace_s`` and some 15 s more even if a process cannot be ended (``Exit.unkillable``).
        """
        self.request_stop(grace_s)
        if self.wait(grace_s + procfs.KILL_WAIT_S + _ANSWER_S) is None:
            self._supervisor.kill()  # hung, e.g. stopped by somebody: the end of its pipe tells the rest
            self._supervisor.wait()
        while self.poll() is None:
            self._wait_for_events(_ANSWER_S)
        self._release()
        assert self.exit is not None
        return self.exit

    def tree(self) -> frozenset[ProcessId]:
        """The training's processes now: the first one and everything below it, wherever it has put itself."""
        if self.exit is not None:
            return frozenset()
        found = procfs.descendants(self._supervisor.pid)
        self._seen |= found
        return found

    @property
    def pids(self) -> frozenset[int]:
        """The numbers of all processes of the tree that were seen so far."""
        return frozenset(process.pid for process in {self.id, *self._seen})

    def last_lines(self, count: int = 20) -> tuple[str, ...]:
        """The last lines of the output so far."""
        return last_lines(self.log, count)

    @property
    def _events(self) -> int:
        assert self._supervisor.stdout is not None
        return self._supervisor.stdout.fileno()

    def _begin(self, cookie: str, patterns: Mapping[str, str], max_processes: int) -> None:
        os.set_blocking(self._events, False)
        self.match_counts = dict.fromkeys(patterns, 0)
        env = {**self.command.env, procfs.COOKIE: cookie, PROCESS_RUN: self._process_run}
        orders = {"argv": self.command.argv, "cwd": str(self.command.cwd.absolute()), "env": env}
        orders |= {"log": str(self.log.absolute()), "process_run": self._process_run, "patterns": dict(patterns)}
        self._max_processes = max_processes
        self._order({**orders, "max_processes": max_processes})
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.pid and time.monotonic() < deadline:
            self.poll()
            if self._failure or self.supervisor_lost:
                raise TrainingError(self._failure or self.supervisor_lost)
            if not self.pid:
                self._wait_for_events(deadline - time.monotonic())
        if not self.pid:
            raise TrainingError(f"{self.command}: expected to start within {START_TIMEOUT_S:g} s, nothing was heard")

    def _order(self, order: Mapping[str, Any]) -> None:
        assert self._supervisor.stdin is not None
        line = memoryview(json.dumps(order).encode() + b"\n")
        try:
            while line:  # a signal may cut a write in two
                line = line[self._supervisor.stdin.write(line) or 0 :]
        except (BrokenPipeError, ValueError):  # it has ended, or we have let it go: the next poll knows
            return

    def _wait_for_events(self, timeout_s: float) -> None:
        poller = select.poll()
        poller.register(self._events, select.POLLIN)
        poller.poll(None if timeout_s == float("inf") else max(0.0, timeout_s) * 1000)

    def _take(self, data: bytes) -> None:
        *lines, self._arrived = (self._arrived + data).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                # Empty, or the rest of an event that an interrupt tore: the supervisor repeats those that matter.
                continue
            self._take_event(event)

    def _take_event(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "started":
                self.started_t, self.id = event["t"], ProcessId(event["pid"], event["start_time"])
            case "failed" | "crashed":
                self._failure = event["text"]
            case "output":
                self.last_output_t = event["t"]
            case "match":
                self.matches.append(Match(event["t"], event["name"], event["text"], event["value"]))
                self.match_counts[event["name"]] = event["count"]
            case "slow":
                self.slow_patterns.append(event["name"])
            case "log_failed":
                self.log_failed = event["text"]
            case "exit":
                self._take_exit(event)

    def _take_exit(self, event: dict[str, Any]) -> None:
        self.match_counts = event["counts"]
        self.last_output_t, self.output_bytes = event["last_output_t"], event["output_bytes"]
        self.leftovers = tuple(event["leftovers"])
        self.unkillable = tuple(ProcessId(*process) for process in event["unkillable"])
        if event["too_many"] is not None:
            expected = f"expected at most {self._max_processes} processes at once, found {event['too_many']}"
            self.too_many = f"{self.command}: {expected}; all were ended, see max_processes of the plan's limits"
        self.exit = Exit(
            code=event["code"],
            signal=event["signal"],
            ended_s=event["ended_t"],
            stopped=event["stopped"],
            unkillable=bool(self.unkillable),
            host_oom_kills=event["host_oom_kills"],
            cpu_s=event["cpu_s"],
            max_rss_bytes=event["max_rss_bytes"],
        )
        self._release()

    def _lose(self) -> None:
        """The supervisor has ended without a word: end what it guarded, and say so."""
        self._supervisor.wait()
        left = {self.id, *self._seen, *procfs.with_variable(PROCESS_RUN, self._process_run)}
        self.unkillable = tuple(procfs.end(left, grace_s=0.0))
        try:
            assemble(self.log)
        except OSError as error:  # somebody put something else in its place
            self.log_failed = f"{self.log}: expected the log of {self.command}, found {error.strerror}"
        code = self._supervisor.returncode
        ended = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        reason = self._failure or " | ".join(last_lines(self.log, 3)) or "it left no message"
        self.supervisor_lost = f"supervisor of {self.command}: expected to outlive the training, {ended}; {reason}"
        # The kernel sends the first process SIGKILL when its supervisor vanishes; how its work stood nobody can tell.
        self.exit = Exit(
            code=None,
            signal="SIGKILL",
            ended_s=time.monotonic(),
            stopped=self._stop_asked,
            unkillable=bool(self.unkillable),
        )
        self._release()

    def _release(self) -> None:
        """Let the supervisor go, which waits until its last message has been understood."""
        self._order({"leave": True})
        self._leave(_ANSWER_S)

    def _leave(self, timeout_s: float) -> bool:
        """Close the pipes and wait for the supervisor to go; False if it had to be killed."""
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        try:
            self._supervisor.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait()
            return False
        return True

    def _discard(self) -> None:
        """After a failed start: the closed pipe makes the supervisor end whatever there is, and go."""
        if not self._leave(procfs.KILL_WAIT_S):
            procfs.end(procfs.with_variable(PROCESS_RUN, self._process_run), grace_s=0.0)


class Stoppable(Protocol):
    """Anything that can be asked to end, and waited for."""

    def request_stop(self, grace_s: float = GRACE_S) -> None:
        """Have it ended without waiting for it."""

    def stop(self, grace_s: float = GRACE_S) -> Exit | None:
        """End it and wait until it is gone."""


def stop_all(members: Iterable[Stoppable], grace_s: float = GRACE_S) -> None:
    """Stop several trainings at the same time: all are asked first, so that they share the time it takes."""
    asked = list(members)
    for member in asked:
        member.request_stop(grace_s)
    for member in asked:
        member.stop(grace_s)


def _check(command: Command, log: Path, patterns: Mapping[str, str]) -> None:
    if not command.argv:
        raise TrainingError("command: expected a program, got no words")
    if not log.parent.is_dir():
        raise TrainingError(f"{log.parent}: expected a folder for the log, found none")
    for name, pattern in patterns.items():
        try:
            re.compile(pattern.encode())
        except re.error as error:
            raise TrainingError(f"pattern {name!r}: expected a regular expression, got {pattern!r}: {error}") from error


def _start_supervisor(log: Path, cookie: str) -> "subprocess.Popen[bytes]":
    """A session of its own keeps Ctrl-C at the terminal from reaching it: the harness decides who ends when.

    What the interpreter itself may have to complain about goes to the log.
    """
    try:
        # Not blocking: somebody may have put a pipe there, which nobody reads.
        errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise TrainingError(f"could not write the log {log}: {error.strerror}") from error
    package = os.fspath(Path(__file__).parents[1])
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, package, f"{SUPERVISES}{cookie}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COLOCATE_")}
    try:
        return subprocess.Popen(
            argv,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=env,
            start_new_session=True,
        )
    except OSError as error:
        raise TrainingError(f"could not start the supervisor {argv[0]}: {error.strerror}") from error
    finally:
        os.close(errors)
