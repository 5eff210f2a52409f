# SPDX-License-Identifier: Apache-2.0
"""What surrounds the loops of the trainings: arguments, events, the progress line, seeds and endings.

Knows nothing of any one training, and of the harness only the events file named in ``COLOCATE_EVENTS``.
Imports torch only inside functions, because ``bug_localization`` runs without it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import time
import traceback
from collections.abc import Callable
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
    devices = ["auto", "cuda", "cpu"]
    arguments.add_argument("--device", type=pick_device, choices=devices, default="auto", help="auto: cuda if there is")
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


# ---- what a training tells ------------------------------------------------------------------------------------------


class Progress:
    """Tells how a training goes: events for the harness, lines for people, and how it ended.

    It controls nothing: the loops call ``begin``, ``batch``, ``step`` and ``end_epoch`` where these happen. Used as a
    context manager around the whole program, so that every ending leaves its ``end`` event.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.device = args.device
        self.max_steps = args.max_steps
        self.is_ready = False
        self.epoch = 1  # goes on with --repeat, so that no number appears twice
        self.began_s = 0.0
        self.phases: dict[str, Phase] = {}
        self.phase: Phase | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None:
            write_event("end", exit="ok")
        elif is_out_of_memory(error):
            end_out_of_memory(self.name, error)
        else:
            write_event("end", exit="error", message=f"{type(error).__name__}: {error}")

    def ready(self, data: str, parameters: int, steps_per_epoch: int) -> None:
        """The first step is about to start; told once per process. ``data`` is "real" or "synthetic"."""
        if self.is_ready:
            return
        self.is_ready = True
        write_event("ready", data=data, parameters=parameters, steps_per_epoch=steps_per_epoch, device=self.device)
        print_line(
            f"{self.name}: {data} data, {parameters:,} parameters, {steps_per_epoch} steps per epoch, on {self.device}"
        )

    def begin(self, name: str, steps: int = 0, passes: int = 1) -> None:
        """The phase "train", "evaluate" or "save" of the epoch begins, or goes on.

        Args:
            name: the phase.
            steps: those of a full pass over the data; ``--max-steps`` may cut it.
            passes: how often the phase goes through the data.
        """
        if not self.phases:
            self.began_s = time.monotonic()
        planned = min(steps, self.max_steps or steps)
        phase = self.phases.setdefault(name, Phase(name, passes * steps, passes * planned))
        if phase is not self.phase:
            self.phase = phase
            write_event("phase", phase=name, epoch=self.epoch)

    def batch(self, samples: int, loss: Any) -> None:
        """A batch was computed; the loss of a step is the mean of those of its batches."""
        assert self.phase is not None
        self.phase.samples += samples
        self.phase.losses.append(loss.detach())

    def step(self, count: int = 1) -> None:
        """So many more steps are done: an event at most ten times a second, but always for the first and the last."""
        phase = self.phase
        assert phase is not None
        phase.steps += count
        now = time.monotonic()
        if now >= phase.event_due_s or phase.steps == phase.planned:
            phase.event_due_s = now + EVENT_INTERVAL_S
            self._tell_step(phase, phase.mean_loss(), now)
        phase.losses.clear()
        phase.ended_s = time.monotonic()

    def _tell_step(self, phase: Phase, loss: float | None, now: float) -> None:
        known = {} if loss is None or not math.isfinite(loss) else {"loss": loss}
        write_event("step", phase=phase.name, epoch=self.epoch, step=phase.steps, steps=phase.planned, **known)
        if sys.stdout.isatty() or phase.steps == phase.planned or now >= phase.line_due_s:
            phase.line_due_s = now + LINE_INTERVAL_S
            reported = "" if loss is None else f", loss {loss:.4f}"
            line = f"{self.name}: epoch {self.epoch}: {phase.name} step {phase.steps} of {phase.planned}{reported}"
            print_line(line, stays=False)

    def end_epoch(self, metrics: dict[str, float], *, is_cut: bool = False) -> None:
        """The record of one epoch. A metric that is not finite is missing from the event, never a number.

        Args:
            metrics: numbers by name.
            is_cut: the epoch is not a full one even if all of its steps were made.
        """
        train = self.phases["train"]
        is_cut = is_cut or any(phase.steps < phase.full for phase in self.phases.values())
        samples_per_s = train.samples / max(train.ended_s - train.began_s, 1e-9)
        duration_s = time.monotonic() - self.began_s
        write_event(
            "epoch_end",
            epoch=self.epoch,
            steps=train.steps,
            steps_full=train.full,
            cut=is_cut,
            metrics={name: float(value) for name, value in metrics.items() if math.isfinite(value)},
            samples=train.samples,
            samples_per_s=samples_per_s,
            duration_s=duration_s,
        )
        reported = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        steps = f"{train.steps} of {train.full} steps{' (cut)' if is_cut else ''}"
        print_line(
            f"{self.name}: epoch {self.epoch}: {steps}, {duration_s:.1f} s, {samples_per_s:.0f} samples/s, {reported}"
        )
        self.epoch += 1
        self.phases, self.phase = {}, None


@dataclass
class Phase:
    """What is counted during one phase; only steps that were really done count."""

    name: str
    full: int  # steps of a full epoch
    planned: int  # steps with --max-steps
    steps: int = 0
    samples: int = 0
    losses: list[Any] = field(default_factory=list)  # of the batches since the last step
    began_s: float = field(default_factory=time.monotonic)
    ended_s: float = 0.0
    event_due_s: float = -math.inf
    line_due_s: float = -math.inf

    def mean_loss(self) -> float | None:
        """The loss of the step, None if it has none. Waits for the device."""
        if not self.losses:
            return None
        return sum(float(loss) for loss in self.losses) / len(self.losses)


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


def print_line(line: str, *, stays: bool = True) -> None:
    """Prints a line; on a terminal it takes the place of the latest one that does not stay."""
    is_terminal = sys.stdout.isatty()
    print(f"\r{line}\x1b[K" if is_terminal else line, end="\n" if stays or not is_terminal else "", flush=True)


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


def loader_options(args: argparse.Namespace, *, workers: int) -> dict[str, Any]:
    """DataLoader options: the original's number of workers where the machine has the cores, pinned for CUDA."""
    workers = min(workers, len(os.sched_getaffinity(0)) - 1) if args.workers is None else args.workers
    return {"num_workers": workers, "pin_memory": args.device == "cuda", "persistent_workers": workers > 0}


def full_steps(loader: Any, args: argparse.Namespace) -> int:
    """Optimizer steps of a full pass over a loader."""
    return math.ceil(len(loader) / args.accumulate)


def num_parameters(model: Any) -> int:
    """Parameters of a module, frozen and unused ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


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


# ---- endings --------------------------------------------------------------------------------------------------------


def end_out_of_memory(name: str, error: BaseException) -> None:
    """Leaves the numbers behind, in the event and as the last line, and ends the program."""
    numbers = memory_numbers(error)
    write_event("end", exit="out_of_memory", message=str(error), **numbers)
    traceback.print_exception(error)
    reported = {key: "unknown" if value is None else f"{value / 2**20:.0f} MiB" for key, value in numbers.items()}
    line = (
        f"{name}: out of memory: asked for {reported['requested_bytes']}, "
        f"held {reported['allocated_bytes']} in tensors, {reported['reserved_bytes']} with PyTorch's cache"
    )
    print(line, file=sys.stderr, flush=True)
    raise SystemExit(EXIT_OUT_OF_MEMORY) from error


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
