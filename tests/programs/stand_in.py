#!/usr/bin/env python3
"""A program that behaves like a training, without PyTorch and without a GPU. Standard library only.

It takes memory on a GPU, makes steps through the phases train, evaluate and save, writes the events of the contract
to ``COLOCATE_EVENTS`` and, when asked, a probe record into ``COLOCATE_PROBE``. The GPU is, in this order: the virtual
GPU of ``COLOCATE_VIRTUAL_GPU``, the simulated NVIDIA GPU of ``FAKE_NVML_STATE`` that ``CUDA_VISIBLE_DEVICES``
selects (the first one without it), or none: then it only runs.

Every way to misbehave is an option; ``--help`` lists them. Steps are counted over the whole run, from 1. A safety net
ends every process that this program starts after ``--longest-life-s``, so that a failed test leaves nothing behind.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
MIB = 1024**2

parser = argparse.ArgumentParser(description="A stand-in for a training.")
shape = parser.add_argument_group("what it does when all goes well")
shape.add_argument("--hold", type=float, default=100, metavar="MIB", help="memory on the GPU from ready to end")
shape.add_argument(
    "--batch-size", "--batch", dest="batch", type=int, default=0, metavar="N", help="samples that go through it at once"
)
shape.add_argument("--per-sample", type=float, default=0, metavar="MIB", help="memory on top of --hold for each")
shape.add_argument("--peak", type=float, metavar="MIB", help="memory during the evaluation, instead of --hold")
shape.add_argument("--spike", type=float, metavar="MIB", help="memory for a moment, in the middle of every epoch")
shape.add_argument("--context", type=float, default=0, metavar="MIB", help="the part of --hold that is no tensor")
shape.add_argument("--epochs", type=int, default=1)
shape.add_argument("--steps", type=int, default=5, help="training steps of an epoch")
shape.add_argument("--evaluate-steps", type=int, default=2)
shape.add_argument("--step-s", type=float, default=0.02, metavar="S", help="how long a step takes")
shape.add_argument("--shared-step-s", type=float, metavar="S", help="instead, while others hold memory on the GPU")
shape.add_argument("--load-s", type=float, default=0, metavar="S", help="how long it takes to get ready")
shape.add_argument("--full-steps", type=int, help="what a full epoch has, when --steps is a cut one")
shape.add_argument("--repeat", action="store_true", help="epochs without end, as a background")
shape.add_argument("--cpu", action="store_true", help="work on the CPU: takes no memory, burns processor time")
shape.add_argument("--silent", action="store_true", help="no events, as a training that does not know us")
shape.add_argument("--probe", action="store_true", help="write the record that the injected probe would write")
shape.add_argument("--exit-code", type=int, default=0, help="how it ends after its last epoch")
trouble = parser.add_argument_group("how it misbehaves")
trouble.add_argument("--stub", action="store_true", help="exit 0 after --step-s, or a second, without touching the GPU")
trouble.add_argument("--never-ready", action="store_true", help="hold memory, but never start to train")
trouble.add_argument("--fail-at", type=int, metavar="STEP", help="end with a traceback and exit code 1")
trouble.add_argument("--die-at", type=int, metavar="STEP", help="end by --die-of")
trouble.add_argument("--die-of", default="SIGSEGV", metavar="SIGNAL")
trouble.add_argument("--hang-at", type=int, metavar="STEP", help="do nothing any more, and keep the memory")
trouble.add_argument("--oom-at", type=int, metavar="STEP", help="run out of memory, as on a full GPU")
trouble.add_argument("--oom-swallowed", action="store_true", help="catch that (at step 1 without --oom-at) and go on")
trouble.add_argument("--oom-silent", action="store_true", help="do not even print PyTorch's message")
trouble.add_argument("--workspaces", type=int, default=0, help="allocations that failed and PyTorch tried smaller")
trouble.add_argument("--release-at", type=int, metavar="STEP", help="give all memory back, and train on")
trouble.add_argument("--ignore-term", action="store_true", help="take no notice of SIGTERM and SIGINT")
trouble.add_argument("--fork", action="store_true", help="leave a child that holds --fork-hold and outlives us")
trouble.add_argument("--fork-hold", type=float, default=50, metavar="MIB")
trouble.add_argument("--daemonise", action="store_true", help="train in a process that left session and parent")
trouble.add_argument("--leak", action="store_true", help="the (simulated NVIDIA) GPU keeps the memory after the end")
trouble.add_argument("--hidden", action="store_true", help="the (simulated NVIDIA) GPU does not list the process")
trouble.add_argument("--also-on", type=int, metavar="INDEX", help="hold the memory on this simulated GPU as well")
trouble.add_argument("--host-memory", type=int, metavar="MIB", help="take so much of the host's memory before step 2")
trouble.add_argument("--flood", type=int, metavar="BYTES", help="print so much before the first step")
trouble.add_argument("--binary", action="store_true", help="print NUL, invalid UTF-8, carriage returns, a long line")
trouble.add_argument("--close-output", action="store_true", help="close stdout and stderr once ready")
trouble.add_argument("--longest-life-s", type=int, default=120, metavar="S", help="safety net, also for children")


class OutOfMemoryError(RuntimeError):
    """Named and worded as PyTorch's, so that a log looks the same."""

    def __init__(self, requested_bytes: int, free_bytes: int, total_bytes: int, held_bytes: int) -> None:
        super().__init__(
            f"CUDA out of memory. Tried to allocate {size(requested_bytes)}. GPU 0 has a total capacity of "
            f"{size(total_bytes)} of which {size(free_bytes)} is free. Including non-PyTorch memory, this process has "
            f"{size(held_bytes)} memory in use. Of the allocated memory {size(held_bytes)} is allocated by PyTorch, "
            "and 0 bytes is reserved by PyTorch but unallocated. If reserved but unallocated memory is large try "
            "setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for "
            "Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html"
            "#optimizing-memory-usage-with-pytorch-cuda-alloc-conf)"
        )
        self.requested_bytes = requested_bytes


