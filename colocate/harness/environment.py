# SPDX-License-Identifier: Apache-2.0
"""The environment that a training starts with: what it may tell us by, and which GPU it sees.

The names are a contract with `workloads/` and `colocate.probe`, which import nothing of ours; tests/test_environment.py
keeps the three in step.
"""

import os
import platform
import shlex
import sys
from collections.abc import Mapping
from math import inf
from pathlib import Path

COOKIE = "COLOCATE_COOKIE"
EVENTS = "COLOCATE_EVENTS"
PROBE = "COLOCATE_PROBE"
VIRTUAL_GPU = "COLOCATE_VIRTUAL_GPU"
BATCHES_PER_PASS = "COLOCATE_BATCHES_PER_PASS"
SCRATCH = "COLOCATE_SCRATCH"
BESIDE = "COLOCATE_BESIDE"
READY = "COLOCATE_READY"
AWAIT = "COLOCATE_AWAIT"
EFFORT = "COLOCATE_EFFORT"

INJECTED = Path(__file__).parents[1] / "probe" / "inject"

# On the virtual GPU a pass over data has at least its first three batches and its last, smaller one: memory repeats
# itself from the second optimizer step on, and the short last batch may need other blocks. EFFORT says how much further
# a pass may go.
DRY_RUN_BATCHES = 4

# How long a foreground on the virtual GPU waits for steps of its background, and that for one of the foreground.
LONGEST_PACE_S = 120.0
LONGEST_REST_S = 10.0


def host() -> str:
    """The name of this machine; in a job of Slurm that of the node."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def for_training(
    base: Mapping[str, str],
    *,
    cookie: str,
    events: Path,
    probe: Path,
    uuid: str | None,
    virtual_gpu: Path | None,
    program: str = "",
    scratch: Path | None = None,
    whole: bool = False,
    beside: Path | None = None,
    ready: Path | None = None,
    awaited: Path | None = None,
    stall_s: float = inf,
) -> dict[str, str]:
    """A complete environment: the caller's, the probe in front of PYTHONPATH, and exactly one GPU in sight.

    Args:
        base: The caller's environment with the training's own additions.
        cookie: Marks every process of the training as ours.
        events: File to which a training that knows us appends its events.
        probe: Folder in which the injected probe keeps its records.
        uuid: The GPU to be used, or None to hide all of them.
        virtual_gpu: State file of the virtual GPU to be emulated, or None.
        program: What the training's command starts; a Python there is also the ``python`` of scripts, else ours is.
        scratch: On the virtual GPU, the folder for everything that the training writes; its path must be short.
        whole: Leave passes over the data as long as they are, also on the virtual GPU.
        beside: On the virtual GPU, the probe's folder of the other training, whose steps this one waits for.
        ready: Of a background on the virtual GPU, the file that exists once its peak is known, and is no longer empty
            once its foreground has ended; between the two it waits.
        awaited: Of a foreground on the virtual GPU, the same file: before it exists it is kept from the GPU.
        stall_s: After so long without progress the training is ended, so no wait may take as long.
    """
    environment = {name: value for name, value in base.items() if name == EFFORT or not name.startswith("COLOCATE_")}
    environment["PYTHONPATH"] = ":".join(filter(None, [str(INJECTED), base.get("PYTHONPATH")]))
    environment["PATH"] = f"{_interpreter_folder(program)}:{base.get('PATH', os.defpath)}"
    environment["CUDA_VISIBLE_DEVICES"] = uuid or ""
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    environment[COOKIE] = cookie
    environment[EVENTS] = str(events.absolute())  # the training has a working folder of its own
    environment[PROBE] = str(probe.absolute())
    if virtual_gpu is not None:
        environment[VIRTUAL_GPU] = str(virtual_gpu.absolute())
        if scratch is not None:
            environment[SCRATCH] = str(scratch.absolute())
            environment["PATH"] = f"{_tools(scratch)}:{environment['PATH']}"
        if beside is not None:
            most_s = LONGEST_PACE_S if ready is None else LONGEST_REST_S
            environment[BESIDE] = f"{min(most_s, stall_s / 2):g}:{beside.absolute()}"
        if ready is not None:
            environment[READY] = str(ready.absolute())
        if awaited is not None:
            environment[AWAIT] = str(awaited.absolute())
        if not whole:
            environment[BATCHES_PER_PASS] = str(DRY_RUN_BATCHES)
    return environment


def _interpreter_folder(program: str) -> Path:
    """Where the plan's interpreter is: a script that a command starts finds it as ``python``."""
    named = Path(program)
    return named.parent if named.is_absolute() and named.name.startswith("python") else Path(sys.executable).parent


def _tools(scratch: Path) -> Path:
    """A folder with an ``nvidia-smi`` that knows the virtual GPU."""
    folder = scratch.absolute() / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    program = INJECTED.parent / "nvidia_smi.py"
    shim = folder / "nvidia-smi"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I {shlex.quote(str(program))} "$@"\n')
    shim.chmod(0o755)
    return folder
