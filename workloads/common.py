# SPDX-License-Identifier: Apache-2.0
"""What surrounds the loop of every training: arguments, events, the progress line, seeds and endings.

Knows nothing of any one training, and of the harness only the events file named in ``COLOCATE_EVENTS``.
Imports torch only inside functions, because ``bug_localization`` runs without it.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

# ENOMEM: tells "did not fit" from every other failure (1) and from wrong arguments (2).
EXIT_OUT_OF_MEMORY = 12

# The harness reads events to see steps advance; ten a second are enough and cost no measurable time.
EVENT_INTERVAL_S = 0.1
LINE_INTERVAL_S = 10.0


# ---- arguments ------------------------------------------------------------------------------------------------------


def positive_int(text: str) -> int:
    """An integer of at least 1, for counts."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, found {text!r}")
    return number


def fraction(text: str) -> float:
    """A number from 0 up to, but not including, 1: the range of a dropout."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 up to (not including) 1, found {text!r}")
    return number


def parser(doc: str | None, *, epochs: int, seed: int) -> argparse.ArgumentParser:
    """The arguments that every program has. Abbreviations are refused: ``--epoch`` must not pass for ``--epochs``."""
    arguments = argparse.ArgumentParser(
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--epochs", type=positive_int, default=epochs, help=f"default {epochs}")
    arguments.add_argument("--seed", type=int, default=seed, help=f"default {seed}")
    arguments.add_argument("--max-steps", type=positive_int, help="end each phase after this many steps (a cut epoch)")
    arguments.add_argument("--repeat", action="store_true", help="train again and again in this process, until ended")
    arguments.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("COLOCATE_DATA", "data")),
        help="folder of data sets (default $COLOCATE_DATA, else ./data); what it lacks is synthetic",
    )
    return arguments


def torch_parser(doc: str | None, *, epochs: int, batch_size: int, lr: float, seed: int) -> argparse.ArgumentParser:
    """The arguments that every PyTorch program has."""
    arguments = parser(doc, epochs=epochs, seed=seed)
    arguments.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="auto: cuda if there is")
    arguments.add_argument(
        "--batch-size",
        type=positive_int,
        default=batch_size,
        help=f"samples that go through the network at once (default {batch_size})",
    )
    arguments.add_argument("--accumulate", type=positive_int, default=1, help="batches per optimizer step (default 1)")
    arguments.add_argument("--lr", type=float, default=lr, help=f"default {lr:g}")
    arguments.add_argument("--save", type=Path, help="write a checkpoint here at the end of each epoch")
    arguments.add_argument("--workers", type=int, help="loader processes (default: the original's, below the cores)")
    return arguments


def checkpointing_argument(arguments: argparse.ArgumentParser) -> None:
    """Adds ``--checkpointing``: activations are computed again for the backward pass, in place of being kept."""
    arguments.add_argument("--checkpointing", choices=["on", "off"], default="off", help="default off")


def weights_argument(arguments: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--weights``: nothing is ever downloaded, a file is used when it is named."""
    arguments.add_argument("--weights", type=Path, help=f"state dict of {what} to start from (default: random)")


# ---- one run --------------------------------------------------------------------------------------------------------


