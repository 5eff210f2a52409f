# SPDX-License-Identifier: Apache-2.0
"""Samples a GPU while a group runs. Owns the threads that read it; knows neither trainings nor what makes a verdict.

Two threads, so that a slow reading never costs a sample: one reads the memory at 20 Hz or faster, the other power,
temperature and utilisation once a second and the list of processes every few seconds (on an NVIDIA GPU that list takes
milliseconds under a lock that stalls other programs, https://github.com/flightlessmango/MangoHud/pull/2104).

What could not be read is a gap with its reason, never a number. A failure that ends the sampling early, a mistake of
ours included, is kept as ``lost``: a trace that stops early would otherwise look like a low peak.
"""

import threading
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from colocate.device import CpuEnergyMeter, Device, DeviceProcess, Vitals
from colocate.errors import DeviceError, DeviceLost, ImplausibleReading
from colocate.verdict import Gap, Sample, Trace

SLOW_ANSWER_S = 0.25
"""An answer that takes longer is told as a gap. A healthy NVIDIA GPU answers within tens of microseconds."""

SHORTEST_PROCESSES_INTERVAL_S = 1.0
"""However often somebody asks, the list of processes is read no more often than this."""

T = TypeVar("T")

_POLL_S = 0.005
_JOIN_S = 1.0  # A thread that a driver holds longer at the end is left behind: it is a daemon and records nothing more.
_SUSPENDED_S = 0.1  # CLOCK_BOOTTIME goes on while the machine sleeps, CLOCK_MONOTONIC stands still.


