# SPDX-License-Identifier: Apache-2.0
"""Dry runs that are remembered for the time of one call: what commands and proposals ask for their forecasts."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from colocate.advice.forecast import Forecast, forecast, needed, program_of
from colocate.harness import Cache, Program, SimulatedRun, Watcher, simulate
from colocate.plan import GpuModel, Group


class Abandoned(Exception):
    """Predictions behind something else were ended."""


@dataclass
class Behind:
    """Says to predictions behind something else when they are to end: after the program that is run, or at once."""

    over: bool = False
    abandoned: bool = False

    def tell(self, program: Program, stage: str, elapsed_s: float) -> None:
        """Called while a program is run.

        Raises:
            Abandoned: it is to end at once.
        """
        if self.abandoned:
            raise Abandoned


@dataclass
class Predictor:
    """Dry-runs what it is asked about, as long as there is time; every program once.

    Args:
        gpu: The GPU whose figures the programs see.
        until_t: Instant of `time.monotonic` after which nothing more is started; None is never.
        cache: Where results of earlier calls are, and go.
        behind: Predict behind something else, one program at a time, as long as this does not say "over".
        timeout_s: How long one program may take.
    """

    gpu: GpuModel
    until_t: float | None = None
    cache: Cache | None = None
    behind: Behind | None = None
    timeout_s: float = 600.0
    known: dict[Program, SimulatedRun] = field(default_factory=dict)

    def new(self, programs: Iterable[Program]) -> list[Program]:
        """Those that were not run yet, each once."""
        return [one for one in dict.fromkeys(programs) if one not in self.known]

    def simulated(self, programs: Iterable[Program], tell: Watcher = lambda program, stage, elapsed_s: None) -> None:
        """Dry-run these in their order, as many at once as there are processors, until the time is up.

        Raises:
            TrainingError: a program could not be started.
        """
        waiting, tell = self.new(programs), self.behind.tell if self.behind else tell
        at_once = len(waiting) if self.until_t is None else self.at_once
        while waiting and not self.is_over:
            some, waiting = waiting[:at_once], waiting[at_once:]
            behind = self.behind is not None
            found = simulate(some, self.gpu, cache=self.cache, timeout_s=self.timeout_s, tell=tell, behind=behind)
            self.known.update(zip(some, found, strict=True))

    def forecast(self, group: Group, limit_bytes: int) -> Forecast:
        """Forecast a group; its trainings are dry-run where that was not done.

        Raises:
            PlanError: one of them cannot be run.
            TrainingError: a program could not be started.
        """
        self.simulated(program_of(training) for training in needed([group]))
        return forecast(group, self.known, self.gpu.baseline_bytes, limit_bytes)

    def forget_failures(self) -> None:
        """Let what failed be run again."""
        self.known = {program: run for program, run in self.known.items() if run.failure is None}

    @property
    def at_once(self) -> int:
        """How many programs are run at a time where time is short."""
        return 1 if self.behind else os.cpu_count() or 1

    @property
    def is_over(self) -> bool:
        """The time is up."""
        if self.behind is not None and self.behind.over:
            return True
        return self.until_t is not None and time.monotonic() >= self.until_t
