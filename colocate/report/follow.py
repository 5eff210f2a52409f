# SPDX-License-Identifier: Apache-2.0
"""A run followed from outside while it goes on: its finished groups, its running ones, and its end."""

from collections.abc import Iterator
from pathlib import Path

from colocate.errors import ColocateError
from colocate.report import status_line
from colocate.results import Estimate, GroupResult, journal, line_of, status
from colocate.units import plural


class Following:
    """Reads the run's files again whenever it is asked.

    Raises:
        ColocateError: there is no run in this folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        if not (run / "run.json").exists():
            raise ColocateError(f"{run}: expected a run directory, found no run.json in it")
        self._reported: dict[str, GroupResult] = {}
        self._finished: set[str] = set()
        self._reader = journal.Reader(run)
        self._journal = self._reader.read()

    @property
    def ended(self) -> bool:
        """The run has said that it ended."""
        return self._journal.ended_at is not None

    def finished(self) -> Iterator[str]:
        """A line for every group that has ended since the last call."""
        self._journal = self._reader.read()
        for name, result in self._journal.results.items():
            if self._reported.get(name) is not result:
                self._reported[name] = result
                yield line_of(result)

    def lines(self, width: int) -> list[str]:
        """A line for every running group, for what waits in a queue, and one for the whole."""
        found, name = self._journal, self._run.name
        if self.ended:
            return [f"{name}: ended, {self._ending()}"[:width]]
        states = [state for state in status.running(self._run, self._finished) if state.group not in found.fresh]
        lines = [status_line.line_of(state, found.estimates.get(state.group), width) for state in states]
        lines += status_line.waiting(self._run)
        if not found.selected:
            return [*lines, f"{name}: no group has begun"[:width]]
        done = sum(group in found.fresh for group in found.selected)
        whole = status_line.status(done, len(found.selected), len(states), self._left_s(states))
        return [*lines, f"{name}: {whole}"[:width]]

    def _ending(self) -> str:
        judged = sum(result.is_judged for result in self._journal.results.values())
        others = len(self._journal.results) - judged
        return f"{plural(judged, 'group')} judged" + (f", {others} without a verdict" if others else "")

    def _left_s(self, states: list[status.GroupState]) -> float | None:
        found = self._journal
        took = {name: result.duration_s for name, result in found.results.items()}
        passed_s = [state.elapsed_s for state in states]
        return Estimate(found.estimates).left_s(found.selected, found.fresh, took, passed_s, max(1, len(states)))
