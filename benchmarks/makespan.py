"""How long twelve groups of 2 to 40 minutes take on four GPUs, beside the ideal: python benchmarks/makespan.py.

A minute is scaled to ``--second-per-minute`` seconds. Everything of pytest and xdist is real and the GPUs are those of
the fake NVML library; a group sleeps in place of two trainings, so what is measured is the order and the gaps between
groups. Nothing is subtracted. The ideal is the sum over the GPUs, or the longest group where that is more.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_nvml import FakeNvml  # noqa: E402  (tests/ is no package that could be installed)
from fake_nvml.build import build_library  # noqa: E402
from stand_in_project import Project  # noqa: E402

MINUTES = (2, 40, 7, 15, 3, 30, 9, 20, 4, 12, 8, 10)


def makespan_s(folder: Path, minutes: tuple[int, ...], gpus: int, second_per_minute: float) -> float:
    """Seconds from the start of the first group to the end of the last."""
    ways = {f"group{n:02}": f"sleep {length * second_per_minute}" for n, length in enumerate(minutes, start=1)}
    (folder / "project").mkdir()
    project = Project(folder / "project", ways, len(minutes))
    plan = project.folder / "settings" / "parallel_feasibility_test.json"
    document = json.loads(plan.read_text())
    for entry, length in zip(document["experiments"], minutes, strict=True):
        entry["expected_minutes"] = length
    plan.write_text(json.dumps(document))
    library = build_library(folder)
    with FakeNvml.create(folder / "state", library) as fake:
        for _ in range(gpus):
            fake.add_gpu()
        environment = {**fake.environment, "COLOCATE_LOCK_FOLDER": str(folder / "locks")}
        process = project.start("feasibility", "--device=nvidia", "-n", "auto", **environment)
        out, _ = process.communicate()
    assert process.returncode == 0, out
    times = {way: [path.stat().st_mtime for path in project.folder.glob(f"*.{way}")] for way in ("started", "ended")}
    return max(times["ended"]) - min(times["started"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gpus", type=int, default=4)
    parser.add_argument("--second-per-minute", type=float, default=1.0)
    options = parser.parse_args()
    ideal_s = max(sum(MINUTES) / options.gpus, max(MINUTES)) * options.second_per_minute
    with tempfile.TemporaryDirectory() as folder:
        took_s = makespan_s(Path(folder), MINUTES, options.gpus, options.second_per_minute)
    load = os.getloadavg()[0]
    print(f"{len(MINUTES)} groups on {options.gpus} GPUs: {took_s:.1f} s, ideal {ideal_s:.1f} s")
    print(f"{took_s / ideal_s:.3f} of the ideal; load of the machine {load:.1f}")


if __name__ == "__main__":
    main()
