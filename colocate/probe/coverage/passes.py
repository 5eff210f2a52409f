# SPDX-License-Identifier: Apache-2.0
"""A pass over data and what is known of its loop: what `coverage`, `own_loops` and `turns` share."""

from dataclasses import dataclass, field
from typing import NamedTuple

from .conditions import Condition
from .growth import Keeper
from .loop_source import Loop
from .series import Level


class Effort(NamedTuple):
    """Seconds of processor time that one process may spend beyond the least.

    ``cheap_s``: on passes whose rest costs little. ``unsettled_s``: on each loop whose memory has not repeated yet.
    ``look_s``: on looking for the largest batch. ``end_s``: after so long a program whose loops know no loader, and
    whose memory repeats, is ended.
    """

    cheap_s: float
    unsettled_s: float
    look_s: float
    end_s: float


EFFORTS = {
    "quick": Effort(0.5, 2.0, 0.5, 8.0),
    "normal": Effort(2.0, 4.0, 1.5, 12.0),
    "full": Effort(float("inf"), float("inf"), 60.0, float("inf")),
}

# A peak that is this much above all before it has not repeated.
RISE = 1.01

# Steps that left something after which growth counts as known: more would not make it surer.
PROVEN_STEPS = 24

# Steps that must each have kept something for the growth to count as certain.
CERTAIN_STEPS = 8

# Passes of one loop after which its batches have been seen: later ones are cut to the least.
KNOWN_PASSES = 2

# A batch that is only put aside takes few blocks, those of its tensors; and so many are put aside at most.
MOST_COLLECTED_BLOCKS = 8
MOST_COLLECTED = 256

MOST_TARGETS = 6  # batches of a pass that are jumped to
MOST_AHEAD = 20_000  # steps for which a condition is asked


@dataclass
class LoopCoverage:
    """What is known of one loop over a loader, from all its passes."""

    place: str
    passes: int = 0
    batches_run: int = 0
    batches_whole: int | None = 0
    steps: int = 0
    unit: str = "batches"
    settled: bool = False
    slope: float = 0.0
    moves: bool = False
    spent_s: float = 0.0
    keeper: Keeper = field(default_factory=Keeper)
    kept_at: str | None = None


@dataclass
class Pass:
    """One pass over a loader, as far as it went; ``whole`` is its number of batches, None where nobody knows."""

    whole: int | None
    ordered: bool
    largest: list[int] = field(default_factory=list)
    given: int = 0
    highest: list[int] = field(default_factory=list)
    spent_s: list[float] = field(default_factory=list)
    asked_s: float = 0.0
    first_step: int = 0
    step_began: int = 0
    optimizer_steps: int = 0
    backwards: int = 0
    counted: int = 0
    last_rise: int = 0
    over: bool = False
    whole_for_s: float = 0.0
    known: LoopCoverage | None = None
    left: "Left | None" = None
    loop: Loop | None = None
    targets: list[int] = field(default_factory=list)
    is_cut: bool = False
    samples: int = 0  # in the batches that were run
    containers: dict[tuple[int, str], int] = field(default_factory=dict)  # their lengths after its first step
    events: "list[Event]" = field(default_factory=list)
    place: str = "?"
    outer: Level | None = None


@dataclass
class Event:
    """What a condition sets off in some steps of a pass: the first one, and the second where the first kept memory.

    ``positions`` are all its batches, ``steps`` those of the memory in which it was run, from the first to the last.
    """

    condition: Condition
    positions: list[int]
    span: int
    steps: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Left:
    """Growth of a pass that was cut: its steps, what they hold while it lives, and what the others would.

    ``after`` is the step behind the pass: what is made in it of what was collected is larger by ``more_share``.
    ``is_certain``: every step that was run kept something, in a line that all of them go through.
    """

    first: int
    last: int
    held_bytes: int
    more_bytes: float
    more_share: float = 0.0
    after: int | None = None
    is_certain: bool = False
