"""What a plan costs by its number of groups: load, collect, take in, report, look.

python benchmarks/scale.py --groups 10 100 1000 10000
python benchmarks/scale.py --sessions 10 100 1000

The groups are pairs of the catalog's trainings; their records are made by hand (600 samples each, both trainings with
their steps), for nobody runs ten thousand groups to weigh a report. Every step is a process of its own, so that its
memory is its own.

A session is real: pytest with one worker for each of four GPUs of the fake NVML library, and stand-ins of half a
second that mostly sleep in place of the trainings.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import sessions  # noqa: E402
from builders import foreground, out_of_memory, predicted_evidence, simulated, trace  # noqa: E402
from fake_nvml import FakeNvml  # noqa: E402
from fake_nvml.build import build_library  # noqa: E402

from colocate.plan.plan import Group, load_plan  # noqa: E402
from colocate.results import journal  # noqa: E402
from colocate.results.layout import RunDirectory  # noqa: E402
from colocate.results.reader import read_run  # noqa: E402
from colocate.results.record import write_record  # noqa: E402
from colocate.results.versions import packages  # noqa: E402

PLAN = ROOT / "settings" / "parallel_feasibility_test.json"
SAMPLES = 600

LOAD = "import sys; from colocate.plan.plan import load_plan; load_plan(sys.argv[1])"
TAKE_IN = """
import sys, time
from pathlib import Path
from colocate.plan import load_plan
from colocate.report.summary_csv import Summary
from colocate.results.layout import RunDirectory
plan, run = load_plan(sys.argv[1]), RunDirectory(Path(sys.argv[2]))
summary = Summary(run)
summary.take(plan.groups[0])
began = time.perf_counter()
for group in plan.groups[:10]:
    summary._lines.pop(group.id)
    summary.take(group)
print((time.perf_counter() - began) / 10)
"""
WATCH = """
import sys, time
from pathlib import Path
from colocate.report.follow import Following
following = Following(Path(sys.argv[1]))
list(following.finished()), following.lines(80)
began = time.perf_counter()
for _ in range(3):
    list(following.finished()), following.lines(80)