def size(num_bytes: int) -> str:
    """Bytes as PyTorch's allocator prints them."""
    units = [(1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")]
    fitting = ((factor, name) for factor, name in units if num_bytes >= factor)
    factor, name = next(fitting, (1, "bytes"))
    return f"{num_bytes} bytes" if factor == 1 else f"{num_bytes / factor:.2f} {name}"


class NoGpu:
    """A machine without any GPU: memory costs nothing."""

    total_bytes = 8192 * MIB

    def hold(self, used_bytes: int) -> None:
        pass

    def is_shared(self) -> bool:
        return False


class SimulatedNvidiaGpu:
    """The GPU that the fake NVML library shows."""

    def __init__(self, options: argparse.Namespace) -> None:
        sys.path.insert(0, str(TESTS))
        from fake_nvml import HIDDEN, LEAKS, FakeNvml

        self.machine = FakeNvml.open()
        self.index = self.machine.index(os.environ.get("CUDA_VISIBLE_DEVICES"))
        self.also_on = options.also_on
        self.held_bytes = 0
        self.flags = LEAKS * options.leak | HIDDEN * options.hidden
        self.total_bytes = self.machine.state.gpus[self.index].total_bytes

    def hold(self, used_bytes: int) -> None:
        from fake_nvml import GpuFull

        try:
            self.machine.allocate(used_bytes, gpu=self.index, flags=self.flags)
            if self.also_on is not None:
                self.machine.allocate(used_bytes, gpu=self.also_on, flags=self.flags)
        except GpuFull as error:
            raise OutOfMemoryError(error.requested_bytes, error.free_bytes, self.total_bytes, 0) from None
        self.held_bytes = used_bytes

    def is_shared(self) -> bool:
        others = self.machine.used_bytes(self.index) - self.held_bytes
        return others > self.machine.state.gpus[self.index].baseline_bytes


class SharedVirtualGpu:
    """The virtual GPU of a group; its module is loaded by path because a training need not have colocate installed."""

    def __init__(self, path: str) -> None:
        source = TESTS.parent / "colocate" / "probe" / "virtual_gpu" / "state.py"
        spec = importlib.util.spec_from_file_location("virtual_gpu", source)
        self.module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = self.module
        spec.loader.exec_module(self.module)
        self.gpu = self.module.VirtualGpu.open(Path(path))
        self.total_bytes = self.gpu.total_bytes

    def hold(self, used_bytes: int) -> None:
        try:
            self.gpu.claim(used_bytes)
        except self.module.GpuFull as error:
            free = self.total_bytes - self.gpu.used_bytes()
            raise OutOfMemoryError(used_bytes, free, self.total_bytes, 0) from error

    def is_shared(self) -> bool:
        return any(pid != os.getpid() for pid, _ in self.gpu.processes())


class Events:
    """What the training tells by itself: JSON lines, one write each."""

    def __init__(self, silent: bool) -> None:
        self.path = None if silent else os.environ.get("COLOCATE_EVENTS")
        self.last_step_t = 0.0

    def write(self, event: str, **details: object) -> None:
        if self.path is None:
            return
        line = json.dumps({"t": time.monotonic(), "pid": os.getpid(), "event": event, **details}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, line.encode())
        os.close(file)

    def step(self, step: int, steps: int, **details: object) -> None:
        """At most ten a second, but always the first and the last of a phase."""
        if step in (1, steps) or time.monotonic() - self.last_step_t >= 0.1:
            self.last_step_t = time.monotonic()
            self.write("step", step=step, steps=steps, **details)


class Probe:
    """The record that colocate's probe keeps of a training's allocator."""

    def __init__(self, wanted: bool, virtual: bool, context_bytes: int) -> None:
        folder = os.environ.get("COLOCATE_PROBE") if wanted else None
        self.path = Path(folder) / f"{os.getpid()}.json" if folder else None
        self.written_t = 0.0
        self.record = {
            "pid": os.getpid(),
            "started_t": time.monotonic(),
            "t": time.monotonic(),
            "torch": "2.14.1",
            "mode": "virtual" if virtual else "cuda",
            "optimizer_steps": 0,
            "first_step_t": None,
            "last_step_t": None,
            **dict.fromkeys(["allocated_bytes", "reserved_bytes", "max_allocated_bytes", "max_reserved_bytes"], 0),
            "num_ooms": 0,
            "ooms_raised": 0,
            "num_alloc_retries": 0,
            "last_oom": None,
            "history": [],
        }
        if virtual:
            self.record |= {"context_bytes": context_bytes, "batches_per_pass": None, "passes_cut": 0}
            self.record |= {"convolutions": False, "notes": [], "unsupported": None}

    def holds(self, tensor_bytes: int) -> None:
        for kind in ("allocated", "reserved"):
            self.record[f"{kind}_bytes"] = tensor_bytes
            self.record[f"max_{kind}_bytes"] = max(tensor_bytes, self.record[f"max_{kind}_bytes"])
        self.record["history"].append((time.monotonic(), tensor_bytes))
        self.write(now=True)

    def stepped(self) -> None:
        now = time.monotonic()
        self.record["optimizer_steps"] += 1
        self.record["first_step_t"] = self.record["first_step_t"] or now
        self.record["last_step_t"] = now
        self.write()

    def ran_out(self, error: OutOfMemoryError) -> None:
        self.record["num_ooms"] += 1
        self.record["ooms_raised"] += 1
        held = {name: self.record[name] for name in ("allocated_bytes", "reserved_bytes")}
        self.record["last_oom"] = {
            "t": time.monotonic(),
            "requested_bytes": error.requested_bytes,
            **held,
            "message": str(error),
        }
        self.write(now=True)

    def write(self, now: bool = False) -> None:
        if self.path is None or (not now and time.monotonic() - self.written_t < 0.25):
            return
        self.record["t"] = self.written_t = time.monotonic()
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.record))
        aside.replace(self.path)


