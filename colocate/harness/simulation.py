# SPDX-License-Identifier: Apache-2.0
"""Programs run alone on virtual GPUs that refuse nothing: what each wants of a GPU, and of what that consists.

Owns the runs and the reading of their traces. Knows no plan: `colocate.advice.forecast` says what follows.
"""

import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from colocate.device import new_virtual
from colocate.harness import environment
from colocate.harness.exploration import Answers, Exploration, Observed
from colocate.harness.prediction_cache import Cache
from colocate.harness.probe_records import ProbeReader
from colocate.harness.simulated_run import NOTHING, Parts, Program, SimulatedRun
from colocate.plan import GpuModel
from colocate.probe.virtual_gpu import AllocationTrace, Composition, composition, floor_bytes, no_workspace
from colocate.process import Command, Process, start, stop_all
from colocate.results import MOVE_MEMORY
from colocate.units import format_mib
from colocate.verdict import Allocator, PeakRange, Reason, ReasonCode, allocator_range

TRACE = "COLOCATE_TRACE"
ANSWERS = "COLOCATE_ANSWERS"
TICK_S = 0.05
LAST_LINES = 12

# The first two batches and the last, smaller one: the second step is the first with the optimizer's state. One batch
# less than in a run of a group, whose peaks these were for all twelve trainings, and a minute less for a plan.
BATCHES_PER_PASS = 3

SMALLER = 0.6  # of a GPU's size: what a program sees that sizes itself by what is free

NOT_MODELLED = (
    "workspaces of convolutions: bounded by their operands, not known",
    "growth of the CUDA context with the kernels used: a range per GPU",
    "phases that begin by themselves after hours, or by a value that is computed on the GPU",
)


LEAST_PRIORITY = 19  # of nice(1)

Watcher = Callable[[Program, str, float], None]


def simulate(
    programs: Sequence[Program],
    gpu: GpuModel,
    *,
    cache: Cache | None,
    timeout_s: float,
    tell: Watcher = lambda program, stage, elapsed_s: None,
    behind: bool = False,
) -> list[SimulatedRun]:
    """Dry-run programs, one per processor at a time, and give their results in order.

    Args:
        programs: what to run; equal ones are run once.
        gpu: the GPU whose figures they see.
        cache: where results of earlier calls are, and go; None runs everything.
        timeout_s: how long one program may take; what it has shown by then counts.
        tell: called with a program, its stage and the time it has run, now and then; what it raises ends all.
        behind: one at a time, and with the processors' least priority, because something else is to be done.

    Raises:
        TrainingError: a program could not be started.
    """
    results: dict[int, SimulatedRun] = {}
    waiting = list(range(len(programs)))
    for index in list(waiting):
        known = cache.find(programs[index], gpu) if cache else None
        if known is not None:
            results[index] = known
            waiting.remove(index)
    with TemporaryDirectory(prefix="colocate-predict-") as folder:
        running: dict[int, _Running] = {}
        explorations = {index: Exploration(timeout_s, gpu.total_bytes) for index in waiting}
        try:
            while waiting or running:
                while waiting and len(running) < (1 if behind else os.cpu_count() or 1):
                    index = waiting.pop(0)
                    answers = explorations[index].following()
                    assert answers is not None, "a program that waits has a run to make"
                    running[index] = _Running(programs[index], gpu, Path(folder, uuid.uuid4().hex), timeout_s, answers)
                    if behind:
                        _give_way(running[index].process.pid)
                for index, one in list(running.items()):
                    tell(one.program, "running", time.monotonic() - one.process.started_t)
                    if not one.ended():
                        continue
                    del running[index]
                    explorations[index].take(one.observed())
                    if explorations[index].following() is not None:
                        waiting.insert(0, index)
                        continue
                    results[index] = explorations[index].result()
                    if cache is not None:
                        cache.keep(one.program, gpu, results[index], one.files, one.packages)
                    tell(one.program, "done", results[index].duration_s)
                time.sleep(TICK_S)
        finally:
            stop_all([one.process for one in running.values()], 2.0)
    return [results[index] for index in range(len(programs))]


def _give_way(pid: int) -> None:
    """Give a process, and what it will start, the least priority, also beside processes of other sessions.

    Where the kernel groups processes by session (sched(7), autogrouping), the priority of a process says something
    within its session only, and a training has one of its own.
    """
    with suppress(OSError):  # it has ended already, or the kernel has no such groups
        os.setpriority(os.PRIO_PROCESS, pid, LEAST_PRIORITY)
        Path(f"/proc/{pid}/autogroup").write_text(str(LEAST_PRIORITY))