print((time.perf_counter() - began) / 3)
"""
DECIDE = """
import sys
from pathlib import Path
from colocate.plan import load_plan
from colocate.harness.resume import decide
from colocate.results.layout import RunDirectory
decide(RunDirectory(Path(sys.argv[2])), load_plan(sys.argv[1]).groups, ())
"""


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    out: str


def cost(*command: str) -> Cost:
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command}: {out[-2000:]}"
    return Cost(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out)


def python(*arguments: str) -> Cost:
    return cost(sys.executable, *arguments)


def write_plan(num_groups: int, path: Path) -> None:
    """Ordered pairs of the trainings of the project's own plan, as often as needed."""
    document = json.loads(PLAN.read_text())
    entries = document["experiments"]
    document["catalog"] = str(ROOT / "settings" / "models.json")
    document["experiments"] = [
        {
            **{key: entries[place % len(entries)][key] for key in ("tier", "expected_memory", "mode", "foreground")},
            "background": entries[place // len(entries) % len(entries)]["background"],
        }
        for place in range(num_groups)
    ]
    path.write_text(json.dumps(document))


def write_run(plan_path: Path, folder: Path) -> RunDirectory:
    """A finished run of the plan: every sixth group does not fit."""
    plan, run = load_plan(plan_path), RunDirectory(folder)
    folder.mkdir()
    run.record.write_text(
        json.dumps({"plan": {"name": plan.name, "groups": plan.ids, "needed": 1, "tiers": dict(plan.tiers)}})
    )
    journal.append(folder, "started", groups=plan.ids, estimates={})
    shapes = {fits: _written(plan.groups[0], folder.with_name(f"shape_{fits}"), fits=fits) for fits in (True, False)}
    for group in plan.groups:
        source, record = shapes[group.number % 6 != 0]
        _copied(source, run.group(group.foreground.name, group.number, parallel=True).path, group)
        named = {"group": group.id, "number": group.number, "tier": group.tier}
        directory = str(run.group(group.foreground.name, group.number, parallel=True).path)
        journal.append(folder, "group", record={**record, **named, "directory": directory}, text=None)
    journal.append(folder, "ended")
    return run


def _written(group: Group, folder: Path, *, fits: bool) -> tuple[Path, dict[str, object]]:
    """One group as a run records it."""
    seen = replace(
        predicted_evidence(2400, 1700, group=group.id, duration_s=30.0, versions=packages()),
        trace=trace(*[230 + 5 * (place % 400) for place in range(SAMPLES)], interval_s=0.05),
    )
    if not fits:
        seen = replace(seen, foreground=foreground(out_of_memory=(out_of_memory(),), allocators=(simulated(9000),)))
    folder.mkdir()
    directory = RunDirectory(folder).group(group.foreground.name, 1, parallel=True).create()
    directory.foreground_log.write_text("epoch 1: loss 0.5\n" * 40)
    directory.background_log(1).write_text("epoch 1: loss 0.5\n" * 40)
    write_record(directory, group, seen, [], folder.name)
    return directory.path, read_run(folder).results[0].to_json()


def _copied(source: Path, folder: Path, group: Group) -> None:
    shutil.copytree(source, folder)
    path = folder / "experiment.json"
    experiment = json.loads(path.read_text())
    experiment["group"] |= {"id": group.id, "number": group.number, "tier": group.tier}
    experiment["group"]["content_hash"] = group.content_hash
    experiment["evidence"]["group"] = group.id
    path.write_text(json.dumps(experiment, indent=2))


def measured(num_groups: int, folder: Path, keep: Path | None) -> list[str]:
    """One row of the table."""
    plan, run = folder / "plan.json", folder / "run_20261124_053000"
    write_plan(num_groups, plan)
    loaded = python("-c", LOAD, str(plan))
    collect = ("-m", "pytest", "feasibility", f"--plan={plan}", "--collect-only", "-qq", "--device=virtual")
    collected = python(*collect)
    directory = write_run(plan, run)
    taken = python("-c", TAKE_IN, str(plan), str(run))
    reported = python("-m", "colocate", "report", str(run))
    watched = python("-c", WATCH, str(run))
    decided = python("-c", DECIDE, str(plan), str(run))
    page = run / "report.html"
    if keep is not None:
        shutil.copytree(run, keep / f"run_{num_groups}", dirs_exist_ok=True)
    assert directory.summary.exists()
    sizes = f"{page.stat().st_size / 1e6:.1f}"
    load, collect_, report, resume = map(_shown, (loaded, collected, reported, decided))
    end, look = (f"{float(one.out) * 1000:.1f} ms" for one in (taken, watched))
    return [str(num_groups), load, collect_, end, report, sizes, look, resume]


def _shown(one: Cost) -> str:
    return f"{one.wall_s:.1f} s ({one.cpu_s:.1f}), {one.peak_mib:.0f} MiB"


# --- sessions ---------------------------------------------------------------------------------------------------------

GPUS = 4
FOREGROUND_S = 0.5


class Controller(threading.Thread):
    """Watches the process of a session while it runs: the most memory it held, the processor time it used."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.peak_mib, self.cpu_s = 0.0, 0.0
        self.held_mib: list[tuple[float, float]] = []
        self._folder = Path("/proc", str(pid))
        self.start()

    def run(self) -> None:
        """Look until the process is gone."""
        while True:
            try:
                status = (self._folder / "status").read_text()
                times = (self._folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                return
            sizes = dict(line.split(":", 1) for line in status.splitlines())
            if "VmHWM" in sizes:  # a process that has ended has none
                self.peak_mib = int(sizes["VmHWM"].split()[0]) / 1024
                self.held_mib.append((time.time(), int(sizes["VmRSS"].split()[0]) / 1024))
            ticks = sum(map(int, times[11:13])) / os.sysconf("SC_CLK_TCK")
            self.cpu_s = max(self.cpu_s, ticks)
            time.sleep(0.05)

    def held_at(self, when: float) -> float:
        """What it held at this time."""
        return min(self.held_mib, key=lambda one: abs(one[0] - when))[1]


def session(num_groups: int, folder: Path) -> list[str]:
    """One row of the second table."""
    controller = _run_session(num_groups, folder)
    took: list[tuple[float, float]] = []  # when each group ended, and how long it took
    for path in folder.glob("results/*/*/experiment.json"):
        evidence = json.loads(path.read_text())["evidence"]
        started = datetime.fromisoformat(evidence["started_at"]).timestamp()
        took.append((started + evidence["duration_s"], evidence["duration_s"]))
    took.sort()
    some = max(1, len(took) // 10)
    early_s, late_s = (statistics.mean(seconds for _, seconds in part) for part in (took[:some], took[-some:]))
    whole_s = took[-1][0] - min(end - seconds for end, seconds in took)
    return [
        str(num_groups),
        f"{whole_s:.0f} s",
        f"{whole_s * GPUS / len(took) - FOREGROUND_S:.2f} s",
        f"{early_s:.2f} s, {late_s:.2f} s",
        f"{controller.cpu_s / num_groups * 1000:.0f} ms",
        f"{controller.held_at(took[some - 1][0]):.0f}, {controller.held_at(took[-1][0]):.0f} MiB",
        f"{controller.peak_mib:.0f} MiB",
        f"{os.getloadavg()[0]:.1f}",
    ]


def _run_session(num_groups: int, folder: Path) -> Controller:
    """Run groups of half a second on all GPUs; all of them must be feasible."""
    steps = ("--steps", str(round(FOREGROUND_S / 0.05)), "--step-s", "0.05")
    entry = {
        "foreground": sessions.stand_in("--hold", "700", "--probe", *steps),
        "background": sessions.stand_in("--hold", "1500", "--probe", "--repeat", "--step-s", "0.05"),
    }
    plan = sessions.plan(folder / "plan.json", [entry] * num_groups)
    library = build_library(folder)
    with FakeNvml.create(folder / "state", library) as fake, (folder / "out.txt").open("w+") as out:
        for _ in range(GPUS):
            fake.add_gpu()
        environment = {**os.environ, **fake.environment, "COLOCATE_LOCK_FOLDER": str(folder / "locks")}
        command = sessions.arguments(plan, folder, "--device=nvidia", "-n", "auto", "--predict=0", "-q")
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        controller = Controller(process.pid)
        code = process.wait()
        out.seek(0)
        assert code == 0, out.read()[-3000:]
    return controller


SESSION_HEADS = (
    *("groups", "first to last", "harness per group", "first tenth, last tenth"),
    *("controller per group", "its memory after a tenth, at the last", "with the page", "load"),
)

HEADS = ("groups", "load", "collect", "one group's end", "report", "page, MB", "one look", "resume")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--keep", type=Path, help="folder in which the runs stay")
    parser.add_argument("--sessions", type=int, nargs="+", help="run real sessions of so many groups instead")
    options = parser.parse_args()
    heads = SESSION_HEADS if options.sessions else HEADS
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for num_groups in options.sessions or options.groups:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            row = session(num_groups, folder) if options.sessions else measured(num_groups, folder, options.keep)
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
