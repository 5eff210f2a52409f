# SPDX-License-Identifier: Apache-2.0
"""A journal file: some groups of a run in one file that carries all that a page needs of them.

JSON lines, each for itself, so that a torn one costs its group only::

    {"event": "run", "name": ..., "record": run.json}       a session begins; a file may have several
    {"event": "started" | "ended", ...}                     as in the run's own journal
    {"event": "file", "path": ..., "gzip": ...}             a file of the run directory, base64 of its gzip
    {"event": "group", "record": ..., "files": [...]}       how a group ended, and which files belong to it

Records, traces and readings are carried whole, so that merged runs can be judged again; of logs the end.
"""

import base64
import contextlib
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import append_line, content, opened, parse, read_json, safe_name, tail
from colocate.results import journal
from colocate.results.group_result import GroupResult
from colocate.results.layout import RunDirectory

LOG_BYTES = 64 * 1024
MOST_FILE_BYTES = 64 * 1024**2
"""Of one file, unpacked: the samples of forty hours."""
MOST_BYTES = 1024**3
"""Of all files of a journal file together, unpacked."""

# What no page reads: the record has it already, or it means something only while the group runs.
_LEFT_OUT = frozenset({"events", "probe", "virtual_gpu", "progress.json"})
_MADE_AGAIN = frozenset({"run.json", journal.NAME, "summary.csv", "report.html"})
_DEEPEST = 8  # folders of folders: a side run's group has three
_AGAIN = r"(_run\d+)?(_attempt\d+)?"


class Writer:
    """Appends the groups of one run to a journal file.

    Raises:
        ColocateError: the file cannot be written.
    """

    def __init__(self, path: Path, run: RunDirectory) -> None:
        self.path = path
        self._run = run
        self._reported = len(self._lines())  # what earlier sessions of the run told is theirs to carry
        self._carried: set[str] = set()
        self._begun = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
            os.close(opened(path))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "something that is no file"
            raise ColocateError(f"--archive={path}: expected a file that can be written, got {why}") from error

    def group(self, folder: str) -> None:
        """Carry a group that has ended: the folders of all its attempts, then what the run's journal says of it."""
        self._begin()
        name = re.compile(re.escape(re.sub(f"{_AGAIN}$", "", folder)) + _AGAIN) if folder else None
        folders = [path for path in sorted(self._run.path.iterdir()) if name and name.fullmatch(path.name)]
        self._journal([carried for path in folders for carried in self._files(path)])

    def end(self) -> None:
        """Carry what else lies in the run directory, such as side runs, and the end of the journal."""
        if not self._begun:
            return
        self._files(self._run.path)
        self._journal([])

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._write({"event": "run", "name": self._run.name, "record": read_json(self._run.record)})

    def _files(self, folder: Path) -> list[str]:
        found = []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(self._run.path).as_posix()
            unwanted = set(name.split("/")) & _LEFT_OUT or name in _MADE_AGAIN or path.name.startswith(".")
            if unwanted or name in self._carried or not path.is_file():
                continue
            with contextlib.suppress(OSError, ValueError):  # one that vanished, or is no file any more
                data = tail(path, LOG_BYTES) if path.suffix == ".log" else content(path, MOST_FILE_BYTES)
                self._write({"event": "file", "path": name, "gzip": base64.b64encode(gzip.compress(data)).decode()})
                self._carried.add(name)
                found.append(name)
        return found

    def _journal(self, files: list[str]) -> None:
        """The lines that the run's journal has got since the last time."""
        lines = self._lines()
        for line in lines[self._reported :]:
            with contextlib.suppress(ValueError):  # half a line of a session that was killed, and what follows it
                document = parse(line)
                self._write({**document, "files": files} if document.get("event") == "group" else document)
        self._reported = len(lines)

    def _lines(self) -> list[bytes]:
        with contextlib.suppress(OSError, ValueError):
            return content(self._run.path / journal.NAME).splitlines()
        return []

    def _write(self, document: dict[str, Any]) -> None:
        """Append one line in one write, and flush it to the disk."""
        append_line(self.path, json.dumps(document).encode())


@dataclass(frozen=True)
class Ended:
    """How and when a group ended in one session, and which files belong to it."""

    at: str
    result: GroupResult
    files: tuple[str, ...]


