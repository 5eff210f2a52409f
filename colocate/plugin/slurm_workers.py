# SPDX-License-Identifier: Apache-2.0
"""``--executor slurm``: the workers of a session as jobs in a queue: asked for, watched while they wait, told to end.

One worker is one job (inside an allocation one step of it) with one GPU, which it finds on its machine by what Slurm
set there. The controller needs no GPU. Knows no pytest: `colocate.plugin.workers` makes the jobs of a session, and
`colocate.plugin.slurm_session` lets the workers join it when they come.
"""

import contextlib
import re
import shlex
import signal
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colocate.errors import ColocateError
from colocate.plugin import slurm_requests
from colocate.plugin.slurm_requests import Request
from colocate.process import die_with_parent, procfs, slurm
from colocate.results import QUEUE, tell

if TYPE_CHECKING:
    from colocate.plan import Group

# Reasons of the queue that are somebody's to change: the partition is down, the time too long, the account unknown.
_STUCK = re.compile(r"^(Partition|BadConstraints|Invalid|Account|Job's account|JobHeld|DependencyNever)")

# How often the queue is asked while something waits in it: often enough for a person, seldom enough for a cluster.
POLL_S = 5.0
TELL_S = 1.0
# A job that was cancelled is gone at once, but for the grace that the cluster gives its tasks (KillWait, usually 30 s).
GONE_S = 40.0
_GRACE_S = 2.0


@dataclass
class WorkerSlot:
    """The place of one worker: asked for, then waiting, running, or ended."""

    worker: str
    name: str
    log: Path
    asked_t: float
    request: Request = slurm_requests.ANY
    avoid: frozenset[str] = frozenset()
    host: str | None = None
    job: str | None = None
    step: str | None = None
    gpu: dict[str, Any] | None = None
    ended: bool = False
    thread: threading.Thread | None = field(default=None, repr=False)

    @property
    def waits(self) -> bool:
        """No worker has come of it yet."""
        return self.host is None and not self.ended

    @property
    def runs(self) -> bool:
        """A worker has come of it."""
        return self.host is not None and not self.ended

    def has(self, asked: str | None) -> bool:
        """Its GPU is what a group asks for; a virtual one is made so."""
        from colocate.device import FoundGpu, as_asked

        return self.gpu is None or as_asked(FoundGpu(**self.gpu), asked) is not None

    @property
    def age_s(self) -> float:
        """Seconds since it was asked for."""
        return time.monotonic() - self.asked_t

    @property
    def loss(self) -> str:
        """Say how the worker was lost."""
        why = self.last_words() or "no word of why"
        cure = "; ask for more time with --slurm=--time=HOURS:MINUTES:00" if "TIME LIMIT" in why else ""
        return f"{self.worker} on {self.host} was lost ({why}{cure})"

    def last_words(self) -> str:
        """Return the last output of srun."""
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return next((line for line in reversed(lines) if not line.startswith("Try ")), "")  # Try "srun --help"
        return ""


