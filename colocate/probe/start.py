# SPDX-License-Identifier: Apache-2.0
"""Decides what to do in this process once torch is there: count on a real GPU, emulate one, or nothing.

Owns the names of the environment variables. Knows torch only as the module it is handed.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from types import ModuleType
from typing import Any

from .imports import AfterImport
from .record import Record, give_up

PROBE = "COLOCATE_PROBE"
VIRTUAL_GPU = "COLOCATE_VIRTUAL_GPU"
BATCHES_PER_PASS = "COLOCATE_BATCHES_PER_PASS"
SCRATCH = "COLOCATE_SCRATCH"
EVENTS = "COLOCATE_EVENTS"

# Other frameworks: they would silently train on the processor, and seem to need nothing of the GPU.
OTHERS = {"jax": "JAX", "tensorflow": "TensorFlow"}

# How many objects a dry run makes before it collects garbage, until it uses its GPU: imports leave hardly any.
RARELY = 100_000
USUAL = gc.get_threshold()

EXIT_UNSUPPORTED = 69  # EX_UNAVAILABLE of sysexits.h: the emulation cannot run this program

watcher = AfterImport()


def wait_for_torch() -> None:
    """Act when the program imports torch, if it ever does."""
    watcher.install()
    watcher.when("torch", begin)
    if os.environ.get(VIRTUAL_GPU):
        _collect_rarely()
        _keep_apart()
        watcher.when("torch._compile", _leave_dynamo_out)
        for name in OTHERS:
            watcher.when(name, _refuse_unless_beside_torch)


def _collect_rarely() -> None:
    """Spare a dry run a fifth of its imports' time, and the collection at its end, which goes through all imports."""
    gc.set_threshold(RARELY, *USUAL[1:])
    atexit.register(gc.freeze)  # registered first, called last


def collect_as_usual() -> None:
    """Collect garbage as Python does: from here on it may hold memory of the GPU, and when it goes decides on peaks."""
    if gc.get_threshold()[0] == RARELY:
        gc.set_threshold(*USUAL)


def _keep_apart() -> None:
    """Before anything else is imported: no file of the user is touched, nothing is uploaded, NVML knows the GPU."""
    from . import nvml, overlay, uploads

    scratch = os.environ.get(SCRATCH)
    if scratch:
        ours = [os.environ.get(PROBE), *map(os.path.dirname, filter(None, map(os.environ.get, (VIRTUAL_GPU, EVENTS))))]
        overlay.install(scratch, [one for one in ours if one])
        uploads.install(watcher, scratch)
    nvml.install(watcher)


def _leave_dynamo_out(module: ModuleType) -> None:
    """Hide nothing from a compiler that never runs: the first optimizer would import all of it, a third of a start."""

    def undecorated(fn: Any = None, recursive: bool = True, **options: Any) -> Any:
        return fn if fn is not None else lambda function: function

    def as_it_is(function: Any) -> Any:
        return function

    module._disable_dynamo = undecorated  # type: ignore[attr-defined]
    # The masks of transformers and the operators of torchvision want one name each of these.
    but = ("config", "utils", "_trace_wrapped_higher_order_op")
    names = {"disable": undecorated, "allow_in_graph": as_it_is, "assume_constant_result": as_it_is}
    watcher.defer("torch._dynamo", but, graph_break=lambda *args, **kwargs: None, **names)
    watcher.defer("torch._dynamo.utils", is_compile_supported=lambda device_type: False)


def begin(torch: ModuleType) -> None:
    """Start the probe that the environment asks for."""
    if os.environ.get(VIRTUAL_GPU):
        _emulate(torch, os.environ[VIRTUAL_GPU])
    else:
        _count(torch)


def _count(torch: ModuleType) -> None:
    record = None
    try:
        record = Record(os.environ.get(PROBE), "cuda", str(getattr(torch, "__version__", "unknown")))
        from .counting import count

        count(record)
    except Exception as error:  # a training must never fail because it is watched
        give_up("probe not started", error, record)


def _refuse_unless_beside_torch(module: ModuleType) -> None:
    """End a program of another framework; beside PyTorch they may only read data or write logs (TensorBoard)."""
    if "torch" in sys.modules:
        return
    name = module.__name__
    version = str(getattr(module, "__version__", "unknown"))
    record = Record(os.environ.get(PROBE), "virtual", f"{name} {version}")
    reason = f"expected a PyTorch program, found {OTHERS[name]} {version}"
    record.fields["unsupported"] = reason
    record.write()
    print(f"colocate: not emulated: {reason}; it needs a real GPU", file=sys.stderr, flush=True)
    raise SystemExit(EXIT_UNSUPPORTED)


def _emulate(torch: ModuleType, gpu: str) -> None:
    """Put the program on the virtual GPU, or end it: it must not run on the CPU and look as if it had fitted."""
    record = Record(os.environ.get(PROBE), "virtual", torch.__version__)
    record.fields.update(context_bytes=None, batches_per_pass=None, passes_cut=0, convolutions=False, unsupported=None)
    try:
        from .virtual_gpu.emulation import emulate

        batches = os.environ.get(BATCHES_PER_PASS)
        emulate(gpu, record, watcher, int(batches) if batches else None)
    except Exception as error:
        reason = f"emulation not started: {type(error).__name__}: {error}"
        record.fields["unsupported"] = reason
        record.write()
        print(f"colocate: {reason}", file=sys.stderr)
        raise SystemExit(EXIT_UNSUPPORTED) from error