@dataclass
class Session:
    """The part of an archive that one session wrote."""

    source: Path
    name: str
    record: dict[str, Any]
    groups: dict[str, Ended] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    selected: list[str] = field(default_factory=list)
    estimates: dict[str, float] = field(default_factory=dict)
    ended_at: str | None = None
    faults: list[str] = field(default_factory=list)
    superseded: set[str] = field(default_factory=set)  # groups that a later session of the same run has run again

    @property
    def plan(self) -> dict[str, Any]:
        """Return what was recorded of the plan."""
        found = self.record.get("plan")
        return found if isinstance(found, dict) else {}

    @property
    def asked(self) -> dict[str, Any]:
        """Return what was recorded of the groups' settings, by id."""
        found = self.plan.get("asked")
        return found if isinstance(found, dict) else {}


def read(path: Path) -> tuple[list[Session], list[str]]:
    """The sessions of a journal file, and what of it could not be used, a line each.

    Raises:
        ColocateError: the file is not there, or holds no session.
    """
    found: list[Session] = []
    faults: list[str] = []
    room = MOST_BYTES
    try:
        lines = content(path).split(b"\n")
    except FileNotFoundError as error:
        raise ColocateError(f"{path}: expected a journal file, there is none") from error
    except (OSError, ValueError) as error:
        raise ColocateError(f"{path}: expected a journal file, got {error}") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                room -= _take(path, found, parse(line), room)
            except (ValueError, KeyError, TypeError, AttributeError, zlib.error, OSError) as error:
                torn = "torn" if number == len(lines) else "damaged"
                faults.append(f"{path}: line {number} is {torn} and left out ({error})")
    if not found:
        raise ColocateError(f"{path}: expected a journal file, found no session in it")
    for session in found:
        faults += [*session.faults, *_incomplete(session)]
    return found, faults


def _take(path: Path, found: list[Session], line: dict[str, Any], room: int) -> int:
    """Take in a line; how many bytes of files it unpacked to, of which there may be ``room``."""
    kind = line["event"]
    if kind == "run":
        found.append(Session(path, safe_name(str(line["name"])), dict(line["record"])))
        return 0
    if not found:
        raise ValueError("no session began before it")
    session = found[-1]
    if kind == "file":
        name = _inside(session, str(line["path"]))
        session.files[name] = data = _unpacked(base64.b64decode(line["gzip"]), min(room, MOST_FILE_BYTES))
        return len(data)
    if kind == "started":
        session.selected += [str(name) for name in line["groups"]]
        session.estimates |= line.get("estimates") or {}
    elif kind == "group":
        ended = _ended(line)
        session.groups[ended.result.group] = ended
    elif kind == "ended":
        session.ended_at = str(line["at"])
    return 0


def _unpacked(data: bytes, most_bytes: int) -> bytes:
    """What was packed, at most so much: a few kilobytes can be made to unpack to as many gigabytes."""
    unpacking = zlib.decompressobj(wbits=31)  # a gzip file
    found = unpacking.decompress(data, most_bytes + 1)
    if len(found) > most_bytes:
        raise ValueError(f"expected at most {most_bytes} bytes, it unpacks to more")
    if not unpacking.eof:
        raise ValueError("its packed end is missing")
    return found


def _ended(line: dict[str, Any]) -> Ended:
    result, files = GroupResult.from_json(line["record"]), line.get("files") or []
    if not result.group or not result.outcome:
        raise ValueError("expected the name of a group and its outcome as text")
    if not isinstance(files, list) or not all(isinstance(one, str) for one in files):
        raise ValueError("expected the names of its files as text")
    return Ended(str(line.get("at")), replace(result, text=str(line.get("text") or "")), tuple(files))


def _inside(session: Session, name: str) -> str:
    """A path below the run directory, and nowhere else, that is no folder of another file of the session."""
    words = name.split("/")
    if len(words) > _DEEPEST or any(safe_name(word) != word for word in words):
        raise ValueError(f"expected a path inside a run directory, got {name[:200]!r}")
    if any(other.startswith(f"{name}/") for other in session.files):
        raise ValueError(f"{name} cannot be both a file and a folder")
    for above in {"/".join(words[:depth]) for depth in range(1, len(words))} & session.files.keys():
        del session.files[above]  # the files of a group are many, this is one line
        session.faults.append(f"{session.source}: {above} is left out, it cannot be both a file and a folder")
    return name


def _incomplete(session: Session) -> Iterator[str]:
    """Groups that are named and not whole are left out: each costs itself only."""
    for name, ended in list(session.groups.items()):
        missing = [file for file in ended.files if file not in session.files]
        if missing:
            del session.groups[name]
            yield f"{session.source}: {name} is left out, {', '.join(missing)} cannot be read"
