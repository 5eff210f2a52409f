# SPDX-License-Identifier: Apache-2.0
"""The memory margin of a group: how much more memory could be taken on its GPU before it breaks, by trying.

The group is run again on smaller and smaller GPUs, each time from the start, until the largest that it breaks on and
the smallest that it holds on are no more than a resolution apart. Knows no pytest.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from colocate.advice.bisection import Search
from colocate.advice.forecast import Answer
from colocate.device import Basis, Device, smaller
from colocate.errors import ColocateError
from colocate.files import make_folder, read_json, write_json
from colocate.harness import attempt_on
from colocate.plan import Group
from colocate.results import Attempt, GroupDirectory, RunDirectory
from colocate.units import MIB, format_mib
from colocate.verdict import MemoryClass, memory_class

KIND = "stress"
ROLE = "stress"

RESOLUTION_BYTES = 64 * MIB
LEAST_RESOLUTION_BYTES = 2 * MIB  # what a driver gives out at a time

# On 8 GB a guess that is far off takes some ten at the default resolution.
MOST_TRIALS = 24

# A limit is the plan's and no breaking point, and a cut epoch is one that the caller asked for.
_NO_BREAK = frozenset({"peak_over_limit", "peak_between_samples", "undecided", "epoch_cut", "spread"})
_BREAKS = frozenset({"foreground_failed", "epoch_unfinished", "foreground_not_started"})
_BREAKS_OF_BACKGROUND = frozenset({"background_gave_up", "background_never_ready"})


class Ending(StrEnum):
    """How one trial ended."""

    HOLDS = "holds"
    BREAKS = "breaks"
    UNTRIED = "cannot be tried"
    SPOILED = "spoiled"


_ANSWERS = {Ending.HOLDS: Answer.FITS, Ending.BREAKS: Answer.DOES_NOT_FIT}


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: the memory taken away, what was left of the GPU, and how the group ended."""

    more_bytes: int
    gpu_bytes: int
    answer: Ending
    why: str
    directory: str


@dataclass(frozen=True)
class Stress:
    """The memory margin of one group, from its trials; sizes in bytes.

    The group held out with ``holds_bytes`` more taken, and broke with ``breaks_bytes`` more: None where no trial broke
    it. They are at most ``resolution_bytes`` apart unless ``unfinished`` says why not. ``needed_bytes`` is the
    smallest GPU that it held on.
    """

    group: str
    basis: Basis
    device_name: str
    gpu_bytes: int
    limit_bytes: int
    holds_bytes: int
    breaks_bytes: int | None
    resolution_bytes: int
    trials: tuple[Trial, ...]
    broke_by: str | None = None
    unfinished: str | None = None

    @property
    def needed_bytes(self) -> int:
        """The smallest GPU that the group is known to run on."""
        return self.gpu_bytes - self.holds_bytes

    @property
    def memory_class(self) -> MemoryClass:
        """Classify what the group is known to need; the class in its verdict is that of its peak."""
        return memory_class(self.needed_bytes, self.limit_bytes)

    def __str__(self) -> str:
        held = f"held with {format_mib(self.holds_bytes)} less"
        if self.breaks_bytes is None:
            return f"{held}; not seen to break" + (f" ({self.unfinished})" if self.unfinished else "")
        text = f"{held}, broke with {format_mib(self.breaks_bytes)} less ({self.broke_by})"
        return text + (f"; {self.unfinished}" if self.unfinished else "")

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON types."""
        document: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return {**document, "needed_bytes": self.needed_bytes, "memory_class": self.memory_class}

    @classmethod
    def read(cls, directory: GroupDirectory) -> "Stress | None":
        """Read the memory margin beside a group's record, or None if there is none that can be read."""
        if not directory.stress.exists():
            return None
        try:
            return _ADAPTER.validate_python(read_json(directory.stress))
        except (ColocateError, ValueError):
            return None


def stress(
    device: Device, group: Group, record: Attempt, *, plan: str, resolution_bytes: int = RESOLUTION_BYTES
) -> Stress:
    """Find the breaking point of a feasible group on the session's GPU; written beside the group's record.

    Args:
        device: The GPU; a GPU is given back as it was.
        group: What shares it.
        record: The attempt that the verdict rests on.
        plan: Its name, for the records of the trials.
        resolution_bytes: How near the two ends are to come.

    Raises:
        DeviceError: the GPU does not answer.
        OSError: a record cannot be written.
        ColocateError: there is no room for it.
    """
    run = record.directory.run.side_run(KIND)
    make_folder(run.path)
    bench = _Bench(device, replace(group, runs=1), run, plan)
    peak_bytes = record.verdict.peak_bytes or 0
    most_bytes = bench.gpu_bytes - (record.evidence.baseline_bytes or 0)
    breaking_point = BreakingPoint(bench.answer, resolution_bytes, most_bytes, bench.gpu_bytes - peak_bytes)
    breaking_point.find()
    broken = [trial for trial in bench.trials if trial.answer is Ending.BREAKS]
    found = Stress(
        group=group.id,
        basis=device.info.basis,
        device_name=device.info.name,
        gpu_bytes=bench.gpu_bytes,
        limit_bytes=record.verdict.limit_bytes,
        holds_bytes=breaking_point.holds_bytes,
        breaks_bytes=breaking_point.breaks_bytes,
        resolution_bytes=resolution_bytes,
        trials=tuple(bench.trials),
        broke_by=min(broken, key=lambda trial: trial.more_bytes).why if broken else None,
        unfinished=breaking_point.unfinished,
    )
    write_json(record.directory.stress, found.to_json())
    return found


