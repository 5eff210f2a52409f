# SPDX-License-Identifier: Apache-2.0
"""The supervisor: a tiny process around one process run of a training, until its last descendant has ended.

`process.runner` starts it as a program of its own, so that a training never outlives the harness, however that ends.
It knows neither GPU nor pytest, and loads little more than 30 ms of the standard library.

It is the subreaper of the training's tree: whatever a descendant does (a session of its own, a double fork, closed
descriptors), it stays below the supervisor, and "no children left" is the kernel's word that the tree is gone. A
variable in the environment marks the tree as well, for those whom another program starts on the training's behalf.

Both sides speak JSON lines. The harness writes on the supervisor's standard input first `Orders`, then

    {"stop": 10.0}   end the tree: SIGTERM, so many seconds, SIGKILL; asked again, the shorter time counts
    {"leave": true}  the exit is known, go

and the end of the file, or of the harness' process, means stop as well. The supervisor answers on standard output:

    started     pid, start_time, t
    failed      text: the program could not be started
    output      t: when the training last printed anything, at most twice a second
    match       t, name, text, value, count: a line with one of the patterns, or the words of `out_of_memory`; at most
                ten a second and name
    slow        name: a pattern that takes too long, and is searched for no more
    log_failed  t, text: the log cannot be written; the training goes on and is still searched
    exit        how it ended, once the whole tree is gone; again after every further stop
    crashed     text: our own mistake; the tree was killed

Guarantees. The tree ends when the harness asks, when it dies by whatever signal (within 5 s), and when the supervisor
is told to end. If the supervisor itself is killed by SIGKILL, the kernel kills the training's first process
(PR_SET_PDEATHSIG); its descendants are then ended by the harness, which finds them by their environment. Only if both
are killed at the same moment can a descendant stay behind: the next run finds it by its cookie.
"""

import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from colocate.process import control_group, procfs
from colocate.process.channel import Channel
from colocate.process.launch import PIPE_BYTES, LaunchError, Orders, launch, prctl, widen
from colocate.process.output import CappedLog, Found, Scanner, text_of
from colocate.process.procfs import ProcessId

PROCESS_RUN = "COLOCATE_LIFE"
"""Environment variable that differs for any two process runs; all of a training share its cookie."""

MAX_PROCESSES = 4096
"""What a tree may have at once before it counts as a fork bomb. A training of 192 data loaders has some 200.

The kernel's own limit cannot stand for it: RLIMIT_NPROC counts whatever else the user runs, and holds for no root.
"""

LINGER_S = 1.0
"""What is left of a tree after its first process ended may go by itself so long: data loaders need some 100 ms."""
LEFTOVER_GRACE_S = 2.0
ORPHAN_GRACE_S = 2.0
"""From SIGTERM to SIGKILL when the harness has died: everything has to be gone within 5 s."""


_TICK_S = 0.5
_COUNT_S = 10.0
_SCAN_S = 0.05
_CHUNK_BYTES = 256 * 1024
_MATCHES_PER_S = 10
_MOST_DESCRIBED = 20

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_RUNNING, _LINGERING, _ENDING, _KILLING = "running", "lingering", "ending", "killing"


