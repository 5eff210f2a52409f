# SPDX-License-Identifier: Apache-2.0
"""Choose which ordered pairs of trainings to run: their tiers, those that cannot fit, and an even selection.

Pure: what trainings take alone in, pairs out. Chance has no part in it: the same trainings give the same pairs.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
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
    ranges = [one.load.peak for one in both if one.load]
    return sum(ranges, start=PeakRange(base_bytes, base_bytes, base_bytes)) if len(ranges) == len(both) else None


def _floor(both: tuple[SoloProfile, SoloProfile], base_bytes: int) -> int | None:
    """Return the least that a pair needs; a training of unknown need counts as zero."""
    known = [one.least_bytes for one in both if one.least_bytes is not None]
    return base_bytes + sum(known) if known else None


# --- a choice ---------------------------------------------------------------------------------------------------------


def each_foreground_once(pairs: Sequence[OrderedPair]) -> list[OrderedPair]:
    """Choose one pair for every training that is the foreground of any.

    The background that is taken most is taken as few times as there is any way. Beyond that, how often backgrounds
    and then tiers are taken is made more even as long as one or two changes do it.
    """
    options: dict[int, dict[int, OrderedPair]] = {}
    for pair in pairs:
        options.setdefault(pair.foreground, {})[pair.background] = pair
    chosen = _matched(options) if options else {}
    _evened(chosen, options)
    return [options[foreground][background] for foreground, background in chosen.items()]


Options = Mapping[int, Mapping[int, OrderedPair]]


def _matched(options: Options) -> dict[int, int]:
    """A background for every foreground, none more often than it has to be: a matching with copies of backgrounds."""
    import networkx  # a fifth of the time to collect a plan, for one command

    for most in count(1):
        graph = networkx.Graph()
        graph.add_nodes_from(options)
        for foreground, backgrounds in options.items():
            # a foreground begins with the background that follows it in the list
            in_turn = sorted(backgrounds, key=lambda place: (place <= foreground, place))
            graph.add_edges_from((foreground, (place, copy)) for copy in range(most) for place in in_turn)
        found = networkx.bipartite.hopcroft_karp_matching(graph, options)
        if all(foreground in found for foreground in options):
            return {foreground: found[foreground][0] for foreground in options}
    raise AssertionError("every foreground has a background")


def _evened(chosen: dict[int, int], options: Options) -> None:
    """Change one background, or exchange two, as long as the counts become more even by it."""
    backgrounds, tiers = _Counts(), _Counts()

    def apply(overrides: Mapping[int, int], step: int) -> None:
        for foreground, background in overrides.items():
            backgrounds.add(background, step)
            tiers.add(options[foreground][background].tier, step)

    apply(chosen, 1)
    better = True
    while better:
        better = False
        for overrides in list(_changes(chosen, options)):
            old = {foreground: chosen[foreground] for foreground in overrides}
            before = (backgrounds.squares, tiers.squares)
            apply(old, -1)
            apply(overrides, 1)
            if (backgrounds.squares, tiers.squares) < before:
                chosen.update(overrides)
                better = True
            else:
                apply(overrides, -1)
                apply(old, 1)


class _Counts:
    """Count how often each training is taken, and how unevenly (sum of squares)."""

    def __init__(self) -> None:
        self._numbers: Counter[int | str | None] = Counter()
        self.squares = 0

    def add(self, key: int | str | None, step: int) -> None:
        """Count one more, or one less."""
        self.squares += 2 * step * self._numbers[key] + 1
        self._numbers[key] += step


def _changes(chosen: Mapping[int, int], options: Options) -> Iterator[dict[int, int]]:
    foregrounds = list(chosen)
    for place, one in enumerate(foregrounds):
        for background in options[one]:
            yield {one: background}
        for other in foregrounds[place + 1 :]:
            if chosen[other] in options[one] and chosen[one] in options[other]:
                yield {one: chosen[other], other: chosen[one]}


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
