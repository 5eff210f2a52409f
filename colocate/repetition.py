"""Runs a group again after its first attempt: as often as the plan asks for, and after what is worth another try."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from colocate.device import Device
from colocate.device.opening import fresh
from colocate.energy import CpuEnergyMeter
from colocate.monitor import Monitor
from colocate.observation import Observation
from colocate.plan import Group
from colocate.quarantine import Quarantine
from colocate.run_directory import GroupDirectory, RunDirectory
from colocate.series import Settled, free_directory, read_attempt, retry_cause, settled
from colocate.verdict import Verdict


@dataclass(frozen=True)
class Repetition:
    """What further attempts at a group need.

    Args:
        group: What is to share the card.
        device: The card of the first attempt. A GPU is used again, a virtual card is made anew.
        run: Where the records go.
        plan: Its name.
        max_retries: The most attempts that may be added because of what spoiled one.
        wait_s: How long to wait for a card that others use.
    """

    group: Group
    device: Device
    run: RunDirectory
    plan: str
    max_retries: int
    wait_s: float = 0.0

    def settle(self, first: Observation) -> Settled:
        """Repeat what is to be repeated; what all attempts of this session come to.

        Every cause is tried again once: what spoils two attempts in a row will spoil the third.

        Raises:
            OSError: a record cannot be written.
            DeviceError: the card does not answer.
        """
        directories = [first.directory]
        for number in range(1, self.group.runs + 1):
            spoiled: list[str] = []
            verdict, started = first.verdict, first.started
            assert verdict is not None, "the first attempt is concluded"
            if number > 1:
                verdict, started = self._attempt(number, directories)
            while (cause := retry_cause(verdict, started=started)) and self._is_worth_it(cause, spoiled):
                spoiled.append(cause)
                verdict, started = self._attempt(number, directories)
        return settled([read_attempt(directory) for directory in directories])

    def _is_worth_it(self, cause: str, spoiled: list[str]) -> bool:
        usable = Quarantine(self.run.quarantine).why(self.device.info.uuid) is None
        return usable and cause not in spoiled and len(spoiled) < self.max_retries

    def _attempt(self, number: int, directories: list[GroupDirectory]) -> tuple[Verdict, bool]:
        with self._observing(number, directories) as observation:
            observation.preflight(self.wait_s)
            observation.start_background()
            observation.run_foreground()
            return observation.conclude(), observation.started

    @contextmanager
    def _observing(self, number: int, directories: list[GroupDirectory]) -> Iterator[Observation]:
        group, meter = self.group, CpuEnergyMeter()
        parallel = group.background is not None
        name = group.foreground.name
        directory, attempt = free_directory(self.run, name, group.number, parallel=parallel, repeat=number)
        directories.append(directory.create())
        device = fresh(self.device, directory.virtual_card)
        card = directory.virtual_card if device.info.kind == "virtual" else None
        with (
            Monitor(device, cpu_energy=meter) as monitor,
            Observation(
                group,
                device,
                monitor,
                directory,
                run=self.run.name,
                plan=self.plan,
                virtual_card=card,
                cpu_energy=meter,
                quarantine=Quarantine(self.run.quarantine),
                repeat=(number, attempt),
            ) as observation,
        ):
            monitor.wait_for_sample(timeout_s=2.0)
            try:
                yield observation
            except BaseException as error:
                if observation.verdict is None:
                    observation.interrupt(f"the run was ended before the group was ({type(error).__name__})")
                raise
