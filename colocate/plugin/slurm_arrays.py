# SPDX-License-Identifier: Apache-2.0
"""``--executor=slurm``: groups as tasks of job arrays, one array for each kind of GPU that groups ask for.

The session needs no GPU; each task finds the one that Slurm gave it. A task whose machine is lost is begun again by
Slurm. Knows no pytest. Another engine is another class with `submit`, `poll`, `interrupt` and `cancel`.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from colocate.errors import ColocateError
from colocate.plugin import slurm_requests
from colocate.process import slurm

if TYPE_CHECKING:
    from colocate.plan import Group

MOST_TASKS = 1000  # of one array: what Slurm takes where nobody sets MaxArraySize

# Reasons of the queue that are somebody's to change: the partition is down, the time too long, the account unknown.
_STUCK = re.compile(r"^(Partition|BadConstraints|Invalid|Account|Job's account|JobHeld|DependencyNever)")


class SlurmArrays:
    """The job arrays of one session.

    Args:
        where: ``slurm`` or ``slurm:PARTITION``, as it was written.
        more: Further options of sbatch, as they were written.
        gpu: Every task gets a GPU; else it predicts on a virtual GPU.
        by_kind: Groups that ask for a GPU get tasks with such GPUs, where Slurm tells of them.

    Raises:
        ColocateError: there is no Slurm, no such partition, no machine of it takes jobs, or this is a job already.
    """

    def __init__(self, where: str, more: str, *, gpu: bool, by_kind: bool = True) -> None:
        self.partition = where.partition(":")[2] or None
        self.gpu = gpu
        self.more = slurm.options(more)
        self.by_kind = by_kind and gpu and not slurm_requests.chosen(self.more)
        if (job := slurm.allocation()) is not None:
            text = f"--executor={where}: expected to be started outside of a job, found job {job}"
            raise ColocateError(f"{text}; to use the GPUs of this one, leave --executor away and add -n auto")
        self.nodes = slurm.nodes(self.partition)
        if not self.nodes:
            raise ColocateError(f"--executor={where}: expected a machine that takes jobs, found none (see sinfo)")
        if gpu and not any(node.gpus for node in self.nodes):
            raise ColocateError(f"--executor={where}: expected machines with GPUs, found none in {self.place}")
        self._name = ""
        self._jobs: list[str] = []
        self._logs: dict[str, Path] = {}
        self._groups: dict[str, str] = {}  # the ids of tasks, and the groups that they run

    @property
    def most_at_once(self) -> int:
        """Return how many groups can run at the same time: one per GPU, or per machine without GPUs."""
        return sum(node.gpus for node in self.nodes) if self.gpu else len(self.nodes)

    @property
    def cpus(self) -> int:
        """Processors of one task: a GPU's fair share of its machine, where two trainings and their loaders run."""
        shares = [node.cpus // max(1, node.gpus) for node in self.nodes if node.gpus or not self.gpu]
        return max(1, min(shares))

    @property
    def place(self) -> str:
        """Describe it, such as ``partition gpu``."""
        return f"partition {self.partition}" if self.partition else "the default partition"

    @property
    def sentence(self) -> str:
        """Return the first line's text about the GPUs."""
        what = "one GPU for each group" if self.gpu else "a virtual GPU for each group; no number is measured on a GPU"
        return f"Slurm, {self.place}: {what}"

    def unmet(self, groups: "Iterable[Group]") -> list[str]:
        """A line for every GPU that groups ask for and that Slurm does not tell of."""
        return list(slurm_requests.unmet(self.nodes, self.place, groups)) if self.by_kind else []

    def submit(
        self,
        groups: "Sequence[Group]",
        words: Sequence[str],
        tasks: Path,
        folder: Path,
        at_once: int | None,
        avoid: Collection[str] = (),
    ) -> None:
        """Submit a task for each group, in this order.

        Args:
            groups: The first is begun first.
            words: The command; it runs the group that ``COLOCATE_TASK`` names.
            tasks: The folder for what the tasks say.
            folder: Where the command is started.
            at_once: How many groups of a kind may run at the same time; None for as many as there is room for.
            avoid: Machines that are not to be used.

        Raises:
            ColocateError: Slurm refuses.
        """
        self._name = f"colocate-{tasks.parent.name}"
        by_request: dict[slurm_requests.Request, list[str]] = {}
        for group in groups:
            request = slurm_requests.request_for(self.nodes if self.by_kind else (), group.gpu)
            by_request.setdefault(request, []).append(group.id)
        excluded = [f"--exclude={','.join(sorted(avoid))}"] if avoid else []
        arrays = [(how, names) for how, ids in by_request.items() for names in _parts(ids)]
        for number, (request, names) in enumerate(arrays, start=len(self._jobs)):
            listed = tasks / f"array{number}.txt"
            listed.write_text("".join(f"{tasks / name}\n" for name in names), encoding="utf-8")
            path = f'sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))}'
            script = f'#!/bin/sh\nexport COLOCATE_TASK="$({path})"\nexec {shlex.join(words)}\n'
            job = slurm.submit(
                script,
                name=self._name,
                output=f"{tasks}/array{number}_%a.log",
                folder=str(folder),
                count=len(names),
                at_once=at_once,
                partition=self.partition,
                gpu=self.gpu,
                cpus=self.cpus,
                more=(*request, *excluded, *self.more),
            )
            self._jobs.append(job)
            self._groups |= {f"{job}_{place}": name for place, name in enumerate(names)}
            self._logs |= {name: tasks / f"array{number}_{place}.log" for place, name in enumerate(names)}

    def has_other_than(self, avoid: Collection[str]) -> bool:
        """Whether there is a machine for a group besides these."""
        return any(node.name not in avoid and (node.gpus or not self.gpu) for node in self.nodes)

    def poll(self) -> dict[str, tuple[str, str | None]]:
        """The tasks that have not ended, by group: the task's id, and why it waits (None once it runs).

        Raises:
            ColocateError: Slurm does not answer.
        """
        found = {}
        for id_, task in slurm.queued(self._name).items():
            stuck = ", which does not pass by itself" if _STUCK.match(task.reason) else ""
            if id_ in self._groups:
                found[self._groups[id_]] = (f"job {id_}", f"{task.reason}{stuck}" if task.waits else None)
        return found

    def last_words(self, group: str) -> str:
        """Return what Slurm says of the end of a group's task, else the last line of its log."""
        try:
            lines = self._logs[group].read_text(errors="replace").split("\n")
        except OSError:
            return "no word of why"
        slurms = [line[line.index("slurmstepd") :] for line in lines if "slurmstepd" in line]
        found = next((line.strip() for line in [*slurms[-1:], *reversed(lines)] if line.strip()), "no word of why")
        return found + ("; ask for more time with --slurm=--time=HOURS:MINUTES:00" if "TIME LIMIT" in found else "")

    def interrupt(self) -> None:
        """Take back what waits, and tell what runs to end."""
        slurm.cancel(self._jobs, "--state=PENDING")
        slurm.cancel(self._jobs, "--batch", "--signal=TERM")

    def cancel(self) -> None:
        """End all tasks at once."""
        slurm.cancel(self._jobs)


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), MOST_TASKS):
        yield names[start : start + MOST_TASKS]
