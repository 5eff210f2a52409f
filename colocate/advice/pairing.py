# SPDX-License-Identifier: Apache-2.0
"""All ordered pairs of trainings, with their tiers and those that cannot fit.

Pure: what trainings take alone in, pairs out. The same trainings give the same pairs.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import count, product

from colocate.advice.forecast import Answer, answer_of
from colocate.advice.solo_profiles import SoloProfile
from colocate.verdict import PeakRange

# Where the study's twelve groups change from one tier to the next: 2000 and 3000 MiB are the smallest of "low" and
# "medium", 4000 the largest of "medium", all below its limit of 7500 MiB. Another GPU has the same shares.
LOW_FROM, MEDIUM_FROM, MEDIUM_TO = Fraction(2000, 7500), Fraction(3000, 7500), Fraction(4000, 7500)
TIERS = ("ultra-low", "low", "medium", "high")
UNKNOWN = "unknown"

_LONGEST = 49  # two names and what is between them are an id of at most 100 characters


def tier_of(peak_bytes: int, limit_bytes: int) -> str:
    """The tier of a group by its peak."""
    share = Fraction(peak_bytes, limit_bytes)
    if share < LOW_FROM:
        return "ultra-low"
    if share < MEDIUM_FROM:
        return "low"
    return "medium" if share <= MEDIUM_TO else "high"


@dataclass(frozen=True, slots=True)
class OrderedPair:
    """Two trainings in their roles, as places in a list, and what is predicted of them together.

    Args:
        id: of the group; it depends on the two trainings only.
        peak: the GPU's; None where that of one of them is not known.
        floor_bytes: the GPU's least, each giving its cache back in time; None as above.
        limit_bytes: what the GPU's use must stay below.
    """

    id: str
    foreground: int
    background: int
    peak: PeakRange | None
    floor_bytes: int | None
    limit_bytes: int

    @property
    def tier(self) -> str | None:
        """Return the tier by the expected peak, or None if the peak is not known."""
        return None if self.peak is None else tier_of(self.peak.expected_bytes, self.limit_bytes)

    @property
    def impossible(self) -> bool:
        """Even the least that both need is not below the limit."""
        return self.floor_bytes is not None and self.floor_bytes >= self.limit_bytes

    @property
    def answer(self) -> Answer:
        """Say whether its peak stays below the limit."""
        return answer_of(self.peak, self.limit_bytes)


def ordered_pairs(
    solos: Sequence[SoloProfile], base_bytes: int, limit_bytes: int, *, with_itself: bool = False
) -> Iterator[OrderedPair]:
    """Every training as the foreground beside every other; two without a GPU are no question about a GPU."""
    names = short_names(solos)
    places = range(len(solos))
    for foreground, background in product(places, places):
        both = solos[foreground], solos[background]
        if any(one.training.uses_gpu for one in both) and (with_itself or foreground != background):
            name = f"{names[foreground]}__{names[background]}"
            peak, floor = _peak(both, base_bytes), _floor(both, base_bytes)
            yield OrderedPair(name, foreground, background, peak, floor, limit_bytes)


def _peak(both: tuple[SoloProfile, SoloProfile], base_bytes: int) -> PeakRange | None:
    ranges = [one.peak for one in both if one.peak]
    return sum(ranges, start=PeakRange(base_bytes, base_bytes, base_bytes)) if len(ranges) == len(both) else None


def _floor(both: tuple[SoloProfile, SoloProfile], base_bytes: int) -> int | None:
    """Return the least that a pair needs; a training of unknown need counts as zero."""
    known = [one.least_bytes for one in both if one.least_bytes is not None]
    return base_bytes + sum(known) if known else None


# --- names ------------------------------------------------------------------------------------------------------------


def short_names(solos: Sequence[SoloProfile]) -> list[str]:
    """A name for every training that can be half of a group's id.

    Of a training of a catalog that is repository and model, of another its own name; equal ones are numbered.
    """
    found: dict[str, None] = {}
    for solo in solos:
        name = _slug(solo.training.name)
        numbered = (f"{name}-{number}" for number in count(2))
        found[name if name not in found else next(one for one in numbered if one not in found)] = None
    return list(found)


def _slug(name: str) -> str:
    """Lower-case letters, digits, ``-`` and single ``_``; a long one ends with a few digits of its hash."""
    text = re.sub(r"_+", "_", re.sub(r"[^a-z0-9_-]+", "-", name.lower())).strip("_-") or "training"
    text = text if text[0].isalpha() else f"t{text}"
    longest = _LONGEST - len("-999")
    if len(text) <= longest:
        return text
    return f"{text[: longest - 7].rstrip('_-')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
