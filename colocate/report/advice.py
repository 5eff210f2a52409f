"""What a group that does not fit would have needed, and which pairs are worth a long run.

What could be tried, with its predicted peaks, is read from the run: `colocate.advice.outlook` writes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.catalog import Catalog, load_catalog
from colocate.errors import ColocateError
from colocate.evidence import ROLES
from colocate.report.shares import own_bytes
from colocate.report.stored import NO_FACTS, Part, Row, mapping, number
from colocate.report.words import Record
from colocate.units import format_mib
from colocate.verdict import Outcome

# Reasons that a smaller appetite can take away. A failed program or a full host is another matter.
TOO_MUCH = frozenset(
    {
        "foreground_out_of_memory",
        "background_out_of_memory",
        "peak_over_limit",
        "peak_between_samples",
        "undecided",
    }
)


@dataclass(frozen=True)
class Needs:
    """What a group would have needed, and what could be tried, the cheapest first, as in ``proposals.json``."""

    row: Row
    needed: str
    proposals: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Next:
    """The pairs of a part by what is recommended for a long run."""

    stable: tuple[Row, ...]
    usable: tuple[Row, ...]
    not_recommended: tuple[Row, ...]

    @property
    def recommended(self) -> tuple[Row, ...]:
        """Those that a follow-up plan takes."""
        return (*self.stable, *self.usable)


def what_next(part: Part) -> Next:
    """Feasible pairs by class: stable ones run alone, usable ones want an eye on them, the others stay apart."""
    rows = part.counting
    fits = [row for row in rows if row.record["outcome"] == Outcome.FEASIBLE]
    stable = tuple(row for row in fits if row.record["stability"] == "stable")
    usable = tuple(row for row in fits if row.record["stability"] == "usable")
    taken = {row.group for row in (*stable, *usable)}
    return Next(stable, usable, tuple(row for row in rows if row.group not in taken))


def not_recommended_because(row: Row) -> str:
    """Why a pair is not for long runs, in few words."""
    outcome, class_ = row.record["outcome"], row.record["stability"]
    if outcome == Outcome.FEASIBLE:
        return f"fits, but {class_ or 'of no known class'}"
    codes = ", ".join(row.record["codes"])
    return f"{str(outcome).lower()}" + (f": {codes}" if codes else "")


def catalog_of(part: Part) -> Catalog | None:
    """The catalog that the runs were made with, where it still can be read."""
    for run in part.runs:
        name = run.plan.get("catalog")
        if name:
            try:
                return load_catalog(Path(str(name)))
            except (ColocateError, OSError):
                continue
    return None


def needs(part: Part) -> list[Needs]:
    """What every group that does not fit, or may not, would have needed."""
    proposed = {run.name: run.proposals for run in part.runs}
    return [
        Needs(row, _needed(row), _proposals(proposed.get(row.run, NO_FACTS), row))
        for row in part.counting
        if is_unfit(row.record)
    ]


def is_unfit(record: Record) -> bool:
    """A group that needed too much of the card's memory, or may have; less memory helps nothing else."""
    return not TOO_MUCH.isdisjoint(record["codes"])


def _proposals(proposed: Mapping[str, Any], row: Row) -> tuple[Mapping[str, Any], ...]:
    """Those for the group as this row has it, not as an earlier session of the run had it."""
    entry = mapping(proposed.get(row.group))
    same = entry.get("content_hash") == row.content_hash
    return tuple(map(mapping, entry.get("proposals") or ())) if same else ()


def _needed(row: Row) -> str:
    record = row.record
    peak, limit = number(record["peak_bytes"]), number(record["limit_bytes"])
    if peak is None or limit is None:
        return "what it would have needed is not known"
    holders = [f"{row.record[role]} {format_mib(size)}" for role in ROLES if (size := own_bytes(row, role)) is not None]
    if row.baseline_bytes:
        holders.append(f"baseline {format_mib(row.baseline_bytes)}")
    over = f", {format_mib(peak - limit, beside=0)} above the limit" if peak > limit else f" of {format_mib(limit)}"
    verb = "needed" if record["basis"] == "measured" else "is expected to need"
    seen = (
        "at least "
        if record["basis"] == "measured" and any(c.endswith("out_of_memory") for c in record["codes"])
        else ""
    )
    return f"{verb} {seen}{format_mib(peak, beside=limit)}{over}" + (f": {', '.join(holders)}" if holders else "")
