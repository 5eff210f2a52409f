# SPDX-License-Identifier: Apache-2.0
"""``--executor``: every group runs in a task elsewhere, and the session takes over what the task reports.

A task is this session's own command line on another machine, for the one group that ``COLOCATE_TASK`` names. It behaves
as a worker of xdist does: it writes its record into the session's run directory, and neither page nor JUnit file. What
a worker would send over its channel stands in ``tasks/GROUP.RESTARTS.jsonl`` of the run directory.
"""

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colocate.errors import ColocateError
from colocate.files import append_line, make_folder, parse, read_json, write_json
from colocate.harness import environment
from colocate.plugin import handover
from colocate.plugin.invocation import leads
from colocate.plugin.options import option
from colocate.plugin.session import Session, group_of, run_directory_of, session_of, warn
from colocate.plugin.slurm_arrays import SlurmArrays
from colocate.plugin.workers import minutes
from colocate.results import QUEUE, tell

if TYPE_CHECKING:
    from colocate.plan import Group

TASK = "COLOCATE_TASK"
"""Environment variable of a task: the path of its report without the ending, whose name is the group's."""

LOOK_S = 0.5  # how often the files of tasks are looked at
POLL_S = 5.0  # how often the queue is asked: often enough for a person, seldom enough for a cluster
GONE_S = 4.0  # a task that the queue does not know for so long, twice in a row, will not report its end any more
GRACE_S = 30.0  # a task that is told to end stops its trainings, waits for the GPU and writes its record


# --- in the session ---------------------------------------------------------------------------------------------------


def prepare(config: pytest.Config, session: Session) -> None:
    """Choose the executor, and keep xdist from starting workers in a session or a task that needs none.

    Raises:
        pytest.UsageError: the options do not fit together, or the executor cannot run anything.
    """
    where, slurm = option(config, "executor"), option(config, "slurm")
    if slurm and not where and leads(config):
        raise pytest.UsageError(f"--slurm: expected --executor=slurm beside it, got {slurm!r} alone")
    known = getattr(config, "workerinput", {}).get("colocate_plan", session.plan.content_hash)
    if session.plan.content_hash != known:
        raise pytest.UsageError(
            f"{session.plan.path}: expected the plan as it was when the run began, found it changed"
        )
    if where and hasattr(config.option, "tx"):
        config.option.tx, config.option.dist = [], "no"
    if where and leads(config):
        gpu, by_kind = option(config, "device") != "virtual", option(config, "gpu") is None
        try:
            session.executor = SlurmArrays(where, slurm, gpu=gpu, by_kind=by_kind)
        except ColocateError as error:
            raise pytest.UsageError(str(error)) from error
        session.notes += session.executor.unmet(session.plan.groups)


@dataclass
class _Task:
    """A group of this session that runs elsewhere."""

    item: pytest.Item
    group: "Group"
    folder: Path
    begun: dict[str, Any] | None = None
    missing_since: float | None = None
    avoid: set[str] = field(default_factory=set)

    def files(self) -> list[Path]:
        """The reports of the task, one per start of it, the latest last."""
        found = self.folder.glob(f"{self.group.id}.*.jsonl")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def read(self) -> list[dict[str, Any]]:
        """What the task has reported since its last start; a line that is being written waits for the next time."""
        try:
            content = self.files()[-1].read_bytes()
        except (OSError, IndexError):
            return []
        found = []
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            with contextlib.suppress(ValueError):  # torn, by a task that was killed
                found.append(parse(line))
        return found


