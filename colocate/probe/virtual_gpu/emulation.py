# SPDX-License-Identifier: Apache-2.0
"""Puts this process on a virtual GPU: assembles guard, memory, dispatch and patches, and proves that they work.

The emulation sleeps until the program first asks torch for its device (``torch.cuda._lazy_init``, which every binding
calls): a program that stays on the CPU runs as ever.
"""

import atexit
import functools
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data._utils import worker

from ..counting import count_steps
from ..coverage.coverage import Coverage
from ..coverage.growth import StepMemory
from ..coverage.loaders import cut_loaders
from ..coverage.passes import EFFORTS
from ..coverage.turns import install_turns
from ..imports import AfterImport
from ..origin import files_of_program, installed_packages
from ..record import Record
from ..start import collect_as_usual
from . import guard, kernels
from .allocator import CachingAllocator
from .allocator_settings import Settings
from .attribution import Attribution
from .compilers import replace_compilers
from .convolutions import workspace_bound
from .cuda_interface import capability_of, install_cuda_interface
from .dispatch import EmulationMode, Emulator, UnsupportedError
from .framework import install_framework_patches
from .libraries import prepare_libraries
from .memory import DeviceMemory
from .moving import install_moving
from .one_process import install_one_process
from .operators import DEVICE, matrix_workspace_bytes
from .pacing import pace_of_environment
from .quantised import prepare_quantisation
from .saving import install_saving
from .state import GpuFull, VirtualGpu
from .trace import AllocationTrace, Twin

# PyTorch reads both; the first is the newer name.
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")

# Set where a prediction wants to know who asked for what, and when.
TRACE = "COLOCATE_TRACE"

# How much processor time may be spent beyond the least: a name of `coverage.EFFORTS`.
EFFORT = "COLOCATE_EFFORT"

START_OF_THREAD = threading.Thread.start

# Far more than torch's backward thread needs to drop a pass once it may; nothing tells when it has.
BACKWARD_THREAD_S = 0.2

# What errors say that come from a fake tensor in the hands of code which wants real memory.
SIGNS_OF_NATIVE_CODE = (
    "data is not allocated yet",
    "Cannot access data pointer of",
    "0 active drivers",
    "CUDA driver initialization failed",
    "Found no NVIDIA driver",
    "FakeTensor",
    "ProxyTensor",
    "fake tensor",
    "meta tensor",
    "Meta tensor",
    "'meta' device",
    "HigherOrderOperator",
    "EmulationMode",
    "weakref associated",
    "TensorImpl",
)


def emulate(gpu_path: str, record: Record, watcher: AfterImport, batches_per_pass: int | None) -> None:
    """Emulate the GPU for the rest of this process's life.

    Args:
        gpu_path: state file of the virtual GPU.
        record: where the readings go.
        watcher: for libraries that need a patch of their own once imported.
        batches_per_pass: how many batches each pass over a DataLoader yields; None for all.

    Raises:
        Exception: torch or the GPU is not as expected. The process must not go on.
    """
    _hide_real_gpus()
    gpu = VirtualGpu.open(gpu_path)
    guard.install()
    device = EmulatedDevice(gpu, record)
    kernels.register(device.emulator.values.assume)
    device.install(watcher)
    count_steps(record)
    register_optimizer_step_post_hook(lambda optimizer, args, kwargs: _tell_files(record))
    pace = pace_of_environment()
    if pace is not None:
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: pace())
    if batches_per_pass is not None:
        effort = EFFORTS[os.environ.get(EFFORT, "normal")]
        coverage = Coverage(record, device.steps, device.memory.settle, effort, may_end=device.trace is not None)
        coverage.install()
        device.emulator.moved = coverage.collected.moved
        cut_loaders(batches_per_pass, record, coverage)
        if coverage.may_end:
            install_turns(coverage)
    record.keep_writing()


def _tell_files(record: Record) -> None:
    """Say with the first step which files the program consists of; by then nearly all are imported."""
    if "files" not in record.fields:
        collect_as_usual()
        record.fields["files"] = files_of_program()


