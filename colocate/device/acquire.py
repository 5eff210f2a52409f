# SPDX-License-Identifier: Apache-2.0
"""Find the GPUs that a run may use, and open one of them for the time of a group."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from colocate.device.base import Device, DeviceInfo
from colocate.device.constrained import ROLE, ConstrainedDevice
from colocate.device.lock import locked
from colocate.device.nvml import NvidiaDevice
from colocate.device.select import Kind, choose_device
from colocate.device.virtual import VirtualDevice
from colocate.errors import DeviceError, PlanError
from colocate.plan import GpuModel, gpu_model, is_of_size, model_called, model_of_size, satisfies
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.units import format_size


@dataclass(frozen=True)
class FoundGpu:
    """A GPU that may be used but is not open: a GPU by its UUID, or a virtual GPU by its size in bytes.

    A GPU with a size is used as a GPU of that size. ``name`` is the virtual GPU's if it is one of the table
    (`plan.gpu_models`); ``product`` and ``memory_bytes`` are what a GPU is. ``given``: ``--gpu`` says what it is.
    """

    kind: Literal["nvidia", "virtual"]
    uuid: str | None = None
    total_bytes: int | None = None
    name: str | None = None
    product: str | None = None
    memory_bytes: int | None = None
    given: bool = False

    def __str__(self) -> str:
        size = self.total_bytes or self.memory_bytes
        named = self.product or self.name or self.uuid or "a virtual GPU"
        return f"{named} of {format_size(size)}" if size else named

    @property
    def _is_whole(self) -> bool:
        return self.total_bytes is None or is_of_size(self.memory_bytes or 0, self.total_bytes)

    @property
    def figures(self) -> GpuModel:
        """Return the figures of such a GPU: of its product if that is in the table, else by its size."""
        if self.kind == "virtual" or not self._is_whole:
            return model_called(self.name or "", self.total_bytes or 0)
        try:
            return gpu_model(self.product or "")
        except PlanError:
            return model_of_size(self.memory_bytes or self.total_bytes or 0)

    def is_what(self, asked: str) -> bool:
        """The GPU, as it is used here, is the one that a group asks for by size or name."""
        size = (self.memory_bytes if self.kind == "nvidia" and self._is_whole else self.total_bytes) or 0
        # A part of a larger GPU is one by its size only.
        name = self.name if self.kind == "virtual" else self.product if self._is_whole else ""
        return satisfies(name or "", size, asked)


def as_asked(gpu: FoundGpu, asked: str | None) -> FoundGpu | None:
    """The GPU for a group that asks for one: a virtual GPU is made so unless ``--gpu`` says what it is.

    None where the GPU is another, or one of which too little is known to emulate it.
    """
    if asked is None:
        return gpu
    if gpu.kind == "nvidia" or gpu.given:
        return gpu if gpu.is_what(asked) else None
    try:
        known = gpu_model(asked)
    except PlanError:
        return None
    return replace(gpu, total_bytes=known.total_bytes, name=known.name)


@dataclass(frozen=True)
class FoundGpus:
    """The GPUs of a run, at least one, and a sentence for the user about the choice."""

    free: tuple[FoundGpu, ...]
    sentence: str


def find_gpus(
    kind: Kind, *, gpu_bytes: int, name: str | None = None, small: bool = False, waits: bool = False
) -> FoundGpus:
    """The GPUs that this run may use; ``gpu_bytes`` and ``name`` are those of the virtual one.

    Args:
        kind: What the user asked for.
        gpu_bytes: The size of a virtual GPU.
        name: The name of a virtual GPU.
        small: ``--gpu`` says so: GPUs are to be used as GPUs of ``gpu_bytes`` too.
        waits: GPUs that others hold count as free, after those that are.

    Raises:
        DeviceError: no GPU can be used, all are held, or one is too small. Names the cure.
    """
    choice = choose_device(kind)
    if choice.kind == "virtual":
        return FoundGpus((FoundGpu("virtual", total_bytes=gpu_bytes, name=name, given=small),), choice.sentence)
    refusals = {device: _refusal(device.uuid) for device in choice.devices}
    usable = [device for device, refusal in refusals.items() if refusal is None]
    usable += [device for device in refusals if waits and device not in usable]
    if not usable:
        held = "; ".join(filter(None, refusals.values()))
        raise DeviceError(f"GPU: expected a free one, found none ({held}); wait for one with --wait=SECONDS")
    for device in usable if small else ():
        _expect_room(device, gpu_bytes)
    given_bytes = gpu_bytes if small else None
    free = tuple(
        FoundGpu("nvidia", info.uuid, given_bytes, product=info.name, memory_bytes=info.total_bytes, given=small)
        for info in usable
    )
    return FoundGpus(free, choice.sentence)


def _expect_room(device: DeviceInfo, wanted_bytes: int) -> None:
    """A GPU that can never be the wanted one is known before anything starts."""
    if is_of_size(device.total_bytes, wanted_bytes):
        return
    refuse_instance(device)
    if device.total_bytes < wanted_bytes:
        raise DeviceError(
            f"--gpu: expected a GPU of at least {format_size(wanted_bytes)}, found {device.name} of "
            f"{format_size(device.total_bytes)}; leave --gpu away, or predict with --device=virtual"
        )


def _refusal(uuid: str) -> str | None:
    """Say why a GPU cannot be had now and who holds it, or None if it is free."""
    try:
        with locked(uuid, "a look at whether it is free"):
            return None
    except DeviceError as error:
        return str(error)


@contextmanager
def opened(gpu: FoundGpu, state: Path, *, holder: str, wait_s: float = 0.0, run: str = "") -> Iterator[Device]:
    """A GPU for the time of one group: a GPU locked against other runs, or a new virtual GPU in the file ``state``.

    A GPU that is to be a smaller GPU gets its balloon when the group looks whether it is free, and loses it here. The
    balloon's log goes beside ``state``; it is known as the run's by the name of ``run``.

    Raises:
        DeviceError: the GPU does not answer, or another run holds it, still after ``wait_s`` seconds.
    """
    if gpu.uuid is not None:
        with (
            locked(gpu.uuid, holder, wait_s),
            NvidiaDevice(gpu.uuid) as whole,
            _sized(whole, gpu.total_bytes, state, f"{run}/{holder}/{ROLE}") as device,
        ):
            yield device
        return
    assert gpu.total_bytes is not None, "a GPU has a UUID or a size"
    yield new_virtual(gpu.figures, state)


def refuse_instance(info: DeviceInfo) -> None:
    """A balloon needs a whole GPU: how CUDA tells an instance from others was never seen.

    Raises:
        DeviceError: the GPU is a MIG instance.
    """
    if info.instance_of is not None:
        raise DeviceError(f"{info.uuid}: expected a whole GPU to make a smaller one of, found a MIG instance of it")


@contextmanager
def _sized(whole: NvidiaDevice, total_bytes: int | None, state: Path, cookie: str) -> Iterator[Device]:
    """The GPU as one of this size; the GPU itself where it has that size anyway."""
    if total_bytes is None or is_of_size(whole.info.total_bytes, total_bytes):
        yield whole
        return
    with _sized_to(whole, total_bytes, state, cookie) as small:
        yield small


@contextmanager
def _sized_to(whole: NvidiaDevice, total_bytes: int, state: Path, cookie: str) -> Iterator[ConstrainedDevice]:
    refuse_instance(whole.info)
    small = ConstrainedDevice(whole, total_bytes, log=state.with_name("balloon.log"), cookie=cookie)
    try:
        yield small
    finally:
        small.release()


@contextmanager
def smaller(device: Device, total_bytes: int, state: Path, *, cookie: str) -> Iterator[Device]:
    """An open GPU as one of a smaller size, for trials on it; afterwards it is what it was before.

    Raises:
        DeviceError: the GPU does not answer.
    """
    if isinstance(device, ConstrainedDevice):
        before = device.info.total_bytes
        device.resize(total_bytes)
        try:
            yield device
        finally:
            device.resize(before)
    elif isinstance(device, NvidiaDevice):
        with _sized_to(device, total_bytes, state, cookie) as small:
            yield small
    else:
        yield new_virtual(model_called(device.info.name, total_bytes), state)


def fresh(device: Device, state: Path) -> Device:
    """The GPU for another run of a group: the same GPU, which stays locked, or a new virtual GPU in ``state``."""
    if device.info.kind == "nvidia":
        return device
    return new_virtual(model_called(device.info.name, device.info.total_bytes), state)


def new_virtual(gpu: GpuModel, state: Path, *, refuses: bool = True) -> VirtualDevice:
    """An empty virtual GPU in the file ``state``; one that does not refuse lets programs hold more than there is."""
    figures = asdict(gpu)
    del figures["sources"]
    VirtualGpu.create(state, **figures, refuses=refuses)
    return VirtualDevice(state)