class Supervisor:
    """One running training: copies its output, carries out orders, and ends its whole tree."""

    def __init__(self, orders: Orders, channel: Channel, log: CappedLog) -> None:
        self._channel = channel
        self._log = log
        self._process_run = orders["process_run"]
        self._scanner = Scanner(orders["patterns"])
        self._oom_kills = control_group.host_oom_kills()
        self._wake = _wake_on_signals()
        self._output: int | None = None
        self._output_bytes = 0
        self._last_output_t: float | None = None
        self._reported_output_t: float | None = None
        self._allowed: dict[str, tuple[int, int]] = {}
        self._log_failure_told = False

        self._main = ProcessId(0, 0)
        self._status: int | None = None
        self._ended_t: float | None = None
        self._cpu_s = 0.0
        self._max_rss_bytes: int | None = None

        self._phase = _RUNNING
        self._deadline = float("inf")
        self._next_scan = 0.0
        self._asked: set[ProcessId] = set()
        self._abandoned = False
        self._stopped = False
        self._childless = False
        self._over = False
        self._leftovers: list[str] = []
        self._unkillable: list[ProcessId] = []

        self._max_processes = orders["max_processes"]
        self._too_many: int | None = None
        self._fewest_tasks: int | None = None
        self._next_count = 0.0
        self._next_precise_count = 0.0

    def start(self, orders: Orders) -> None:
        """Start the training and tell the harness.

        Raises:
            LaunchError: it could not be started.
        """
        self._output, training_end = os.pipe()
        os.set_blocking(self._output, False)
        try:
            widen(training_end)
            pid = launch(orders, training_end)
        finally:
            os.close(training_end)
        self._main = procfs.identify(pid) or ProcessId(pid, 0)
        self._channel.send("started", pid=pid, start_time=self._main.start_time, t=time.monotonic())

    def run(self) -> None:
        """Until the tree is gone, or would not go, and the harness knows."""
        while not self._over:
            self._wait()
            self._copy()
            self._obey()
            self._reap()
            self._count()
            self._act()
            self._report()
        self._finish()

    def kill(self) -> None:
        """The last resort after a mistake of ours: SIGKILL to everything that is found."""
        for _ in range(20):
            self._send_all(signal.SIGKILL, self._members())
            self._reap()
            if self._childless:
                break
            time.sleep(_SCAN_S)

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        if self._output is not None:
            poller.register(self._output, select.POLLIN)
        self._channel.register(poller)
        poller.poll((_TICK_S if self._phase == _RUNNING else _SCAN_S) * 1000)

    def _copy(self) -> bool:
        """Move one piece of output to the log and search it; False when none is there."""
        if self._output is None:
            return False
        try:
            data = os.read(self._output, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:  # closed by the training; it may well go on without
            os.close(self._output)
            self._output = None
            return False
        self._last_output_t = time.monotonic()
        self._output_bytes += len(data)
        self._log.write(data)
        self._tell_matches(self._scanner.feed(data))
        return True

    def _tell_matches(self, found: list[Found]) -> None:
        t = time.monotonic()
        for name, excerpt, value in found:
            if self._may_tell(name, int(t)):
                fields = {"text": text_of(excerpt), "value": None if value is None else text_of(value)}
                self._channel.send("match", optional=True, t=t, name=name, count=self._scanner.counts[name], **fields)
        while self._scanner.slow:
            self._channel.send("slow", name=self._scanner.slow.pop())

    def _may_tell(self, name: str, second: int) -> bool:
        latest, reported = self._allowed.get(name, (second, 0))
        self._allowed[name] = (second, reported + 1 if latest == second else 1)
        return self._allowed[name][1] <= _MATCHES_PER_S

    def _obey(self) -> None:
        try:
            told_to_end = set(os.read(self._wake, 4096)) & set(_END_SIGNALS)
        except BlockingIOError:
            told_to_end = set()
        while (order := self._channel.receive()) is not None:
            if "stop" in order:
                self._stop(order["stop"])
        if (self._channel.closed or told_to_end) and not self._abandoned:
            self._abandoned = True
            self._stop(ORPHAN_GRACE_S)

    def _stop(self, grace_s: float) -> None:
        self._reap()  # what has ended until now has ended by itself
        self._stopped = self._stopped or self._status is None
        self._end(grace_s)

    def _end(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        if self._phase == _ENDING:
            self._deadline = min(self._deadline, deadline)
        elif self._phase != _KILLING:
            self._phase, self._deadline, self._next_scan = _ENDING, deadline, 0.0

    def _reap(self) -> None:
        """Collect children that have ended, adopted ones included, and what they used."""
        try:
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    self._childless = False
                    return
                self._cpu_s += usage.ru_utime + usage.ru_stime
                self._max_rss_bytes = max(self._max_rss_bytes or 0, usage.ru_maxrss * 1024)
                if pid == self._main.pid and self._status is None:
                    self._status, self._ended_t = status, time.monotonic()
        except ChildProcessError:
            self._childless = True

    def _count(self) -> None:
        """Kill a tree that grows without end, before it takes the machine with it.

        A look at all processes costs milliseconds: it is taken every ten seconds, and at once when the machine has so
        many more tasks than before that they may be ours.
        """
        now = time.monotonic()
        if self._phase == _KILLING or now < self._next_precise_count:
            return
        tasks = procfs.num_tasks() or 0
        self._fewest_tasks = min(tasks, self._fewest_tasks or tasks)
        if now < self._next_count and tasks - self._fewest_tasks < self._max_processes // 2:
            return
        number = len(procfs.descendants(os.getpid()))
        took_s = time.monotonic() - now
        self._next_count, self._next_precise_count = now + _COUNT_S, now + 20 * took_s  # at most a twentieth of a core
        if number > self._max_processes:
            self._too_many = number
            self._stopped = self._stopped or self._status is None
            self._phase, self._deadline, self._next_scan = _KILLING, time.monotonic() + procfs.KILL_WAIT_S, 0.0

    def _act(self) -> None:
        now = time.monotonic()
        if self._childless and not self._members():
            self._over = True
        elif self._phase == _RUNNING and self._status is not None:
            self._phase, self._deadline = _LINGERING, now + LINGER_S
        elif self._phase == _LINGERING and now >= self._deadline:
            self._leftovers = _described(self._members())
            self._end(LEFTOVER_GRACE_S)
        elif self._phase == _ENDING and now >= self._deadline:
            self._phase, self._deadline, self._next_scan = _KILLING, now + procfs.KILL_WAIT_S, 0.0
        if self._phase in (_ENDING, _KILLING) and now >= self._next_scan:
            self._press(now)
            self._next_scan = time.monotonic() + _SCAN_S

    def _press(self, now: float) -> None:
        """Signal what is there now: newcomers get SIGTERM once, and at last everything gets SIGKILL again and again."""
        members = self._members()
        if self._phase == _ENDING:
            # SIGCONT as well, or a stopped process would not hear of it.
            self._send_all(signal.SIGTERM, members - self._asked)
            self._send_all(signal.SIGCONT, members - self._asked)
            self._asked |= members
        elif now < self._deadline:
            self._kill_group(members)
            self._send_all(signal.SIGKILL, members)
        else:
            self._unkillable = sorted(members)
            self._over = True

    def _members(self) -> frozenset[ProcessId]:
        try:
            return procfs.descendants(os.getpid()) | frozenset(procfs.with_variable(PROCESS_RUN, self._process_run))
        except OSError:  # the system has no descriptor left to look around with; the first process we know by heart
            return frozenset({self._main} if self._status is None else ())

    def _send_all(self, number: int, members: frozenset[ProcessId]) -> None:
        for process in members:
            try:
                procfs.send(process, number)
            except PermissionError:  # a set-user-ID program; it shows as unkillable if it does not go
                continue

    def _kill_group(self, members: frozenset[ProcessId]) -> None:
        """Signal the training's whole process group at once, which a process that forks and exits cannot evade."""
        try:
            if any(os.getpgid(process.pid) == self._main.pid for process in members):
                os.killpg(self._main.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return

    def _report(self) -> None:
        now = time.monotonic()
        if self._last_output_t != self._reported_output_t and now >= (self._reported_output_t or 0.0) + _TICK_S:
            self._reported_output_t = self._last_output_t
            self._channel.send("output", optional=True, t=self._last_output_t)
        if self._log.failed and not self._log_failure_told:
            self._log_failure_told = True
            self._channel.send("log_failed", t=now, text=self._log.failed)
        self._channel.flush()

    def _finish(self) -> None:
        """Tell how it ended until the harness has heard: it may have been interrupted while it read."""
        for _ in range(PIPE_BYTES // _CHUNK_BYTES + 1):  # a pipe that an unkillable process keeps filling has an end
            if not self._copy():
                break
        self._tell_matches(self._scanner.close())
        self._log.close()
        self._report()
        exit_fields = self._exit_fields()
        self._channel.send("exit", **exit_fields)
        while not self._channel.closed:
            order = self._channel.wait_for_order()
            if order is None or "leave" in order:
                return
            self._channel.send("exit", **exit_fields)

    def _host_oom_kills(self) -> int | None:
        now = control_group.host_oom_kills()
        return None if now is None or self._oom_kills is None else now - self._oom_kills

    def _exit_fields(self) -> dict[str, Any]:
        exit_code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        return {
            "code": exit_code if exit_code is not None and exit_code >= 0 else None,
            "signal": _signal_name(-exit_code) if exit_code is not None and exit_code < 0 else None,
            "ended_t": self._ended_t or time.monotonic(),
            "stopped": self._stopped,
            "cpu_s": self._cpu_s,
            "max_rss_bytes": self._max_rss_bytes,
            "host_oom_kills": self._host_oom_kills(),
            "counts": dict(self._scanner.counts),
            "last_output_t": self._last_output_t,
            "output_bytes": self._output_bytes,
            "leftovers": self._leftovers,
            "unkillable": self._unkillable,
            "too_many": self._too_many,
        }


def _wake_on_signals() -> int:
    """A descriptor that becomes readable, with the signal's number, when a child ends or we are told to end."""
    wake, signals = os.pipe()
    for descriptor in (wake, signals):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    for number in (*_END_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    return wake


def _described(members: frozenset[ProcessId]) -> list[str]:
    shown = [procfs.describe(process.pid) for process in sorted(members)[:_MOST_DESCRIBED]]
    return shown + ([f"and {len(members) - len(shown)} more"] if len(members) > len(shown) else [])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"SIG{number}"


def main() -> None:
    """Supervise one training as the harness orders on standard input."""
    channel = Channel(0, 1)
    orders: Any = channel.wait_for_order()
    if orders is None:
        return
    supervisor: Supervisor | None = None
    try:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        supervisor = Supervisor(orders, channel, CappedLog(Path(orders["log"])))
        supervisor.start(orders)
        supervisor.run()
    except LaunchError as error:
        channel.send("failed", text=str(error))
        channel.wait_for_order()
    except BaseException:
        import traceback  # costs 2 ms that only a mistake has to pay

        if supervisor is not None:
            supervisor.kill()
        channel.send("crashed", text=traceback.format_exc())
        channel.wait_for_order(timeout_s=_TICK_S)
        raise
