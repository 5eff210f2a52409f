# SPDX-License-Identifier: Apache-2.0
"""Runs read from their directories for a report: whatever is there, with nothing demanded of it.

A record of another version, half a record or none at all becomes a row that shows less. What must be sound before it
is judged again is `colocate.results.verify`'s business.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import count
from pathlib import Path

from colocate.errors import ColocateError
from colocate.files import safe_name
from colocate.plan import Group, is_of_size, needed
from colocate.results import advice_files, journal
from colocate.results.group_result import GroupResult, combine_attempts
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import Attempt, glance, read_attempt, without_bulk
from colocate.results.run_record import PlanRecord, RunRecord
from colocate.verdict import AGAIN, PlanVerdict

MOST_WHOLE = 100
"""Of more attempts than these what is bulky is left out, and read again where it is shown."""


@dataclass(frozen=True)
class StoredRun:
    """One stored run: what was asked for, how its groups ended, and when."""

    path: Path
    info: RunRecord
    results: tuple[GroupResult, ...]
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
    def plan(self) -> PlanRecord:
        """Return the plan's part of ``run.json``."""
        return self.info.plan

    @property
    def plan_name(self) -> str:
        """The name of the plan; that in the records where ``run.json`` is lost."""
        known = (result.evidence.plan for result in self.results)
        return self.plan.name or next(filter(None, known), None) or self.name

    @cached_property
    def proposals(self) -> Mapping[str, advice_files.Proposals]:
        """Return the proposals for the groups that do not fit, by group."""
        return advice_files.read(RunDirectory(self.path).proposals, advice_files.Proposals)

    @cached_property
    def remedies(self) -> Mapping[str, advice_files.Remedies]:
        """Return the proposals that were tried, by group."""
        return advice_files.read(RunDirectory(self.path).remedies, advice_files.Remedies)

    @property
    def duration_s(self) -> float | None:
        """Return the time from the first group's start to the last one's end, or None if one is not known."""
        start, end = instant(self.started_at), instant(self.ended_at)
        return None if start is None or end is None else max(0.0, (end - start).total_seconds())


@dataclass(frozen=True)
class Part:
    """The results of one plan on one kind of GPU with one driver, counted together."""

    plan_name: str
    runs: tuple[StoredRun, ...]
    results: tuple[GroupResult, ...]
    plan_verdict: PlanVerdict

    @property
    def counting(self) -> tuple[GroupResult, ...]:
        """Return one result per group; of several runs of the same group, the last one."""
        return tuple({result.group: result for result in self.results}.values())

    @property
    def driver(self) -> str | None:
        """The driver of its GPUs; None on virtual ones."""
        return next(filter(None, (result.evidence.device.driver_version for result in self.results)), None)

    @property
    def limit_bytes(self) -> int | None:
        """Return the plan's limit."""
        known = [run.plan.limits.peak_bytes for run in self.runs] + [result.limit_bytes for result in self.results]
        return next((limit for limit in known if limit is not None), None)

    @property
    def gpu_bytes(self) -> int | None:
        """The size of the GPU that the plan is made for, or of the smaller one that its groups were run on."""
        known = [run.plan.limits.gpu_bytes for run in self.runs]
        known += [result.evidence.limits.gpu_bytes for result in self.results]
        planned = next((size for size in known if size is not None), None)
        had = next(filter(None, (result.evidence.device.total_bytes for result in self.results)), None)
        is_smaller = planned and had and had < planned and not is_of_size(had, planned)
        return had if is_smaller else planned


def group_results(run: RunDirectory, *, every: bool = False) -> dict[str, GroupResult]:
    """Read the results of all groups of a run, by id; a record that cannot be read is left out.

    So is one of other settings than the run's plan has by now, as after an edit and ``--resume``, but with ``every``.
    """
    plan = PlanRecord() if every else RunRecord.of(run).plan
    directories = list(run.groups())
    found: dict[str, list[Attempt]] = {}
    for attempt in _whole(directories):
        name = attempt.group.id
        if not plan.has_outdated(name, attempt.group.content_hash):
            found.setdefault(name, []).append(without_bulk(attempt) if len(directories) > MOST_WHOLE else attempt)
    return {
        name: replace(combine_attempts(attempts, plan.asked[name].runs if name in plan.asked else 1), run=run.name)
        for name, attempts in found.items()
    }


def group_result_of(run: RunDirectory, group: Group) -> GroupResult | None:
    """Read the result of one group of a run, or None if nothing of it can be read."""
    found = _whole(_directories(run, group))
    attempts = [attempt for attempt in found if attempt.group.content_hash in (None, group.content_hash)]
    return combine_attempts(attempts, group.runs) if attempts else None


def _directories(run: RunDirectory, group: Group) -> Iterator[GroupDirectory]:
    name, parallel = group.foreground.name, group.background is not None
    for repeat in range(1, group.runs + 1):
        for attempt in count(1):
            directory = run.group(name, group.number, parallel=parallel, repeat=repeat, attempt=attempt)
            if not directory.path.exists():
                break
            if directory.verdict.exists():
                yield directory


def _whole(directories: Iterable[GroupDirectory]) -> Iterator[Attempt]:
    for directory in directories:
        try:
            yield read_attempt(directory)
        except ColocateError:
            continue  # `colocate verify` names it; the other groups are not its hostages


