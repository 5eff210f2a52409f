# SPDX-License-Identifier: Apache-2.0
"""Journal files become a run directory: each group once, plans never mixed, kinds of GPUs kept apart."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from colocate.errors import ColocateError
from colocate.files import make_folder, parse, write_json, write_text
from colocate.results import archive, journal
from colocate.results.archive import Ended, Session
from colocate.results.layout import RunDirectory
from colocate.results.reader import group_results
from colocate.results.verify import verify
from colocate.verdict import Outcome

Gpu = tuple[str, str]
"""Name and basis: what `colocate.results.reader` keeps apart too."""


@dataclass(frozen=True)
class Entry(Ended):
    """A group as one session ended it."""

    session: Session

    @property
    def superseded(self) -> bool:
        """A later session of the same run has run the group again, because this ending held no more."""
        return self.result.group in self.session.superseded

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that it ran on; None where it never got one."""
        return self.result.gpu if all(self.result.gpu) else None

    def __str__(self) -> str:
        return f"{self.result.outcome} at {self.at} in {self.session.source.name}"


@dataclass(frozen=True)
class Merged:
    """The merged runs, one per kind of GPU, what is missing from them, and remarks."""

    runs: tuple[RunDirectory, ...]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def merge(paths: Sequence[Path], results: Path, now: datetime) -> Merged:
    """Make run directories of archives.

    Raises:
        ColocateError: a file is no archive, they are of different plans, or nothing can be written.
    """
    sessions: list[Session] = []
    missing: list[str] = []
    notes: list[str] = []
    for path in paths:
        found, faults = archive.read(path)
        sessions += found
        missing += [*faults, *(fault for session in found for fault in _untrue(session))]
    missing += _outdated(sessions)
    _refuse_other_plans(sessions)
    runs = []
    for entries in _by_gpu(sessions).values():
        run = RunDirectory.new(results, now)
        chosen, repeated = _latest(entries)
        notes += repeated
        missing += _contradictions(entries)
        _write(run, sessions, chosen)
        runs.append(run)
    return Merged(tuple(runs), (*missing, *_missing(sessions)), (*notes, *_versions(sessions)))


def _untrue(session: Session) -> Iterator[str]:
    """Groups whose verdict does not follow from the record that the archive carries are left out."""
    for name, ended in list(session.groups.items()):
        why = _why_untrue(session, ended)
        if why is not None:
            del session.groups[name]
            yield f"{session.source}: {name} is left out, {why}"


def _why_untrue(session: Session, ended: Ended) -> str | None:
    said = ended.result.outcome
    if not ended.result.is_judged:
        return None
    with TemporaryDirectory(prefix="colocate-merge-") as folder:
        run = RunDirectory(Path(folder) / session.name)
        for file in ended.files:
            _put(run, file, session.files[file])
        found = group_results(run).get(ended.result.group)
        if found is None:
            return f"it carries no record of its verdict, {said}"
        if found.outcome != said:
            return f"it says {said}, its record {found.outcome}"
        return next((f"its record does not agree: {one.text}" for one in verify(run.path) if not one.agrees), None)


def _missing(sessions: Sequence[Session]) -> Iterator[str]:
    """Groups without an outcome: a job that was cut off, or that never began."""
    ended = {group for session in sessions for group in session.groups}
    begun = [name for session in sessions for name in session.selected if name not in ended]
    for name in dict.fromkeys(begun):
        sources = ", ".join(session.source.name for session in sessions if name in session.selected)
        yield f"{name}: begun and without an outcome ({sources})"
    absent = [str(name) for name in sessions[0].plan.get("groups") or () if name not in ended and name not in begun]
    if absent:
        yield f"in no archive: {', '.join(absent)}"


def _outdated(sessions: Sequence[Session]) -> Iterator[str]:
    """A run that was resumed has the plan of its latest session, and no verdict that one found to hold no more."""
    for earlier in sessions:
        for later in sessions:
            if not _is_resumed_by(earlier, later):
                continue
            earlier.record["plan"] = later.plan
            again = _resumed(later)[-1].get("again") or {}
            earlier.superseded |= again.keys() & later.groups.keys()
            for name in sorted(again.keys() & earlier.groups.keys() - later.groups.keys()):
                del earlier.groups[name]
                yield f"{earlier.source}: {name} is left out, it is to be run again: {again[name]}"


