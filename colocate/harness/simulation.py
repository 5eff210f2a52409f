"""Programs run alone on virtual GPUs that refuse nothing: what each wants of a GPU, and of what that consists.

Owns the runs, their cache and the reading of their traces. Knows no plan: `colocate.advice.forecast` says what follows.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import TypeAdapter, ValidationError

from colocate.device import new_virtual
from colocate.harness import environment
from colocate.harness.training_events import ProbeReader
from colocate.plan import GpuModel
from colocate.probe.virtual_gpu import AllocationTrace, Composition, composition, floor_bytes, no_workspace
from colocate.process import Command, Process, start, stop_all
from colocate.units import format_mib
from colocate.verdict import LESS, MORE, Allocator, Coverage, PeakRange, allocator_range

TRACE = "COLOCATE_TRACE"
TICK_S = 0.05
LAST_LINES = 12

# The first two batches and the last, smaller one: the second step is the first with the optimizer's state. One batch
# less than in a run of a group, whose peaks these were for all twelve trainings, and a minute less for a plan.
BATCHES_PER_PASS = 3

# What of the caller's environment changes memory: allocator, cuBLAS, cuDNN, attention.
SETTINGS = ("PYTORCH_", "CUBLAS", "CUDNN", "TORCH_", environment.EFFORT)

NOT_MODELLED = (
    "workspaces of convolutions: bounded by their operands, not known",
    "growth of the CUDA context with the kernels used: a range per GPU",
    "phases that begin by themselves after hours, or by a value that is computed on the GPU",
)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the peak is made of, in bytes, at the instant with the most live tensors.

    ``activations`` are everything that has no other name, temporaries and input included; ``fragmentation`` is what
    the allocator had reserved beyond that.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspaces: int
    fragmentation: int
    context: int

    @property
    def total(self) -> int:
        """The expected peak."""
        return (
            self.parameters
            + self.gradients
            + self.optimizer
            + self.activations
            + self.workspaces
            + self.fragmentation
            + self.context
        )

    def __add__(self, other: "Parts") -> "Parts":
        """Both at once."""
        return Parts(**{name: getattr(self, name) + getattr(other, name) for name in Parts.__slots__})


NOTHING = Parts(0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What one program wanted of the GPU.

    ``failure`` says why there is no prediction; ``peak`` and ``parts`` are then None. ``floor_bytes`` is the least
    that the program still runs in, context included, giving its cache back in time; ``workspace_bytes`` what the
    workspaces of its convolutions could add to the reserved memory. ``coverage`` is of every process that used the GPU.
    """

    name: str
    argv: tuple[str, ...]
    duration_s: float
    peak: PeakRange | None = None
    parts: Parts | None = None
    floor_bytes: int | None = None
    workspace_bytes: int = 0
    optimizer_steps: int = 0
    rests_on: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failure: str | None = None
    last_lines: tuple[str, ...] = ()
    cached: bool = False
    coverage: tuple[Coverage, ...] = ()

    @property
    def doubts(self) -> tuple[tuple[str, str], ...]:
        """Reason codes and sentences of what was left out and may need more; with any of them it never just fits."""
        return tuple(dict.fromkeys(doubt for one in self.coverage for doubt in one.doubts))


@dataclass(frozen=True)
class Program:
    """A command line to be dry-run: as in `colocate.plan.catalog.Training`, with what matters here."""

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)


Watcher = Callable[[Program, str, float], None]