class StandIn:
    """One run of the program."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        virtual = os.environ.get("COLOCATE_VIRTUAL_GPU")
        self.gpu = self.find_gpu(virtual)
        self.events = Events(options.silent)
        self.context_bytes = round(options.context * MIB)
        self.probe = Probe(options.probe, bool(virtual), self.context_bytes)
        self.probe.record["num_ooms"] = options.workspaces
        self.steps_done = 0
        self.held_bytes = 0

    def find_gpu(self, virtual: str | None) -> NoGpu | SimulatedNvidiaGpu | SharedVirtualGpu:
        if self.options.cpu:
            return NoGpu()
        if virtual:
            return SharedVirtualGpu(virtual)
        return SimulatedNvidiaGpu(self.options) if os.environ.get("FAKE_NVML_STATE") else NoGpu()

    def run(self) -> int:
        """The exit code."""
        try:
            self.get_ready()
            epoch = 0
            while self.options.repeat or epoch < self.options.epochs:
                epoch += 1
                self.run_epoch(epoch)
        except OutOfMemoryError as error:
            self.probe.ran_out(error)
            self.events.write("end", exit="out_of_memory", requested_bytes=error.requested_bytes, message=str(error))
            if not self.options.oom_silent:
                print_traceback(f"torch.OutOfMemoryError: {error}")
            return 1
        except ValueError as error:
            self.events.write("end", exit="error", message=str(error))
            print_traceback(f"ValueError: {error}")
            return 1
        self.probe.write(now=True)
        self.events.write("end", exit="error" if self.options.exit_code else "ok")
        return self.options.exit_code

    def get_ready(self) -> None:
        time.sleep(self.options.load_s)
        self.hold(self.options.hold)
        if self.options.never_ready:
            hang()
        self.events.write(
            "ready",
            data="real",
            parameters=1000,
            steps_per_epoch=self.options.full_steps or self.options.steps,
            device="cpu" if self.options.cpu else "cuda",
        )
        say(f"ready, holding {self.held_bytes / MIB:.0f} MiB")
        if self.options.close_output:
            os.close(1)
            os.close(2)

    def run_epoch(self, epoch: int) -> None:
        started = time.monotonic()
        self.run_phase("train", epoch, self.options.steps)
        if self.options.spike is not None:
            self.hold(self.options.spike)
            self.hold(self.options.hold)
        if self.options.peak is not None:
            self.hold(self.options.peak)
        self.run_phase("evaluate", epoch, self.options.evaluate_steps)
        self.hold(self.options.hold)
        self.events.write("phase", phase="save", epoch=epoch)
        steps, full = self.options.steps, self.options.full_steps or self.options.steps
        duration_s = time.monotonic() - started
        loss = 1 / epoch
        self.events.write(
            "epoch_end",
            epoch=epoch,
            steps=steps,
            steps_full=full,
            cut=steps < full,
            metrics={"loss": loss, "accuracy": 1 - loss / 2},
            samples=32 * steps,
            samples_per_s=32 * steps / duration_s if duration_s else 0.0,
            duration_s=duration_s,
        )
        say(f"epoch {epoch} finished in {duration_s:.2f} s: loss {loss:.4f} accuracy {1 - loss / 2:.4f}")

    def run_phase(self, phase: str, epoch: int, steps: int) -> None:
        self.events.write("phase", phase=phase, epoch=epoch)
        for step in range(1, steps + 1):
            if phase == "train":
                self.steps_done += 1
                self.misbehave()
            shared_s = self.options.shared_step_s
            shared = shared_s is not None and self.gpu.is_shared()
            work(shared_s if shared else self.options.step_s, burn=self.options.cpu)
            if phase == "train":
                self.probe.stepped()
            self.events.step(step, steps, phase=phase, epoch=epoch, loss=1 / (epoch + step / (steps + 1)))
            say(f"epoch {epoch} {phase} step {step}/{steps}")

    def misbehave(self) -> None:
        options, step = self.options, self.steps_done
        if step == options.fail_at:
            raise ValueError("expected a finite loss, got nan")
        if step == options.die_at:
            os.kill(os.getpid(), getattr(signal, options.die_of))
        if step == options.hang_at:
            hang()
        if step == options.release_at:
            self.hold(0)
        if step == 2 and options.host_memory:
            self.taken = bytearray(os.urandom(MIB)) * options.host_memory
        if step == (options.oom_at or (1 if options.oom_swallowed else None)):
            self.run_out_of_memory()

    def run_out_of_memory(self) -> None:
        error = OutOfMemoryError(2048 * MIB, 512 * MIB, self.gpu.total_bytes, self.held_bytes)
        if not self.options.oom_swallowed:
            raise error
        self.probe.ran_out(error)
        if not self.options.oom_silent:
            say(f"WARNING: batch skipped: {error}")

    def hold(self, mib: float) -> None:
        self.held_bytes = 0 if self.options.cpu else round(mib * MIB)
        self.gpu.hold(self.held_bytes)
        self.probe.holds(max(0, self.held_bytes - self.context_bytes))


def say(line: str) -> None:
    """Prints a line at once; a closed output is no reason to stop training."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def print_traceback(last_line: str) -> None:
    with contextlib.suppress(OSError):
        print('Traceback (most recent call last):\n  File "train.py", line 1, in <module>', file=sys.stderr)
        print(last_line, file=sys.stderr, flush=True)


