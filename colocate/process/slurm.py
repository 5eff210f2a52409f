# SPDX-License-Identifier: Apache-2.0
"""Slurm from outside: what a partition has, the command line of a step, where our jobs are in the queue, their end.

Knows srun, sinfo, squeue and scancel, and neither pytest nor what runs in the jobs.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
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
class Job:
    """One of our jobs in the queue; ``reason`` is the queue's own word for why it waits."""

    id: str
    name: str
    state: str
    reason: str
    node: str

    @property
    def waits(self) -> bool:
        """Return whether the job has not begun."""
        return self.state == "PENDING"


def version() -> str | None:
    """Return the version, such as ``slurm-wlm 22.05.8``, or None if there is no Slurm."""
    if shutil.which("srun") is None:
        return None
    try:
        return _ask(["srun", "--version"]).strip()
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
        raise ColocateError(
            f"--executor=slurm:{partition}: expected a partition of this cluster, found none of that name"
        )
    closed = next((row[6] for row in rows if row[6] != "up"), None)
    if closed is not None:
        raise ColocateError(
            f"--executor=slurm: expected partition {rows[0][4].strip('*')} to take jobs, found it {closed}"
        )
    found = {row[0]: _node(*row[:6]) for row in rows if not _DOWN.search(row[3])}
    return tuple(found.values())


def _node(name: str, cpus: str, gres: str, state: str, partition: str, features: str) -> Node:
    named = tuple(word for word in features.split(",") if word and word != "(null)")
    return Node(name, int(cpus), gpus(gres), named)


def nodes_within(job: str) -> tuple[Node, ...]:
    """The machines of an allocation, with what it has of each.

    Raises:
        ColocateError: Slurm does not answer.
    """
    answer = _ask(["squeue", "--noheader", f"--jobs={job}", "--format=%b|%C|%D|%N"]).strip()
    per_node, cpus, count, listed = (answer.split("|") + [""] * 4)[:4]
    if not listed:
        raise ColocateError(f"slurm: expected job {job} in the queue, found {answer!r}")
    types = gpus(re.sub(r"(^|,)gres[:/]", r"\1", per_node))
    names = _ask(["scontrol", "show", "hostnames", listed]).split()
    return tuple(Node(name, int(cpus) // max(1, int(count)), types) for name in names)


def gpus(gres: str) -> tuple[tuple[str, int], ...]:
    """Types of GPUs, empty where none is declared, and numbers in such as ``gpu:a100:4(S:0-1),shard:8``."""
    found = re.findall(r"(?:^|,)gpu((?::[^:,()]+)*?):(\d+)(?=[(,]|$)", gres)
    return tuple((kind.strip(":"), int(count)) for kind, count in found)


def step(
    name: str, *, partition: str | None, gpu: bool, cpus: int, avoid: Iterable[str] = (), more: Sequence[str] = ()
) -> list[str]:
    """The words in front of a program that make it a task on one machine, with one GPU of its own.

    Outside of an allocation this is a job, inside one a step of it. ``more`` are options of srun; they win.
    """
    words = ["srun", "--quiet", f"--job-name={name}", "--nodes=1", "--ntasks=1", f"--cpus-per-task={cpus}"]
    # A step would take all processors and all memory of its machine, and the next one would wait for its end.
    words += ["--exact", "--mem=0"] if allocation() else [f"--partition={partition}"] if partition else []
    words += ["--gres=gpu:1"] if gpu else []
    words += [f"--exclude={','.join(sorted(avoid))}"] if avoid else []
    # Else slurmstepd keeps back what does not end with a line, and binary data does not.
    return [*words, "--unbuffered", *more]


def queued(names: Iterable[str]) -> dict[str, Job]:
    """Our jobs that have not ended, by name.

    Raises:
        ColocateError: Slurm does not answer.
    """
    wanted = sorted(names)
    if not wanted:
        return {}
    answer = _ask(["squeue", "--noheader", f"--name={','.join(wanted)}", "--format=%A|%j|%T|%r|%N"])
    jobs = [Job(*line.split("|")) for line in answer.splitlines() if line.count("|") == 4]
    return {job.name: job for job in jobs if job.state not in _ENDED}


def tell(ids: Iterable[str], signal: str) -> None:
    """Send a signal to the tasks of jobs, or of steps such as ``12.3``; those that are gone do not matter."""
    wanted = sorted(set(ids))
    if wanted:
        _try(["scancel", f"--signal={signal}", *wanted])


def cancel(ids: Iterable[str]) -> None:
    """End jobs, waiting or running; those that are gone do not matter."""
    wanted = sorted(set(ids))
    if wanted:
        _try(["scancel", *wanted])


def cancel_all(names: Sequence[str], limit_s: float) -> list[Job]:
    """End whatever of these names is in the queue, and wait until it is gone; what is left after the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            left = list(queued(names).values())
        except ColocateError:
            left = []
            _try(["scancel", *(f"--name={name}" for name in names)])
        if not left or time.monotonic() >= deadline:
            return left
        cancel(job.id for job in left)
        time.sleep(0.2)


def options(text: str) -> tuple[str, ...]:
    """The words of ``--slurm="--account=lab --time=2:00:00"``.

    Raises:
        ColocateError: quotes do not match, or a word is none of srun's options.
    """
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ColocateError(f"--slurm: expected options of srun, got {text!r} ({error})") from error
    if words and not words[0].startswith("-"):
        raise ColocateError(f"--slurm: expected options of srun such as '--account=lab', got {words[0]!r}")
    return words


def _try(words: list[str]) -> None:
    try:
        _ask(words)
    except ColocateError:
        return


def _ask(words: list[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_S, check=False)
    except FileNotFoundError as error:
        text = f"slurm: expected {words[0]} on this machine, found none; run this on a login node"
        raise ColocateError(text) from error
    except subprocess.TimeoutExpired as error:
        text = f"slurm: expected an answer of {words[0]} within {_ANSWER_S:g} s, got none; see `scontrol ping`"
        raise ColocateError(text) from error
    except OSError as error:
        raise ColocateError(f"slurm: expected an answer of {words[0]}, got {error}") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["nothing"]
        cure = "; run this on a login node" if "configuration source" in said[-1] else ""
        raise ColocateError(f"slurm: expected an answer of {words[0]}, got {said[-1]!r}{cure}")
    return done.stdout
