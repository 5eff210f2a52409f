# SPDX-License-Identifier: Apache-2.0
"""A smaller GPU on a larger one: a balloon process of ours leaves exactly as much memory free as the small one has.

Memory runs out on it as on a GPU of that size. Whatever else makes a GPU, such as its bandwidth, stays that of the
large one. `colocate.device.balloon` holds the memory; this module starts it, tells it how much, checks by NVML
what is free, and takes it off every reading.
"""

import contextlib
import json
import os
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from colocate.device.balloon import GRANULE_BYTES
from colocate.device.base import BalloonInfo, Device, DeviceInfo, DeviceProcess, Memory, Vitals
from colocate.errors import BalloonError, DeviceError, DeviceLost, ImplausibleReading, TrainingError
from colocate.process import Command, Process, procfs, start
from colocate.units import GIB, format_mib, format_size

PROGRAM = Path(__file__).with_name("balloon.py")
ROLE = "balloon"

ANSWER_S = 60.0
"""Taking 100 GiB takes a second or two; a driver that loads for the first time after a start takes longer."""
RELEASE_S = 10.0
STEADY_S = 2.0
_POLL_S = 0.01
_ROUNDS = 8
_GRACE_S = 1.0


def constrained_device_name(name: str, gpu: Memory, total_bytes: int) -> str:
    """Name the constrained GPU: ``8 GB of an NVIDIA H100 80GB HBM3 (balloon 71.2 GiB)``."""
    article = "an" if name[:1] in "AEIOUaeiou" or name.startswith("NV") else "a"
    spare = max(0, _capacity_bytes(gpu) - total_bytes) / GIB
    return f"{format_size(total_bytes)} of {article} {name} (balloon {spare:.1f} GiB)"