def simulate(
    programs: Sequence[Program],
    gpu: GpuModel,
    *,
    cache: "Cache | None",
    timeout_s: float,
    tell: Watcher = lambda program, stage, elapsed_s: None,
) -> list[SimulatedRun]:
    """Dry-run programs, one per processor at a time, and give their results in order.

    Args:
        programs: what to run; equal ones are run once.
        gpu: the GPU whose figures they see.
        cache: where results of earlier calls are, and go; None runs everything.
        timeout_s: how long one program may take; what it has shown by then counts.
        tell: called with a program, its stage and the time it has run, now and then.

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
        try:
            while waiting or running:
                while waiting and len(running) < (os.cpu_count() or 1):
                    index = waiting.pop(0)
                    running[index] = _Running(programs[index], gpu, Path(folder, str(index)), timeout_s)
                for index, one in list(running.items()):
                    tell(one.program, "running", time.monotonic() - one.process.started_t)
                    if one.ended():
                        del running[index]
                        results[index] = one.result()
                        if cache is not None:
                            cache.keep(one.program, gpu, results[index], one.files, one.packages)
                        tell(one.program, "done", results[index].duration_s)
                time.sleep(TICK_S)
        finally:
            stop_all([one.process for one in running.values()], 2.0)
    return [results[index] for index in range(len(programs))]


class _Running:
    """One program while it runs."""

    def __init__(self, program: Program, gpu: GpuModel, folder: Path, timeout_s: float) -> None:
        self.program = program
        self._gpu = gpu
        self._probe = folder / "probe"
        self._probe.mkdir(parents=True)
        self._timeout_s = timeout_s
        self._late = False
        state = folder / "GPU.json"
        new_virtual(gpu, state, refuses=False)
        cookie = f"predict-{uuid.uuid4().hex[:12]}/{program.name[:40]}/foreground"
        env = environment.for_training(
            {**os.environ, **program.env},
            cookie=cookie,
            events=folder / "events.jsonl",
            probe=self._probe,
            uuid=None,
            virtual_gpu=state,
            scratch=folder / "scratch",
        )
        env[TRACE] = "1"
        env[environment.BATCHES_PER_PASS] = str(BATCHES_PER_PASS)
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

    def result(self) -> SimulatedRun:
        """What it wanted."""
        reader = ProbeReader(self._probe)
        reader.poll()
        bare = SimulatedRun(self.program.name, self.program.argv, time.monotonic() - self.process.started_t)
        failure = self._failure(reader.allocators)
        if failure is not None:
            return replace(bare, failure=failure, last_lines=self.process.last_lines(LAST_LINES))
        gpu_processes = [one for one in reader.allocators if one.max_reserved_bytes]
        if not gpu_processes:
            notes = ("the program has not used the GPU",)
            return replace(bare, peak=PeakRange(0, 0, 0), parts=NOTHING, floor_bytes=0, notes=notes)
        ranges = [range_ for range_ in map(allocator_range, gpu_processes) if range_ is not None]
        parts, floor = self._parts(gpu_processes)
        return replace(
            bare,
            peak=sum(ranges, start=PeakRange(0, 0, 0)),
            parts=parts,
            floor_bytes=floor,
            optimizer_steps=sum(one.optimizer_steps for one in gpu_processes),
            workspace_bytes=sum(map(_workspace_bytes, gpu_processes)),
            rests_on=tuple(_rests_on(gpu_processes, self._gpu)),
            notes=tuple(self._notes(gpu_processes)),
            coverage=tuple(one.coverage for one in gpu_processes if one.coverage is not None),
        )

    def _failure(self, allocators: Iterable[Allocator]) -> str | None:
        unsupported = next((one.unsupported for one in allocators if one.unsupported), None)
        if unsupported is not None:
            return f"cannot be emulated without a GPU: {unsupported}"
        exit_ = self.process.exit
        if not self._late and (exit_ is None or exit_.code != 0):
            return f"expected the program to end well, found {exit_}"
        return None

    def _notes(self, gpu_processes: Sequence[Allocator]) -> Iterable[str]:
        if self._late:
            yield f"ended after {self._timeout_s:g} s: later phases were not seen"
        if len(gpu_processes) > 1:
            yield f"{len(gpu_processes)} processes held memory; their peaks are added"
        if not any(one.optimizer_steps for one in gpu_processes):
            yield "no step of a torch optimizer was seen"
        yield from dict.fromkeys(note for one in gpu_processes for note in one.notes)

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


def _rests_on(gpu_processes: Sequence[Allocator], gpu: GpuModel) -> Iterable[str]:
    yield f"-{LESS:.0%}/+{MORE:.0%} of the reserved memory: residuals against published measurements"
    if any(one.convolutions for one in gpu_processes):
        yield "workspaces that its dense convolutions could take, by their operands"
    low, high = gpu.context_range_bytes
    yield f"context {format_mib(low)} to {format_mib(high)}: {gpu.source('context')}"


def _workspace_bytes(one: Allocator) -> int:
    bound, reserved = one.max_reserved_bound_bytes, one.max_reserved_bytes
    return 0 if bound is None or reserved is None else max(0, bound - reserved)


# --- what is kept -----------------------------------------------------------------------------------------------------


class Cache:
    """Results of earlier dry runs, by the content of everything that decides them.

    A result counts as long as the command line, the files that it names or ran, the installed packages, the settings
    in the environment, the GPU and the emulation are the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> "Cache":
        """The cache in the user's folder for caches."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home, "colocate", "predictions"))

    def find(self, program: Program, gpu: GpuModel) -> SimulatedRun | None:
        """What is known of a program; None if it was not dry-run, or something has changed since."""
        try:
            document = json.loads(self._path(program, gpu).read_text())
            if any(_digest(Path(name)) != digest for name, digest in document["files"].items()):
                return None
            return replace(_ADAPTER.validate_python(document["result"]), cached=True, name=program.name)
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            return None

    def keep(
        self, program: Program, gpu: GpuModel, result: SimulatedRun, files: Iterable[str], packages: Iterable[str]
    ) -> None:
        """Remember a result, unless it is a failure. A cache that cannot be written is no failure of the prediction."""
        if result.failure is not None:
            return
        document = {
            "result": _ADAPTER.dump_python(result, mode="json"),
            "files": {name: _digest(Path(name)) for name in files},
            "packages": list(packages),
        }
        path = self._path(program, gpu)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_suffix(f".{os.getpid()}.new")
            aside.write_text(json.dumps(document))
            aside.replace(path)
        except OSError:
            return

    def _path(self, program: Program, gpu: GpuModel) -> Path:
        settings = {k: v for k, v in {**os.environ, **program.env}.items() if k.startswith(SETTINGS)}
        named = {word: _digest(program.cwd / word) for word in program.argv[1:] if (program.cwd / word).is_file()}
        ours = [_digest(path) for path in sorted(Path(__file__).parents[1].glob("probe/**/*.py"))]
        identity = [
            list(program.argv),
            str(program.cwd),
            sorted({**settings, **program.env}.items()),
            named,
            repr(gpu),
            ours,
            _digest(Path(__file__)),
            [LESS, MORE],
            _packages_of(program.argv[0]),
        ]
        return self.folder / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]}.json"


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _packages_of(interpreter: str) -> list[str]:
    """What is installed beside an interpreter, by the names of the folders; empty for one that is not in a venv."""
    folder = Path(interpreter).absolute().parent.parent
    return sorted(path.name for path in folder.glob("lib/python3*/site-packages/*.dist-info"))


_ADAPTER = TypeAdapter(SimulatedRun)