def _is_resumed_by(earlier: Session, later: Session) -> bool:
    """Names alone do not tell: two machines may begin a run in the same second."""
    alike = all(earlier.record.get(name) == later.record.get(name) for name in ("started_at", "boot_id"))
    return alike and earlier.name == later.name and len(_resumed(earlier)) < len(_resumed(later))


def _resumed(session: Session) -> list[dict[str, Any]]:
    """The sessions of its run up to it, but for the first."""
    found = session.record.get("sessions")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _refuse_other_plans(sessions: Sequence[Session]) -> None:
    plans: dict[str, Session] = {}
    for session in sessions:
        plans.setdefault(str(session.plan.get("content_hash")), session)
    if len(plans) > 1:
        named = "; ".join(f"{one.source}: {one.plan.get('name')} in {one.name}" for one in plans.values())
        raise ColocateError(f"merge: expected archives of one plan with the same settings, found {len(plans)}: {named}")


def _by_gpu(sessions: Sequence[Session]) -> dict[Gpu, list[Entry]]:
    """The groups by the GPU that they ran on; those that never got one go with the others of their session."""
    entries = [Entry(one.at, one.result, one.files, session) for session in sessions for one in session.groups.values()]
    gpus = {id(entry.session): entry.gpu for entry in entries if entry.gpu}
    first = next(iter(gpus.values()), None) or ("", "")
    found: dict[Gpu, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.gpu or gpus.get(id(entry.session)) or first, []).append(entry)
    return found or {first: []}


def _contradictions(entries: Sequence[Entry]) -> Iterator[str]:
    """Groups of which one archive says that they fit and another that they do not."""
    found: dict[str, dict[str, str]] = {}
    for entry in (entry for entry in entries if not entry.superseded):
        told = f"{entry.result.outcome} ({entry.at} in {entry.session.source.name})"
        found.setdefault(entry.result.group, {}).setdefault(entry.result.outcome, told)
    for group, outcomes in found.items():
        if {Outcome.FEASIBLE, Outcome.INFEASIBLE} <= outcomes.keys():
            yield f"{group}: the archives contradict each other, the worse one counts: {', '.join(outcomes.values())}"


def _counts(entry: Entry) -> tuple[bool, str]:
    """The later ending counts; but that a group does not fit outlives whatever was seen on another day or machine."""
    return entry.result.outcome == Outcome.INFEASIBLE and not entry.superseded, entry.at