class Balloon:
    """The running process, and how much it holds. A context manager: leaving it ends the process.

    Args:
        uuid: The GPU.
        log: Where the program's output goes.
        cookie: Marks the process as ours.

    Raises:
        BalloonError: the program does not run: no CUDA driver, no such GPU, or the driver refuses. Has its last words.
    """

    def __init__(self, uuid: str, *, log: Path, cookie: str) -> None:
        self.held_bytes = 0
        self._order = 0
        self._folder = tempfile.TemporaryDirectory(prefix="colocate-balloon-")
        orders, self._state = Path(self._folder.name) / "orders", Path(self._folder.name) / "state.json"
        os.mkfifo(orders)
        self._orders = os.open(orders, os.O_RDWR | os.O_CLOEXEC)
        try:
            argv = (sys.executable, "-I", "-S", str(PROGRAM), uuid, str(orders), str(self._state))
            env = {name: value for name, value in os.environ.items() if not name.startswith(("COLOCATE_", "PYTHON"))}
            env |= {"CUDA_VISIBLE_DEVICES": uuid, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
            self.process: Process = start(Command(argv, Path("/"), env), log=log, cookie=cookie)
        except TrainingError as error:
            self._let_go()
            raise BalloonError(f"{uuid}: expected a balloon, {error}") from error
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def runs(self) -> bool:
        """The process is there. Some 20 microseconds; may be asked from any thread."""
        return procfs.identify(self.process.pid) == self.process.id

    def hold(self, num_bytes: int) -> str | None:
        """Hold so many bytes; why fewer are held, or None.

        Raises:
            BalloonError: the process has ended or does not answer.
        """
        self._order += 1
        os.write(self._orders, json.dumps({"order": self._order, "hold_bytes": num_bytes}).encode() + b"\n")
        state = self._wait()
        self.held_bytes, failed = state["held_bytes"], state["failed"]
        return None if failed is None else str(failed)

    def close(self) -> None:
        """End the process; the driver gives back what it held. May be called again."""
        self.process.stop(_GRACE_S)
        self._let_go()

    def _let_go(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1
        self._folder.cleanup()

    def _wait(self) -> dict[str, Any]:
        """The answer to the latest order."""
        deadline = time.monotonic() + ANSWER_S
        while (state := self._read())["order"] < self._order:
            if self.process.poll() is not None:
                said = "; ".join(self.process.last_lines(3)) or "nothing"
                raise BalloonError(f"balloon: expected it to run, it ended with {self.process.exit} and said: {said}")
            if time.monotonic() > deadline:
                raise BalloonError(f"balloon: expected an answer within {ANSWER_S:g} s, heard nothing")
            time.sleep(_POLL_S)
        return state

    def _read(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._state.read_text()))
        except FileNotFoundError:
            return {"order": -1}  # not even order 0, its start


class ConstrainedDevice:
    """A GPU of a stated size, made of a larger one (see :class:`colocate.device.base.Device` for the readings).

    Nothing is held until :meth:`prepare`. From then on all readings are those of the constrained GPU: what the
    balloon takes of the large one, its context included, is in none of them. The balloon itself is on the list of
    processes, marked.

    Args:
        gpu: The large GPU, locked by the caller.
        total_bytes: The size of the small one.
        log: Where the balloon's output goes.
        cookie: Marks the balloon as ours.
    """

    def __init__(self, gpu: Device, total_bytes: int, *, log: Path, cookie: str) -> None:
        self._gpu = gpu
        self._log = log
        self._cookie = cookie
        self._total_bytes = total_bytes
        self._balloon: Balloon | None = None
        self._taken_bytes = 0
        self._listed: frozenset[int] = frozenset()
        self._lock = threading.RLock()
        self._name = constrained_device_name(gpu.info.name, gpu.memory(), total_bytes)

    @property
    def info(self) -> DeviceInfo:
        """The large GPU's, under the small one's name and size."""
        whole = self._gpu.info
        pid = None if self._balloon is None else self._balloon.process.pid
        balloon = BalloonInfo(pid, self._taken_bytes, gpu_name=whole.name, gpu_bytes=whole.total_bytes)
        source = f"{whole.memory_source}, less the balloon"
        return replace(whole, name=self._name, total_bytes=self._total_bytes, memory_source=source, balloon=balloon)

    def prepare(self) -> None:
        """Leave exactly the constrained GPU's size less what is in use: on a GPU that nobody computes on.

        May be called again, before every group: what has changed since is put right.

        Raises:
            BalloonError: the GPU is too small, holds too much, or CUDA does not work. Says which.
        """
        with self._lock:
            if self._balloon is not None and not self._balloon.runs:
                self.release()
            used_bytes = self._gpu.memory().used_bytes - self._taken_bytes
            self._refuse_impossible(used_bytes)
            if self._balloon is None:
                before = self._pids()
                self._balloon = Balloon(self._gpu.info.uuid, log=self._log, cookie=self._cookie)
                self._listed = self._pids() - before
            self._settle(self._balloon, self._total_bytes - used_bytes)
            self._taken_bytes = self._gpu.memory().used_bytes - used_bytes

    def resize(self, total_bytes: int) -> None:
        """Become a GPU of another size; :meth:`prepare` makes it so."""
        with self._lock:
            self._total_bytes = total_bytes
            self._name = constrained_device_name(self._gpu.info.name, self._gpu.memory(), total_bytes)

    def memory(self) -> Memory:
        """Memory in use, the balloon's not counted; its ``total_bytes`` is the constrained GPU's.

        Raises:
            DeviceLost: the balloon is gone: what was measured since says nothing.
        """
        with self._lock:
            if self._balloon is not None and not self._balloon.runs:
                raise DeviceLost(f"{self._gpu.info.uuid}: expected the balloon to hold its memory, found it ended")
            memory = self._gpu.memory()
            used_bytes = memory.used_bytes - self._taken_bytes
            if used_bytes < 0:
                raise ImplausibleReading(
                    f"{self._gpu.info.uuid}: expected at least the balloon's {format_mib(self._taken_bytes)} in use, "
                    f"found {format_mib(memory.used_bytes)}"
                )
            return Memory(used_bytes, self._total_bytes, None, memory.free_bytes)

    def vitals(self) -> Vitals:
        """The large GPU's."""
        return self._gpu.vitals()

    def processes(self) -> tuple[DeviceProcess, ...] | None:
        """The large GPU's, the balloon marked."""
        found = self._gpu.processes()
        return None if found is None else tuple(replace(one, balloon=self._is_balloon(one.pid)) for one in found)

    def processes_elsewhere(self) -> tuple[tuple[str, int], ...]:
        """Read from the large GPU."""
        return self._gpu.processes_elsewhere()

    def process_peak_bytes(self, pid: int, since: float | None = None) -> int | None:
        """Read from the large GPU."""
        return self._gpu.process_peak_bytes(pid, since)

    def release(self) -> None:
        """End the balloon, and wait until the GPU has its memory back."""
        with self._lock:
            balloon, self._balloon = self._balloon, None
            if balloon is None:
                return
            taken_bytes, self._taken_bytes, self._listed = self._taken_bytes, 0, frozenset()
            with contextlib.suppress(DeviceError):
                # What one that has ended held was given back already, and nobody knows since when.
                most_bytes = self._gpu.memory().used_bytes - (taken_bytes if balloon.runs else 0) + GRANULE_BYTES
                balloon.close()
                deadline = time.monotonic() + RELEASE_S
                while self._gpu.memory().used_bytes > most_bytes and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
            balloon.close()

    def close(self) -> None:
        """End the balloon and let go of the GPU."""
        self.release()
        self._gpu.close()

    def _is_balloon(self, pid: int) -> bool:
        """Find the balloon's process by its id, or, if the driver lists the host's ids, by the one that appeared."""
        balloon = self._balloon
        if balloon is None:
            return False
        return pid == balloon.process.pid or (balloon.process.pid not in self._listed and pid in self._listed)

    def _pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in self._gpu.processes() or ())

    def _refuse_impossible(self, used_bytes: int) -> None:
        uuid, size = self._gpu.info.uuid, format_mib(self._total_bytes)
        if used_bytes >= self._total_bytes:
            held = format_mib(used_bytes)
            raise BalloonError(f"{uuid}: expected less than {size} in use to make a GPU of that size, found {held}")
        capacity_bytes = _capacity_bytes(self._gpu.memory())
        if capacity_bytes < self._total_bytes:
            room = format_mib(capacity_bytes)
            raise BalloonError(f"{uuid}: expected at least {size} for a GPU of that size, found a GPU of {room}")

    def _settle(self, balloon: Balloon, wanted_bytes: int) -> None:
        """Until NVML says that as much is free as wanted, or up to one granule less: never more."""
        failed = None
        for _ in range(_ROUNDS):
            surplus_bytes = _steady_free_bytes(self._gpu) - wanted_bytes
            if -GRANULE_BYTES < surplus_bytes <= 0:
                return
            granules = -(-surplus_bytes // GRANULE_BYTES)  # rounded up: towards less free
            hold_bytes = balloon.held_bytes + granules * GRANULE_BYTES
            if hold_bytes < 0:
                raise BalloonError(
                    f"{self._gpu.info.uuid}: expected room for the balloon's own context beside "
                    f"{format_mib(self._total_bytes)}, {format_mib(-surplus_bytes)} are missing"
                )
            failed = balloon.hold(hold_bytes)
        free_bytes = _free_bytes(self._gpu.memory())
        raise BalloonError(
            f"{self._gpu.info.uuid}: expected {wanted_bytes} bytes free beside the balloon, NVML says {free_bytes}"
            + (f" ({failed})" if failed else "")
        )


def _steady_free_bytes(gpu: Device) -> int:
    """Wait until two readings of free memory agree: a driver scrubs released memory before it counts as free."""
    free_bytes, deadline = _free_bytes(gpu.memory()), time.monotonic() + STEADY_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        again_bytes = _free_bytes(gpu.memory())
        if again_bytes == free_bytes:
            break
        free_bytes = again_bytes
    return free_bytes


def _free_bytes(memory: Memory) -> int:
    return _capacity_bytes(memory) - memory.used_bytes


def _capacity_bytes(memory: Memory) -> int:
    """Return the memory of a GPU that programs can have."""
    if memory.free_bytes is not None:
        return memory.used_bytes + memory.free_bytes
    return memory.total_bytes - (memory.reserved_bytes or 0)
