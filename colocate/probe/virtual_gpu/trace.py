# SPDX-License-Identifier: Apache-2.0
"""The requests to the allocator in order, and their replay: under another limit, other options, other workspaces.

Owns the format of a trace. Standard library only: the harness replays traces without torch. Sizes are bytes.
"""

import json
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from .allocator import CachingAllocator, OutOfMemory
from .allocator_settings import Settings
from .blocks import Block
from .convolutions import Convolution

Workspace = Callable[[Convolution], int]

# What a block holds. What nobody said anything about is an activation, or a temporary.
ACTIVATIONS, PARAMETERS, GRADIENTS = "activations", "parameters", "gradients"
OPTIMIZER, WORKSPACES = "optimizer", "workspaces"
KINDS = (PARAMETERS, GRADIENTS, OPTIMIZER, WORKSPACES, ACTIVATIONS)

_EMPTY_CACHE = -1

FLOOR_STEP_BYTES = 2 << 20


class Event(NamedTuple):
    """A request (``number`` above 0) on a stream, a release (below), or a convolution (0, its place in the list).

    A place of -1 stands for a cache that was given back.
    """

    number: int
    value: int
    stream: int


class AllocationTrace:
    """The requests of one process to its allocator.

    Blocks have numbers in order of their allocation. ``kinds`` says of some what they hold, often only known later;
    ``settings`` are the options of the allocator that was asked.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self._events = array("q")
        self._places: dict[Convolution, int] = {}
        self.kinds: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._events) // 3

    def allocated(self, number: int, num_bytes: int, stream: int) -> None:
        """A block was handed out."""
        self._events.extend((number, num_bytes, stream))

    def freed(self, number: int) -> None:
        """A block came back."""
        self._events.extend((-number, 0, 0))

    def convolved(self, call: Convolution) -> None:
        """A convolution ran: its results are allocated, its workspace would be now."""
        self._events.extend((0, self._places.setdefault(call, len(self._places)), 0))

    def emptied(self) -> None:
        """The program gave its cache back."""
        self._events.extend((0, _EMPTY_CACHE, 0))

    def events(self) -> Iterator[Event]:
        """Return all events in order."""
        values = iter(self._events)
        return map(Event, values, values, values)

    @property
    def convolutions(self) -> list[Convolution]:
        """The different calls of convolutions, in order of their first."""
        return list(self._places)

    def write(self, path: Path) -> None:
        """Keep it as a line of JSON and the events as 64-bit integers of this machine."""
        head = {
            "byteorder": sys.byteorder,
            "settings": asdict(self.settings),
            "convolutions": list(self._places),
            "kinds": {kind: [number for number, one in self.kinds.items() if one == kind] for kind in KINDS},
        }
        aside = path.with_suffix(".new-trace")
        aside.write_bytes(json.dumps(head).encode() + b"\n" + self._events.tobytes())
        aside.replace(path)

    @classmethod
    def read(cls, path: Path) -> "AllocationTrace":
        """The inverse of :meth:`write`.

        Raises:
            ValueError: the file is no trace of this machine.
        """
        head, _, body = path.read_bytes().partition(b"\n")
        fields = json.loads(head)
        if fields["byteorder"] != sys.byteorder:
            raise ValueError(f"{path}: expected a trace of a {sys.byteorder}-endian machine, found another")
        trace = cls(Settings(**fields["settings"]))
        trace._events.frombytes(body)
        for place, (*flags, kernel, stride, dilation) in enumerate(fields["convolutions"]):
            shapes = (tuple(shape) for shape in (kernel, stride, dilation))
            trace._places[Convolution._make((*flags, *shapes))] = place
        trace.kinds = {number: kind for kind, numbers in fields["kinds"].items() for number in numbers}
        return trace


class Composition(NamedTuple):
    """The contents of the GPU at the instant with the most live memory, in bytes; their sum is the reserved peak."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspaces: int
    fragmentation: int

    @property
    def reserved(self) -> int:
        """Return the sum."""
        return sum(self)


