# SPDX-License-Identifier: Apache-2.0
"""Runs a group again after its first attempt: as often as the plan asks for, and after what is worth another try."""

from dataclasses import dataclass

from colocate.device import Device, Quarantine, fresh
from colocate.harness.attempt import new_directory, observing, run_to_the_end
from colocate.harness.group_run import GroupRun
from colocate.plan import Group
from colocate.results import Attempt, GroupDirectory, GroupResult, RunDirectory, combine_attempts, read_attempt
from colocate.verdict import Outcome, Verdict


@dataclass(frozen=True)
class Retries:
    """Runs further attempts at a group.

    Args:
        group: What is to share the GPU.
        device: The GPU of the first attempt. A GPU is used again, a virtual GPU is made anew.
        run: Where the records go.
        plan: Its name.
        max_retries: The most attempts that may be added because of what spoiled one.
        wait_s: How long to wait for a GPU that others use.
        done: Attempts of an earlier session that hold: their runs are not repeated.
    """

    group: Group
    device: Device
    run: RunDirectory
    plan: str
    max_retries: int
    wait_s: float = 0.0
    done: tuple[Attempt, ...] = ()

    def settle(self, first: GroupRun) -> GroupResult:
        """Repeat what is to be repeated; what all attempts of this session come to.

        Every cause is tried again once: what spoils two attempts in a row will spoil the third.

        Raises:
            OSError: a record cannot be written.
            DeviceError: the GPU does not answer.
        """
        directories = [first.directory]
        done = {attempt.place[0] for attempt in self.done}
        for number in (number for number in range(1, self.group.runs + 1) if number not in done):
            self._run(number, first if number == first.directory.repeat else None, directories)
        return combine_attempts([*self.done, *(read_attempt(directory) for directory in directories)], self.group.runs)

    def _run(self, number: int, first: GroupRun | None, directories: list[GroupDirectory]) -> None:
        spoiled: list[str] = []
        observation = first or self._attempt(number, directories)
        while (cause := self._cause(observation)) and self._is_worth_it(cause, spoiled):
            spoiled.append(cause)
            observation = self._attempt(number, directories, whole=cause == CUT)

    def _cause(self, observation: GroupRun) -> str | None:
        assert observation.verdict is not None, "an attempt is concluded"
        return retry_cause(observation.verdict, started=observation.started, cut=observation.was_cut)

    def _is_worth_it(self, cause: str, spoiled: list[str]) -> bool:
        usable = Quarantine(self.run.quarantine).why(self.device.info.uuid) is None
        return usable and cause not in spoiled and len(spoiled) < self.max_retries

    def _attempt(self, number: int, directories: list[GroupDirectory], *, whole: bool = False) -> GroupRun:
        directory = new_directory(self.run, self.group, number)
        directories.append(directory)
        device = fresh(self.device, directory.virtual_gpu)
        with observing(self.group, device, directory, plan=self.plan, whole=whole) as observation:
            run_to_the_end(observation, self.wait_s)
            return observation


# What spoils one attempt and may be gone in the next. An out-of-memory, a failed foreground or a background that is no
# load would only come again.
RETRY_CAUSES = ("foreign_process", "sensor_gap", "supervisor_lost", "killed_from_outside")

# On the virtual GPU a foreground trains for a second: a background that was saving then is told by the next attempt.
RETRY_CAUSES_OF_DRY_RUNS = frozenset({"background_no_step", "too_little_overlap"})

# A program that fails in a dry run may count on passes over its data that were cut: the next attempt cuts none.
CUT = "dry_run_failed"


def retry_cause(verdict: Verdict, *, started: bool, cut: bool = False) -> str | None:
    """Return why it makes sense to repeat an attempt at once, or None if it does not.

    What kept it from starting at all was waited for already. ``cut``: passes of the foreground over its data were cut.
    """
    if verdict.outcome is not Outcome.INCONCLUSIVE or not started:
        return None
    if verdict.basis == "predicted" and RETRY_CAUSES_OF_DRY_RUNS.issuperset(verdict.codes):
        return verdict.codes[0]
    if cut and CUT in verdict.codes:
        return CUT
    return next((code for code in RETRY_CAUSES if code in verdict.codes), None)
