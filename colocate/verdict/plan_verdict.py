# SPDX-License-Identifier: Apache-2.0
"""The plan's own verdict: were enough of its groups feasible? Knows no pytest and no files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from colocate.verdict.verdict import Outcome

# More names than these are nothing that anybody reads in a line.
MOST_NAMED = 30

AGAIN = "to be run again"
"""What stands for the outcome of a group whose verdict ``--resume`` found to hold no more, until it is run again."""

Holding = Literal["holds", "fails", "is undecided"]


@dataclass(frozen=True)
class PlanVerdict:
    """The outcome of a plan. ``outcomes`` has every group; None is one that was not selected."""

    outcomes: Mapping[str, str | None]
    needed: int
    rate: float

    @classmethod
    def of(cls, ids: Iterable[str], found: Mapping[str, str], needed: int, rate: float) -> "PlanVerdict":
        """The tally of a plan's groups, given the outcomes of those that have one."""
        return cls({name: found.get(name) for name in ids}, needed, rate)

    @property
    def total(self) -> int:
        """Return the number of groups in the plan."""
        return len(self.outcomes)

    @property
    def feasible(self) -> int:
        """Return how many groups are proven to fit; an inconclusive one is not."""
        return self.count(Outcome.FEASIBLE)

    def count(self, outcome: str | None) -> int:
        """Return how many groups ended with this outcome."""
        return sum(found == outcome for found in self.outcomes.values())

    @property
    def without_verdict(self) -> tuple[tuple[str, str | None], ...]:
        """The groups that nobody judged, and what became of them."""
        judged = set(Outcome)
        return tuple((name, found) for name, found in self.outcomes.items() if found not in judged)

    @property
    def complete(self) -> bool:
        """Every group of the plan has one of the three verdicts."""
        return not self.without_verdict

    @property
    def holding(self) -> Holding:
        """Say whether the plan holds; undecided while groups without a clear answer could still turn it."""
        if self.feasible >= self.needed:
            return "holds"
        open_ = self.total - self.feasible - self.count(Outcome.INFEASIBLE)
        return "is undecided" if self.feasible + open_ >= self.needed else "fails"

    def __str__(self) -> str:
        inconclusive = self.count(Outcome.INCONCLUSIVE)
        found = f"{self.feasible} of {self.total} groups feasible"
        found += f", {inconclusive} inconclusive" if inconclusive else ""
        rule = f"{self.needed} needed ({self.rate * 100:g} % of {self.total}, rounded down)"
        return f"{found}; {rule}: the plan {self.holding}"

    def missing(self) -> str | None:
        """Say in one line which groups have no verdict and why, or None if all have one."""
        if self.complete:
            return None
        ways: dict[str, list[str]] = {}
        for name, found in self.without_verdict:
            ways.setdefault(found or "not selected", []).append(name)
        parts = [f"{way}: {', '.join(self._ranges(names))}" for way, names in ways.items()]
        number = len(self.without_verdict)
        return f"INCOMPLETE: {number} group{'s have' if number > 1 else ' has'} no verdict ({'; '.join(parts)})"

    def _ranges(self, names: list[str]) -> list[str]:
        """``group02 to group12`` instead of all of them, where three or more follow each other in the plan."""
        order = {name: place for place, name in enumerate(self.outcomes)}
        runs: list[list[str]] = []
        for name in names:
            follows = bool(runs) and order[name] == order[runs[-1][-1]] + 1
            runs[-1].append(name) if follows else runs.append([name])
        reported = [name for run in runs for name in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]
        return (
            reported if len(reported) <= MOST_NAMED else [*reported[:MOST_NAMED], f"{len(reported) - MOST_NAMED} more"]
        )
