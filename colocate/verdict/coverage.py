# SPDX-License-Identifier: Apache-2.0
"""The share of a program that a dry run executed, and what the rest may still do to the peak.

Written by the probe (`colocate.probe.coverage`), which cuts passes over the data short. A doubt is a reason
code and a sentence: something that the cut left out and that may need more memory than was seen. A program with doubts
is never said to fit.
"""

from dataclasses import dataclass
from itertools import islice

from colocate.units import format_mib

MOST_PLACES = 4  # named in a sentence


@dataclass(frozen=True, slots=True)
class PassCoverage:
    """The passes over the data that one loop of the program made, or the turns of a loop over a range.

    ``place`` is the file and line of the loop; ``steps`` counts optimizer steps made in it; ``batches_whole`` is None
    where nobody knows how long a pass is; ``unit`` says of what the numbers are, in the plural.
    """

    place: str
    passes: int
    batches_run: int
    batches_whole: int | None
    steps: int = 0
    unit: str = "batches"

    @property
    def text(self) -> str:
        """``train.py:12: 3 of 313 batches``."""
        whole = "an unknown number of" if self.batches_whole is None else f"{self.batches_whole:,}"
        passes = f" in {self.passes} passes" if self.passes > 1 else ""
        return f"{self.place}: {self.batches_run:,} of {whole} {self.unit}{passes}"


@dataclass(frozen=True, slots=True)
class Growth:
    """Live memory that grows from step to step, at the line that keeps it; None where the line is not known."""

    place: str | None
    bytes_per_step: int
    steps_seen: int
    steps_left: int | None

    @property
    def text(self) -> str:
        """Say where memory grows, how fast, and what the steps that were not run would add."""
        where = f", kept at {self.place}" if self.place else ""
        left = "an unknown number of steps" if self.steps_left is None else f"{self.steps_left:,} steps"
        more = "" if self.steps_left is None else f", {format_mib(self.steps_left * self.bytes_per_step)} more"
        return f"memory grows by {self.bytes_per_step / 2**20:.2f} MiB a step{where}; {left} were not run{more}"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The part of one process's work that was executed.

    ``growth_bytes`` is what the steps that were left out would have added to the highest peak. ``ended_early`` says
    that the dry run ended the program itself, after its memory had repeated.
    """

    loops: tuple[PassCoverage, ...] = ()
    passes_cut: int = 0
    growth: tuple[Growth, ...] = ()
    growth_bytes: int = 0
    doubts: tuple[tuple[str, str], ...] = ()
    ended_early: bool = False

    @property
    def sentences(self) -> tuple[str, ...]:
        """Describe what was run and what grows."""
        cut = [loop for loop in self.loops if loop.batches_run != loop.batches_whole]
        shown = [loop.text for loop in islice(cut, MOST_PLACES)]
        more = [f"and {len(cut) - MOST_PLACES} more loops"] if len(cut) > MOST_PLACES else []
        run = ["; ".join([*shown, *more])] if shown else []
        early = ["the program was ended once its memory had repeated"] if self.ended_early else []
        return (*run, *early, *(growth.text for growth in self.growth))