class Run:
    """Tells what a training does: events for the harness, a progress line for people, and how it ended.

    Used as a context manager around the whole program, so that every ending leaves its ``end`` event.
    """

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.arguments = arguments
        self.device = pick_device(getattr(arguments, "device", "cpu"))
        self.is_ready = False
        self.epochs_before = 0  # epochs of earlier repetitions: numbers go on, so that no epoch appears twice
        self.epoch: Epoch | None = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            write_event("end", exit="ok")
        elif is_out_of_memory(error):
            self._end_out_of_memory(error)
        else:
            write_event("end", exit="error", message=f"{type(error).__name__}: {error}")

    def repeats(self) -> Iterator[None]:
        """Once, or with ``--repeat`` without end; what one training held is freed before the next one starts."""
        yield
        while self.arguments.repeat:
            gc.collect()
            self.epochs_before += self.arguments.epochs
            yield

    def loader_options(self, workers: int) -> dict[str, Any]:
        """DataLoader options: the original's number of workers where the machine has the cores, pinned for CUDA."""
        if self.arguments.workers is not None:
            workers = self.arguments.workers
        else:
            workers = min(workers, len(os.sched_getaffinity(0)) - 1)
        return {"num_workers": workers, "pin_memory": self.device == "cuda", "persistent_workers": workers > 0}

    def ready(self, data: str, model: Any, loader: Any, passes: int = 1) -> None:
        """Everything is there and the first step is about to start; told once per process.

        Args:
            data: "real" or "synthetic".
            model: the module whose parameters are counted, frozen and unused ones included.
            loader: the training loader.
            passes: how often an epoch goes through it.
        """
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.ready_with(data, parameters, passes * full_steps(loader, self.arguments))

    def ready_with(self, data: str, parameters: int, steps_per_epoch: int) -> None:
        """As ``ready``, from numbers."""
        if self.is_ready:
            return
        self.is_ready = True
        write_event("ready", data=data, parameters=parameters, steps_per_epoch=steps_per_epoch, device=self.device)
        print_line(
            f"{self.name}: {data} data, {parameters:,} parameters, {steps_per_epoch} steps per epoch, on {self.device}"
        )

    def epochs(self) -> Iterator[int]:
        """The epochs of one training, from 1."""
        for number in range(1, self.arguments.epochs + 1):
            self.epoch = Epoch(self.epochs_before + number)
            yield number

    def phase(self, name: str) -> None:
        """The phase "train", "evaluate" or "save" begins, unless it is on already."""
        assert self.epoch is not None
        if self.epoch.phase != name:
            self.epoch.phase = name
            write_event("phase", phase=name, epoch=self.epoch.number)

    def train(self, loader: Any, *, part: int = 1, parts: int = 1) -> Iterator[Step]:
        """One training pass over a loader, as optimizer steps; the loop must call ``done`` on each of them.

        A training that goes several times over its data per epoch says which of its parts this pass is.
        """
        assert self.epoch is not None
        accumulate = self.arguments.accumulate
        planned = self._planned(math.ceil(len(loader) / accumulate))
        self.epoch.steps_full += full_steps(loader, self.arguments)
        self.phase("train")
        report = PhaseReport(self, "train", total=planned * parts, before=planned * (part - 1))
        batches = iter(loader)
        started = time.monotonic()
        for _ in range(planned):
            step = Step(list(itertools.islice(batches, accumulate)), report)
            if not step.batches:  # the loader had promised more
                break
            yield step
            if step.is_done:
                self.epoch.steps += 1
                self.epoch.samples += sum(batch_length(batch) for batch in step.batches)
                self.epoch.train_s += time.monotonic() - started
                started = time.monotonic()

    def evaluate(self, loader: Any) -> Iterator[Any]:
        """One evaluation pass over a loader, batch by batch."""
        assert self.epoch is not None
        planned = self._planned(len(loader))
        self.phase("evaluate")
        report = PhaseReport(self, "evaluate", total=planned)
        for batch in itertools.islice(loader, planned):
            yield batch
            report.step(None)
        self.epoch.is_cut = self.epoch.is_cut or report.number < len(loader)

    def save(self, **state: Any) -> None:
        """Writes a checkpoint with these entries, in a phase of its own, when ``--save`` names a file."""
        if self.arguments.save is None:
            return
        import torch

        self.phase("save")
        torch.save(state, self.arguments.save)

    def epoch_end(self, metrics: dict[str, float]) -> None:
        """The record of one epoch. A metric that is not finite is missing from the event, never a number."""
        epoch = self.epoch
        assert epoch is not None
        is_cut = epoch.is_cut or epoch.steps < epoch.steps_full
        samples_per_s = epoch.samples / max(epoch.train_s, 1e-9)
        duration_s = time.monotonic() - epoch.started
        write_event(
            "epoch_end",
            epoch=epoch.number,
            steps=epoch.steps,
            steps_full=epoch.steps_full,
            cut=is_cut,
            metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
            samples=epoch.samples,
            samples_per_s=samples_per_s,
            duration_s=duration_s,
        )
        reported = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        steps = f"{epoch.steps} of {epoch.steps_full} steps{' (cut)' if is_cut else ''}"
        print_line(
            f"{self.name}: epoch {epoch.number}: {steps}, {duration_s:.1f} s, {samples_per_s:.0f} samples/s, {reported}"
        )

    def _planned(self, steps: int) -> int:
        limit = self.arguments.max_steps
        return steps if limit is None else min(steps, limit)

    def _end_out_of_memory(self, error: BaseException) -> None:
        """Leaves the numbers behind, in the event and as the last line, and ends the program."""
        numbers = memory_numbers(error)
        write_event("end", exit="out_of_memory", message=str(error), **numbers)
        traceback.print_exception(error)
        reported = {name: "unknown" if value is None else f"{value / 2**20:.0f} MiB" for name, value in numbers.items()}
        line = (
            f"{self.name}: out of memory: asked for {reported['requested_bytes']}, "
            f"held {reported['allocated_bytes']} in tensors, {reported['reserved_bytes']} with PyTorch's cache"
        )
        print(line, file=sys.stderr, flush=True)
        raise SystemExit(EXIT_OUT_OF_MEMORY) from error


@dataclass
class Epoch:
    """What is counted during one epoch; only steps that were really done count."""

    number: int
    started: float = field(default_factory=time.monotonic)
    phase: str | None = None
    steps: int = 0
    steps_full: int = 0
    samples: int = 0
    train_s: float = 0.0
    is_cut: bool = False


