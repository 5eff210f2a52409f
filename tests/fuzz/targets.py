"""What is fuzzed: one function per kind of file, given its bytes and a folder of its own.

A target returns whatever the bytes are. Errors of the form `ColocateError` are an answer, with one line per mistake
that a terminal can show; anything else that comes out is a finding. What a training writes about itself is followed
to the verdict: it must come to a record that reads back as the same verdict.
"""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import builders

from colocate.errors import ColocateError, PlanError
from colocate.files import write_json
from colocate.harness.resume import decide, find_run
from colocate.harness.training_events import EventReader
from colocate.harness.training_monitor import TrainingMonitor
from colocate.plan.catalog import Training, load_catalog
from colocate.plan.plan import Group, Limits, load_plan
from colocate.report import status_line
from colocate.report.follow import Following
from colocate.report.html.page import Report, document
from colocate.report.summary_csv import write_summary
from colocate.results import journal, status
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.progress_file import QUEUE
from colocate.results.reader import parts, read_run
from colocate.results.record import write_record
from colocate.results.verify import verify

Target = Callable[[bytes, Path], None]

TRAINING = Training("training", (sys.executable, "-c", "pass"), Path("/"))
GROUP = Group("group01", 1, TRAINING, replace(TRAINING, name="background"), Limits())


def plan(data: bytes, folder: Path) -> None:
    """A plan file, as far as the command lines of its groups and writing it back."""
    path = _file(folder, "plan.json", data)
    with _clear_errors():
        loaded = load_plan(path)
        for group in loaded.groups:
            assert group.content_hash
            assert all(isinstance(word, str) for word in group.foreground.command(repeat=True))
        again = _file(folder, "again.json", json.dumps(loaded.to_json(), allow_nan=False).encode())
        assert load_plan(again).content_hash == loaded.content_hash


def catalog(data: bytes, folder: Path) -> None:
    """A catalog, and a plan that names every model of it."""
    path = _file(folder, "models.json", data)
    with _clear_errors():
        loaded = load_catalog(path)
        members = [
            {"mode": "default", "repo": repository, "model": model, "hyperparameters": {"epochs": 1}}
            for repository, spec in loaded.repositories.items()
            for model in spec.models[:5]
        ]
        entries = _file(folder, "plan.json", json.dumps({"experiments": members[:20]}).encode())
        load_plan(entries, loaded)


def events(data: bytes, folder: Path) -> None:
    """The events that a training writes, cut in two where the first line ends: reading twice is reading once."""
    directory = _group(folder)
    whole = EventReader(_file(folder, "events.jsonl", data))
    whole.poll()
    _file(folder, directory.events("foreground"), data)
    _judged(directory)


def probe(data: bytes, folder: Path) -> None:
    """The record of a probe."""
    directory = _group(folder)
    _file(folder, directory.probe("foreground") / "7.json", data)
    _judged(directory)


def trace(data: bytes, folder: Path) -> None:
    """The samples of a record."""
    run = _run(folder)
    _file(folder, _only(run).trace, data)
    _read(run)


def experiment(data: bytes, folder: Path) -> None:
    """The record of a group, for `verify`, `--resume` and the report."""
    run = _run(folder)
    _file(folder, _only(run).experiment, data)
    _read(run)


def verdict(data: bytes, folder: Path) -> None:
    """The verdict of a group."""
    run = _run(folder)
    _file(folder, _only(run).verdict, data)
    _read(run)


def run_record(data: bytes, folder: Path) -> None:
    """``run.json``."""
    run = _run(folder)
    _file(folder, run.record, data)
    _read(run)


def journal_lines(data: bytes, folder: Path) -> None:
    """The journal of a run."""
    run = _run(folder)
    _file(folder, run.path / journal.NAME, data)
    _read(run)
    with _clear_errors():
        following = Following(run.path)
        assert all(isinstance(line, str) for line in [*following.finished(), *following.lines(80)])


def heartbeat(data: bytes, folder: Path) -> None:
    """What a group that runs tells those who look on."""
    directory = _group(folder)
    _file(folder, directory.path / "progress.json", data)
    _file(folder, directory.events("foreground"), data)
    _file(folder, directory.probe("foreground") / "7.json", data)
    (directory.run.path / QUEUE).parent.mkdir(exist_ok=True)
    _file(folder, directory.run.path / QUEUE, data)
    assert all(isinstance(line, str) for line in status_line.waiting(directory.run.path))
    for state in status.running(directory.run.path):
        for width in (20, 200):
            assert len(status_line.line_of(state, 10.0, width)) <= width


TARGETS: dict[str, Target] = {
    "plan": plan,
    "catalog": catalog,
    "events": events,
    "probe": probe,
    "trace": trace,
    "experiment": experiment,
    "verdict": verdict,
    "run": run_record,
    "journal": journal_lines,
    "heartbeat": heartbeat,
}


class _clear_errors(suppress):
    """Lets the errors of colocate pass as an answer, if each mistake is one line that a terminal can show."""

    def __init__(self) -> None:
        super().__init__(ColocateError)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        for line in error.mistakes if isinstance(error, PlanError) else ():
            assert line.isprintable(), f"expected one line that a terminal can show, got {line!r}"
        return super().__exit__(kind, error, traceback)


def _judged(directory: GroupDirectory) -> None:
    """What the foreground told comes to a record that reads back as the same verdict."""
    watch = TrainingMonitor("foreground", TRAINING, directory)
    reported = watch.member(0.0)
    sound = builders.foreground()
    member = replace(reported, process_runs=sound.process_runs, held_gpu=True, ready_s=sound.ready_s)
    write_record(directory, GROUP, builders.evidence(foreground=member), [], "run")
    for found in verify(directory.path):
        assert found.agrees, str(found)
    _page(directory.run)


def _read(run: RunDirectory) -> None:
    """Everything that reads a run."""
    with _clear_errors():
        assert all(str(found) for found in verify(run.path))
    with _clear_errors():
        assert decide(find_run(run.path.parent, run.name, "test"), [GROUP], ())
    _page(run)


def _page(run: RunDirectory) -> None:
    with _clear_errors():
        found = read_run(run.path)
        assert parts([found])
        assert document(Report.of([found], run.path))
        write_summary(run)


def _file(folder: Path, name: str | Path, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _group(folder: Path) -> GroupDirectory:
    """The folder of a group that has not ended, in a run of its own."""
    shutil.rmtree(folder / "results", ignore_errors=True)
    run = RunDirectory(folder / "results" / "run_20261124_053000")
    directory = run.group("training", 1, parallel=True)
    directory.path.mkdir(parents=True)
    return directory.create()


def _run(folder: Path) -> RunDirectory:
    """A sound run of one group."""
    directory = _group(folder)
    write_record(directory, GROUP, builders.evidence(), [], directory.run.name)
    write_json(directory.run.record, {"schema": 1, "boot_id": "x", "plan": {"name": "test", "groups": ["group01"]}})
    return directory.run


def _only(run: RunDirectory) -> GroupDirectory:
    return next(run.groups())