@dataclass(slots=True)
class _Schedule:
    """Instants on a fixed grid: a late tick does not shift the ones after it."""

    due_s: float
    interval_s: float

    def wait_s(self) -> float:
        return max(0.0, self.due_s - time.monotonic())

    def advance(self, now_s: float) -> int:
        """Moves on to the first instant after now and returns how many were passed over on the way."""
        missed = max(0, int((now_s - self.due_s) // self.interval_s))
        self.due_s += (missed + 1) * self.interval_s
        return missed


class Sampler:
    """Reads a GPU from entering the context to leaving it; everything can be asked at any time, also afterwards.

    Args:
        device: The GPU. Its readings are called from two threads at once.
        interval_s: Seconds between two samples of the memory.
        vitals_interval_s: Seconds between two readings of power, temperature and utilisation.
        processes_interval_s: Seconds between two lists of processes, unless :meth:`ask_for_processes` is called.
        cpu_energy: Updated with the vitals, because its counter wraps around within minutes.

    Attributes:
        started_s: When the sampling began, by the monotonic clock.
        lost: Why it ended before it was stopped, None while it goes on.
    """

    def __init__(
        self,
        device: Device,
        interval_s: float = 0.05,
        vitals_interval_s: float = 1.0,
        processes_interval_s: float = 5.0,
        *,
        cpu_energy: CpuEnergyMeter | None = None,
    ) -> None:
        self.interval_s = interval_s
        self.started_s = 0.0
        self.lost: str | None = None
        self._device = device
        self._total_bytes = device.info.total_bytes
        self._vitals_interval_s = vitals_interval_s
        self._processes_interval_s = processes_interval_s
        self._cpu_energy = cpu_energy
        # Sixteen bytes a sample: an hour at 20 Hz is about a megabyte.
        self._elapsed_s, self._used_bytes = array("d"), array("Q")
        self._gaps: list[Gap] = []
        self._failing: Gap | None = None
        self._asking_since_s: float | None = None
        self._missed = self._rejected = 0
        self._vitals: list[tuple[float, float, Vitals]] = []
        self._processes_read_s = 0.0
        self._process_lists: list[tuple[float, tuple[DeviceProcess, ...]]] = []
        self._cpu_s: dict[str, float] = {}
        self._ended_s: float | None = None
        self._suspended_s = 0.0
        self._lock = threading.Lock()
        self._vitals_asked = False
        self._stop, self._wake = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Sampler":
        self.started_s = time.monotonic()
        self._suspended_s = _asleep_s()
        self._processes_due = _Schedule(self.started_s, self._processes_interval_s)
        works = {"monitor-memory": self._watch_memory, "monitor-slow": self._watch_slowly}
        self._cpu_s = dict.fromkeys(works, 0.0)
        for name, work in works.items():
            thread = threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._wake.set()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._lock:
            ended_s = self._now_s()
            # Kept now: a call that a driver still holds may come back later and would take its gap away.
            self._gaps.extend(self._gaps_until(ended_s))
            self._ended_s = ended_s

    # --- what was seen

    def latest(self) -> Sample | None:
        """The newest sample, None before the first."""
        with self._lock:
            return Sample(self._elapsed_s[-1], self._used_bytes[-1]) if self._used_bytes else None

    def peak(self) -> Sample | None:
        """The sample with the most memory so far, the first of equals; cheaper than through :meth:`trace`."""
        with self._lock:
            if not self._used_bytes:
                return None
            most_bytes = max(self._used_bytes)
            return Sample(self._elapsed_s[self._used_bytes.index(most_bytes)], most_bytes)

    def used_between(self, start_s: float, end_s: float) -> tuple[int, int] | None:
        """The least and the most that was in use between two instants of the run; None without a sample there."""
        with self._lock:
            first, last = bisect_left(self._elapsed_s, start_s), bisect_right(self._elapsed_s, end_s)
            found = self._used_bytes[first:last]
            return (min(found), max(found)) if found else None

    def wait_for_sample(self, timeout_s: float) -> Sample | None:
        """Waits for a sample newer than those there are now; None when the time is over or the GPU is lost."""
        before, deadline_s = len(self._used_bytes), time.monotonic() + timeout_s
        while len(self._used_bytes) == before:
            if self.lost is not None or time.monotonic() > deadline_s:
                return None
            time.sleep(_POLL_S)
        return self.latest()

    def trace(self) -> Trace:
        """Everything sampled so far. Copies all samples: milliseconds for a long run."""
        with self._lock:
            end_s = self._now_s() if self._ended_s is None else self._ended_s
            return Trace(
                samples=tuple(map(Sample, self._elapsed_s, self._used_bytes)),
                interval_s=self.interval_s,
                gaps=(*self._gaps, *self._gaps_until(end_s)),
                missed_ticks=self._missed,
                rejected=self._rejected,
                reading_s=sum(self._cpu_s.values()),
                duration_s=end_s,
                lost=self.lost,
            )

    def vitals(self) -> list[tuple[float, float, Vitals]]:
        """The slow readings: seconds since the start, Unix time, values. A reading that failed has only None."""
        with self._lock:
            return list(self._vitals)

    def process_lists(self) -> list[tuple[float, tuple[DeviceProcess, ...]]]:
        """Return who held memory, and when in seconds since the start; empty if the driver never reported it."""
        with self._lock:
            return list(self._process_lists)

    def gpu_energy_j(self) -> float | None:
        """Energy that the GPU took between the first and the last reading, from its own counter, in joules.

        None where the GPU has no counter, and when it began anew in between (the driver was reloaded).
        """
        readings = [vitals.energy_mj for _, _, vitals in self.vitals() if vitals.energy_mj is not None]
        if len(readings) < 2 or readings != sorted(readings):
            return None
        return (readings[-1] - readings[0]) / 1000

    def ask_for_vitals(self) -> None:
        """Has power and energy read at once, such as at the end of what their energy is wanted of."""
        self._vitals_asked = True
        self._wake.set()

    def ask_for_processes(self) -> None:
        """Has the list of processes read soon, but not more often than once a second."""
        with self._lock:
            pause_s = min(SHORTEST_PROCESSES_INTERVAL_S, self._processes_interval_s)
            soonest_s = max(time.monotonic(), self._processes_read_s + pause_s)
            self._processes_due.due_s = min(self._processes_due.due_s, soonest_s)
        self._wake.set()

    # --- the thread that reads memory

    def _watch_memory(self) -> None:
        schedule = _Schedule(self.started_s, self.interval_s)
        too_late_s = max(SLOW_ANSWER_S, 2 * self.interval_s)
        while not self._stop.wait(schedule.wait_s()) and self.lost is None:
            now_s = time.monotonic()
            if now_s - schedule.due_s > too_late_s:
                self._add_gap(f"the monitor had no processor time for {now_s - schedule.due_s:.1f} s")
            self._sample(now_s - self.started_s)
            self._missed += schedule.advance(time.monotonic())
            self._cpu_s[threading.current_thread().name] = time.thread_time()

    def _sample(self, asked_s: float) -> None:
        self._asking_since_s = asked_s
        try:
            used_bytes = self._device.memory().used_bytes
            if not 0 <= used_bytes <= self._total_bytes:  # whatever a device itself has checked
                expected = f"expected memory in use between 0 and {self._total_bytes} bytes"
                raise ImplausibleReading(f"{self._device.info.uuid}: {expected}, found {used_bytes}")
        except DeviceLost as error:
            self._lose(str(error))
        except DeviceError as error:
            self._fail(str(error), rejected=isinstance(error, ImplausibleReading))
        else:
            self._record(asked_s, self._now_s(), used_bytes)
        finally:
            self._asking_since_s = None

    def _record(self, asked_s: float, answered_s: float, used_bytes: int) -> None:
        # Twenty times a second with cold caches every call costs: the rare cases are asked for in place.
        with self._lock:
            if self._ended_s is not None:
                return
            if self._failing is not None:
                self._close_gap(answered_s)
            if answered_s - asked_s > SLOW_ANSWER_S and answered_s - asked_s > 2 * self.interval_s:
                text = f"the GPU took {answered_s - asked_s:.1f} s to answer"
                self._gaps.append(Gap(asked_s, answered_s, text))
            # The reading is as old as the question or as new as the answer; nobody knows, so the later one counts.
            self._elapsed_s.append(answered_s)
            self._used_bytes.append(used_bytes)

    def _fail(self, reason: str, rejected: bool) -> None:
        with self._lock:
            if self._ended_s is not None:
                return
            self._rejected += rejected
            if self._failing is None or self._failing.reason != reason:
                start_s = self._now_s() if self._failing else self._last_s()
                self._close_gap(start_s)
                self._failing = Gap(start_s, start_s, reason)

    def _add_gap(self, reason: str, asleep_s: float = 0.0) -> None:
        with self._lock:
            self._gaps.append(Gap(self._last_s(), self._now_s(), reason, asleep_s))

    # --- the thread that reads everything else

    def _watch_slowly(self) -> None:
        vitals_due = _Schedule(self.started_s, self._vitals_interval_s)
        while not self._stop.is_set() and self.lost is None:
            if self._vitals_asked or not vitals_due.wait_s():
                self._vitals_asked = False
                self._note_suspension()
                self._read_vitals()
                if not vitals_due.wait_s():
                    vitals_due.advance(time.monotonic())
            if not self._processes_due.wait_s():
                self._read_processes()
                with self._lock:
                    self._processes_due.due_s = time.monotonic() + self._processes_interval_s
            self._cpu_s[threading.current_thread().name] = time.thread_time()
            self._wake.wait(min(vitals_due.wait_s(), self._processes_due.wait_s()))
            self._wake.clear()
        if self.lost is None:
            self._read_vitals()  # so that the energy counter covers the whole time

    def _note_suspension(self) -> None:
        """Tells a sleep of the whole machine as a gap; its length in this clock is the time of one reading."""
        asleep_s = _asleep_s() - self._suspended_s
        if asleep_s > _SUSPENDED_S:
            self._suspended_s += asleep_s
            self._add_gap(f"the machine was suspended for {asleep_s:.1f} s", asleep_s)

    def _read_vitals(self) -> None:
        if self._cpu_energy is not None:
            self._cpu_energy.update()
        vitals = self._slowly(self._device.vitals) or Vitals()
        with self._lock:
            if self._ended_s is None:
                self._vitals.append((self._now_s(), time.time(), vitals))

    def _read_processes(self) -> None:
        processes = self._slowly(self._device.processes)
        with self._lock:
            self._processes_read_s = time.monotonic()  # also where the driver told nothing
            if processes is not None and self._ended_s is None:
                self._process_lists.append((self._now_s(), processes))

    def _slowly(self, read: Callable[[], T]) -> T | None:
        """A reading that no verdict rests on; None where it failed."""
        try:
            return read()
        except DeviceLost as error:
            self._lose(str(error))
        except DeviceError:
            pass
        return None

    # --- both threads

    def _guarded(self, work: Callable[[], None]) -> None:
        name = threading.current_thread().name
        try:
            work()
        except Exception as error:  # Whatever it is, it must not look like a trace that simply ended.
            self._lose(f"{name} failed: {type(error).__name__}: {error}")
        self._cpu_s[name] = time.thread_time()

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self._ended_s is None and self.lost is None:
                self.lost = reason
        self._wake.set()

    # --- clock and gaps; the callers hold the lock

    def _now_s(self) -> float:
        return time.monotonic() - self.started_s

    def _last_s(self) -> float:
        return self._elapsed_s[-1] if self._elapsed_s else 0.0

    def _close_gap(self, end_s: float) -> None:
        if self._failing is not None:
            self._gaps.append(Gap(self._failing.start_s, end_s, self._failing.reason))
            self._failing = None

    def _gaps_until(self, end_s: float) -> list[Gap]:
        """Return the gap that has not ended yet."""
        if self._ended_s is not None:
            return []
        gaps = [Gap(self._failing.start_s, end_s, self._failing.reason)] if self._failing else []
        if self.lost is not None:
            gaps.append(Gap(self._last_s(), end_s, self.lost))
        elif self._asking_since_s is not None and end_s - self._asking_since_s > SLOW_ANSWER_S:
            gaps.append(Gap(self._asking_since_s, end_s, "the GPU has not answered yet"))
        return gaps


def _asleep_s() -> float:
    """Seconds that this machine has spent suspended since it started."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