def read_run(path: Path | str) -> StoredRun:
    """Read everything that a run left in its folder.

    Raises:
        ColocateError: the folder is not there, or holds neither a journal nor a record.
    """
    run = RunDirectory(Path(path))
    info, reported = RunRecord.of(run), journal.read(run.path)
    found = {result.group: result for result in _on_disk(run, info.plan)}
    for name, result in reported.results.items():
        if not info.plan.has_outdated(name, result.content_hash):
            found[name] = _reported(run, result, found.get(name))
    results = list(found.values())
    if not results and not run.record.exists():
        raise ColocateError(f"{path}: expected a run directory, found neither run.json nor the record of a group in it")
    return StoredRun(
        path=run.path,
        info=info,
        results=_by_number(results),
        selected=reported.selected,
        started_at=info.started_at or reported.started_at,
        ended_at=reported.ended_at or max((_end_of(result) or "" for result in results), default="") or None,
        goes_on=bool(reported.selected) and reported.ended_at is None,
        again=frozenset(info.latest.again) - reported.fresh,
    )


_Key = tuple[str, str, str, str]
"""Plan, the two parts of a GPU, and its driver."""


def parts(runs: list[StoredRun]) -> list[Part]:
    """The results of all runs by plan, GPU and driver; those that never got a GPU go with the others of their run."""
    found: dict[_Key, tuple[dict[str, StoredRun], list[GroupResult]]] = {}
    for run in sorted(runs, key=lambda run: run.started_at or ""):
        own = next((result.gpu for result in run.results if any(result.gpu)), ("", ""))
        driver = next(filter(None, (result.evidence.device.driver_version for result in run.results)), "")
        for result in run.results:
            gpu = result.gpu if all(result.gpu) else (result.gpu[0] or own[0], result.gpu[1] or own[1])
            key = (run.plan_name, *gpu, result.evidence.device.driver_version or driver)
            its_runs, results = found.setdefault(key, ({}, []))
            its_runs[run.name] = run
            results.append(result)
        if not run.results:
            found.setdefault((run.plan_name, *own, driver), ({}, []))[0][run.name] = run
    return [
        Part(key[0], tuple(of.values()), _by_number(results), _plan_verdict(of, results, _on_another(found, key)))
        for key, (of, results) in found.items()
    ]


def _on_another(found: Mapping[_Key, tuple[dict[str, StoredRun], list[GroupResult]]], key: _Key) -> set[str]:
    """Groups of the same plan that ask for another GPU, and had it: they count there and nowhere else."""
    runs, own = found[key]
    others = (results for other, (_, results) in found.items() if other != key and other[0] == key[0])
    there = {result.group for results in others for result in results} - {result.group for result in own}
    return there & {name for run in runs.values() for name in _asking(run)}


def _asking(run: StoredRun) -> list[str]:
    """The groups that are for a GPU of their own, by the plan that the run kept."""
    document = run.plan.document
    entries = document.get("experiments") if isinstance(document, dict) else None
    known = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return [str(entry.get("id")) for entry in known if entry.get("gpu")]


def _by_number(results: Iterable[GroupResult]) -> tuple[GroupResult, ...]:
    return tuple(sorted(results, key=lambda one: (one.number or 0, one.group)))  # stable: runs stay in their order


def _plan_verdict(runs: Mapping[str, StoredRun], results: Iterable[GroupResult], elsewhere: set[str]) -> PlanVerdict:
    plan = next((run.plan for run in runs.values() if run.plan.groups), PlanRecord())
    ids = plan.groups or tuple(dict.fromkeys(result.group for result in results))
    wanted, rate = plan.needed, plan.success_rate
    if elsewhere:
        ids = tuple(name for name in ids if name not in elsewhere)
        wanted = None if rate is None else needed(rate, len(ids))
    found = {group: "not done" for run in runs.values() for group in run.selected}
    found |= {one.group: AGAIN if one.group in runs[one.run].again else str(one.outcome) for one in results}
    return PlanVerdict.of(ids, found, len(ids) if wanted is None else wanted, 1.0 if rate is None else rate)


def _reported(run: RunDirectory, told: GroupResult, on_disk: GroupResult | None) -> GroupResult:
    """The result of a group by the journal, with what lies on disk beside it."""
    name = Path(told.directory or "").name  # the run may have been moved
    if not name or name != safe_name(name):
        return replace(told, run=run.name)
    directory = GroupDirectory(run.path / name)
    told = replace(told, run=run.name, directory=str(directory.path))
    if on_disk is not None and on_disk.directory == told.directory:
        return replace(told, verdict=on_disk.verdict, deciding=on_disk.deciding, attempts=on_disk.attempts)
    deciding = glance(directory)
    attempts = () if on_disk is None else on_disk.attempts
    return replace(told, verdict=deciding.verdict, deciding=deciding, attempts=attempts)


def _on_disk(run: RunDirectory, plan: PlanRecord) -> Iterator[GroupResult]:
    """The groups that have a verdict, each with the attempt that decides; those of other versions as they are."""
    whole = group_results(run)
    yield from whole.values()
    known = {attempt.directory.path for result in whole.values() for attempt in result.attempts}
    others = [directory for directory in run.groups() if directory.path not in known]
    for directory in sorted(others, key=lambda directory: directory.verdict.stat().st_mtime):
        attempt = glance(directory)
        name = attempt.group.id
        is_known = name and name not in whole and attempt.verdict.outcome
        if is_known and not plan.has_outdated(name, attempt.group.content_hash):
            yield replace(GroupResult.of(attempt, attempt.verdict, ()), run=run.name)


def _end_of(result: GroupResult) -> str | None:
    start, duration_s = instant(result.evidence.started_at), result.evidence.duration_s
    if start is None or duration_s is None:
        return None
    try:
        return (start + timedelta(seconds=duration_s)).isoformat(timespec="seconds")
    except (OverflowError, ValueError):  # a damaged record: no calendar has such a day
        return None


def instant(value: str | None) -> datetime | None:
    """An instant in ISO form; None for anything else."""
    try:
        return datetime.fromisoformat(value or "")
    except ValueError:
        return None