class RemoteGroups:
    """The loop of a session whose groups run elsewhere."""

    def __init__(self, config: pytest.Config, executor: SlurmArrays) -> None:
        self.config = config
        self.session = session_of(config)
        self.executor = executor
        self.run = run_directory_of(config)
        self.folder = self.run.path / "tasks"
        self._begun: list[dict[str, Any]] = []
        self._asked_t = self._answered_t = float("-inf")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Submit the groups, then take over each as it ends; what needs no GPU is done here."""
        if session.testsfailed:  # while collecting: pytest's own loop tells of it
            return None
        away = [task for item in session.items if (task := self._task(item)) is not None]
        here = [item for item in session.items if item not in [task.item for task in away]]
        for item in here:
            self.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            _stop_if_asked(session)
        if away:
            away.sort(key=lambda task: -minutes(self.config, task.item.nodeid))
            try:
                self._submit(away)
                self._follow(session, away)
            except ColocateError as error:
                session.shouldstop = f"{error}; see --slurm"
                raise session.Interrupted(session.shouldstop) from error
            finally:
                self._end(away)
        return True

    def _task(self, item: pytest.Item) -> _Task | None:
        group = group_of(self.config, item.nodeid)
        if group is None or group.missing:
            return None
        decision = self.session.decisions.get(group.id)
        if decision is not None and decision.reused is not None:
            return None
        return _Task(item, group, self.folder)

    def _submit(self, tasks: list[_Task]) -> None:
        make_folder(self.folder)
        known = self.folder / "session.json"
        write_json(known, {**handover.told(self.session), "colocate_plan": self.session.plan.content_hash})
        safe = ["-P"] if sys.flags.safe_path else []
        words = [sys.executable, *safe, "-m", "pytest", *map(str, self.config.invocation_params.args)]
        at_once = getattr(self.config.option, "numprocesses", None) or None
        for file in (file for task in tasks for file in task.files()):  # of an earlier session, or of a refused task
            file.unlink(missing_ok=True)
        folder = self.config.invocation_params.dir
        self.executor.submit([task.group for task in tasks], words, self.folder, folder, at_once, tasks[0].avoid)

    def _follow(self, session: pytest.Session, tasks: list[_Task]) -> None:
        while tasks:
            self._look_into_the_queue(tasks)
            for task in list(tasks):
                if self._has_ended(task) or self._is_lost(task):
                    tasks.remove(task)
                    _stop_if_asked(session)
            time.sleep(LOOK_S if tasks else 0)

    def _look_into_the_queue(self, tasks: list[_Task]) -> None:
        """Note what has left the queue, and tell what waits and why to whoever looks on."""
        if time.monotonic() - self._asked_t < POLL_S:
            return
        self._asked_t = time.monotonic()
        try:
            queue = self.executor.poll()
        except ColocateError:  # the queue may be too busy to answer; the jobs are there
            return
        self._answered_t = time.monotonic()
        for task in tasks:
            gone = task.group.id not in queue
            task.missing_since = (task.missing_since or self._answered_t) if gone else None
        waiting = [{"name": name, "reason": why} for name, why in queue.values() if why is not None]
        make_folder((self.run.path / QUEUE).parent)
        tell(self.run.path / QUEUE, {"place": self.executor.place, "waiting": waiting})

    def _has_ended(self, task: _Task) -> bool:
        """Take over what a task has reported, once it has ended."""
        lines = task.read()
        if not lines:
            return False
        if lines[0] != task.begun:
            self._begin(task, lines[0])
        if not lines[-1].get("ended") or self._is_sent_elsewhere(task, lines):
            return False
        return self._take_over(task) or self._crashed(task)

    def _is_sent_elsewhere(self, task: _Task, lines: list[dict[str, Any]]) -> bool:
        """Submit a group again whose task got a GPU in quarantine, as long as there is another machine for it."""
        records = [json.loads(line["report"].get("colocate") or "{}") for line in lines if "report" in line]
        avoid = task.avoid | {str(lines[0]["host"])}
        if not any("gpu_quarantined" in record.get("codes", ()) for record in records):
            return False
        if not self.executor.has_other_than(avoid):
            return False
        task.avoid, task.missing_since = avoid, None
        self._submit([task])
        return True

    def _take_over(self, task: _Task) -> bool:
        """Report what a task has reported; whether it has reported its group to the end."""
        lines = task.read()
        if lines and task.begun is None:
            self._begin(task, lines[0])
        hook, whens = self.config.hook, set()
        for sent in (line["report"] for line in lines[1:] if "report" in line):
            whens.add(sent["when"])
            hook.pytest_runtest_logreport(report=hook.pytest_report_from_serializable(config=self.config, data=sent))
        if "teardown" in whens:
            hook.pytest_runtest_logfinish(nodeid=task.item.nodeid, location=task.item.location)
        return "teardown" in whens

    @property
    def _ledger(self) -> Any:
        return self.config.pluginmanager.get_plugin("colocate-ledger")

    def _begin(self, task: _Task, first: dict[str, Any]) -> None:
        """Tell that a group runs; where it does for a second time, that its machine was lost."""
        nodeid = task.item.nodeid
        if task.begun is None:
            self.config.hook.pytest_runtest_logstart(nodeid=nodeid, location=task.item.location)
        if first["restarts"]:
            before = f" on {task.begun['host']}" if task.begun else ""
            why = f"its task{before} was lost"
            self._ledger.setbacks[nodeid] = why
            warn(self.config, f"{task.group.id}: {why}; it runs again on {first['host']}")
        task.begun = first
        self._begun.append({"group": task.group.id, **first})

    def _is_lost(self, task: _Task) -> bool:
        since = task.missing_since
        return since is not None and self._answered_t - since > GONE_S and self._crashed(task)

    def _crashed(self, task: _Task) -> bool:
        on = f" on {task.begun['host']}" if task.begun else ""
        why = f"its task{on} ended without a report: {self.executor.last_words(task.group.id)}"
        self._ledger.crash(task.item.nodeid, why)
        return True

    def _end(self, left: list[_Task]) -> None:
        """Let nothing wait or run any more; what runs may write its record, and what it reports is taken over."""
        self._record()
        if left:
            self.executor.interrupt()
        deadline = time.monotonic() + GRACE_S
        queue: dict[str, Any] = {"": None} if left else {}
        while queue and time.monotonic() < deadline:
            time.sleep(2 * LOOK_S)
            with contextlib.suppress(ColocateError):
                queue = self.executor.poll()
        for task in left:
            self._take_over(task)
        if queue:
            self.executor.cancel()
        (self.run.path / QUEUE).unlink(missing_ok=True)

    def _record(self) -> None:
        """Let the run's record name the tasks, with machine, job and GPU."""
        with contextlib.suppress(ColocateError, OSError):
            document = read_json(self.run.record)
            gpus = [one["gpu"] for one in self._begun if one["gpu"]]
            document["gpu"]["gpus"] = list({gpu["uuid"]: gpu for gpu in gpus}.values())
            write_json(self.run.record, {**document, "tasks": [*document.get("tasks", []), *self._begun]})


