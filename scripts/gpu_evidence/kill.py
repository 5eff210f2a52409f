# SPDX-License-Identifier: Apache-2.0
"""kill -9 of the harness under load, and what is left a second later."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from colocate.device import FoundGpu
from colocate.harness import AttemptRunner
from colocate.plan import load_plan
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.process import with_cookie
from colocate.results import RunDirectory
from gpu_evidence.bench import Bench

LOOKS_S = (0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0)
ENOUGH_S = 2.0  # nothing comes back to a GPU that is clean
GUARANTEE_S = 5.0  # docs/design.md: a training never outlives its harness by more
START_S = 180.0
TOLERANCE_BYTES = 64 * 1024**2


def under_load(bench: Bench) -> dict[str, Any]:
    """Start a group on the constrained GPU in a process of its own, kill that once both train, and look."""
    run = bench.run("kill")
    run.path.mkdir(parents=True, exist_ok=True)
    groups = [group for group in bench.plan.groups if group.background is not None and not group.missing]
    group = next((one for one in groups if one.number == 12), groups[0])
    before = _used(bench, run.path)
    orders = {"plan": str(bench.plan.path), "group": group.id, "run": str(run.path), "gpu": asdict(bench.small)}
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with subprocess.Popen(
        [sys.executable, "-m", "gpu_evidence.kill", json.dumps(orders)],
        env=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ) as victim:
        loaded = _wait_until_both_train(run.path, victim, min(START_S, bench.left_s - 15))
        at_load = {"used_bytes": _used(bench, run.path), "processes": len(with_cookie(f"{run.name}/"))}
        victim.send_signal(signal.SIGKILL)
        killed_s = time.monotonic()
        victim.wait()
        looks: list[dict[str, Any]] = []
        for after_s in LOOKS_S:
            looks.append(_look(bench, run, killed_s, after_s))
            if after_s >= ENOUGH_S and _is_clean(looks[-1], before):
                break
    if not loaded:
        return {"state": "again", "text": "the group did not get so far that it could be killed under load"}
    clean = [one for one in looks if _is_clean(one, before)]
    return {
        "state": "done",
        "group": group.id,
        "before_bytes": before,
        "under_load": at_load,
        "looks": looks,
        "clean_after_s": clean[0]["after_s"] if clean else None,
        "kept": bool(clean) and clean[0]["after_s"] <= GUARANTEE_S,
    }


def _is_clean(look: dict[str, Any], before_bytes: int | None) -> bool:
    return not look["processes"] and (look["used_bytes"] or 0) <= (before_bytes or 0) + TOLERANCE_BYTES


def _look(bench: Bench, run: RunDirectory, killed_s: float, after_s: float) -> dict[str, Any]:
    time.sleep(max(0.0, killed_s + after_s - time.monotonic()))
    left = [process.pid for process in with_cookie(f"{run.name}/")]
    return {"after_s": after_s, "used_bytes": _used(bench, run.path), "processes": len(left)}


def _used(bench: Bench, run: Path) -> int | None:
    """What the GPU holds; of a virtual one, which only exists once its group has begun, beyond its baseline."""
    if bench.gpu.kind == "nvidia":
        with closing(bench.opened(run)) as device:
            return device.memory().used_bytes
    states = sorted(run.glob("*/virtual_gpu"), key=lambda path: path.stat().st_mtime)
    if not states:
        return None
    gpu = VirtualGpu.open(states[-1])
    return gpu.used_bytes() - gpu.baseline_bytes


def _wait_until_both_train(run: Path, victim: "subprocess.Popen[bytes]", most_s: float) -> bool:
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline and victim.poll() is None:
        reported = [path.read_text() for path in run.glob("*/events/*") if "foreground" in path.name]
        if any('"step"' in text for text in reported):
            return True
        time.sleep(0.05)
    return False


def _victim(orders: dict[str, Any]) -> None:
    plan = load_plan(Path(orders["plan"]))
    group = next(one for one in plan.groups if one.id == orders["group"])
    AttemptRunner(RunDirectory(Path(orders["run"])), plan.name, FoundGpu(**orders["gpu"])).attempt(group)


if __name__ == "__main__":
    _victim(json.loads(sys.argv[1]))
