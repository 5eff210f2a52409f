"""What a sample of the GPU's memory costs, beside other ways to get it, on the simulated GPU.

Three ways are measured in one run on the same fake NVML library: colocate's monitor, nvitop's `Device.memory_info`, and
starting a program that prints the number, as scripts do with nvidia-smi. The fake library answers at once, so these are
the costs of everything around NVML; a real driver adds the same 10 to 20 microseconds to each.

Two numbers each. *Back to back*: processor time of one reading among thousands. *At 20 Hz*: the share of a core that a
thread takes which wakes up twenty times a second; the caches are cold then, and waking up costs as well. "Nothing" is
the same thread without any reading.

Usage: python benchmarks/sampler_cost.py [--seconds 10]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fake_nvml import MIB, FakeNvml, preload  # noqa: E402  (tests/ is no package that could be installed)
from fake_nvml.build import build_library, compiler  # noqa: E402

INTERVAL_S = 0.05
TARGET_SAMPLE_US, TARGET_SHARE_PERCENT = 20, 0.2

QUERY = r"""
#include <dlfcn.h>
#include <stdio.h>
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
int main(void) {
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW), *GPU;
    if (!library) return 1;
    int (*init)(unsigned) = (int (*)(unsigned))dlsym(library, "nvmlInitWithFlags");
    int (*find)(unsigned, void **) = (int (*)(unsigned, void **))dlsym(library, "nvmlDeviceGetHandleByIndex_v2");
    int (*ask)(void *, void *) = (int (*)(void *, void *))dlsym(library, "nvmlDeviceGetMemoryInfo_v2");
    struct memory memory = {2u << 24 | sizeof memory, 0, 0, 0, 0};
    if (init(0) || find(0, &gpu) || ask(gpu, &memory)) return 1;
    printf("%llu MiB\n", memory.used >> 20);
    return 0;
}
"""


@dataclass(frozen=True)
class Cost:
    """Microseconds of processor time for a reading back to back, and percent of a core at 20 Hz."""

    sample_us: float | None
    share_percent: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--seconds", type=float, default=10.0, help="how long each way runs at 20 Hz")
    seconds = options.parse_args().seconds
    with tempfile.TemporaryDirectory() as folder:
        library = build_library(Path(folder))
        preload(library)
        with FakeNvml.create(Path(folder) / "state", library) as fake:
            os.environ.update(fake.environment)
            fake.add_gpu()
            for pid in (4_000_000, 4_000_001):
                fake.foreign(1500 * MIB, pid=pid)
            report(measure(fake, build_query(Path(folder)), seconds))


def build_query(folder: Path) -> Path:
    source, program = folder / "query.c", folder / "query"
    source.write_text(QUERY)
    subprocess.run([str(compiler()), "-O1", "-o", program, source, "-ldl"], check=True)
    return program


def measure(fake: FakeNvml, query: Path, seconds: float) -> dict[str, Cost]:
    from nvitop import Device

    from colocate.device.nvml import NvidiaDevice
    from colocate.harness.sampler import Sampler

    with NvidiaDevice(fake.uuid()) as device:
        monitor = Sampler(device)
        gpu = Device(0)
        ways: dict[str, tuple[Callable[[], object], int]] = {
            "colocate": (lambda: monitor._sample(1.0), 20_000),
            "nvitop": (gpu.memory_info, 20_000),
            "a program": (lambda: subprocess.run([query], check=True, stdout=subprocess.DEVNULL), 200),
        }
        costs = {"nothing": Cost(None, share_at_20_hz(lambda: None, seconds))}
        for name, (read, repetitions) in ways.items():
            costs[name] = Cost(back_to_back_us(read, repetitions), share_at_20_hz(read, seconds))
        costs["the whole monitor"] = Cost(None, whole_monitor_percent(Sampler(device), seconds))
    return costs


def processor_s() -> float:
    """Processor time of this thread and of all children that have ended."""
    children = os.times()
    return time.thread_time() + children.children_user + children.children_system


def back_to_back_us(read: Callable[[], object], repetitions: int) -> float:
    """The best of five rounds: others on the machine only ever add."""
    rounds = []
    for _ in range(5):
        started_s = processor_s()
        for _ in range(repetitions // 5):
            read()
        rounds.append((processor_s() - started_s) / (repetitions // 5))
    return min(rounds) * 1e6


def share_at_20_hz(read: Callable[[], object], seconds: float) -> float:
    spent: list[float] = []

    def loop() -> None:
        started_s, pause = processor_s(), threading.Event()
        due_s = time.monotonic()
        for _ in range(round(seconds / INTERVAL_S)):
            due_s += INTERVAL_S
            pause.wait(max(0.0, due_s - time.monotonic()))
            read()
        spent.append(processor_s() - started_s)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    return 100 * spent[0] / seconds


def whole_monitor_percent(monitor: object, seconds: float) -> float:
    with monitor:
        threading.Event().wait(seconds)
    trace = monitor.trace()
    return 100 * trace.reading_s / trace.duration_s


def report(costs: dict[str, Cost]) -> None:
    ours = costs["colocate"]
    print(f"{'way':20} {'back to back':>14} {'ratio':>7} {'core at 20 Hz':>14} {'less nothing':>13} {'ratio':>7}")
    for name, cost in costs.items():
        sample = "" if cost.sample_us is None else f"{cost.sample_us:.1f} us"
        times = "" if cost.sample_us is None else f"{cost.sample_us / ours.sample_us:.1f}"
        own = cost.share_percent - costs["nothing"].share_percent
        ratio = own / (ours.share_percent - costs["nothing"].share_percent)
        print(f"{name:20} {sample:>14} {times:>7} {cost.share_percent:>12.2f} % {own:>11.2f} % {ratio:>7.1f}")
    whole = costs["the whole monitor"].share_percent
    print(f"sample: {ours.sample_us:.1f} us, target at most {TARGET_SAMPLE_US} us")
    print(f"whole monitor: {whole:.2f} % of a core, target at most {TARGET_SHARE_PERCENT} %")


if __name__ == "__main__":
    main()
