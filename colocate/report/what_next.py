"""The section on what to do next: which pairs are worth a long run, and which are not."""

from dataclasses import dataclass

from colocate.report import large
from colocate.report.markup import Html, el
from colocate.report.picture import pair
from colocate.report.stored import Part, Row
from colocate.report.words import peak_text
from colocate.verdict import Outcome


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


def section(part: Part) -> Html | None:
    """Three lists of the pairs, and the command that makes a plan of the first two."""
    if not part.rows:
        return None
    found = what_next(part)
    lists = [
        ("Recommended for long runs", "stable, below 3000 MiB", "v-ok", found.stable),
        ("With monitoring", "usable, up to 4000 MiB", "v-warn", found.usable),
        ("Not recommended", "high-risk, or not proven to fit", "v-bad", found.not_recommended),
    ]
    columns = [
        el(
            "div",
            el("h3", title, " ", el("span", f"({why})", class_="muted")),
            el("ul", [el("li", _entry(row, kind)) for row in large.first(rows)])
            if rows
            else el("p", "none", class_="muted"),
            large.rest(rows),
            class_=f"next {kind}",
        )
        for title, why, kind, rows in lists
    ]
    command = (
        el("p", "A plan of the first two, at full length: ", el("code", f"colocate next {part.runs[-1].place}"))
        if found.recommended and part.runs
        else None
    )
    return el("section", el("h2", "What next"), el("div", columns, class_="nexts"), command)


def _entry(row: Row, kind: str) -> Html:
    why = f" · {peak_text(row.record)}" if kind != "v-bad" else f" · {not_recommended_because(row)}"
    return el("span", el("a", row.group, href=f"#{row.key}"), " ", pair(row), el("span", why, class_="muted"))