class _Running:
    """One program in its dry run."""

    def __init__(self, program: Program, gpu: GpuModel, folder: Path, timeout_s: float, answers: Answers) -> None:
        self.program = program
        self._answers = answers
        self._gpu = gpu
        self._probe = folder / "probe"
        self._probe.mkdir(parents=True)
        self._timeout_s = timeout_s
        self._late = False
        state = folder / "GPU.json"
        if answers.size == "smaller":
            gpu = replace(gpu, total_bytes=int(gpu.total_bytes * SMALLER))
        new_virtual(gpu, state, refuses=answers.size == "real")
        cookie = f"predict-{uuid.uuid4().hex[:12]}/{program.name[:40]}/foreground"
        env = environment.for_training(
            {**os.environ, **program.env},
            program=program.argv[0],
            cookie=cookie,
            events=folder / "events.jsonl",
            probe=self._probe,
            uuid=None,
            virtual_gpu=state,
            scratch=folder / "scratch",
        )
        env[TRACE] = "1"
        env[ANSWERS] = answers.text
        env[environment.BATCHES_PER_PASS] = str(BATCHES_PER_PASS)
        if answers.whole:
            env[environment.EFFORT] = "full"
        env.setdefault("OMP_NUM_THREADS", "1")
        self.process: Process = start(Command(program.argv, program.cwd, env), log=folder / "log.txt", cookie=cookie)

    def ended(self) -> bool:
        """The program has ended, or was ended because its time was up."""
        if self.process.poll() is not None:
            return True
        if not self._late and time.monotonic() - self.process.started_t > self._timeout_s:
            self._late = True
            self.process.request_stop()
        return False

    @property
    def files(self) -> list[str]:
        """The source files that the program ran."""
        return sorted({name for record in self._records() for name in record.get("files") or ()})

    @property
    def packages(self) -> list[str]:
        """Name and version of what is installed beside it."""
        return sorted({name for record in self._records() for name in record.get("packages") or ()})

    def observed(self) -> Observed:
        """What it showed."""
        records = self._records()
        reader = ProbeReader(self._probe)
        reader.poll()
        refused = sum(one.num_ooms for one in reader.allocators)
        survived = self._late or (self.process.exit is not None and self.process.exit.code == 0)
        told = [(where, answers) for one in records for where, answers in one.get("decisions", {}).items()]
        return Observed(
            self._answers,
            self._result(reader),
            decisions={where: (frozenset(given), frozenset(unseen)) for where, (given, unseen) in told},
            numbers=tuple(where for one in records for where in one.get("numbers_decide", ())),
            refused=refused if survived or refused > 1 else 0,
            asked_size=any(one.get("asked_free_bytes") is not None for one in records),
            late=self._late,
            cut=any(one.passes_cut for one in reader.allocators),
        )

    def _result(self, reader: ProbeReader) -> SimulatedRun:
        """Return the result of the dry run."""
        bare = SimulatedRun(self.program.name, self.program.argv, time.monotonic() - self.process.started_t)
        gpu_processes = [one for one in reader.allocators if one.max_reserved_bytes]
        failure = self._failure(reader.allocators, gpu_processes)
        if failure is not None:
            last_lines = self.process.last_lines(LAST_LINES)
            return replace(bare, failure=failure.text, failure_code=failure.code, last_lines=last_lines)
        together = self._most_together(gpu_processes)
        ranges = [range_ for range_ in map(allocator_range, together) if range_ is not None]
        parts, floor = self._parts(together)
        return replace(
            bare,
            peak=sum(ranges, start=PeakRange(0, 0, 0)),
            parts=parts,
            floor_bytes=floor,
            optimizer_steps=sum(one.optimizer_steps for one in gpu_processes),
            workspace_bytes=sum(map(_workspace_bytes, together)),
            rests_on=tuple(_rests_on(gpu_processes, self._gpu, self.packages)),
            doubts=tuple(dict.fromkeys(self._doubts(gpu_processes))),
            notes=tuple(self._notes(gpu_processes, together)),
            coverage=tuple(one.coverage for one in gpu_processes if one.coverage is not None),
        )

    def _failure(self, allocators: Sequence[Allocator], gpu_processes: Sequence[Allocator]) -> Reason | None:
        """Why nothing is predicted: the program ended badly, or was never seen to use the GPU."""
        unsupported = next((one.unsupported for one in allocators if one.unsupported), None)
        if unsupported is not None:
            return Reason(ReasonCode.NOT_EMULATED, f"cannot be emulated without a GPU: {unsupported}")
        exit_ = self.process.exit
        if self._is_too_large(gpu_processes):
            return None
        if not self._late and (exit_ is None or exit_.code != 0):
            return Reason(ReasonCode.DRY_RUN_FAILED, f"expected the program to end well, found {exit_}")
        if gpu_processes:
            return None
        if self._late:
            text = f"was ended after {self._timeout_s:g} s, before it used the GPU; give it more time with --timeout"
            return Reason(ReasonCode.DRY_RUN_TIMEOUT, text)
        if allocators:
            text = "has not used the GPU and ended well; see its output, or declare it with uses_gpu: false in a plan"
            return Reason(ReasonCode.GPU_NOT_USED, text)
        text = (
            "has not used the GPU: no torch was imported where the emulation could start (python -I, other framework?)"
        )
        return Reason(ReasonCode.EMULATION_NOT_STARTED, text)

    def _is_too_large(self, gpu_processes: Sequence[Allocator]) -> bool:
        """It was refused memory by a GPU of several times the size, or one that it was to fill: what it held counts."""
        held_bytes = sum(one.max_reserved_bytes or 0 for one in gpu_processes)
        refused = any(one.num_ooms for one in gpu_processes)
        return refused and (held_bytes > 2 * self._gpu.total_bytes or self._answers.size == "real")

    def _doubts(self, gpu_processes: Sequence[Allocator]) -> Iterable[tuple[str, str]]:
        """Why a low peak proves nothing."""
        if self._late:
            text = f"ended after {self._timeout_s:g} s: what comes later was not seen; give it more time with --timeout"
            yield "dry_run_timeout", text
        for one in gpu_processes:
            yield from one.coverage.doubts if one.coverage is not None else ()
        for place in (place for record in self._records() for place in record.get("loops_ended", ())):
            yield "phase_not_reached", f"a loop was ended at {place}, which nobody knows when it would end; measure"

    def _notes(self, gpu_processes: Sequence[Allocator], together: Sequence[Allocator]) -> Iterable[str]:
        if len(together) > 1:
            yield f"{len(together)} processes held memory at once; their peaks are added"
        for place in dict.fromkeys(one["assumed_at"] for one in self._records() if "assumed_at" in one):
            yield f"{place} decides by a value that nobody knows: the range goes down to what was held before"
        if len(gpu_processes) > len(together):
            yield f"of {len(gpu_processes)} processes that held memory at different times, those count that need most"
        if not any(one.optimizer_steps for one in gpu_processes):
            yield "no step of a torch optimizer was seen"
        yield from dict.fromkeys(note for one in gpu_processes for note in one.notes)

    def _most_together(self, gpu_processes: Sequence[Allocator]) -> list[Allocator]:
        """Those of the processes that lived at the same time and needed most together."""
        records = {int(one["pid"]): one for one in self._records()}
        lives = {one.pid: (records[one.pid]["started_t"], records[one.pid]["t"]) for one in gpu_processes}
        together = (
            [one for one in gpu_processes if lives[one.pid][0] <= started <= lives[one.pid][1]]
            for started, _ in lives.values()
        )
        return max(together, key=lambda some: sum(one.max_reserved_bytes or 0 for one in some))

    def _parts(self, gpu_processes: Sequence[Allocator]) -> tuple[Parts | None, int | None]:
        """Both None where a process was killed before it could write its trace."""
        parts, floor = NOTHING, 0
        for one in gpu_processes:
            path = self._probe / f"{one.pid}.trace"
            if not path.is_file():
                return None, None
            trace = AllocationTrace.read(path)
            found: Composition = composition(trace)
            context = one.context_bytes or 0
            parts += Parts(*found, context=context)
            floor += floor_bytes(trace, no_workspace, found.reserved) + context
        return parts, floor

    def _records(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self._probe.glob("*.json"))]


def _rests_on(gpu_processes: Sequence[Allocator], gpu: GpuModel, packages: Sequence[str]) -> Iterable[str]:
    yield "fragmentation, and what published measurements were beside predictions (docs/prediction-accuracy.md)"
    if any(one.convolutions for one in gpu_processes):
        yield "workspaces that its dense convolutions could take, by their operands"
    ranges = {one.context_range_bytes or gpu.context_range_bytes for one in gpu_processes}
    for low, high in sorted(ranges or {gpu.context_range_bytes}):
        what = "context" if (low, high) == gpu.context_range_bytes else "context_with_cudnn"
        yield f"{what.replace('_', ' ')} {format_mib(low)} to {format_mib(high)}: {gpu.source(what)}"
    found = (one.rpartition("-") for one in packages)
    versions = [f"{name} {version}" for name, _, version in found if name in MOVE_MEMORY]
    yield f"the versions that are installed, for others take other memory: {', '.join(versions)}"


def _workspace_bytes(one: Allocator) -> int:
    bound, reserved = one.max_reserved_bound_bytes, one.max_reserved_bytes
    return 0 if bound is None or reserved is None else max(0, bound - reserved)
