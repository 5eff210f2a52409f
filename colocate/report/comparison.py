"""What changed between two runs: verdicts, peaks and times, group by group."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from colocate.report.markup import Html, el
from colocate.report.stored import Row
from colocate.report.words import Record, colour, duration_text, is_early, outcome_text, peak_text, plural
from colocate.units import format_mib, to_mib
from colocate.verdict import Outcome

# Peaks of two runs of the same group wander by some MiB; below this they count as the same.
SAME_BYTES = 1024**2


@dataclass(frozen=True)
class Change:
    """One group in two runs; None where a run does not have it."""

    group: str
    before: Record | None
    after: Record | None

    @property
    def peak_bytes(self) -> int | None:
        """How much the peak grew; None where one of the two is not known."""
        if self.before is None or self.after is None:
            return None
        before, after = self.before["peak_bytes"], self.after["peak_bytes"]
        return None if before is None or after is None else int(after - before)

    @property
    def duration_s(self) -> float | None:
        """How much longer the group took; None where one of the two is not known."""
        if self.before is None or self.after is None:
            return None
        before, after = self.before["duration_s"], self.after["duration_s"]
        return None if before is None or after is None else float(after - before)

    @property
    def verdict_changed(self) -> bool:
        """The two runs came to different outcomes."""
        return _outcome(self.before) != _outcome(self.after)

    @property
    def worse(self) -> bool:
        """Feasible before, and not so any more."""
        return (
            _outcome(self.before) == Outcome.FEASIBLE
            and self.after is not None
            and _outcome(self.after) != Outcome.FEASIBLE
        )

    @property
    def other_basis(self) -> bool:
        """The two peaks were not come by in the same way, or not on the same card."""
        both = self.before is not None and self.after is not None
        return both and any(self.before[name] != self.after[name] for name in ("basis", "device_name"))  # type: ignore[index]


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side, in the order of the second."""

    before: str
    after: str
    changes: tuple[Change, ...]

    def grown(self, above_bytes: int) -> list[Change]:
        """The groups whose peak grew by more than so many bytes, the largest first."""
        found = [change for change in self.changes if change.peak_bytes is not None and change.peak_bytes > above_bytes]
        return sorted(found, key=lambda change: -(change.peak_bytes or 0))

    @property
    def unknown(self) -> list[Change]:
        """The groups whose peak was known before and is not known any more."""
        return [
            c
            for c in self.changes
            if c.before is not None and c.before["peak_bytes"] is not None and c.peak_bytes is None
        ]


def compare(before: Sequence[Row], after: Sequence[Row], names: tuple[str, str]) -> Comparison:
    """The groups of both; the last row counts where one has a group several times."""
    old, new = ({row.group: row.record for row in rows} for rows in (before, after))
    groups = [*new, *(group for group in old if group not in new)]
    return Comparison(*names, tuple(Change(group, old.get(group), new.get(group)) for group in groups))


def lines(comparison: Comparison) -> Iterator[str]:
    """The comparison for a terminal: one line per group of at most 80 columns, then what it comes to."""
    yield f"{comparison.before} -> {comparison.after}"
    width = max((len(change.group) for change in comparison.changes), default=0)
    for change in comparison.changes:
        yield f"{change.group:{width}} {_verdict_text(change)}: {', '.join(_number_texts(change))}"
    yield summary(comparison)


def summary(comparison: Comparison) -> str:
    """What it comes to, in one line."""
    changed = sum(change.verdict_changed for change in comparison.changes)
    grown, shrunk = comparison.grown(SAME_BYTES), sum((c.peak_bytes or 0) < -SAME_BYTES for c in comparison.changes)
    largest = f", most {grown[0].group} by {format_mib(grown[0].peak_bytes)}" if grown else ""
    return f"{plural(changed, 'verdict')} changed; {plural(len(grown), 'peak')} grew{largest}; {shrunk} fell"


def _verdict_text(change: Change) -> str:
    before, after = _outcome(change.before), _outcome(change.after)
    return after if before == after else f"{before} -> {after}"


def _outcome(record: Record | None) -> str:
    return "absent" if record is None else str(record["outcome"])


def _number_texts(change: Change) -> Iterator[str]:
    if change.peak_bytes is None:
        yield "peak not comparable"
    else:
        assert change.after is not None
        yield f"peak {change.peak_bytes / 1024**2:+.0f} to {format_mib(change.after['peak_bytes'])}"
    if change.duration_s is not None:
        yield f"time {change.duration_s:+.0f} s"
    if change.other_basis:
        yield "another basis or card"
    if is_early(change.before) != is_early(change.after):
        yield f"only the {'earlier' if is_early(change.before) else 'later'} run decided it early"


def section(comparison: Comparison) -> Html:
    """The same as a part of the page."""
    heads = (
        "group",
        "before",
        "after",
        "peak before, MiB",
        "peak after, MiB",
        "grew by, MiB",
        "time before",
        "time after",
    )
    rows = [_row(change) for change in comparison.changes]
    head = el(
        "thead",
        el(
            "tr",
            [el("th", name, scope="col", class_="num" if "MiB" in name or "time" in name else None) for name in heads],
        ),
    )
    return el(
        "section",
        el("h2", "What changed"),
        el("p", f"{comparison.before} → {comparison.after}: {summary(comparison)}."),
        el("div", el("table", head, el("tbody", rows), class_="plain"), class_="scroll"),
        id="comparison",
    )


def _row(change: Change) -> Html:
    grew = change.peak_bytes
    kind = "" if grew is None or abs(grew) <= SAME_BYTES else ("v-bad" if grew > 0 else "v-ok")
    cells = [
        el("th", change.group, scope="row"),
        *(_badge(record) for record in (change.before, change.after)),
        *(
            el("td", "" if r is None else peak_text(r).removesuffix(" MiB"), class_="num")
            for r in (change.before, change.after)
        ),
        el("td", _growth(grew), class_=f"num {kind}"),
        *(
            el("td", "" if r is None else duration_text(r["duration_s"]), class_="num")
            for r in (change.before, change.after)
        ),
    ]
    return el("tr", cells, class_="changed" if change.verdict_changed else None)


def _growth(num_bytes: int | None) -> str:
    if num_bytes is None:
        return ""
    return "same" if abs(num_bytes) <= SAME_BYTES else f"{to_mib(num_bytes):+.0f}"


def _badge(record: Record | None) -> Html:
    if record is None:
        return el("td", "absent", class_="muted")
    return el(
        "td",
        el("span", outcome_text(record), class_=f"badge {colour(record)}"),
        " ",
        el("span", record["basis"], class_="basis"),
    )