def _latest(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """Choose the last ending of each group, or that it does not fit; another one is named."""
    chosen: dict[str, Entry] = {}
    notes: dict[str, list[str]] = {}
    for entry in sorted(entries, key=_counts):
        earlier = chosen.get(entry.result.group)
        if earlier is not None:
            notes.setdefault(entry.result.group, []).append(str(earlier))
        chosen[entry.result.group] = entry
    noted = []
    for group, others in notes.items():
        latest = max(entry.at for entry in entries if entry.result.group == group)
        which, rest = ("later", "before") if chosen[group].at == latest else ("worse", "not")
        text = f"the {which} of {len(others) + 1} archives counts; {rest}: {', '.join(others)} [merged]"
        chosen[group] = replace(chosen[group], result=chosen[group].result.with_warning(text))
        noted.append(f"{group}: {text}")
    return list(chosen.values()), noted


def _write(run: RunDirectory, sessions: Sequence[Session], chosen: Sequence[Entry]) -> None:
    used = [session for session in sessions if any(entry.session is session for entry in chosen)] or list(sessions)
    owned = {name for session in sessions for ended in session.groups.values() for name in ended.files}
    folders = {name.split("/")[0] for entry in chosen for name in entry.files}
    for session in used:  # what belongs to no group, such as side runs
        for name, data in session.files.items():
            top, inside, _ = name.partition("/")
            left_out = inside and top not in folders and not top.startswith(f"{session.name}_")
            if name not in owned and not left_out and name != run.proposals.name:
                _put(run, name.replace(f"{session.name}_", f"{run.name}_", 1), data)
    for entry in chosen:
        for name in entry.files:
            _put(run, name, entry.session.files[name])
    proposals = _proposals(run.proposals.name, chosen)
    if proposals is not None:
        write_json(run.proposals, proposals)
    write_json(run.record, _record(used, chosen))
    order = [str(name) for name in used[0].plan.get("groups") or ()]
    lines = list(_journal(used, chosen, order))
    write_text(run.path / journal.NAME, "".join(json.dumps(line) + "\n" for line in lines))


def _proposals(name: str, chosen: Sequence[Entry]) -> dict[str, Any] | None:
    """Collect the proposals for the groups from the sessions that ran them."""
    found: dict[str, Any] = {}
    document: dict[str, Any] = {}
    for entry in chosen:
        with contextlib.suppress(KeyError, ValueError):
            document = parse(entry.session.files[name])
            found[entry.result.group] = document["groups"][entry.result.group]
    return {**document, "groups": found} if found else None


def _put(run: RunDirectory, name: str, data: bytes) -> None:
    path = run.path / name
    make_folder(path.parent)
    earlier = path.read_bytes() if path.suffix == ".jsonl" and path.exists() else b""  # journals of side runs add up
    path.write_bytes(earlier + data)


def _record(used: Sequence[Session], chosen: Sequence[Entry]) -> dict[str, Any]:
    """``run.json`` of the first session, with the GPUs of all, and where everything is from."""
    gpus: list[Any] = []
    for session in used:
        reported = session.record.get("gpu")
        gpus += [one for one in (reported.get("gpus") or () if isinstance(reported, dict) else ()) if one not in gpus]
    starts = [str(session.record["started_at"]) for session in used if session.record.get("started_at")]
    merged = [
        {
            "journal": session.source.name,
            "run": session.name,
            "groups": sorted(one.result.group for one in chosen if one.session is session),
        }
        for session in used
    ]
    first = {name: value for name, value in used[0].record.items() if name != "sessions"}  # a merged run has none
    plan = {**used[0].plan, "asked": {**used[0].asked, **dict(_asked(chosen))}}
    document = {**first, "plan": plan, "gpu": {**(first.get("gpu") or {}), "gpus": gpus}, "merged": merged}
    return document | ({"started_at": min(starts)} if starts else {})


def _asked(chosen: Sequence[Entry]) -> Iterator[tuple[str, Any]]:
    """Collect each group's settings from where it ran: machines keep the programs in different places."""
    for entry in chosen:
        if entry.result.group in entry.session.asked:
            yield entry.result.group, entry.session.asked[entry.result.group]


def _journal(used: Sequence[Session], chosen: Sequence[Entry], order: Sequence[str]) -> Iterator[dict[str, Any]]:
    selected = {name for session in used for name in session.selected}
    estimates = {name: value for session in used for name, value in session.estimates.items()}
    starts = [str(session.record.get("started_at")) for session in used]
    groups = [name for name in order if name in selected] + sorted(selected - set(order))
    yield {"at": min(starts), "event": "started", "groups": groups, "estimates": estimates}
    for one in sorted(chosen, key=lambda one: one.at):
        yield {"at": one.at, "event": "group", "record": one.result.to_json(), "text": one.result.text}
    ends = [session.ended_at for session in used if session.ended_at] + [one.at for one in chosen]
    yield {"at": max(ends, default=min(starts)), "event": "ended"}


def _versions(sessions: Sequence[Session]) -> Iterator[str]:
    """Whatever the groups were run with differently."""
    found: dict[str, set[str]] = {}
    for session in sessions:
        versions = session.record.get("versions")
        for name, value in (versions if isinstance(versions, dict) else {}).items():
            found.setdefault(name, set()).add(str(value))
    for name, values in found.items():
        if len(values) > 1:
            yield f"the archives were made with different versions of {name}: {', '.join(sorted(values))}"
