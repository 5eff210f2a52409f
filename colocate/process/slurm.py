# SPDX-License-Identifier: Apache-2.0
"""Slurm from outside: what a partition has, and submitting, watching and ending arrays of tasks.

Knows sinfo, sbatch, squeue and scancel, and neither pytest nor what the tasks run.
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colocate.errors import ColocateError

_ANSWER_S = 30.0
_ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"})
# Not "idle~" and the like: what is asleep to save power wakes up for a job.
_DOWN = re.compile(r"^(down|drain|fail|inval|maint|unk)|\*")


@dataclass(frozen=True)
class Node:
    """A machine of a partition that takes jobs: its processors, its GPUs by declared type, and its features."""

    name: str
    cpus: int
    types: tuple[tuple[str, int], ...] = ()
    features: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        """Return the number of all its GPUs."""
        return sum(count for _, count in self.types)


@dataclass(frozen=True)
class Task:
    """A task of a job array in the queue; ``reason`` is the queue's own word for why it waits."""

    id: str
    state: str
    reason: str

    @property
    def waits(self) -> bool:
        """Return whether the task has not begun."""
        return self.state == "PENDING"


def version() -> str | None:
    """Return the version, such as ``slurm-wlm 22.05.8``, or None if there is no Slurm."""
    if shutil.which("sbatch") is None:
        return None
    try:
        return _ask(["sbatch", "--version"]).strip()
    except ColocateError:
        return None


def allocation(environment: Mapping[str, str] = os.environ) -> str | None:
    """The job that this process runs in, as below ``salloc`` and ``sbatch``; None outside of one."""
    return environment.get("SLURM_JOB_ID") or None


def nodes(partition: str | None) -> tuple[Node, ...]:
    """The machines that take jobs in a partition; in the default one without a name.

    Raises:
        ColocateError: Slurm does not answer, or knows no such partition.
    """
    words = ["--partition", partition] if partition else []
    answer = _ask(["sinfo", "--noheader", "--Node", *words, "--format=%N|%c|%G|%T|%P|%b|%a"])
    rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 6]
    if not partition:
        rows = [row for row in rows if row[4].endswith("*")]  # sinfo marks the default partition so
    elif not rows:
        text = f"--executor=slurm:{partition}: expected a partition of this cluster, found none of that name"
        raise ColocateError(text)
    closed = next((row[6] for row in rows if row[6] != "up"), None)
    if closed is not None:
        name = rows[0][4].strip("*")
        raise ColocateError(f"--executor=slurm: expected partition {name} to take jobs, found it {closed}")
    found = {}
    for name, cpus, gres, _, _, features, _ in (row for row in rows if not _DOWN.search(row[3])):
        named = tuple(word for word in features.split(",") if word and word != "(null)")
        found[name] = Node(name, int(cpus), gpus(gres), named)
    return tuple(found.values())


def gpus(gres: str) -> tuple[tuple[str, int], ...]:
    """Types of GPUs, empty where none is declared, and numbers in such as ``gpu:a100:4(S:0-1),shard:8``."""
    found = re.findall(r"(?:^|,)gpu((?::[^:,()]+)*?):(\d+)(?=[(,]|$)", gres)
    return tuple((kind.strip(":"), int(count)) for kind, count in found)


def submit(
    script: str,
    *,
    name: str,
    output: str,
    folder: str,
    count: int,
    at_once: int | None,
    partition: str | None,
    gpu: bool,
    cpus: int,
    more: Sequence[str] = (),
) -> str:
    """Submit a script as an array of tasks that the queue may begin again after it has lost a machine.

    Args:
        script: What each task runs; its number is in ``SLURM_ARRAY_TASK_ID``.
        name: Of the job, for those who look at the queue.
        output: The file of what a task says; ``%a`` stands for its number.
        folder: Where the tasks start.
        count: How many tasks; they are numbered from 0 and begun in this order.
        at_once: How many of them may run at the same time; None for as many as there is room for.
        partition: Where; None for the default partition.
        gpu: Each task gets a GPU.
        cpus: Processors of each task.
        more: Further options of sbatch, which win.

    Returns:
        The job's id.

    Raises:
        ColocateError: Slurm refuses.
    """
    most = "" if at_once is None else f"%{at_once}"
    words = ["sbatch", "--parsable", "--requeue", f"--job-name={name}", f"--output={output}", f"--chdir={folder}"]
    words += [f"--array=0-{count - 1}{most}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}"]
    words += [f"--partition={partition}"] if partition else []
    words += ["--gres=gpu:1"] if gpu else []
    return _ask([*words, *more], script).strip().partition(";")[0]


def queued(name: str) -> dict[str, Task]:
    """The tasks of the jobs of this name that have not ended, by their ids such as ``12_3``.

    Raises:
        ColocateError: Slurm does not answer.
    """
    answer = _ask(["squeue", "--noheader", "--array", f"--name={name}", "--format=%F_%K|%T|%r"])
    tasks = [Task(*line.split("|")) for line in answer.splitlines() if line.count("|") == 2]
    return {task.id: task for task in tasks if task.state not in _ENDED}


def cancel(jobs: Sequence[str], *more: str) -> None:
    """End jobs, or with ``--state`` and ``--signal`` some of their tasks; that nothing is left is no error."""
    if jobs:
        with contextlib.suppress(ColocateError):
            _ask(["scancel", *more, *jobs])


def options(text: str) -> tuple[str, ...]:
    """The words of ``--slurm="--account=lab --time=2:00:00"``.

    Raises:
        ColocateError: quotes do not match, or a word is none of sbatch's options.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ColocateError(f"--slurm: expected options of sbatch, got {text!r} ({error})") from error
    if words and not words[0].startswith("-"):
        raise ColocateError(f"--slurm: expected options of sbatch such as '--account=lab', got {words[0]!r}")
    return words


def _ask(words: list[str], given: str = "") -> str:
    try:
        done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except FileNotFoundError as error:
        text = f"slurm: expected {words[0]} on this machine, found none; run this on a login node"
        raise ColocateError(text) from error
    except subprocess.TimeoutExpired as error:
        text = f"slurm: expected an answer of {words[0]} within {_ANSWER_S:g} s, got none; see `scontrol ping`"
        raise ColocateError(text) from error
    except OSError as error:
        raise ColocateError(f"slurm: expected an answer of {words[0]}, got {error}") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        said = [line for line in lines if not line.startswith("Try ")] or ["nothing"]  # Try "sbatch --help"
        cure = "; run this on a login node" if "configuration source" in said[-1] else ""
        raise ColocateError(f"slurm: expected an answer of {words[0]}, got {said[-1]!r}{cure}")
    return done.stdout