class Twin:
    """A second allocator that is asked for the same blocks, and for workspaces besides.

    Args:
        workspace: bytes that a convolution takes while it runs.
        allocator: who is asked; by default an unlimited one with default options.
    """

    def __init__(self, workspace: Workspace, allocator: CachingAllocator | None = None) -> None:
        self.allocator = allocator or CachingAllocator()
        self._workspace = workspace
        self._blocks: dict[int, Block] = {}

    def allocated(self, number: int, num_bytes: int, stream: int) -> None:
        """See :class:`AllocationTrace`; raises `allocator.OutOfMemory` if the allocator has a limit."""
        self._blocks[number] = self.allocator.malloc(num_bytes, stream)

    def freed(self, number: int) -> None:
        """See :class:`AllocationTrace`."""
        block = self._blocks.pop(number, None)
        if block is not None:
            self.allocator.free(block)

    def convolved(self, call: Convolution) -> None:
        """See :class:`AllocationTrace`. A workspace that finds no room is skipped: cuDNN takes a smaller plan."""
        num_bytes = self._workspace(call)
        if num_bytes:
            try:
                self.allocator.free(self.allocator.malloc(num_bytes))
            except OutOfMemory:
                self.allocator.num_ooms -= 1

    def emptied(self) -> None:
        """See :class:`AllocationTrace`."""
        self.allocator.empty_cache()


def no_workspace(call: Convolution) -> int:
    """Return no workspace, as if cuDNN found a plan without one."""
    return 0


def replay(trace: AllocationTrace, workspace: Workspace, allocator: CachingAllocator | None = None) -> CachingAllocator:
    """The allocator after all requests of a trace.

    Raises:
        OutOfMemory: the allocator has a limit, and the requests do not fit under it.
    """
    twin = Twin(workspace, allocator or CachingAllocator(settings=trace.settings))
    for _ in steps(trace, twin):
        pass
    return twin.allocator


def steps(trace: AllocationTrace, twin: Twin) -> Iterator[Event]:
    """Yield each event after the twin has received it."""
    calls = trace.convolutions
    for event in trace.events():
        if event.number > 0:
            twin.allocated(*event)
        elif event.number < 0:
            twin.freed(-event.number)
        elif event.value == _EMPTY_CACHE:
            twin.emptied()
        else:
            twin.convolved(calls[event.value])
        yield event


def composition(trace: AllocationTrace) -> Composition:
    """Split the peak of a trace into its parts.

    ``fragmentation`` is what the allocator had reserved at its highest beyond what lived at the fullest instant: what
    rounding, gaps and the cache cost.
    """
    twin = Twin(no_workspace, CachingAllocator(settings=trace.settings))
    fullest, place = 0, 0
    for index, _ in enumerate(steps(trace, twin)):
        if twin.allocator.allocated.current > fullest:
            fullest, place = twin.allocator.allocated.current, index
    sizes = dict.fromkeys(KINDS, 0)
    for number, num_bytes in _live(trace, place).items():
        sizes[trace.kinds.get(number, ACTIVATIONS)] += twin.allocator.settings.rounded(num_bytes)
    highest = twin.allocator.reserved.highest
    return Composition(**sizes, fragmentation=highest - sum(sizes.values()))


def _live(trace: AllocationTrace, place: int) -> dict[int, int]:
    """The blocks that live after the event at this place: number and requested bytes."""
    live: dict[int, int] = {}
    for _, event in zip(range(place + 1), trace.events(), strict=False):
        if event.number > 0:
            live[event.number] = event.value
        elif event.number < 0:
            live.pop(-event.number)
    return live


def floor_bytes(trace: AllocationTrace, workspace: Workspace, most_bytes: int) -> int:
    """The smallest limit, in steps of 2 MiB, under which the requests still fit.

    Between it and the peak the allocator gives its cache back in time.

    Args:
        trace: the requests.
        workspace: of the convolutions.
        most_bytes: a limit that is known to suffice.
    """
    low, high = 0, -(-most_bytes // FLOOR_STEP_BYTES)
    while low + 1 < high:
        middle = (low + high) // 2
        allocator = CachingAllocator(settings=trace.settings)
        allocator.limit_bytes = middle * FLOOR_STEP_BYTES
        try:
            replay(trace, workspace, allocator)
            high = middle
        except OutOfMemory:
            low = middle
    return high * FLOOR_STEP_BYTES