def _stop_if_asked(session: pytest.Session) -> None:
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)


# --- in a task --------------------------------------------------------------------------------------------------------


def become_task(config: pytest.Config) -> None:
    """Take the place of a worker of xdist, where the environment says that this process is a task of a session."""
    report = os.environ.pop(TASK, None)
    if report:
        known, group = read_json(Path(report).with_name("session.json")), Path(report).name
        config.workerinput = {**known, "workerid": group, "colocate_task": group}  # type: ignore[attr-defined]
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # Slurm counts so


class TaskReports:
    """Writes down what a worker would send."""

    def __init__(self, config: pytest.Config, group: str) -> None:
        self.config = config
        self.group = group
        gpu = session_of(config).gpus[0]
        job, place = (os.environ.get(name, "") for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"))
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        self._file = run_directory_of(config).path / "tasks" / f"{group}.{restarts}.jsonl"
        self._file.unlink(missing_ok=True)
        sent = asdict(gpu) if gpu.kind == "nvidia" else None
        self._append({"host": environment.host(), "job": f"{job}_{place}", "restarts": restarts, "gpu": sent})

    def _append(self, line: dict[str, Any]) -> None:
        append_line(self._file, json.dumps(line, default=str).encode())

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Run this task's group and nothing else."""
        found = {item: group_of(config, item.nodeid) for item in items}
        items[:] = [item for item, group in found.items() if group is not None and group.id == self.group]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called three times for the group."""
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._append({"report": data})

    def pytest_unconfigure(self) -> None:
        """Nothing more will come."""
        self._append({"ended": True})


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    session = session_of(config)
    task = getattr(config, "workerinput", {}).get("colocate_task")
    if task is not None:
        config.pluginmanager.register(TaskReports(config, task))
    elif session.executor is not None and leads(config):
        config.pluginmanager.register(RemoteGroups(config, session.executor))
