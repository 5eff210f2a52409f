# SPDX-License-Identifier: Apache-2.0
"""Runs read from their directories for a report: whatever is there, with nothing demanded of it.

A record of another version, half a record or none at all becomes a row that shows less. What must be sound before it
is judged again is `colocate.results.verify`'s business.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import read_json, safe_name
from colocate.plan import is_of_size, needed
from colocate.results import advice_files, journal
from colocate.results.attempts import again_of, asked_of, group_results, is_outdated
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.lenient import read_leniently
from colocate.results.schema import RECORD_FIELDS, Record, Run, fitted
from colocate.verdict import AGAIN, PlanVerdict, Verdict

NO_FACTS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Row:
    """One group of one run: the run's record of it, and the files in its folder.

    ``attempts`` are the folders of all attempts at it in order, the deciding one among them.
    """

    run: str
    record: Record
    directory: GroupDirectory | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    verdict: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    attempts: tuple[GroupDirectory, ...] = ()

    def whole(self) -> "Row":
        """The row with its whole record, of which only the light part was kept."""
        return self if self.directory is None else replace(self, document=_documents(self.directory)[0])

    @property
    def group(self) -> str:
        """The group's id."""
        return str(self.record["group"])

    @property
    def key(self) -> str:
        """A name for the row's place in the page, unlike that of any other row."""
        return re.sub(r"[^\w-]", "-", f"{self.run}--{self.group}")

    @property
    def evidence(self) -> Mapping[str, Any]:
        """Return the stored evidence."""
        return mapping(self.document.get("evidence"))

    @property
    def device(self) -> Mapping[str, Any]:
        """The GPU that the group ran on."""
        return mapping(self.evidence.get("device"))

    def member(self, role: str) -> Mapping[str, Any]:
        """Return the stored evidence of one training."""
        return mapping(self.evidence.get(role))

    def settings(self, role: str) -> Mapping[str, Any]:
        """Repository, model and hyperparameters of one training, as the study's records have them."""
        return mapping(self.document.get(role))

    @property
    def content_hash(self) -> str | None:
        """Return the hash of the group's settings when it was run."""
        found = mapping(self.document.get("group")).get("content_hash")
        return None if found is None else str(found)

    @cached_property
    def baseline_bytes(self) -> int | None:
        """Return what the GPU held before the group."""
        return number(self.evidence.get("baseline_bytes"))

    @property
    def gpu(self) -> tuple[str, str]:
        """Name of the GPU and basis: rows that differ in one of the two are never counted together."""
        return (str(self.record.get("device_name") or ""), str(self.record.get("basis") or ""))

    @property
    def driver(self) -> str:
        """The GPU's driver; empty where the record has none, as that of a virtual GPU."""
        return str(self.device.get("driver_version") or "")


@dataclass(frozen=True)
class StoredRun:
    """One stored run: what was asked for, how its groups ended, and when."""

    path: Path
    info: Mapping[str, Any]
    rows: tuple[Row, ...]
    selected: tuple[str, ...] = ()
    started_at: str | None = None
    ended_at: str | None = None
    goes_on: bool = False
    again: frozenset[str] = frozenset()
    """Groups whose verdict the latest session found to hold no more, and that it did not run."""

    @property
    def name(self) -> str:
        """Return the run's name, such as ``run_20261124_053000``."""
        return self.path.name

    @property
    def place(self) -> str:
        """Its folder as one would type it from the project's, such as ``results/run_20261124_053000``."""
        return f"{self.path.parent.name}/{self.name}"

    @property
    def plan(self) -> Mapping[str, Any]:
        """Return the plan's part of ``run.json``."""
        return mapping(self.info.get("plan"))

    @property
    def plan_name(self) -> str:
        """The name of the plan; that in the records where ``run.json`` is lost."""
        known = (row.evidence.get("plan") for row in self.rows)
        return str(self.plan.get("name") or next(filter(None, known), None) or self.name)

    @cached_property
    def proposals(self) -> Mapping[str, Any]:
        """Return the proposals for the groups that do not fit, by group."""
        return advice_files.read(RunDirectory(self.path).proposals)

    @cached_property
    def remedies(self) -> Mapping[str, Any]:
        """Return the proposals that were tried, by group."""
        return advice_files.read(RunDirectory(self.path).remedies)

    @property
    def duration_s(self) -> float | None:
        """Return the time from the first group's start to the last one's end, or None if one is not known."""
        start, end = instant(self.started_at), instant(self.ended_at)
        return None if start is None or end is None else max(0.0, (end - start).total_seconds())


