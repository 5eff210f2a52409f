# SPDX-License-Identifier: Apache-2.0
"""What watching costs a training: step times with and without the sampler, and with and without the probe.

The two ways take turns, so that a GPU that grows warm or a neighbour on the processor hits both alike, and the
noise is that of the same way repeated.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from colocate.harness import Sampler, environment
from colocate.plan import Training
from colocate.process import Command, Process, start
from gpu_evidence.bench import Bench, distinct, shortened

TARGET = 0.005
SETTLE_S = 0.3  # what is left out at the beginning of a block
WARM_UP = 0.25  # share of a run's steps that is left out at its beginning
LONGEST_START_S = 180.0

_FEW = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}  # Student's t, 97.5 %, by degrees of freedom


def of_the_sampler(bench: Bench) -> dict[str, Any]:
    """One long training; blocks with the monitor at 20 Hz and blocks without it take turns."""
    training, folder = subject(bench), bench.work / "overhead_sampler"
    block_s, blocks = bench.options.block, 2 * max(2, bench.options.rounds)
    times: dict[bool, list[float]] = {True: [], False: []}
    with _running(bench, training, folder, repeat=True, probe=True) as (process, events):
        if not _wait_for_steps(events, process, 3):
            return _failed(process)
        device = bench.opened(folder)
        reading_s = watched_s = 0.0
        for number in range(blocks):
            on = (number % 2 == 0) == (number % 4 < 2)  # on off off on: a steady drift cancels
            if bench.left_s < block_s + 5 or process.poll() is not None:
                break
            began = time.monotonic()
            if on:
                with Sampler(device) as monitor:
                    time.sleep(block_s)
                trace = monitor.trace()
                reading_s, watched_s = reading_s + (trace.reading_s or 0), watched_s + (trace.duration_s or 0)
            else:
                time.sleep(block_s)
            spent = step_time(read_steps(events), began + SETTLE_S, time.monotonic())
            if spent is not None:
                times[on].append(spent)
        device.close()
    found = compared(times[False], times[True], "sampler at 20 Hz")
    share = reading_s / watched_s if watched_s else None
    return {**found, "training": training.name, "blocks_s": block_s, "share_of_a_core": share}


def of_the_probe(bench: Bench) -> dict[str, Any]:
    """Whole runs with and without the probe take turns."""
    if bench.gpu.kind == "virtual":
        return {"state": "done", "text": "left out: on a virtual GPU the probe is the GPU"}
    training, folder = shortened(subject(bench), 5 * bench.options.steps), bench.work / "overhead_probe"
    times: dict[bool, list[float]] = {True: [], False: []}
    longest_s = 0.0
    for number in range(bench.options.rounds):
        for on in ((False, True), (True, False))[number % 2]:
            if bench.left_s < longest_s + 10:
                break
            began = time.monotonic()
            with _running(bench, training, folder / f"{number}{on:d}", repeat=False, probe=on) as (process, events):
                process.wait(bench.left_s - 5)
                steps = read_steps(events)
            longest_s = max(longest_s, time.monotonic() - began)
            spent = step_time(steps[int(len(steps) * WARM_UP) :], 0.0, math.inf)
            if spent is not None:
                times[on].append(spent)
    return {**compared(times[False], times[True], "probe"), "training": training.name}


def subject(bench: Bench) -> Training:
    """The training with the shortest steps that is known; the first that uses the GPU elsewhere."""
    using = [training for training, _ in distinct(bench.plan.groups).values() if training.uses_gpu]
    return next((one for one in using if one.model == "resnet20"), using[0])


def compared(without: Sequence[float], with_: Sequence[float], what: str) -> dict[str, Any]:
    """The relative difference of the means with its 95 % interval, and the noise of the same way repeated."""
    if len(without) < 2 or len(with_) < 2:
        return {"state": "again", "what": what, "text": f"too few readings: {len(without)} without, {len(with_)} with"}
    base = statistics.fmean(without)
    difference = statistics.fmean(with_) / base - 1
    variance = statistics.variance(without) / len(without) + statistics.variance(with_) / len(with_)
    margin = student(len(without) + len(with_) - 2) * math.sqrt(variance) / base
    return {
        "state": "done",
        "what": what,
        "step_s_without": list(without),
        "step_s_with": list(with_),
        "difference": difference,
        "margin": margin,
        "noise": statistics.stdev(without) / base,
        "target": TARGET,
        "kept": difference - margin <= TARGET,
        "shown": difference + margin <= TARGET,
    }


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; Cornish-Fisher's expansion where that is within 2 %."""
    if freedom in _FEW:
        return _FEW[freedom]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def read_steps(events: Path) -> list[tuple[float, int, int]]:
    """Time, number within its phase and a mark of the phase of every training step that was told."""
    found, phase = [], 0
    for line in events.read_text().splitlines() if events.exists() else ():
        try:
            event = json.loads(line)
        except ValueError:  # being written
            continue
        if event.get("event") == "phase":
            phase += 1
        if event.get("event") == "step" and event.get("phase") == "train":
            found.append((float(event["t"]), int(event["step"]), phase))
    return found


def step_time(steps: Sequence[tuple[float, int, int]], start: float, end: float) -> float | None:
    """Seconds of a step between two instants, from pairs of neighbouring marks of one phase; None without any."""
    inside = [step for step in steps if start <= step[0] <= end]
    pairs = [(a, b) for a, b in pairwise(inside) if a[2] == b[2] and b[1] > a[1]]
    count = sum(b[1] - a[1] for a, b in pairs)
    return sum(b[0] - a[0] for a, b in pairs) / count if count else None


@contextmanager
def _running(
    bench: Bench, training: Training, folder: Path, *, repeat: bool, probe: bool
) -> Iterator[tuple[Process, Path]]:
    """The training by itself, with or without our probe; its events in either case."""
    (folder / "probe").mkdir(parents=True, exist_ok=True)
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    virtual = folder / "virtual_gpu" if bench.gpu.kind == "virtual" else None
    if virtual is not None:
        bench.opened(folder)
    env = environment.for_training(
        {**os.environ, **training.env},
        cookie=f"{bench.work.name}/overhead/foreground",
        events=events,
        probe=folder / "probe",
        uuid=bench.gpu.uuid,
        virtual_gpu=virtual,
    )
    if not probe:
        paths = [path for path in env["PYTHONPATH"].split(":") if path != str(environment.INJECTED)]
        env = {**env, "PYTHONPATH": ":".join(paths)}
        del env[environment.PROBE]
    argv = tuple(training.command(repeat=repeat, dry_run=virtual is not None))
    command = Command(argv, training.cwd, env)
    with start(command, log=folder / "training.log", cookie=f"{bench.work.name}/overhead/foreground") as process:
        yield process, events


def _wait_for_steps(events: Path, process: Process, count: int) -> bool:
    deadline = time.monotonic() + LONGEST_START_S
    while len(read_steps(events)) < count and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    return len(read_steps(events)) >= count


def _failed(process: Process) -> dict[str, Any]:
    return {"state": "again", "text": "the training made no steps: " + "; ".join(process.last_lines(3))}