class BreakingPoint:
    """The search for the breaking point, beginning where the arithmetic says.

    Args:
        ask: The answer for so many bytes more.
        resolution_bytes: All that is asked about are multiples of it.
        most_bytes: With this much more nothing is left; not asked about.
        first_bytes: Asked about first.
    """

    def __init__(self, ask: Callable[[int], Ending], resolution_bytes: int, most_bytes: int, first_bytes: int) -> None:
        self.unfinished: str | None = None
        self.asked = 0
        self._ask = ask
        self._step = resolution_bytes
        last = most_bytes // resolution_bytes - 2  # place 0 is one step more than nothing
        first = min(max(0, first_bytes // resolution_bytes - 1), last)
        # The arithmetic is nearly right or far off, and a trial takes as long as the group.
        self._search = Search(first, last, growth=4)

    @property
    def holds_bytes(self) -> int:
        """The most that held."""
        return self._bytes(-1 if self._search.good is None else self._search.good)

    @property
    def breaks_bytes(self) -> int | None:
        """The least that broke."""
        return None if self._search.bad is None else self._bytes(self._search.bad)

    def find(self) -> None:
        """Ask until the two ends meet, or until nothing more can be learnt."""
        while self._search.last >= 0 and self.unfinished is None and (place := self._search.next()) is not None:
            self._take(place)

    def _bytes(self, place: int) -> int:
        return (place + 1) * self._step

    def _take(self, place: int) -> None:
        """Take in one answer, or why the search cannot go on."""
        answer = self._ask(self._bytes(place))
        if answer is Ending.SPOILED and self.asked < MOST_TRIALS:
            self.asked += 1
            answer = self._ask(self._bytes(place))
        self.asked += 1
        if answer in _ANSWERS:
            self._search.tell(place, _ANSWERS[answer])
            if self.asked >= MOST_TRIALS:
                self.unfinished = f"ended after {self.asked} trials"
        elif answer is Ending.UNTRIED:
            size = format_mib(self._bytes(place))
            self.unfinished = f"{size} or less cannot be taken: the balloon's context is larger"
        else:
            self.unfinished = "two trials in a row were spoiled"


class _Bench:
    """Trials of one group on a GPU that is made smaller."""

    def __init__(self, device: Device, group: Group, run: RunDirectory, plan: str) -> None:
        self.trials: list[Trial] = []
        self.gpu_bytes = _size_bytes(device)
        self._device = device
        self._group = group
        self._run = run
        self._plan = plan

    def answer(self, more_bytes: int) -> Ending:
        gpu_bytes = self.gpu_bytes - more_bytes
        cookie = f"{self._run.name}/{self._group.id}/{ROLE}"
        with smaller(self._device, gpu_bytes, self._run.path / "virtual_gpu", cookie=cookie) as gpu:
            attempt = attempt_on(gpu, self._group, self._run, plan=self._plan, asks=False)
        answer, why = ending_of(attempt)
        self.trials.append(Trial(more_bytes, gpu_bytes, answer, why, attempt.directory.path.name))
        return answer


def _size_bytes(device: Device) -> int:
    """Return the memory that programs can have; a GPU's driver keeps some for itself."""
    memory = device.memory()
    if device.info.kind == "nvidia" and device.info.balloon is None:
        if memory.free_bytes is not None:
            return memory.used_bytes + memory.free_bytes
        return memory.total_bytes - (memory.reserved_bytes or 0)
    return device.info.total_bytes


def ending_of(attempt: Attempt) -> tuple[Ending, str]:
    """Say how an attempt on a smaller GPU ended, and why."""
    codes = set(attempt.verdict.codes)
    text = "; ".join(reason.text for reason in attempt.verdict.reasons)
    if "no_balloon" in codes:
        return Ending.UNTRIED, text
    short = [member.name for member in attempt.evidence.members if member.out_of_memory]
    if attempt.evidence.faults or "foreign_process" in codes or "sensor_lost" in codes:
        return Ending.SPOILED, text
    if short:
        return Ending.BREAKS, f"{' and '.join(short)} ran out of memory"
    if codes & _BREAKS or codes & _BREAKS_OF_BACKGROUND:
        return Ending.BREAKS, text
    if codes - _NO_BREAK:
        return Ending.SPOILED, text
    return Ending.HOLDS, "it trained as before"


_ADAPTER = TypeAdapter(Stress)
