# SPDX-License-Identifier: Apache-2.0
"""The state of a running run, read from its files, for its own terminal and for a second one.

Reads the heartbeat of every running group, the events of its trainings and the records of the probe. Starts nothing
and needs no GPU, so it works over a shared file system.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colocate.files import content, line, number, parse, tail, whole
from colocate.results import progress_file
from colocate.results.layout import GroupDirectory

_TAIL_BYTES = 4096
_MOST_BYTES = 1024**2

# A group whose heart has not beaten for so long is told as silent.
SILENT_S = 20.0

_ATTEMPT = re.compile(r"_attempt(\d+)$")


@dataclass(frozen=True)
class MemberState:
    """The state of one training; None is what is not known."""

    used_bytes: int | None = None
    phase: str | None = None
    epoch: int | None = None
    step: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class GroupState:
    """The state of one running group."""

    group: str
    stage: str
    silent_s: float
    elapsed_s: float
    used_bytes: int | None
    peak_bytes: int | None
    limit_bytes: int | None
    epochs: int
    foreground_s: float | None
    foreground: MemberState
    background: MemberState | None
    attempt: int = 1
    again_because: tuple[str, ...] = ()
    """The reason codes of the attempt before."""

    @property
    def done(self) -> float | None:
        """The share of the foreground's steps that is done; None before it tells any."""
        member = self.foreground
        if self.stage != "foreground" or member.epoch is None or not member.step or not member.steps:
            return None
        if member.phase != "train":
            return min(1.0, member.epoch / self.epochs)
        return min(1.0, (member.epoch - 1 + member.step / member.steps) / self.epochs)

    def left_s(self, expected_s: float | None) -> float | None:
        """Seconds that the group will still take: by what it is known to take, else by the foreground's progress."""
        if expected_s is not None and expected_s > self.elapsed_s:
            return expected_s - self.elapsed_s
        if self.done is None or self.done < 0.02 or self.foreground_s is None:
            return None
        return self.foreground_s * (1 - self.done) / self.done


def running(run: Path, finished: set[str] | None = None) -> list[GroupState]:
    """The groups of a run that have begun and have no verdict yet, by name.

    Whoever asks again and again hands in the same set: folders that are found to be finished are noted in it and not
    looked into any more, so that a look costs what runs and not what has run.
    """
    finished = set() if finished is None else finished
    found = []
    for name in set(_names(run)) - finished:
        directory = GroupDirectory(run / name)
        if directory.verdict.exists():
            finished.add(name)
        elif (state := _state(directory.path / progress_file.NAME)) is not None:
            found.append(state)
    # Of a group that was lost with its machine and is run again the later attempt tells.
    latest = {state.group: state for state in sorted(found, key=lambda state: -state.elapsed_s)}
    return [latest[group] for group in sorted(latest)]


def _names(run: Path) -> list[str]:
    try:
        return [path.name for path in run.iterdir()]
    except OSError:
        return []


def _state(path: Path) -> GroupState | None:
    directory = GroupDirectory(path.parent)
    if directory.verdict.exists():
        return None
    document = read_document(path)
    if not document.get("group"):
        return None
    now = time.time()
    reported = number(document.get("at"))
    begun, foreground_at = number(document.get("started_at")), number(document.get("foreground_at"))
    return GroupState(
        group=line(document["group"]) or "",
        stage=line(document.get("stage")) or "",
        silent_s=0.0 if reported is None else max(0.0, now - reported),
        elapsed_s=0.0 if begun is None else max(0.0, now - begun),
        used_bytes=whole(document.get("used_bytes")),
        peak_bytes=whole(document.get("peak_bytes")),
        limit_bytes=whole(document.get("limit_bytes")),
        epochs=whole(document.get("epochs")) or 1,
        foreground_s=None if foreground_at is None else max(0.0, now - foreground_at),
        foreground=_member(directory, "foreground", document),
        background=_member(directory, "background", document) if document.get("background") else None,
        **_attempt(directory),
    )


def _attempt(directory: GroupDirectory) -> dict[str, Any]:
    """Which attempt a folder is by its name, and why the one before it did not do."""
    found = _ATTEMPT.search(directory.path.name)
    attempt = int(found[1]) if found else 1
    if found is None or attempt < 2:
        return {}
    before = directory.path.name[: found.start()] + (f"_attempt{attempt - 1}" if attempt > 2 else "")
    reasons = read_document(GroupDirectory(directory.path.with_name(before)).verdict).get("reasons")
    codes = [line(reason.get("code")) for reason in reasons if isinstance(reason, dict)] if reasons else []
    return {"attempt": attempt, "again_because": tuple(code for code in codes if code)}


def _member(directory: GroupDirectory, role: str, document: Mapping[str, Any]) -> MemberState:
    held = document.get("held_bytes")
    used = _allocated(directory.probe(role))
    if used is None and isinstance(held, dict):
        used = whole(held.get(role))
    last = _last_step(directory.events(role))
    return MemberState(
        used,
        line(last.get("phase")),
        whole(last.get("epoch")),
        whole(last.get("step")),
        whole(last.get("steps")),
    )


def _allocated(folder: Path) -> int | None:
    """Return the GPU memory of a training's newest process, context included."""
    records = [record for path in folder.glob("*.json") if (record := read_document(path))]
    latest = max(records, key=lambda record: number(record.get("t")) or 0.0, default={})
    reserved = whole(latest.get("reserved_bytes"))
    return None if not reserved else reserved + (whole(latest.get("context_bytes")) or 0)


def _last_step(path: Path) -> Mapping[str, Any]:
    """The last event that tells a phase or a step; an empty one where there is none."""
    try:
        lines = tail(path, _TAIL_BYTES).splitlines()
    except (OSError, ValueError):
        return {}
    for text in reversed(lines):
        try:
            event = parse(text)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") in ("step", "phase"):
            return event
    return {}


def read_document(path: Path) -> Mapping[str, Any]:
    """Read a JSON object; an empty one where there is none that can be read."""
    try:
        document = parse(content(path, _MOST_BYTES))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


# --- in words
