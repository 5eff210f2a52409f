# SPDX-License-Identifier: Apache-2.0
"""Estimate how long groups take: as earlier runs on the same GPU did, else as the plan says."""

import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colocate.results import journal
from colocate.units import duration_text, plural

# The latest runs of a group tell most; older ones were perhaps made on a machine that was otherwise busy.
RUNS = 30
LATEST = 3


@dataclass(frozen=True)
class Estimate:
    """Expected seconds by group; a group that nobody can tell is missing. ``earlier`` are those from earlier runs."""

    seconds: Mapping[str, float]
    earlier: frozenset[str] = frozenset()

    def total_s(self, groups: Sequence[str], side_by_side: int = 1) -> float | None:
        """Seconds for these groups on so many GPUs; None when none of them is known.

        Those that are not known are taken to be like the others.
        """
        known = [self.seconds[group] for group in groups if group in self.seconds]
        if not known:
            return None
        typical = statistics.fmean(known)
        times = known + [typical] * (len(groups) - len(known))
        return max(max(times), sum(times) / max(1, side_by_side))

    def left_s(
        self,
        groups: Sequence[str],
        done: Container[str],
        took: Mapping[str, float | None],
        passed_s: Sequence[float],
        side_by_side: int,
    ) -> float | None:
        """Seconds until these groups have ended; None when not even what has ended tells how long one takes.

        Args:
            groups: All groups of the run.
            done: Those that have ended.
            took: Their seconds, as far as they are known.
            passed_s: For how long each of the running ones runs already.
            side_by_side: On so many GPUs.
        """
        known = {**self.seconds, **{name: seconds for name, seconds in took.items() if seconds}}
        if not known:
            return None
        typical = statistics.fmean(known.values())
        learnt = Estimate({name: known.get(name, typical) for name in groups})
        total_s = learnt.total_s([name for name in groups if name not in done], side_by_side)
        return None if total_s is None else max(0.0, total_s - sum(passed_s) / side_by_side)

    def sentence(self, groups: Sequence[str], side_by_side: int = 1) -> str:
        """The whole in words, with where it comes from."""
        total = self.total_s(groups, side_by_side)
        if total is None:
            return f"not known yet for {plural(len(groups), 'group')} on this GPU; the first run tells the next one"
        sources = []
        earlier = sum(group in self.earlier for group in groups)
        planned = sum(group in self.seconds for group in groups) - earlier
        if earlier:
            sources.append(f"{earlier} by earlier runs")
        if planned:
            sources.append(f"{planned} by the plan")
        if earlier + planned < len(groups):
            sources.append(f"{len(groups) - earlier - planned} unknown")
        return f"about {duration_text(total)} for {plural(len(groups), 'group')} ({', '.join(sources)})"


def estimate(groups: Mapping[str, tuple[str, float | None]], results: Path, gpus: Sequence[str]) -> Estimate:
    """Expected seconds of groups, given by id with content hash and the plan's minutes (None where those say nothing).

    Args:
        groups: By id, the hash of what decides how the group runs, and the minutes that the plan expects.
        results: Where earlier runs lie.
        gpus: Names or UUIDs of the GPUs of this run.
    """
    seen = _durations(results, gpus)
    seconds: dict[str, float] = {}
    earlier = set()
    for name, (content_hash, minutes) in groups.items():
        known = seen.get(content_hash, [])[:LATEST]
        if known:
            seconds[name] = statistics.median(known)
            earlier.add(name)
        elif minutes is not None:
            seconds[name] = 60.0 * minutes
    return Estimate(seconds, frozenset(earlier))


def _durations(results: Path, gpus: Sequence[str]) -> dict[str, list[float]]:
    """Durations by content hash, the latest first."""
    found: dict[str, list[float]] = {}
    for path in sorted(results.glob(f"run_*/{journal.NAME}"), key=lambda path: path.parent.name, reverse=True)[:RUNS]:
        for result in journal.read(path.parent).results.values():
            same_gpu = {result.device_name, result.device_uuid} & set(gpus)
            if result.content_hash and result.duration_s and same_gpu and not result.reused:
                found.setdefault(result.content_hash, []).append(result.duration_s)
    return found
