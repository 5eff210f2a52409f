"""Runs small training programs as real processes under the injected probe. Used by test_probe and test_emulation."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colocate.probe.virtual_gpu.state import VirtualGpu

MIB = 1024**2
REPOSITORY = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "programs"
INJECT = REPOSITORY / "colocate" / "probe" / "inject"

# Another interpreter with another build of torch can be tried: COLOCATE_TEST_PYTHON=/path/to/python pytest ...
PYTHON = os.environ.get("COLOCATE_TEST_PYTHON", sys.executable)


@dataclass(frozen=True)
class Run:
    """How a program ended, what it printed and what its probe wrote."""

    exit_code: int
    output: str
    records: list[dict[str, Any]]
    duration_s: float

    @property
    def record(self) -> dict[str, Any]:
        assert len(self.records) == 1, self.output
        return self.records[0]

    @property
    def peaks_mib(self) -> tuple[float, float]:
        """Allocated and reserved."""
        return self.record["max_allocated_bytes"] / MIB, self.record["max_reserved_bytes"] / MIB


@dataclass
class Bench:
    """A folder with a GPU and the programs that run on it."""

    folder: Path
    gpu_mib: int | None = 8192
    gpu_name: str = "Virtual 8 GB"
    batches_per_pass: int | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.probe = self.folder / "probe"
        self.probe.mkdir(exist_ok=True)
        self.gpu: VirtualGpu | None = None
        if self.gpu_mib is not None:
            total_bytes = self.gpu_mib * MIB
            self.gpu = VirtualGpu.create(self.folder / "GPU.json", name=self.gpu_name, total_bytes=total_bytes)

    def run(self, *command: str | Path, timeout_s: float = 600) -> Run:
        """Run ``python command...`` to its end."""
        started = time.monotonic()
        done = subprocess.run(
            [PYTHON, *map(str, command)],
            env=self.variables(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Run(done.returncode, done.stdout + done.stderr, self.records(), time.monotonic() - started)

    def run_source(self, source: str) -> Run:
        """Run a program given as text."""
        program = self.folder / "program.py"
        program.write_text(source)
        return self.run(program)

    @contextmanager
    def running(self, *command: str | Path) -> "Iterator[subprocess.Popen[str]]":
        """A process that is killed at the end of the block."""
        process = subprocess.Popen(
            [PYTHON, *map(str, command)],
            env=self.variables(),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield process
            finally:
                process.kill()

    def variables(self) -> dict[str, str]:
        """The environment that the harness gives to a training."""
        ours = {"COLOCATE_PROBE": str(self.probe), "PYTHONPATH": str(INJECT), **self.environment}
        if self.gpu is not None:
            ours["COLOCATE_VIRTUAL_GPU"] = str(self.gpu.path)
        if self.batches_per_pass is not None:
            ours = {"COLOCATE_BATCHES_PER_PASS": str(self.batches_per_pass), "COLOCATE_EFFORT": "quick", **ours}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("COLOCATE_", "PYTHON"))}
        return {**kept, **ours}

    def records(self) -> list[dict[str, Any]]:
        """What all probes have written so far."""
        return [json.loads(path.read_text()) for path in sorted(self.probe.glob("*.json"))]


def wait_until(condition: Callable[[], bool], timeout_s: float = 300) -> None:
    """Wait for a condition; the timeout is a safety net."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)
