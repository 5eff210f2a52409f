# SPDX-License-Identifier: Apache-2.0
"""Runs one attempt at a group, from an open GPU to its record: what a pytest case repeats and what commands try out.

Knows no pytest, and not why a group is tried; what its record means is `colocate.verdict.rules`'s business.
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
from colocate.results import Attempt, GroupDirectory, RunDirectory, read_attempt


@dataclass(frozen=True)
class AttemptRunner:
    """Runs groups one after the other on one GPU, outside a pytest session; every run leaves a record.

    Args:
        run: Where the records go.
        plan: The name that they bear.
        GPU: The GPU, not open yet; a virtual one is made anew for every group.
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
        directory = new_directory(self.run, group, repeat)
        with (
            self._quarantine_respected(),
            opened(self.gpu, directory.virtual_gpu, holder=group.id, wait_s=self.wait_s, run=self.run.name) as device,
            observing(group, device, directory, plan=self.plan) as observation,
        ):
            run_to_the_end(observation, self.wait_s)
        return read_attempt(directory)

    @contextmanager
    def _quarantine_respected(self) -> Iterator[None]:
        with Quarantine(self.run.quarantine).watching(self.gpu.uuid) as why:
            if why is not None:
                raise DeviceError(f"{self.gpu.uuid}: expected a GPU in order, found it in quarantine: {why}")
            yield


def attempt_on(device: Device, group: Group, run: RunDirectory, *, plan: str, asks: bool = True) -> Attempt:
    """Run a group once on a GPU that is open already, and locked; a virtual one is made anew.

    ``asks``: after an out-of-memory on a virtual GPU, find out what the training wanted, which takes as long as it.

    Raises:
        DeviceError: the GPU does not answer.
        OSError: the record cannot be written.
        ColocateError: there is no room for it.
    """
    directory = new_directory(run, group)
    gpu = fresh(device, directory.virtual_gpu)
    with observing(group, gpu, directory, plan=plan, asks=asks) as observation:
        run_to_the_end(observation)
    return read_attempt(directory)


def new_directory(run: RunDirectory, group: Group, repeat: int = 1) -> GroupDirectory:
    """The folder of the next attempt at a group, made.

    Raises:
        ColocateError: the folder cannot be written, or there is no room for its record.
    """
    make_folder(run.path)
    run.reserve()
    return free_directory(run, group, repeat).create()


@contextmanager
def observing(
    group: Group,
    device: Device,
    directory: GroupDirectory,
    *,
    plan: str,
    asks: bool = True,
    whole: bool = False,
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


def run_to_the_end(observation: GroupRun, wait_s: float = 0.0) -> None:
    """Everything that happens to a group, in order, up to its record.

    Raises:
        OSError: the record cannot be written.
    """
    observation.preflight(wait_s)
    observation.start_background()
    observation.run_foreground()
    observation.conclude()


def free_directory(run: RunDirectory, group: Group, repeat: int) -> GroupDirectory:
    """The folder of the next attempt at a run of a group: the first that is not there, not even half written."""
    name, parallel = group.foreground.name, group.background is not None
    places = (run.group(name, group.number, parallel=parallel, repeat=repeat, attempt=n) for n in count(1))
    return next(directory for directory in places if not directory.path.exists())
