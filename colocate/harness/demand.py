# SPDX-License-Identifier: Apache-2.0
"""Find what a training wanted that did not fit: run it again, alone, on a virtual GPU that refuses nothing.

How far a program got on a full GPU says little about what it wanted. That decides whether a real GPU, whose
allocator may differ by some percent, would have been too small as well.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from colocate.harness import environment
from colocate.harness.probe_records import ProbeReader
from colocate.plan import Training
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.process import Command, start
from colocate.verdict import Allocator

TERMINATION_GRACE_S = 2.0


def wanted_alone(
    training: Training, gpu: Path, folder: Path, *, cookie: str, timeout_s: float
) -> tuple[Allocator, ...]:
    """The allocators of a dry run alone; what it has shown after ``timeout_s`` seconds counts.

    Args:
        training: a training that ran out of memory on a virtual GPU.
        gpu: the state file of that GPU.
        folder: where state, events, log and records of the dry run go; made if it is not there.
        cookie: marks its processes as ours.
        timeout_s: how long it may take.

    Raises:
        TrainingError: it could not be started.
    """
    probe = folder / "probe"
    probe.mkdir(parents=True, exist_ok=True)
    state = folder / "virtual_gpu"
    VirtualGpu.open(gpu).copy(state, refuses=False)
    with TemporaryDirectory(prefix="colocate-", ignore_cleanup_errors=True) as scratch:
        env = environment.for_training(
            {**os.environ, **training.env},
            program=training.argv[0],
            cookie=cookie,
            events=folder / "events.jsonl",
            probe=probe,
            uuid=None,
            virtual_gpu=state,
            scratch=Path(scratch),
        )
        command = Command(tuple(training.command(dry_run=True)), training.cwd, env)
        with start(command, log=folder / "training.log", cookie=cookie) as process:
            process.wait(timeout_s)
            process.stop(TERMINATION_GRACE_S)
    reader = ProbeReader(probe)
    reader.poll()
    return reader.allocators
