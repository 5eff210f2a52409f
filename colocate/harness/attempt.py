# SPDX-License-Identifier: Apache-2.0
"""Runs attempts at a group, from an open GPU to a record: what a pytest case repeats and what commands try out.

Knows no pytest; what a record means is `colocate.verdict.rules`'s business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

from colocate.device import CpuEnergyMeter, Device, FoundGpu, Quarantine, fresh, opened
from colocate.errors import DeviceError
from colocate.files import make_folder
from colocate.harness.group_run import GroupRun
from colocate.harness.sampler import Sampler
from colocate.plan import Group
from colocate.results import Attempt, GroupDirectory, GroupResult, RunDirectory, combine_attempts, read_attempt
from colocate.verdict import Outcome, Verdict

# What spoils one attempt and may be gone in the next. An out-of-memory, a failed foreground or a background that is no
# load would only come again.
RETRY_CAUSES = ("foreign_process", "sensor_gap", "supervisor_lost", "killed_from_outside")

# On the virtual GPU a foreground trains for a second: a background that was saving then is told by the next attempt.
RETRY_CAUSES_OF_DRY_RUNS = frozenset({"background_no_step", "too_little_overlap"})

# A program that fails in a dry run may count on passes over its data that were cut: the next attempt cuts none.
CUT = "dry_run_failed"


@dataclass(frozen=True)
class AttemptRunner:
    """Runs groups one after the other on one GPU, outside a pytest session; every run leaves a record.

    Args:
        run: Where the records go.
        plan: The name that they bear.
        gpu: The GPU, not open yet; a virtual one is made anew for every group.
        wait_s: How long to wait for a GPU that others use.
    """

    run: RunDirectory
    plan: str
    gpu: FoundGpu
    wait_s: float = 0.0

    def attempt(self, group: Group, repeat: int = 1) -> Attempt:
        """Run a group once, whatever comes of it; ``repeat`` says which of several runs of it this is.

        Raises:
            DeviceError: the GPU cannot be had, or is in quarantine since an earlier group.
            OSError: the record cannot be written.
            ColocateError: there is no room for it.
        """
        directory, gpu = new_directory(self.run, group, repeat), self.gpu
        with Quarantine(self.run.quarantine).watching(gpu.uuid) as why:
            if why is not None:
                raise DeviceError(f"{gpu.uuid}: expected a GPU in order, found it in quarantine: {why}")
            state = directory.virtual_gpu
            with opened(gpu, state, holder=group.id, wait_s=self.wait_s, run=self.run.name) as device:
                _attempted(group, device, directory, plan=self.plan, wait_s=self.wait_s)
        return read_attempt(directory)


def attempt_on(device: Device, group: Group, run: RunDirectory, *, plan: str, asks: bool = True) -> Attempt:
    """Run a group once on a GPU that is open already, and locked; a virtual one is made anew.

    ``asks``: after an out-of-memory on a virtual GPU, find out what the training wanted, which takes as long as it.

    Raises:
        DeviceError: the GPU does not answer.
        OSError: the record cannot be written.
        ColocateError: there is no room for it.
    """
    directory = new_directory(run, group)
    _attempted(group, fresh(device, directory.virtual_gpu), directory, plan=plan, asks=asks)
    return read_attempt(directory)


@dataclass(frozen=True)
class Retries:
    """Runs a group again after its first attempt: as often as the plan asks for, and after what is worth another try.

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
        done = {attempt.place[0] for attempt in self.done}
        made = [first]
        for number in (number for number in range(1, self.group.runs + 1) if number not in done):
            latest, spoiled = first, list[str]()
            if number != first.directory.repeat:
                made.append(latest := self._attempt(number))
            while (cause := self._cause(latest)) and cause not in spoiled and len(spoiled) < self.max_retries:
                spoiled.append(cause)
                made.append(latest := self._attempt(number, whole=cause == CUT))
        attempts = [*self.done, *(read_attempt(one.directory) for one in made)]
        return combine_attempts(attempts, self.group.runs)

    def _cause(self, attempt: GroupRun) -> str | None:
        """Return why an attempt is worth a repetition on this GPU."""
        assert attempt.verdict is not None, "an attempt is concluded"
        if Quarantine(self.run.quarantine).why(self.device.info.uuid) is not None:
            return None
        return retry_cause(attempt.verdict, started=attempt.started, cut=attempt.was_cut)

    def _attempt(self, number: int, *, whole: bool = False) -> GroupRun:
        directory = new_directory(self.run, self.group, number)
        device = fresh(self.device, directory.virtual_gpu)
        return _attempted(self.group, device, directory, plan=self.plan, wait_s=self.wait_s, whole=whole)


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


def new_directory(run: RunDirectory, group: Group, repeat: int = 1) -> GroupDirectory:
    """The folder of the next attempt at a group, made.

    Raises:
        ColocateError: the folder cannot be written, or there is no room for its record.
    """
    make_folder(run.path)
    run.reserve()
    return free_directory(run, group, repeat).create()


def free_directory(run: RunDirectory, group: Group, repeat: int) -> GroupDirectory:
    """The folder of the next attempt at a run of a group: the first that is not there, not even half written."""
    name, parallel = group.foreground.name, group.background is not None
    places = (run.group(name, group.number, parallel=parallel, repeat=repeat, attempt=n) for n in count(1))
    return next(directory for directory in places if not directory.path.exists())


@contextmanager
def observing(
    group: Group, device: Device, directory: GroupDirectory, *, plan: str, asks: bool = True, whole: bool = False
) -> Iterator[GroupRun]:
    """A group under watch, before anything has started; leaving early writes a record that says so.

    ``whole``: on a virtual GPU no pass over data is cut.
    """
    meter = CpuEnergyMeter()
    with (
        Sampler(device, cpu_energy=meter) as monitor,
        GroupRun(group, device, monitor, directory, plan=plan, cpu_energy=meter, asks=asks, whole=whole) as observation,
    ):
        monitor.wait_for_sample(timeout_s=2.0)
        try:
            yield observation
        except BaseException as error:
            if observation.verdict is None:
                observation.interrupt(f"the run was ended before the group was ({type(error).__name__})")
            raise


def _attempted(
    group: Group,
    device: Device,
    directory: GroupDirectory,
    *,
    plan: str,
    wait_s: float = 0.0,
    asks: bool = True,
    whole: bool = False,
) -> GroupRun:
    """Everything that happens to a group, in order, up to its record."""
    with observing(group, device, directory, plan=plan, asks=asks, whole=whole) as observation:
        observation.preflight(wait_s)
        observation.start_background()
        observation.run_foreground()
        observation.conclude()
    return observation
