# SPDX-License-Identifier: Apache-2.0
"""A training that is kept alive: when it is started again after an end, and when that makes no sense any more.

Knows no process but what `process.runner.Process` tells of its process run. Times are ``time.monotonic()`` in seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from colocate.errors import TrainingError
from colocate.process.exit_status import Exit
from colocate.process.runner import GRACE_S, Process


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The rule by which an ended training is started again.

    A clean exit after at least ``min_lifetime_s`` is a training that has finished its epochs: it is started again at
    once. After any other exit the delay begins at ``first_delay_s`` and grows by ``factor`` up to ``max_delay_s``.
    ``max_quick_exits`` exits in a row that came earlier than ``min_lifetime_s``, clean or not, are a crash loop or a
    program that does nothing. Exits with an error are enough when they are more than ``max_failures`` in all, however
    late they came, or more than ``max_failures_before_ready`` of a training that nobody has seen work.
    After ``max_process_runs`` it is not started again whatever it did: each leaves a log.
    """

    first_delay_s: float = 0.5
    factor: float = 2.0
    max_delay_s: float = 30.0
    min_lifetime_s: float = 5.0
    max_quick_exits: int = 3
    max_failures: int = 10
    max_failures_before_ready: int = 2
    max_process_runs: int = 1000

    def delay_s(self, bad_exits: int) -> float:
        """Return how long to wait after so many bad exits in a row, in seconds."""
        return min(self.max_delay_s, self.first_delay_s * self.factor ** (bad_exits - 1)) if bad_exits else 0.0


class KeepAlive:
    """A training that is kept alive: started again whenever it ends, until that makes no sense or it is stopped.

    Starts the first process run at once. Everything else happens in :meth:`tend`, which the caller's wait loop calls;
    a process run that ends is noticed there.

    Attributes:
        process_runs: every process so far, the current one last.
        gave_up: why it is not started again, with the number of process runs and the last exit; None as long as it is.
        ready: whether a process run of it was seen to train; set by who looks.

    Raises:
        TrainingError: the first process run could not be started. A later one that cannot is a reason to give up.
    """

    def __init__(
        self,
        make: Callable[[int], Process],
        policy: RestartPolicy | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``make(number)`` starts process run ``number``, counted from 0."""
        self.process_runs: list[Process] = []
        self.gave_up: str | None = None
        self.ready = False
        self._make = make
        self._policy = policy or RestartPolicy()
        self._clock = clock
        self._due_t: float | None = None
        self._stopped = False
        self._quick_exits = self._bad_exits = self._failures = 0
        self._begin()

    def tend(self) -> None:
        """Take in what happened, and start the next process run when its time has come."""
        if self._stopped or self.gave_up is not None:
            return
        if self._due_t is None:
            found = self.process_runs[-1].poll()
            if found is None:
                return
            self._judge(self.process_runs[-1], found)
        if self.gave_up is None and self._due_t is not None and self._clock() >= self._due_t:
            try:
                self._begin()
            except TrainingError as error:
                self.gave_up = f"process run {len(self.process_runs)} could not be started: {error}"

    def request_stop(self, grace_s: float = GRACE_S) -> None:
        """No further process run, and the current one is asked to end."""
        self._stopped = True
        for process_run in self.process_runs[-1:]:
            process_run.request_stop(grace_s)

    def stop(self, grace_s: float = GRACE_S) -> Exit | None:
        """Stop the training, wait until no process is left, and return how the last process run ended."""
        self.request_stop(grace_s)
        return self.process_runs[-1].stop(grace_s) if self.process_runs else None

    def _begin(self) -> None:
        self.process_runs.append(self._make(len(self.process_runs)))
        self._due_t = None

    def _judge(self, process_run: Process, found: Exit) -> None:
        quick = found.ended_s - process_run.started_t < self._policy.min_lifetime_s
        self._quick_exits = self._quick_exits + 1 if quick else 0
        self._bad_exits = self._bad_exits + 1 if quick or not found.ok else 0
        self._failures += not found.ok
        self.gave_up = process_run.too_many or self._reason_to_give_up(found)
        self._due_t = self._clock() + self._policy.delay_s(self._bad_exits)

    def _reason_to_give_up(self, found: Exit) -> str | None:
        policy, process_runs = self._policy, len(self.process_runs)
        if found.unkillable:
            return f"process run {process_runs - 1} could not be ended"
        if self._quick_exits >= policy.max_quick_exits:
            within = f"within {policy.min_lifetime_s:g} s of the start"
            return f"{self._quick_exits} exits in a row {within}, the last of {process_runs} process runs with {found}"
        if process_runs >= policy.max_process_runs:
            return f"{process_runs} process runs are as many as a training may have, the last ended with {found}"
        if self._failures > (policy.max_failures if self.ready else policy.max_failures_before_ready):
            return f"{self._failures} of {process_runs} process runs failed, the last with {found}"
        return None
