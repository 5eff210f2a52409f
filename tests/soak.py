"""Many groups with random faults on two simulated GPUs, and a session killed at every place; run by hand.

::

    PYTHONPATH=. python tests/soak.py groups 200 [seed]     invariants after each group, figures at the end
    PYTHONPATH=. python tests/soak.py kill                  for every k: killed at the k-th thing it does, then resumed
"""

import contextlib
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from fake_nvml import MIB, FakeNvml, preload
from fake_nvml.build import build_library
from sessions import ROOT, Session, alive_below, arguments, plan, stand_in

STEPS = ("--steps", "10", "--probe", "--hold", "700", "--longest-life-s", "30")
FOREGROUNDS: tuple[tuple[str, ...], ...] = (
    *[()] * 6,
    *(("--hold", "6000"), ("--oom-at", "3"), ("--oom-swallowed",), ("--fail-at", "3"), ("--die-at", "3")),
    *(("--die-at", "4", "--die-of", "SIGKILL"), ("--hang-at", "4"), ("--ignore-term", "--hang-at", "4")),
    *(("--flood", "5000000"), ("--binary",), ("--fork",), ("--daemonise",), ("--close-output",), ("--silent",)),
    *(("--spike", "6500"), ("--hidden",), ("--stub", "--step-s", "0.05"), ("--exit-code", "3"), ("--full-steps", "90")),
)
BACKGROUNDS: tuple[tuple[str, ...], ...] = (
    *[()] * 6,
    *(("--oom-at", "9"), ("--die-at", "2"), ("--die-at", "30"), ("--stub", "--step-s", "0.05"), ("--never-ready",)),
    *(
        ("--fork",),
        ("--daemonise",),
        ("--ignore-term",),
        ("--close-output",),
        ("--hang-at", "15"),
        ("--flood", "9000000"),
    ),
)


@dataclass
class Soak:
    """What a soak measured; ``broken`` are invariants that did not hold."""

    session: Session
    seconds: float
    broken: list[str] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        outcomes: dict[str, int] = {}
        for word in self.session.junit.values():
            outcomes[word] = outcomes.get(word, 0) + 1
        return (
            f"{len(self.session.junit)} groups in {self.seconds:.0f} s: {outcomes}; memory of the harness "
            f"{_range(self.rss_mib)} MiB, descriptors {_range(self.descriptors)}, threads {_range(self.threads)} "
            f"(each in five equal steps, after a tenth of the groups); {len(self.broken)} broken invariants"
        )


def _range(values: list[Any]) -> str:
    """Five values in equal steps, and the highest."""
    if not values:
        return "none"
    steps = [values[round(part * (len(values) - 1) / 4)] for part in range(5)]
    return f"{', '.join(f'{value:.0f}' for value in steps)} (at most {max(values):.0f})"


def entries(number: int, seed: int) -> list[dict[str, Any]]:
    """Groups with a fault drawn for each member, or none."""
    chance = random.Random(seed)
    return [
        {
            "foreground": stand_in(*STEPS, *chance.choice(FOREGROUNDS)),
            "background": stand_in("--repeat", "--hold", "1000", "--probe", *chance.choice(BACKGROUNDS))
            | {"ready_timeout_s": 3},
        }
        for _ in range(number)
    ]


def soak(folder: Path, fake: FakeNvml, number: int, seed: int = 1) -> Soak:
    """Run so many groups with two workers on two GPUs, and look after each whether all invariants hold."""
    path = plan(folder / "plan.json", entries(number, seed), stall_s=1.5, settle_s=2, longest_gap_s=5)
    started = time.monotonic()
    with (folder / "output").open("w") as output:
        session = subprocess.Popen(arguments(path, folder, "-n2"), cwd=ROOT, stdout=output, stderr=output)
    result = Soak(Session(0, "", folder), 0.0)
    with contextlib.suppress(psutil.NoSuchProcess):
        _watch(psutil.Process(session.pid), folder, number, result)
    code = session.wait(60)
    result.session = Session(code, (folder / "output").read_text(), folder)
    result.seconds = time.monotonic() - started
    result.broken += _at_the_end(result, fake, number)
    return result


def _watch(session: psutil.Process, folder: Path, number: int, result: Soak) -> None:
    done: set[Path] = set()
    while session.is_running() and session.status() != psutil.STATUS_ZOMBIE:
        for verdict in set(folder.glob("results/*/*/verdict.json")) - done:
            done.add(verdict)
            result.broken += _left_of(verdict)
            if len(done) > number // 10:
                _measure(session, result)
        time.sleep(0.2)


def _left_of(verdict: Path) -> list[str]:
    """A group that has its verdict has no process any more."""
    left = alive_below(verdict.parent)
    return [f"{verdict.parent.name} left {left}"] if left else []


def _measure(session: psutil.Process, result: Soak) -> None:
    """The controller and its workers together; trainings and supervisors are sessions of their own below them."""
    with contextlib.suppress(psutil.Error):
        harness = [session, *session.children()]
        result.rss_mib.append(sum(process.memory_info().rss for process in harness) / MIB)
        result.descriptors.append(sum(process.num_fds() for process in harness))
        result.threads.append(sum(process.num_threads() for process in harness))


def _at_the_end(result: Soak, fake: FakeNvml, number: int) -> Iterator[str]:
    if not (result.session.folder / "junit.xml").exists():
        yield f"no report, exit code {result.session.code}"
        return
    if len(result.session.junit) != number:
        yield f"expected {number} outcomes, found {len(result.session.junit)}"
    if set(result.session.junit.values()) - {"passed", "failure", "error"}:
        yield f"outcomes that are none: {result.session.junit}"
    left = alive_below(result.session.folder)
    if left:
        yield f"processes left: {left}"
    for gpu in range(2):
        if fake.used_bytes(gpu):
            yield f"GPU {gpu} holds {fake.used_bytes(gpu)} bytes"
    if result.descriptors and max(result.descriptors) - result.descriptors[0] > 20:
        yield f"descriptors grew from {result.descriptors[0]} to {max(result.descriptors)}"
    if result.threads and max(result.threads) - result.threads[0] > 6:
        yield f"threads grew from {result.threads[0]} to {max(result.threads)}"


@contextlib.contextmanager
def machine(folder: Path, gpus: int) -> Iterator[FakeNvml]:
    """A simulated machine for this process and its children."""
    library = build_library(folder)
    preload(library)
    with FakeNvml.create(folder / "state", library) as fake:
        os.environ.update(fake.environment)
        os.environ["COLOCATE_LOCK_FOLDER"] = str(folder / "locks")
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        for _ in range(gpus):
            fake.add_gpu()
        yield fake


def kill_everywhere(folder: Path, stride: int) -> None:
    """For every k; prints those that went wrong."""
    from test_resume import GROUPS, check_resumes

    for place in itertools.count(1, stride):
        below = folder / f"k{place}"
        below.mkdir()
        if not check_resumes(place, plan(below / "plan.json", GROUPS), below):
            print(f"{place - 1} places, all resumed")
            return
        print(place, "resumed", flush=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if sys.argv[1] == "kill":
            with machine(folder, 1):
                kill_everywhere(folder, int(sys.argv[2]) if len(sys.argv) > 2 else 1)
            return
        with machine(folder, 2) as fake:
            result = soak(folder, fake, int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
        print("\n".join(result.broken) or result)
        if result.broken:
            print(result.session.output[-6000:])


if __name__ == "__main__":
    main()
