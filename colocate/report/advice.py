"""What could be tried where a group does not fit, in order of cost, and which pairs are worth a long run.

Names what to change; a figure stands beside it only where this run has one. What a change would bring is predicted by
running it on the virtual card, not here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.catalog import Catalog, load_catalog
from colocate.errors import ColocateError
from colocate.report.shares import ROLES, own_bytes
from colocate.report.stored import Part, Row, mapping, number
from colocate.units import MIB, format_mib
from colocate.verdict import Outcome

# Memory that the allocator keeps but no tensor uses; below this, expandable segments have nothing to gain.
FRAGMENTS_BYTES = 256 * MIB

EXPANDABLE = "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"


@dataclass(frozen=True)
class Needs:
    """What a group would have needed, and what could be tried, the cheapest first."""

    row: Row
    needed: str
    proposals: tuple[str, ...]


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
    catalog = catalog_of(part)
    smallest = _own_by_model(part.rows)
    return [
        Needs(row, _needed(row), tuple(_proposals(row, catalog, smallest)))
        for row in part.counting
        if row.record["outcome"] == Outcome.INFEASIBLE or "undecided" in row.record["codes"]
    ]


def _needed(row: Row) -> str:
    record = row.record
    peak, limit = number(record["peak_bytes"]), number(record["limit_bytes"])
    if peak is None or limit is None:
        return "what it would have needed is not known"
    holders = [f"{row.record[role]} {format_mib(size)}" for role in ROLES if (size := own_bytes(row, role)) is not None]
    if row.baseline_bytes:
        holders.append(f"baseline {format_mib(row.baseline_bytes)}")
    over = f", {format_mib(peak - limit)} above the limit" if peak > limit else f" of {format_mib(limit)}"
    verb = "needed" if record["basis"] == "measured" else "is expected to need"
    seen = (
        "at least "
        if record["basis"] == "measured" and any(c.endswith("out_of_memory") for c in record["codes"])
        else ""
    )
    return f"{verb} {seen}{format_mib(peak)}{over}" + (f": {', '.join(holders)}" if holders else "")


def _proposals(row: Row, catalog: Catalog | None, known: Mapping[tuple[str, str], int]) -> Iterator[str]:
    if "undecided" in row.record["codes"]:
        yield "measure it: the prediction's range lies across the limit, a GPU decides"
    largest_first = sorted(ROLES, key=lambda role: -(own_bytes(row, role) or 0))
    present = [role for role in largest_first if row.member(role)]
    for role in present[:1]:
        yield from _smaller_batch(row, role, catalog)
    for role in present:
        yield from _of_hyperparameters(row, role, catalog)
    for role in present:
        yield from _expandable(row, role)
    for role in present[:1]:
        yield from _smaller_model(row, role, catalog, known)


def _smaller_batch(row: Row, role: str, catalog: Catalog | None) -> Iterator[str]:
    name, given = row.record[role], mapping(row.settings(role).get("hyperparameters"))
    supported = _supported(row, role, catalog)
    batch = number(given.get("batch_size"))
    if "batch_size" not in supported and supported:
        return
    smaller = f'"batch_size": {batch // 2}' if batch and batch > 1 else "half its batch_size"
    if "accumulate" in supported:
        yield f'{name}: {smaller} with "accumulate": 2 trains the same in smaller bites'
    elif not row.settings(role).get("repository"):
        yield f"{name}: a smaller batch with gradient accumulation, in its own command"
    else:
        yield f"{name}: {smaller}"


def _of_hyperparameters(row: Row, role: str, catalog: Catalog | None) -> Iterator[str]:
    name, given, supported = (
        row.record[role],
        mapping(row.settings(role).get("hyperparameters")),
        _supported(row, role, catalog),
    )
    if "attention" in supported and given.get("attention") not in ("sdpa", None):
        yield f'{name}: "attention": "sdpa" keeps no attention matrices'
    if "fp16" in supported and given.get("fp16") == "off":
        yield f'{name}: "fp16": "on" halves most activations'


def _expandable(row: Row, role: str) -> Iterator[str]:
    for allocator in map(mapping, row.member(role).get("allocators") or ()):
        reserved, allocated = number(allocator.get("max_reserved_bytes")), number(allocator.get("max_allocated_bytes"))
        if reserved and allocated and reserved - allocated > FRAGMENTS_BYTES:
            kept = format_mib(reserved - allocated)
            yield f"{row.record[role]}: {EXPANDABLE}; its allocator kept {kept} beyond the most that its tensors used"
            return


def _smaller_model(row: Row, role: str, catalog: Catalog | None, known: Mapping[tuple[str, str], int]) -> Iterator[str]:
    settings, own = row.settings(role), own_bytes(row, role)
    repository, model = str(settings.get("repository") or ""), str(settings.get("model") or "")
    spec = catalog.repositories.get(repository) if catalog else None
    others = [other for other in (spec.models if spec else ()) if other != model]
    smaller = {other: known[repository, other] for other in others if (repository, other) in known}
    fitting = {other: size for other, size in smaller.items() if own is not None and size < own}
    if fitting:
        best = min(fitting, key=lambda other: fitting[other])
        needed = format_mib(fitting[best])
        held = "is predicted" if row.record["basis"] == "predicted" else "held"
        yield f"{row.record[role]}: {repository} {best} in its place, which {held} {needed} in this run"


def _supported(row: Row, role: str, catalog: Catalog | None) -> Mapping[str, Any]:
    settings = row.settings(role)
    if catalog is None or not settings.get("repository"):
        return {}
    return catalog.supported(str(settings["repository"]), str(settings.get("model")))


def _own_by_model(rows: Sequence[Row]) -> dict[tuple[str, str], int]:
    """The most that each model of a repository held in any of the rows."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        for role in ROLES:
            settings, own = row.settings(role), own_bytes(row, role)
            if own is not None and settings.get("repository"):
                key = (str(settings["repository"]), str(settings.get("model")))
                found[key] = max(found.get(key, 0), own)
    return found