def work(duration_s: float, burn: bool) -> None:
    if not burn:
        time.sleep(duration_s)
        return
    end = time.monotonic() + duration_s
    while time.monotonic() < end:
        pass


def hang() -> None:
    while True:
        threading.Event().wait()


def flood(options: argparse.Namespace) -> None:
    line = b"x" * 199 + b"\n"
    with contextlib.suppress(OSError):
        for _ in range((options.flood or 0) // len(line)):
            sys.stdout.buffer.write(line)
        if options.binary:
            sys.stdout.buffer.write(b"\x00\xff\xfe broken \xc3(\n" + b"10%\r20%\r100%\n" + b"y" * 2_000_000 + b"\n")
        sys.stdout.buffer.flush()


def leave_a_child(options: argparse.Namespace) -> None:
    """A data loader's worker, say, that holds memory and does not end with its parent."""
    if os.fork():
        return
    signal.alarm(options.longest_life_s)
    child = StandIn(argparse.Namespace(**{**vars(options), "hold": options.fork_hold, "probe": False}))
    child.hold(options.fork_hold)
    hang()


def daemonise(options: argparse.Namespace) -> None:
    """The parent ends at once and well; the training goes on in another session, as a child of init."""
    for leave in (os.setsid, lambda: None):
        if os.fork():
            os._exit(0)
        leave()
    signal.alarm(options.longest_life_s)


def main() -> int:
    options = parser.parse_args()
    options.hold += options.batch * options.per_sample
    signal.alarm(options.longest_life_s)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if options.stub:
        time.sleep(options.step_s if "--step-s" in sys.argv else 1)
        return 0
    if options.daemonise:
        daemonise(options)
    flood(options)
    if options.fork:
        leave_a_child(options)
    return StandIn(options).run()


if __name__ == "__main__":
    sys.exit(main())