def _hide_real_gpus() -> None:
    """A GPU that is really there must not take part; the program reads its environment as it was."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.cuda.is_available()  # the driver reads the variable once
    if visible is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible


def _call_before_abrupt_ends(write: Callable[[], None]) -> None:
    """A program may end without its exit functions: by ``os._exit``, or by a signal that it sends itself."""
    leave, kill = os._exit, os.kill

    def leave_after_writing(status: int) -> NoReturn:
        write()
        leave(status)

    def kill_after_writing(pid: int, number: int) -> None:
        if pid == os.getpid() and number in (signal.SIGKILL, signal.SIGABRT, signal.SIGQUIT):
            write()
        kill(pid, number)

    os._exit, os.kill = leave_after_writing, kill_after_writing


class EmulatedDevice:
    """The parts of the emulation, and when they wake up."""

    def __init__(self, gpu: VirtualGpu, record: Record) -> None:
        text = next(filter(None, (os.environ.get(name) for name in ALLOCATOR_VARIABLES)), "")
        settings, notes = Settings.parse(text)
        self.gpu = gpu
        self.record = record
        self.trace = AllocationTrace(settings) if os.environ.get(TRACE) else None
        self.twin = Twin(workspace_bound, CachingAllocator(settings=settings))
        self.steps = StepMemory()
        self.memory = DeviceMemory(gpu, settings, self._out_of_memory, (self.twin, self.steps), self.trace)
        workspace_bytes = matrix_workspace_bytes(capability_of(gpu)[0], gpu.workspace_bytes)
        # Imports torch._dynamo, a second that a program with an optimizer pays anyway; it lists torch's functions and
        # must see them before they are patched.
        self.emulator = Emulator(self.memory, record, workspace_bytes)
        self.awake = False
        self._went_backward = False
        self._watcher: AfterImport | None = None
        record.fields["notes"].extend(notes)
        record.read = self.readings

    def install(self, watcher: AfterImport) -> None:
        """Patch what programs call; no operator is touched before :meth:`wake`."""
        self._watcher = watcher
        install_cuda_interface(self, self.gpu, self.emulator.unsupported)
        install_moving(self.emulator)
        install_framework_patches(self.emulator)
        install_one_process(self.emulator)
        replace_compilers(self.record, watcher)
        install_saving(self.emulator)
        prepare_libraries(watcher, self.emulator.unsupported)
        prepare_quantisation(watcher, self.emulator)
        if self.trace is not None and self.record.path is not None:
            self._keep_trace(self.trace, self.record.path.with_suffix(".trace"))
        self._run_threads_under_emulation()
        self._run_workers_without_emulation()
        self._tell_why_programs_end()
        atexit.register(self._let_the_backward_thread_end)

    def wake(self) -> None:
        """The program wants its device: claim the context, and from now on see this thread's operators.

        Raises:
            UnsupportedError: the self-test failed.
            RuntimeError: the GPU has no room for the context (torch's ``AcceleratorError`` where it has one).
        """
        if self.awake:
            self.memory.check_process()
            return
        self._leave_distributed_tensors_out()
        self._prove()
        self.record.claim()  # in a child that was forked before the first use of CUDA
        try:
            self.memory.context.create()
        except GpuFull as full:
            message = f"CUDA error: out of memory ({full.free_bytes} bytes free for the context of this process)"
            self._out_of_memory(message, full.requested_bytes)
            self.memory.allocator.num_ooms += 1
            raise getattr(torch, "AcceleratorError", RuntimeError)(message) from full
        self.awake = True
        collect_as_usual()
        if threading.current_thread() is not threading.main_thread():
            self.record.note("the device was first used outside the main thread, whose operators are not seen")
        else:
            EmulationMode(self.emulator).__enter__()

    def _leave_distributed_tensors_out(self) -> None:
        """Spare a program that has none: at the first fake tensor torch imports their package, a second, for one class.

        Torch keeps the class that it finds then; so those that a program makes later cannot be told apart.
        """
        if self._watcher is None or "torch.distributed.tensor" in sys.modules:
            return

        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            reason = "expected torch.distributed.tensor to be imported before the device is first used"
            raise self.emulator.unsupported(reason)

        def refuse_all(module: Any) -> None:
            module.DTensor.__torch_dispatch__ = refuse

        self._watcher.defer("torch.distributed.tensor", DTensor=type("DTensor", (), {}))
        self._watcher.when("torch.distributed.tensor._api", refuse_all)

    def _prove(self) -> None:
        """The self-test; not earlier, because its backward pass needs torch's import to be over."""
        self._went_backward = True
        failures: list[Exception] = []

        def prove_or_tell() -> None:
            try:
                prove()
            except Exception as error:
                failures.append(error)

        # In a thread of its own: the program may be inside ``torch.tensor()``, which hides operators from everybody.
        thread = threading.Thread(target=prove_or_tell)
        START_OF_THREAD(thread)
        thread.join()
        if failures:
            (error,) = failures
            raise self.emulator.unsupported(f"self-test failed: {type(error).__name__}: {error}") from error

    def _keep_trace(self, trace: AllocationTrace, path: Path) -> None:
        """Write the trace, and which code ran, when this process ends; forked children excepted."""
        attribution = Attribution(self.memory)
        attribution.install()
        process = os.getpid()

        def write() -> None:
            if os.getpid() == process:
                attribution.mark_gradients()
                trace.write(path)
                self.record.fields.update(files=files_of_program(), packages=installed_packages())
                self.record.write()

        atexit.register(write)
        _call_before_abrupt_ends(write)
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # or nothing is written

    def readings(self) -> dict[str, Any]:
        """The fields of the record that change."""
        allocator, gpu, with_cudnn = self.memory.allocator, self.gpu, self.memory.context.has_cudnn
        return {
            "context_bytes": gpu.cudnn_context_bytes if with_cudnn else gpu.context_bytes,
            "context_range_bytes": list(gpu.cudnn_context_range_bytes if with_cudnn else gpu.context_range_bytes),
            "allocated_bytes": allocator.allocated.current,
            "reserved_bytes": allocator.reserved.current,
            "reserved_grown_bytes": allocator.reserved.grown,
            "max_allocated_bytes": allocator.allocated.highest,
            "max_reserved_bytes": allocator.reserved.highest,
            "max_reserved_bound_bytes": max(allocator.reserved.highest, self.twin.allocator.reserved.highest),
            "num_ooms": allocator.num_ooms,
            "num_alloc_retries": allocator.num_alloc_retries,
        }

    def _out_of_memory(self, message: str, requested_bytes: int) -> None:
        allocator = self.memory.allocator
        self.record.out_of_memory(
            message,
            requested_bytes=requested_bytes,
            allocated_bytes=allocator.allocated.current,
            reserved_bytes=allocator.reserved.current,
        )

    def _let_the_backward_thread_end(self) -> None:
        """After a backward pass torch's own thread may still be releasing Python objects of that pass.

        If the interpreter ends meanwhile, the process dies of std::terminate and its exit code is lost.
        """
        if self._went_backward:
            time.sleep(BACKWARD_THREAD_S)

    def _run_threads_under_emulation(self) -> None:
        """Dispatch modes belong to a thread, so each new one gets its own."""
        start = START_OF_THREAD

        def start_emulated(thread: threading.Thread) -> None:
            run = thread.run

            def run_emulated() -> None:
                with EmulationMode(self.emulator):
                    run()

            thread.run = run_emulated  # type: ignore[method-assign]
            start(thread)

        threading.Thread.start = start_emulated  # type: ignore[method-assign, assignment]

    def _run_workers_without_emulation(self) -> None:
        """Spare the operators of a DataLoader's workers, which may not use the device, the way through Python."""
        loop = worker._worker_loop

        @functools.wraps(loop)  # by its name it is found again in a worker that is spawned
        def loop_without_emulation(*args: Any, **kwargs: Any) -> None:
            if self.awake:
                FakeTensor.__torch_dispatch__ = lambda *given, **options: self.memory.check_process()
            with _disable_current_modes():
                loop(*args, **kwargs)

        worker._worker_loop = loop_without_emulation

    def _tell_why_programs_end(self) -> None:
        """An error of native code that met a tensor without data is ours, not the program's."""
        show = sys.excepthook

        def show_and_tell(kind: Any, error: BaseException, traceback: Any) -> None:
            show(kind, error, traceback)
            if kind is not UnsupportedError and any(
                sign in f"{kind.__name__}: {error}" for sign in SIGNS_OF_NATIVE_CODE
            ):
                self.emulator.unsupported(f"{kind.__name__}: {str(error).splitlines()[0]}")

        sys.excepthook = show_and_tell


def prove() -> None:
    """Allocate, go backward and release on an emulated device of its own.

    Raises:
        RuntimeError: a step did not leave the expected bytes.
    """
    memory = DeviceMemory(UnlimitedGpu(), Settings(), lambda message, num_bytes: None)
    emulator = Emulator(memory, Record(None, "virtual", torch.__version__), matrix_workspace_bytes(0))
    tensor_bytes = 256 * 256 * 4
    with EmulationMode(emulator), torch.inference_mode(False), torch.enable_grad():
        # Not torch.ones(): its binding would wake the program's device.
        weight = torch.ops.aten.ones.default([256, 256], device=DEVICE).requires_grad_()
        (weight @ weight).sum().backward()
        gradient = weight.grad
        held_bytes = memory.settle().allocated.current
        if gradient is None or gradient.device != DEVICE or held_bytes < 2 * tensor_bytes:
            raise RuntimeError(f"self-test: expected a gradient on the device, found {held_bytes} bytes allocated")
        del weight, gradient
    most_bytes = tensor_bytes + emulator.workspaces_bytes
    left_bytes = memory.settle().allocated.current
    if left_bytes >= most_bytes:  # something is held by a cycle of references only
        gc.collect()
        left_bytes = memory.settle().allocated.current
    if left_bytes >= most_bytes:
        raise RuntimeError(f"self-test: expected released tensors to leave the device, found {left_bytes} bytes")


class UnlimitedGpu:
    """Stands for a GPU in the self-test: never full, and shared with nobody."""

    context_bytes = cudnn_context_bytes = 0
    total_bytes = free_bytes = 1 << 60

    def processes(self) -> list[tuple[int, int]]:
        """Nobody."""
        return []

    def claim(self, used_bytes: int) -> None:
        """Nothing to do."""
