"""How much time the harness adds to a group beyond its trainings, beside the fixed waits of the study.

Runs groups of stand-in trainings on the simulated GPU, one after the other: a background that loads the GPU and a
foreground of known length. What the harness adds is everything from the first look at the GPU to the verdict on disk,
less the time until the background was ready and less the foreground's own.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_nvml import FakeNvml, preload  # noqa: E402  (tests/ is no package that could be installed)
from fake_nvml.build import build_library  # noqa: E402
from groups import group, judged, training  # noqa: E402

from colocate.results.layout import GroupDirectory  # noqa: E402
from colocate.results.record import read_evidence  # noqa: E402
from colocate.verdict.evidence import Evidence  # noqa: E402

# mutation/runner.py of the study: 30 s after the background's start, 60 s between two groups, whatever happened.
STUDY_WAITS_S = 30.0 + 60.0


def added_s(evidence: Evidence) -> float:
    """Time of the whole group less what the two trainings needed: the background to be ready, the foreground to end."""
    foreground, background = evidence.foreground, evidence.background
    end = foreground.last_exit
    if background is None or background.ready_s is None or end is None or evidence.duration_s is None:
        raise ValueError("expected the record of a finished group with a background")
    getting_ready_s = background.ready_s - background.process_runs[0].started_s
    return evidence.duration_s - getting_ready_s - (end.ended_s - foreground.process_runs[0].started_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of the foreground")
    options = parser.parse_args()
    steps = max(1, round(options.seconds / 0.05))
    foreground = training("epoch", "--hold", "700", "--steps", str(steps), "--step-s", "0.05", "--probe")
    background = training("load", "--hold", "1500", "--repeat", "--probe")
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build_library(folder)
        preload(library)
        with FakeNvml.create(folder / "state", library) as fake:
            fake.add_gpu()
            os.environ.update(fake.environment)
            for number in range(options.groups):
                verdict = judged(group(foreground, background), fake.uuid(), folder / str(number))
                assert verdict.feasible, verdict
                evidence = read_evidence(GroupDirectory(folder / str(number) / "run" / "group01"))
                found.append(added_s(evidence))
    print(f"{options.groups} groups with a foreground of {options.seconds:g} s")
    print(f"added by the harness: median {statistics.median(found):.2f} s, largest {max(found):.2f} s")
    print(
        f"the study's fixed waits: {STUDY_WAITS_S:.0f} s, {STUDY_WAITS_S / statistics.median(found):.0f} times as much"
    )


if __name__ == "__main__":
    main()