class Elsewhere:
    """The jobs of one session.

    Args:
        where: ``slurm`` or ``slurm:PARTITION``, as it was written.
        more: Further options of srun, as they were written.
        gpu: Every worker gets a GPU; else it predicts on a virtual GPU.
        by_kind: Groups that ask for a GPU get workers with such GPUs, where Slurm tells of them.

    Raises:
        ColocateError: there is no Slurm, no such partition, or no machine of it takes jobs.
    """

    def __init__(self, where: str, more: str, *, gpu: bool, by_kind: bool = True) -> None:
        self.partition = where.partition(":")[2] or None
        self.gpu = gpu
        self.more = slurm.options(more)
        self.within = slurm.allocation()
        # A step cannot ask for a type that its allocation was not asked for.
        self.by_kind = by_kind and gpu and self.within is None and not slurm_requests.chosen(self.more)
        self.nodes = slurm.nodes(self.partition) if self.within is None else slurm.nodes_within(self.within)
        if not self.nodes:
            raise ColocateError(f"--executor={where}: expected a machine that takes jobs, found none (see sinfo)")
        if gpu and not self.num_gpus:
            raise ColocateError(f"--executor={where}: expected machines with GPUs, found none in {self.place}")
        self.base = f"colocate-{uuid.uuid4().hex[:8]}"
        self.slots: dict[str, WorkerSlot] = {}
        self.later: list[Request] = []
        self.again: dict[str, str] = {}
        self.ending = False
        self._reported = Path()
        self._jobs: dict[str, slurm.Job] = {}
        self._wake = threading.Event()
        self._watcher: threading.Thread | None = None

    @property
    def num_gpus(self) -> int:
        """GPUs of all the machines."""
        return sum(node.gpus for node in self.nodes)

    @property
    def most_workers(self) -> int:
        """Return how many workers make sense: one per GPU, or per machine without GPUs."""
        return self.num_gpus if self.gpu else len(self.nodes)

    @property
    def cpus(self) -> int:
        """Processors of one worker: a GPU's fair share of its machine, where two trainings and their loaders run."""
        shares = [node.cpus // max(1, node.gpus) for node in self.nodes if node.gpus or not self.gpu]
        return max(1, min(shares))

    @property
    def place(self) -> str:
        """Describe it, such as ``partition gpu``."""
        if self.within is not None:
            return f"job {self.within}"
        return f"partition {self.partition}" if self.partition else "the default partition"

    @property
    def sentence(self) -> str:
        """Return the first line's text about the GPUs."""
        what = (
            "one GPU for each worker" if self.gpu else "a virtual GPU for each worker; no number is measured on a GPU"
        )
        return f"Slurm, {self.place}: {what}"

    # Kinds of GPUs.

    def requests(self, asked: Iterable[str | None], most: int) -> list[Request]:
        """Return one Slurm request per worker, for groups that ask for these GPUs."""
        wishes = list(asked)
        if self.within is not None and any(wishes):
            return [slurm_requests.ANY] * most  # these GPUs are ours already, and one of them may be the right one
        return slurm_requests.requests(self.nodes if self.by_kind else (), wishes, most)

    def unmet(self, groups: "Iterable[Group]") -> list[str]:
        """A line for every GPU that groups ask for and that Slurm does not tell of."""
        return list(slurm_requests.unmet(self.nodes, self.place, groups)) if self.by_kind else []

    # Asking.

    def ask(
        self, worker: str, folder: Path, request: Request = slurm_requests.ANY, avoid: frozenset[str] = frozenset()
    ) -> tuple[WorkerSlot, str]:
        """A worker slot for a worker, and the command that starts its Python there and blocks until there is room."""
        others = {node.name for node in self.nodes if slurm_requests.gives(node, request)} - avoid
        avoid = avoid if others else frozenset()  # a cluster of one such machine has no other place
        name = f"{self.base}-{worker}"
        slot = WorkerSlot(worker, name, folder / f"{worker}.log", time.monotonic(), request, avoid)
        self.slots[worker] = slot
        more = (*request, *self.more)
        words = slurm.step(name, partition=self.partition, gpu=self.gpu, cpus=self.cpus, avoid=avoid, more=more)
        self._watch(folder.parent / QUEUE)
        launcher = [sys.executable, "-S", die_with_parent.__file__, str(slot.log), name]
        return slot, shlex.join([*launcher, *words, sys.executable])

    def _watch(self, file: Path) -> None:
        if self._watcher is None:
            self._reported = file
            self._watcher = threading.Thread(target=self._follow, name="colocate-queue", daemon=True)
            self._watcher.start()

    def _follow(self) -> None:
        """Tell what waits and why, in the file from which `colocate.results.status` reads it."""
        asked_t = float("-inf")
        while not self.ending:
            waiting = [slot for slot in list(self.slots.values()) if slot.waits]
            pause_s = POLL_S if all(slot.name in self._jobs for slot in waiting) else TELL_S
            if waiting and self.within is None and time.monotonic() - asked_t >= pause_s:
                asked_t = time.monotonic()
                with contextlib.suppress(ColocateError):  # the queue may be too busy to answer; the jobs are there
                    self._jobs = slurm.queued(slot.name for slot in waiting)
            tell(self._reported, {"place": self.place, "waiting": [self._row(slot) for slot in waiting]})
            self._wake.wait(TELL_S)
        self._reported.unlink(missing_ok=True)

    def _row(self, slot: WorkerSlot) -> dict[str, str]:
        job = self._jobs.get(slot.name)
        if self.within is not None:
            return {"name": slot.worker, "reason": "a GPU of the allocation"}
        if job is None:
            return {"name": slot.worker, "reason": "no answer of the queue yet"}
        stuck = ", which does not pass by itself" if job.waits and _STUCK.match(job.reason) else ""
        return {"name": f"job {job.id}", "reason": f"{job.reason}{stuck}" if job.waits else "starts"}

    # Machines.

    def slot_of(self, node: Any) -> WorkerSlot | None:
        """The worker slot of one of xdist's workers."""
        return self.slots.get(node.gateway.id)

    @property
    def more_come(self) -> bool:
        """Something waits in the queue, or will be asked for."""
        return bool(self.later) or any(slot.waits for slot in list(self.slots.values()))

    def may_run(self, nodeid: str, node: Any, asked: str | None) -> bool:
        """A group that was lost with its machine goes to another one, as long as one that will do is there or may come.

        Args:
            nodeid: The group's.
            node: One of xdist's workers.
            asked: The GPU that the group asks for.
        """
        lost, slot = self.again.get(nodeid), self.slot_of(node)
        if lost is None or slot is None or slot.host != lost:
            return True
        return not any(
            (other.runs and other.host != lost and other.has(asked)) or (other.waits and lost in other.avoid)
            for other in list(self.slots.values())
        )

    # Ending.

    def interrupt(self) -> None:
        """Let every worker end its group and itself, and let nothing wait any more."""
        self.ending = True
        self._wake.set()
        slurm.tell((f"{slot.job}.{slot.step}" for slot in self.slots.values() if slot.runs), "TERM")
        for slot in self.slots.values():
            if slot.waits:
                self.give_up(slot)

    def give_up(self, slot: WorkerSlot) -> None:
        """Take back a request that nothing has come of."""
        slot.ended = True
        self._signal_local(slot, signal.SIGTERM)

    def kill(self) -> None:
        """End everything at once."""
        self.ending = True
        if self._watcher is not None:
            self._reported.unlink(missing_ok=True)
        slurm.tell((f"{slot.job}.{slot.step}" for slot in self.slots.values() if slot.runs), "KILL")
        for slot in self.slots.values():
            self._signal_local(slot, signal.SIGTERM)
        if self.within is None:
            slurm.cancel_all([slot.name for slot in self.slots.values()], 0.0)

    def close(self) -> list[str]:
        """See that nothing of ours is left in the queue or here; what could not be ended."""
        self.ending = True
        self._wake.set()
        if self._watcher is not None:
            self._watcher.join(TELL_S)
        names = [slot.name for slot in self.slots.values()]
        left: list[slurm.Job] = []
        if self.within is not None:
            slurm.tell((f"{slot.job}.{slot.step}" for slot in self.slots.values() if slot.job), "KILL")
        elif names:
            left = slurm.cancel_all(names, GONE_S)
        local = [process for name in names for process in procfs.with_variable(die_with_parent.COOKIE, name)]
        stuck = procfs.end(local, _GRACE_S)
        return [f"job {job.id} ({job.state})" for job in left] + [procfs.describe(one.pid) for one in stuck]

    def _signal_local(self, slot: WorkerSlot, number: signal.Signals) -> None:
        for process in procfs.with_variable(die_with_parent.COOKIE, slot.name):
            with contextlib.suppress(PermissionError):
                procfs.send(process, number)


def look(channel: "Any", paths: list[str], gpu: bool, gpu_bytes: int, small: bool) -> None:
    """Run in a worker's machine before the worker: where it is, and which GPU it has. Sent there as source."""
    import dataclasses
    import os
    import platform
    import sys

    sys.path[:0] = paths
    seen = dict[str, object]()
    seen |= {
        "host": os.environ.get("SLURMD_NODENAME") or platform.node(),
        "job": os.environ.get("SLURM_JOB_ID"),
        "step": os.environ.get("SLURM_STEP_ID"),
        "gpu": None,
        "refusal": None,
    }
    if gpu:
        from colocate.device import find_gpus
        from colocate.errors import ColocateError

        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # Slurm counts so
        try:
            if not os.environ.get("CUDA_VISIBLE_DEVICES"):
                raise ColocateError("CUDA_VISIBLE_DEVICES: expected the GPU that Slurm gave, found none")
            found = find_gpus("nvidia", gpu_bytes=gpu_bytes, small=small)
            if not found.free:
                raise ColocateError("; ".join(found.busy))
            seen["gpu"] = dataclasses.asdict(found.free[0])
            os.environ["CUDA_VISIBLE_DEVICES"] = found.free[0].uuid or ""
        except ColocateError as error:
            seen["refusal"] = str(error)
    channel.send(seen)
