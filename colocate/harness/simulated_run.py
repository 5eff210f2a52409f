# SPDX-License-Identifier: Apache-2.0
"""The programs that are dry-run, and what a dry run says of one."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass, field
from operator import add
from pathlib import Path

from colocate.verdict import Coverage, PeakRange


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a peak in bytes, at the instant with the most live tensors.

    ``activations`` are everything that has no other name, temporaries and input included; ``fragmentation`` is what
    the allocator had reserved beyond that.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspaces: int
    fragmentation: int
    context: int

    @property
    def total(self) -> int:
        """The expected peak."""
        return sum(astuple(self))

    def __add__(self, other: "Parts") -> "Parts":
        """Both at once."""
        return Parts(*map(add, astuple(self), astuple(other)))


NOTHING = Parts(0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """The result of one dry run.

    ``failure`` says why there is no prediction, ``failure_code`` the same for machines; ``peak`` and ``parts`` are then
    None. ``doubts`` are reason codes and sentences of what may need more: with any of them it never just fits.
    ``coverage`` is of every process that used the GPU. ``floor_bytes`` is the least that the program still runs in,
    context included, giving its cache back in time; ``workspace_bytes`` what the workspaces of its convolutions could
    add to the reserved memory.
    """

    name: str
    argv: tuple[str, ...]
    duration_s: float
    peak: PeakRange | None = None
    parts: Parts | None = None
    floor_bytes: int | None = None
    workspace_bytes: int = 0
    optimizer_steps: int = 0
    rests_on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failure: str | None = None
    failure_code: str | None = None
    doubts: tuple[tuple[str, str], ...] = ()
    coverage: tuple[Coverage, ...] = ()
    last_lines: tuple[str, ...] = ()
    cached: bool = False


@dataclass(frozen=True)
class Program:
    """A command line to be dry-run: as in `colocate.plan.catalog.Training`, with what matters here."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict, hash=False)  # a table has no hash