@dataclass(frozen=True)
class Part:
    """The rows of one plan on one kind of GPU with one driver, counted together."""

    plan_name: str
    runs: tuple[StoredRun, ...]
    rows: tuple[Row, ...]
    plan_verdict: PlanVerdict

    @property
    def counting(self) -> tuple[Row, ...]:
        """Return one row per group; of several runs of the same group, the last one."""
        return tuple({row.group: row for row in self.rows}.values())

    def first(self, name: str) -> Any:
        """The first known value of a field of the GPUs in this part."""
        return next((row.device[name] for row in self.rows if row.device.get(name) is not None), None)

    @property
    def limit_bytes(self) -> int | None:
        """Return the plan's limit."""
        known = [number(mapping(run.plan.get("limits")).get("peak_bytes")) for run in self.runs]
        known += [number(row.record.get("limit_bytes")) for row in self.rows]
        return next((limit for limit in known if limit is not None), None)

    @property
    def gpu_bytes(self) -> int | None:
        """The size of the GPU that the plan is made for, or of the smaller one that its groups were run on."""
        known = [number(mapping(run.plan.get("limits")).get("gpu_bytes")) for run in self.runs]
        known += [number(mapping(row.evidence.get("limits")).get("gpu_bytes")) for row in self.rows]
        planned, had = next((size for size in known if size is not None), None), number(self.first("total_bytes"))
        is_smaller = planned and had and had < planned and not is_of_size(had, planned)
        return had if is_smaller else planned


def read_run(path: Path | str) -> StoredRun:
    """Read everything that a run left in its folder.

    Raises:
        ColocateError: the folder is not there, or holds neither a journal nor a record.
    """
    run = RunDirectory(Path(path))
    reported, asked = journal.read(run.path), asked_of(run)
    on_disk = {row.group: row for row in _rows_on_disk(run)}
    found = dict(on_disk)
    for name, record in reported.records.items():
        if not is_outdated(name, record, asked):
            found[name] = _row_reported(run, record, reported.texts[name], on_disk.get(name))
    rows = list(found.values())
    if not rows and not run.record.exists():
        raise ColocateError(f"{path}: expected a run directory, found neither run.json nor the record of a group in it")
    info = read_leniently(_json(run.record), Run)
    ended_at = reported.ended_at or max((_end_of(row) or "" for row in rows), default="") or None
    return StoredRun(
        path=run.path,
        info=info,
        rows=tuple(sorted(rows, key=lambda row: (row.record.get("number") or 0, row.group))),
        selected=reported.selected,
        started_at=str(info.get("started_at") or reported.started_at or "") or None,
        ended_at=ended_at,
        goes_on=bool(reported.selected) and reported.ended_at is None,
        again=again_of(run) - reported.fresh,
    )


_Key = tuple[str, str, str, str]
"""Plan, the two parts of a GPU, and its driver."""


def parts(runs: list[StoredRun]) -> list[Part]:
    """The rows of all runs by plan, GPU and driver; those that never got a GPU go with the others of their run."""
    found: dict[_Key, tuple[dict[str, StoredRun], list[Row]]] = {}
    for run in sorted(runs, key=lambda run: run.started_at or ""):
        own = next((row.gpu for row in run.rows if any(row.gpu)), ("", ""))
        driver = next((row.driver for row in run.rows if row.driver), "")
        for row in run.rows:
            gpu = row.gpu if all(row.gpu) else (row.gpu[0] or own[0], row.gpu[1] or own[1])
            its_runs, rows = found.setdefault((run.plan_name, *gpu, row.driver or driver), ({}, []))
            its_runs[run.name] = run
            rows.append(row)
        if not run.rows:
            found.setdefault((run.plan_name, *own, driver), ({}, []))[0][run.name] = run
    return [
        Part(key[0], tuple(of.values()), tuple(_by_number(rows)), _plan_verdict(of, rows, _on_another(found, key)))
        for key, (of, rows) in found.items()
    ]


def _on_another(found: Mapping[_Key, tuple[dict[str, StoredRun], list[Row]]], key: _Key) -> set[str]:
    """Groups of the same plan that ask for another GPU, and had it: they count there and nowhere else."""
    runs, own = found[key]
    others = (rows for other, (_, rows) in found.items() if other != key and other[0] == key[0])
    there = {row.group for rows in others for row in rows} - {row.group for row in own}
    return there & {name for run in runs.values() for name in _asking(run)}


def _asking(run: StoredRun) -> list[str]:
    """The groups that are for a GPU of their own, by the plan that the run kept."""
    entries = mapping(run.plan.get("document")).get("experiments")
    known = [mapping(entry) for entry in entries] if isinstance(entries, list) else []
    return [str(entry.get("id")) for entry in known if entry.get("gpu")]


def _by_number(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.record.get("number") or 0, row.group))  # stable: runs stay in their order


