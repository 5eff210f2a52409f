# SPDX-License-Identifier: Apache-2.0
"""``journal.jsonl`` of a run: how each of its groups ended, one line each, appended as it happens.

Groups that were interrupted, crashed or never begun leave no verdict on disk; here they are, so that a page can be
rebuilt with all of them. The first writer is the controller of the session, and it is the only one.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from colocate.files import append_line, opened, parse
from colocate.results.group_result import GroupResult
from colocate.results.lenient import read_leniently

NAME = "journal.jsonl"
NOT_RUN = "NOT RUN"
"""The outcome of a group that was never begun."""

_LONGEST_S = 3e9  # a century: an estimate that nobody meant


def append(run: Path, event: str, **fields: Any) -> None:
    """Add one line with the time of now, in one write.

    Raises:
        OSError: it cannot be written.
    """
    line = json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **fields})
    append_line(run / NAME, line.encode())


@dataclass
class Journal:
    """The content of a journal: the last result of every group, and when the run was last begun and ended.

    ``fresh`` are the groups that ended since it was last begun.
    """

    results: dict[str, GroupResult] = field(default_factory=dict)
    selected: tuple[str, ...] = ()
    fresh: set[str] = field(default_factory=set)
    estimates: dict[str, float] = field(default_factory=dict)
    started_at: str | None = None
    ended_at: str | None = None


def read(run: Path) -> Journal:
    """The journal of a run; an empty one where there is none, and without the lines that cannot be read."""
    return Reader(run).read(to_the_end=True)


class Reader:
    """A journal that is being written: what it has told by now, each of its lines read once."""

    def __init__(self, run: Path) -> None:
        self._path = run / NAME
        self._offset = 0
        self._journal = Journal()

    def read(self, *, to_the_end: bool = False) -> Journal:
        """Everything so far; the same object each time. A last line without its end waits for the next call."""
        for line in _lines(self._new(to_the_end)):
            _take(self._journal, line)
        return self._journal

    def _new(self, to_the_end: bool) -> bytes:
        try:
            handle = opened(self._path)
        except (OSError, ValueError):  # none, or something in its place that is no file
            return b""
        with os.fdopen(handle, "rb") as file:
            file.seek(self._offset)
            content = file.read()
        whole = content if to_the_end else content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole


@dataclass(frozen=True, slots=True)
class _Line:
    at: str | None = None
    event: str | None = None
    groups: tuple[str, ...] = ()
    estimates: dict[str, float] = field(default_factory=dict)
    record: Any = None
    text: str | None = None


def _take(journal: Journal, line: _Line) -> None:
    if line.event == "started":
        journal.started_at, journal.ended_at = journal.started_at or line.at, None
        journal.selected, journal.fresh = line.groups, set()
        journal.estimates = {name: value for name, value in line.estimates.items() if 0 <= value <= _LONGEST_S}
    elif line.event == "ended":
        journal.ended_at = line.at
    elif line.event == "group" and (result := GroupResult.from_json(line.record)).group:
        journal.fresh.add(result.group)
        took = result.duration_s if 0 <= (result.duration_s or 0) <= _LONGEST_S else None
        journal.results[result.group] = replace(result, duration_s=took, text=line.text or "")


def _lines(content: bytes) -> Iterator[_Line]:
    for line in content.splitlines():
        try:
            yield read_leniently(parse(line), _Line)
        except ValueError:
            continue  # the torn last line of a run that was cut off