class Step:
    """One optimizer step: the batches whose gradients it sums (one, unless ``--accumulate`` asks for more)."""

    def __init__(self, batches: list[Any], report: PhaseReport) -> None:
        self.batches = batches
        self.is_done = False
        self._report = report

    def done(self, loss: Any = None) -> None:
        """The optimizer has made this step. The loss is fetched from the device only when it is told."""
        self.is_done = True
        self._report.step(loss)


class PhaseReport:
    """Tells the steps of one phase: at most ten events a second, but always the first and the last."""

    def __init__(self, run: Run, phase: str, *, total: int, before: int = 0) -> None:
        assert run.epoch is not None
        self.run = run
        self.phase = phase
        self.epoch = run.epoch.number
        self.total = total
        self.number = before
        self.event_due = self.line_due = -math.inf

    def step(self, loss: Any) -> None:
        """One more step is done."""
        self.number += 1
        now = time.monotonic()
        is_last = self.number == self.total
        if now < self.event_due and not is_last:
            return
        self.event_due = now + EVENT_INTERVAL_S
        value = None if loss is None else float(loss.detach())  # waits for the device
        known = {} if value is None or not math.isfinite(value) else {"loss": value}
        write_event("step", phase=self.phase, epoch=self.epoch, step=self.number, steps=self.total, **known)
        self._line(value, now, is_last)

    def _line(self, loss: float | None, now: float, is_last: bool) -> None:
        is_terminal = sys.stdout.isatty()
        if not (is_terminal or is_last or now >= self.line_due):
            return
        self.line_due = now + LINE_INTERVAL_S
        reported = "" if loss is None else f", loss {loss:.4f}"
        line = f"{self.run.name}: epoch {self.epoch}: {self.phase} step {self.number} of {self.total}{reported}"
        if is_terminal:
            print(f"\r{line}\x1b[K", end="", flush=True)
        else:
            print(line, flush=True)


# ---- events and lines -----------------------------------------------------------------------------------------------


def write_event(event: str, **values: Any) -> None:
    """Appends one JSON line to the file named in ``COLOCATE_EVENTS``; does nothing without it.

    One write() with O_APPEND per line, so that lines of several processes never mix.
    """
    path = os.environ.get("COLOCATE_EVENTS")
    if not path:
        return
    line = json.dumps({"t": time.monotonic(), "pid": os.getpid(), "event": event, **values}, allow_nan=False)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def print_line(line: str) -> None:
    """Prints a line of its own, over the progress line where there is one."""
    print(f"\r{line}\x1b[K" if sys.stdout.isatty() else line, flush=True)


# ---- helpers --------------------------------------------------------------------------------------------------------


def pick_device(wanted: str) -> str:
    """The device that this stands for; "auto" is cuda where PyTorch sees one."""
    if wanted != "auto":
        return wanted
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def set_seed(seed: int, *, deterministic: bool = False) -> None:
    """Seeds Python, numpy and PyTorch; deterministic also asks cuDNN for repeatable kernels, as five of twelve do."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def full_steps(loader: Any, arguments: argparse.Namespace) -> int:
    """Optimizer steps of a full pass."""
    return math.ceil(len(loader) / arguments.accumulate)


def batch_length(batch: Any) -> int:
    """Samples of a batch: the first dimension of its first tensor."""
    while not hasattr(batch, "shape"):
        batch = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return int(batch.shape[0])


def load_weights(module: Any, path: Path, rename: Callable[[str], str] = str) -> None:
    """Loads the tensors of a state dict that fit by name and shape, and says how many did.

    Args:
        module: what receives them.
        path: the file.
        rename: from the names in the file to those of the module.

    Raises:
        ValueError: none did, so the file is not of this model.
    """
    import torch

    stored = torch.load(path, map_location="cpu", weights_only=True)
    found = {rename(name): tensor for name, tensor in stored.items()}
    own = module.state_dict()
    fitting = {name: tensor for name, tensor in found.items() if name in own and tensor.shape == own[name].shape}
    if not fitting:
        raise ValueError(f"{path}: expected tensors of {type(module).__name__}, found none that fits")
    module.load_state_dict(fitting, strict=False)
    print_line(f"weights: {len(fitting)} of {len(own)} tensors from {path}")


def is_out_of_memory(error: BaseException) -> bool:
    """True also for what CUDA and its libraries say outside PyTorch's allocator when the GPU is full."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(error, RuntimeError):
        return False
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def memory_numbers(error: BaseException) -> dict[str, int | None]:
    """Bytes asked for (from the message) and held by PyTorch at that moment; None where nobody says."""
    import torch

    match = re.search(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", str(error))
    factor = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    has_cuda = torch.cuda.is_available()
    return {
        "requested_bytes": round(float(match[1]) * factor[match[2]]) if match else None,
        "allocated_bytes": torch.cuda.memory_allocated() if has_cuda else None,
        "reserved_bytes": torch.cuda.memory_reserved() if has_cuda else None,
    }
