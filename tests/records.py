"""Runs on disk as a session leaves them, of fabricated evidence."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from builders import evidence
from groups import group, training

from colocate.harness.attempt import free_directory
from colocate.plan.plan import Group
from colocate.report.html import page
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.reader import read_run
from colocate.results.record import write_record
from colocate.units import MIB
from colocate.verdict.evidence import Evidence

STARTED_AT = "2026-11-24T05:30:00+00:00"


def run_in(folder: Path, day: int = 24) -> RunDirectory:
    """The empty directory of a run."""
    run = RunDirectory(folder / f"run_202611{day}_053000")
    run.path.mkdir(parents=True)
    return run


def begin(run: RunDirectory, num_groups: int = 1, needed: int = 1, **plan: Any) -> None:
    """Write the record of a run of so many groups."""
    groups = [f"group{number:02}" for number in range(1, num_groups + 1)]
    known = {"name": "a_plan", "groups": groups, "needed": needed, "success_rate": 0.5, "tiers": {"low": 1.0}}
    run.path.mkdir(parents=True, exist_ok=True)
    run.record.write_text(json.dumps({"plan": {**known, **plan}, "started_at": STARTED_AT}))


def planned(number: int = 1, **changes: Any) -> Group:
    """The group of that number."""
    one = replace(group(training("mnist"), training("resnet20")), tier="low", expected_bytes=3500 * MIB)
    return replace(one, **{"id": f"group{number:02}", "number": number, **changes})


def finish(run: RunDirectory, number: int = 1, seen: Evidence | None = None, **changes: Any) -> GroupDirectory:
    """Write the record of one group, or of one attempt more at it, as a session does."""
    one = planned(number, **changes)
    directory = free_directory(run, one, 1 if seen is None else seen.run).create()
    counted = replace(seen or evidence(), group=one.id, run=directory.repeat, attempt=directory.attempt)
    write_record(directory, one, counted, [], run.name)
    return directory


def propose(run: RunDirectory, given: Group, *proposals: dict[str, Any]) -> None:
    """Write what could be tried for a group in place of its settings."""
    entry = {"content_hash": given.content_hash, "proposals": proposals}
    run.proposals.write_text(json.dumps({"schema": 1, "groups": {given.id: entry}}))


def body(*runs: RunDirectory) -> str:
    """The page of some runs, which lies in the first of them."""
    return str(page.body(page.Report.of([read_run(run.path) for run in runs], runs[0].path)))
