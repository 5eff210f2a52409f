# SPDX-License-Identifier: Apache-2.0
"""Our samples beside nvidia-smi, asked at the same time on the same GPU."""

import math
import os
import shutil
import subprocess
import threading
import time
from contextlib import closing
from typing import Any

from colocate.harness import Sampler
from colocate.units import MIB
from colocate.verdict import Sample
from gpu_evidence.bench import Bench
from gpu_evidence.overhead import _running, _wait_for_steps, subject

COMMAND = "nvidia-smi"
PERIOD_MS = 200
STEADY_S = 0.4  # a reading of nvidia-smi takes tens of milliseconds: only where nothing changed around it do both agree
LEAST_S = 3.0


def compare(bench: Bench) -> dict[str, Any]:
    """A training on the GPU, our monitor and nvidia-smi beside it; the largest difference while memory is steady."""
    if bench.gpu.uuid is None:
        return {"state": "done", "text": "left out: nvidia-smi knows no virtual GPU"}
    if shutil.which(COMMAND) is None:
        return {"state": "done", "text": "left out: there is no nvidia-smi here"}
    training, folder = subject(bench), bench.work / "smi"
    with (
        _running(bench, training, folder, repeat=True, probe=True) as (process, events),
        closing(bench.opened(folder)) as device,
        Sampler(device) as monitor,
    ):
        theirs = _Asked(bench.gpu.uuid)
        _wait_for_steps(events, process, 3)
        time.sleep(max(LEAST_S, min(3 * bench.options.block, bench.left_s - 10)))
        read = theirs.stop()
        samples, began = monitor.trace().samples, monitor.started_s
    pairs = paired([(at - began, mib) for at, mib in read], samples)
    if not pairs:
        return {"state": "again", "text": f"no steady stretch in {len(read)} readings: {theirs.trouble or 'too short'}"}
    worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
    return {
        "state": "done",
        "training": training.name,
        "readings": len(read),
        "compared": len(pairs),
        "largest_difference_mib": abs(worst[0] - worst[1]),
        "ours_mib": worst[1],
        "theirs_mib": worst[0],
        "kept": abs(worst[0] - worst[1]) <= 1.0,  # nvidia-smi prints whole MiB
    }


def paired(theirs: list[tuple[float, float]], ours: tuple[Sample, ...]) -> list[tuple[float, float]]:
    """Their reading and ours in MiB, where ours did not change around it."""
    found = []
    for at, mib in theirs:
        around = [sample.used_bytes for sample in ours if abs(sample.elapsed_s - at) <= STEADY_S]
        if len(around) > 2 and len(set(around)) == 1:
            found.append((mib, around[0] / MIB))
    return found


class _Asked:
    """nvidia-smi printing again and again, with the time at which each line arrived."""

    def __init__(self, uuid: str) -> None:
        self.lines: list[tuple[float, float]] = []
        self.trouble: str | None = None
        query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", uuid, "-lms", str(PERIOD_MS)]
        self._process = subprocess.Popen(
            [COMMAND, *query], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                value = float(line.strip())
            except ValueError:
                value = math.nan
            if math.isnan(value):
                self.trouble = line.strip()
            else:
                self.lines.append((time.monotonic(), value))

    def stop(self) -> list[tuple[float, float]]:
        self._process.terminate()
        self._process.wait()
        self._thread.join(5)
        return self.lines
