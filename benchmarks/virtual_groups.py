# SPDX-License-Identifier: Apache-2.0
"""Times the study's twelve groups on the virtual GPU: checkouts side by side, and the curve over more groups.

Usage:
    python benchmarks/virtual_groups.py [CHECKOUT ...] [--processors N] [--rounds N] [--groups 12 48 192]

Every CHECKOUT, this one by default, needs a ``.venv`` of its own (``scripts/test --collect-only`` makes it). They run
in turn, so that what else the machine does meets all of them, on the same N processors. The first is the one to which
the others' ratios are told; verdicts and expected peaks are compared with its.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parents[1]
PLAN = HERE / "settings" / "parallel_feasibility_test.json"


@dataclass(frozen=True)
class Timed:
    """One run: seconds in all and until the last group, processor seconds, and by group outcome and peak in MiB."""

    whole_s: float
    groups_s: float
    processor_s: float
    verdicts: dict[str, tuple[str, int]]


def plan_of(groups: int, folder: Path) -> Path:
    """The study's plan with its groups over and over, up to a number."""
    document = json.loads(PLAN.read_text())
    once = document["experiments"]
    document["experiments"] = [
        {**once[place % len(once)], "id": f"group{place + 1:03}" if groups > len(once) else once[place]["id"]}
        for place in range(groups)
    ]
    document["catalog"] = str(PLAN.parent / document["catalog"])
    path = folder / "plan.json"
    path.write_text(json.dumps(document))
    return path


def run(checkout: Path, plan: Path | None, folder: Path, processors: list[int]) -> Timed:
    """Run a plan once, by default the checkout's own."""
    words = ["-m", "pytest", "feasibility", "--device=virtual", "-q"]
    words += [f"--results={folder / 'results'}", f"--reports={folder / 'reports'}"]
    words += [f"--plan={plan}"] if plan else []
    before, began_t, began_at = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), time.time()
    subprocess.run(
        [str(checkout / ".venv" / "bin" / "python"), *words],
        cwd=checkout,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},  # no forecast of an earlier run
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
        check=False,
    )
    whole_s, after = time.monotonic() - began_t, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found, ended_at = {}, began_at
    for path in sorted(folder.glob("results/run_*/*/verdict.json")):
        ended_at = max(ended_at, path.stat().st_mtime)
        group = json.loads((path.parent / "experiment.json").read_text())["group"]["id"]
        verdict = json.loads(path.read_text())
        found[group] = (verdict["outcome"], (verdict["peak_bytes"] or 0) >> 20)
    return Timed(whole_s, ended_at - began_at, spent_s, found)


def main() -> None:
    """Print a line for every run, then the ratios; then a line for every number of groups."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("checkouts", nargs="*", type=Path, default=[HERE])
    arguments.add_argument("--processors", type=int, default=len(os.sched_getaffinity(0)))
    arguments.add_argument("--rounds", type=int, default=1)
    arguments.add_argument("--groups", type=int, nargs="*", default=[])
    asked = arguments.parse_args()
    processors = sorted(os.sched_getaffinity(0))[: asked.processors]
    print(f"on {len(processors)} processors, load {os.getloadavg()[0]:.1f} at the start")
    checkouts = [one.resolve() for one in asked.checkouts]
    best: dict[Path, Timed] = {}
    for number in range(asked.rounds):
        for checkout in checkouts:
            with tempfile.TemporaryDirectory() as folder:
                timed = run(checkout, None, Path(folder), processors)
            best[checkout] = min(timed, best.get(checkout, timed), key=lambda one: one.whole_s)
            told = f"groups {timed.groups_s:6.1f} s, whole {timed.whole_s:6.1f} s, processor {timed.processor_s:6.1f} s"
            print(f"{number + 1}. {checkout.name:20} {told}", flush=True)
    first = best[checkouts[0]]
    for checkout in checkouts[1:]:
        other = best[checkout]
        ratios = f"groups {other.groups_s / first.groups_s:.2f}, whole {other.whole_s / first.whole_s:.2f}"
        differ = {name for name, found in first.verdicts.items() if other.verdicts.get(name) != found}
        print(f"{checkout.name} against {checkouts[0].name}: {ratios}, processor", end=" ")
        print(f"{other.processor_s / first.processor_s:.2f}; other verdict or peak: {sorted(differ) or 'none'}")
    for groups in asked.groups:
        with tempfile.TemporaryDirectory() as folder:
            timed = run(checkouts[-1], plan_of(groups, Path(folder)), Path(folder), processors)
        print(f"{groups:4} groups: {timed.groups_s:6.1f} s, {timed.groups_s / groups:5.2f} s per group", flush=True)


if __name__ == "__main__":
    sys.exit(main())
