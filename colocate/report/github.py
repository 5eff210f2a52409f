# SPDX-License-Identifier: Apache-2.0
"""Format a run or a comparison for GitHub Actions: a job summary in Markdown, and annotations.

Text only; who prints it and where the summary goes is decided by `publish` from the environment of the job.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from colocate.report.comparison import SAME_BYTES, Comparison, GroupDiff, settings_text, summary
from colocate.results import GroupResult, Part, headroom_text, judged_text, over_budget_bytes, peak_text
from colocate.units import duration_text, format_mib, to_mib
from colocate.verdict import Outcome

SUMMARY = "GITHUB_STEP_SUMMARY"
ACTIONS = "GITHUB_ACTIONS"

# A summary may have a mebibyte; of a plan of thousands the rows that matter come first.
MOST_ROWS = 500


def publish(markdown: str, annotations: Iterable[str]) -> Iterator[str]:
    """Append the summary where a job has one, and give the annotations to be printed; nothing outside of GitHub.

    Raises:
        OSError: the summary cannot be written.
    """
    if os.environ.get(SUMMARY):
        with Path(os.environ[SUMMARY]).open("a", encoding="utf-8") as file:
            file.write(markdown + "\n")
    if os.environ.get(ACTIONS) == "true":
        yield from annotations


def is_job() -> bool:
    """This process is part of a job of GitHub Actions."""
    return bool(os.environ.get(SUMMARY)) or os.environ.get(ACTIONS) == "true"


# --- a comparison -----------------------------------------------------------------------------------------------------


def broken(diff: GroupDiff, allowed_bytes: int | None) -> str | None:
    """Say why a group needs attention first, or None if it does not."""
    return "; ".join(_broken(diff, allowed_bytes)) or None


def _broken(diff: GroupDiff, allowed_bytes: int | None) -> Iterator[str]:
    if diff.worse:
        assert diff.after is not None, "it is worse than before"
        codes = ", ".join(diff.after.codes)
        yield f"was feasible, is {diff.after.outcome.lower()}" + (f" ({codes})" if codes else "")
    if allowed_bytes is None:
        return
    if diff.peak_bytes is None and diff.before is not None and diff.before.peak_bytes is not None:
        known = diff.after is not None and diff.after.peak_bytes is not None
        yield (
            "is of another GPU, so how its peak grew is not known"
            if known
            else "its peak was known before and is not any more"
        )
    if diff.peak_bytes is not None and diff.peak_bytes > allowed_bytes:
        grown = format_mib(diff.peak_bytes, beside=allowed_bytes)
        yield f"grew by {grown}, at most {format_mib(allowed_bytes)} allowed"


def of_comparison(comparison: Comparison, allowed_bytes: int | None) -> str:
    """The job summary of a comparison: what changed, what is to be looked at first."""
    rows = sorted(comparison.diffs, key=lambda diff: broken(diff, allowed_bytes) is None)  # stable otherwise
    head = ("", "group", "before", "after", "peak before", "peak after", "grew by", "why")
    table = [_comparison_row(diff, allowed_bytes) for diff in rows]
    title = f"## What changed: {_text(comparison.before)} → {_text(comparison.after)}"
    settings = [f"{_text(settings_text(comparison))}.", ""] if comparison.settings else []
    return "\n".join([title, "", f"{summary(comparison)}.", "", *settings, *_table(head, table)])


def _comparison_row(diff: GroupDiff, allowed_bytes: int | None) -> list[str]:
    why = broken(diff, allowed_bytes)
    grown = diff.peak_bytes
    sign = ":x:" if why else ":warning:" if grown is not None and grown > SAME_BYTES else ""
    texts = [("" if one is None else judged_text(one)) for one in (diff.before, diff.after)]
    peaks = [("" if one is None else peak_text(one)) for one in (diff.before, diff.after)]
    growth = "" if grown is None else f"{to_mib(grown):+.0f} MiB"
    return [sign, diff.group, *texts, *peaks, growth, why or ""]


def annotations_of_comparison(comparison: Comparison, allowed_bytes: int | None) -> Iterator[str]:
    """An error for every group that broke or grew too much, a warning for every other that grew."""
    for diff in comparison.diffs:
        why = broken(diff, allowed_bytes)
        if why is not None:
            yield annotation("error", diff.group, why)
        elif diff.peak_bytes is not None and diff.peak_bytes > SAME_BYTES:
            assert diff.after is not None, "its peak is known"
            text = f"grew by {format_mib(diff.peak_bytes)} to {peak_text(diff.after)}"
            yield annotation("warning", diff.group, text)


# --- a run ------------------------------------------------------------------------------------------------------------


def of_run(parts: Iterable[tuple[str, Part]]) -> str:
    """The job summary of a run: of every part its headline and its groups, those that fit last."""
    lines: list[str] = []
    head = ("", "group", "verdict", "peak", "headroom", "time", "why")
    for headline, part in parts:
        order: dict[str, int] = {Outcome.INFEASIBLE: 0, Outcome.INCONCLUSIVE: 1, Outcome.FEASIBLE: 3}
        results = sorted(part.counting, key=lambda result: order.get(result.outcome, 2))
        lines += [f"## {_text(headline)}", "", *_table(head, [_run_row(result) for result in results]), ""]
    return "\n".join(lines)


def _run_row(result: GroupResult) -> list[str]:
    over = over_budget_bytes(result)
    signs: dict[str, str] = {Outcome.FEASIBLE: ":white_check_mark:", Outcome.INFEASIBLE: ":x:"}
    why = ", ".join(result.codes or result.reasons) + (
        f" over budget by {format_mib(over, beside=0)}" if over is not None else ""
    )
    cells = [peak_text(result), headroom_text(result), duration_text(result.duration_s)]
    return [signs.get(result.outcome, ":warning:"), result.group, judged_text(result), *cells, why.strip()]


def annotations_of_run(results: Iterable[GroupResult]) -> Iterator[str]:
    """An error for every group that does not fit, a warning for one without a clear answer or over its budget."""
    for result in results:
        over = over_budget_bytes(result)
        why = "; ".join(result.reasons)
        if result.outcome == Outcome.INFEASIBLE:
            yield annotation("error", result.group, f"{judged_text(result)}: {why}")
        elif result.outcome != Outcome.FEASIBLE:
            yield annotation("warning", result.group, f"{judged_text(result)}: {why}")
        if over is not None:
            text = f"peak {peak_text(result)} is over its budget of {format_mib(result.budget_bytes)}"
            yield annotation("warning", result.group, text)


# --- the two formats --------------------------------------------------------------------------------------------------


def annotation(level: str, title: str, text: str) -> str:
    """A workflow command; what ends one is written as GitHub's toolkit does (actions/toolkit, command.ts)."""
    return f"::{level} title={_escaped(title, property_=True)}::{_escaped(text)}"


def _escaped(text: str, *, property_: bool = False) -> str:
    pairs = {"%": "%25", "\r": "%0D", "\n": "%0A"} | ({":": "%3A", ",": "%2C"} if property_ else {})
    return "".join(pairs.get(character, character) for character in text)


def _table(head: Iterable[str], rows: list[list[str]]) -> Iterator[str]:
    names = list(head)
    yield f"| {' | '.join(names)} |"
    yield f"| {' | '.join('---' for _ in names)} |"
    for row in rows[:MOST_ROWS]:
        yield f"| {' | '.join(map(_text, row))} |"
    if len(rows) > MOST_ROWS:
        yield f"\nand {len(rows) - MOST_ROWS} more; the page has all."


def _text(text: str) -> str:
    """Text that stays text in a cell of a Markdown table."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "|*_`[]\\" else c for c in plain).replace("\n", " ")
