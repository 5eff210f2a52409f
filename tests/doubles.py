"""Stand-ins for a GPU in tests that are not about reading one: a scripted GPU, and one that replays a trace."""

import threading
from collections.abc import Callable, Iterable

from colocate.device.base import DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.errors import DeviceError

MIB = 1024**2

Scripted = int | BaseException | Callable[[], int]


class FakeDevice:
    """A GPU whose readings are scripted; the last entry of a script holds for ever.

    Args:
        memory: Bytes in use, one after the other: a number, an exception to raise, or something to call.
        vitals: One reading of the vitals for ever, or an exception.
        processes: One list of processes for ever, None for a driver that does not tell, or an exception.
        peaks: The driver's accounting, by pid.
    """

    def __init__(
        self,
        memory: Iterable[Scripted] = (0,),
        *,
        total_bytes: int = 8192 * MIB,
        uuid: str = "GPU-fake",
        vitals: Vitals | BaseException | None = None,
        processes: Iterable[DeviceProcess] | BaseException | None = (),
        peaks: dict[int, int] | None = None,
    ) -> None:
        self.info = DeviceInfo("nvidia", uuid, "Fake GPU (simulated)", total_bytes, "measured", "scripted", "simulated")
        self.reads = 0
        self.process_reads = 0
        self.closed = False
        self._script = list(memory)
        self._vitals = vitals or Vitals(power_mw=50_000, temperature_c=40, energy_mj=1000)
        self._processes = processes
        self._peaks = peaks or {}

    def memory(self) -> Memory:
        self._expect_open()
        step = self._script[min(self.reads, len(self._script) - 1)]
        self.reads += 1
        used_bytes = _said(step() if callable(step) else step)
        return Memory(used_bytes, self.info.total_bytes, None)

    def prepare(self) -> None:
        self._expect_open()

    def vitals(self) -> Vitals:
        self._expect_open()
        return _said(self._vitals)

    def processes(self) -> tuple[DeviceProcess, ...] | None:
        self._expect_open()
        self.process_reads += 1
        found = _said(self._processes)
        return None if found is None else tuple(found)

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        self._expect_open()
        return ()

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        self._expect_open()
        return self._peaks.get(pid)

    def close(self) -> None:
        self.closed = True

    def _expect_open(self) -> None:
        if self.closed:
            raise DeviceError(f"{self.info.uuid}: expected an open device, found it closed")


class Blocking:
    """A reading that does not come back until it is released: ``FakeDevice([1, blocking, 2])``."""

    def __init__(self, value: int = 0) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self.value = value

    def __call__(self) -> int:
        self.entered.set()
        self.released.wait(30)
        return self.value


def _said(value):
    if isinstance(value, BaseException):
        raise value
    return value