def _plan_verdict(runs: Mapping[str, StoredRun], rows: list[Row], elsewhere: set[str]) -> PlanVerdict:
    plan = next((run.plan for run in runs.values() if run.plan.get("groups")), NO_FACTS)
    ids = [str(name) for name in plan.get("groups") or ()] or list(dict.fromkeys(row.group for row in rows))
    rate = plan.get("success_rate")
    wanted = number(plan.get("needed"))
    if elsewhere:
        ids = [name for name in ids if name not in elsewhere]
        wanted = None if rate is None else needed(float(rate), len(ids))
    found = {group: "not done" for run in runs.values() for group in run.selected}
    found |= {row.group: AGAIN if row.group in runs[row.run].again else str(row.record["outcome"]) for row in rows}
    return PlanVerdict.of(ids, found, len(ids) if wanted is None else wanted, 1.0 if rate is None else float(rate))


def _row_reported(run: RunDirectory, record: Mapping[str, Any], text: str, row: Row | None) -> Row:
    """The row of a group by the journal, with what lies on disk beside it."""
    name = Path(record["directory"] or "").name  # the run may have been moved
    if not name or name != safe_name(name):
        return Row(run.name, record, text=text)
    directory = GroupDirectory(run.path / name)
    record = {**record, "directory": str(directory.path)}
    if row is not None and row.directory is not None and row.directory.path == directory.path:
        return replace(row, record=record, text=text)
    document, verdict = _documents(directory)
    return Row(run.name, record, directory, document, verdict, text, attempts=() if row is None else row.attempts)


def _rows_on_disk(run: RunDirectory) -> Iterator[Row]:
    """The groups that have a verdict, each with the attempt that decides; those of other versions as they are."""
    directories = list(run.groups())
    group_result = group_results(run)
    for group in group_result.values():
        deciding = group.deciding
        row = _row(run, deciding.directory, fitted(deciding.experiment), group.verdict.to_json())
        yield replace(row, attempts=tuple(attempt.directory for attempt in group.attempts))
    asked = asked_of(run)
    known = {attempt.directory.path for group in group_result.values() for attempt in group.attempts}
    others = [directory for directory in directories if directory.path not in known]
    for directory in sorted(others, key=lambda directory: directory.verdict.stat().st_mtime):
        document, verdict = _documents(directory)
        reported = mapping(document.get("group"))
        name = reported.get("id")
        if name and name not in group_result and verdict.get("outcome") and not is_outdated(name, reported, asked):
            yield _row(run, directory, document, verdict)


def attempt_rows(row: Row) -> list[Row]:
    """Every attempt at a group as a row of its own, in the order in which they ended; a lost record is left out."""
    found = []
    for directory in row.attempts:
        document, verdict = mapping(_json(directory.experiment)), mapping(_json(directory.verdict))
        if document.get("group") and verdict.get("outcome"):
            found.append(_row(directory.run, directory, document, verdict))
    return found


def _row(run: RunDirectory, directory: GroupDirectory, document: Mapping[str, Any], verdict: Mapping[str, Any]) -> Row:
    return Row(run.name, judged_record(directory, document, verdict), directory, document, verdict)


def judged_record(directory: GroupDirectory, document: Mapping[str, Any], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of a judged group for terminal, JUnit and page, from the two files of its folder."""
    group, evidence = mapping(document.get("group")), mapping(document.get("evidence"))
    device = mapping(evidence.get("device"))
    known = {name: verdict.get(name) for name in RECORD_FIELDS}
    return known | {
        "group": group.get("id"),
        "number": group.get("number"),
        "tier": group.get("tier"),
        "foreground": mapping(evidence.get("foreground")).get("name"),
        "background": mapping(evidence.get("background")).get("name"),
        "expected_bytes": group.get("expected_bytes"),
        "budget_bytes": group.get("budget_bytes"),
        "codes": [reason["code"] for reason in verdict.get("reasons") or ()],
        "reasons": [f"{reason['text']} [{reason['code']}]" for reason in verdict.get("reasons") or ()],
        "warnings": [f"{reason['text']} [{reason['code']}]" for reason in verdict.get("warnings") or ()],
        "directory": str(directory.path),
        "duration_s": evidence.get("duration_s"),
        "device_name": device.get("name"),
        "device_uuid": device.get("uuid"),
    }


def _end_of(row: Row) -> str | None:
    start, duration_s = instant(row.evidence.get("started_at")), row.evidence.get("duration_s")
    if start is None or not isinstance(duration_s, int | float):
        return None
    try:
        return (start + timedelta(seconds=duration_s)).isoformat(timespec="seconds")
    except (OverflowError, ValueError):  # a damaged record: no calendar has such a day
        return None


def _documents(directory: GroupDirectory) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record and the verdict in a folder, as far as they are there and fit."""
    return fitted(_json(directory.experiment)), read_leniently(_json(directory.verdict), Verdict)


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except ColocateError:
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else NO_FACTS


def number(value: Any) -> int | None:
    """The value if it is a whole number."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def instant(value: Any) -> datetime | None:
    """An instant in ISO form; None for anything else."""
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None
