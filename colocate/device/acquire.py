"""Which cards a run may use, and one of them opened for the time of a group."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from colocate.device.base import Device, DeviceInfo
from colocate.device.constrained import ROLE, SmallCard
from colocate.device.lock import locked
from colocate.device.nvml import NvidiaDevice
from colocate.device.select import Kind, choose_device
from colocate.device.virtual import VirtualDevice
from colocate.errors import DeviceError, PlanError
from colocate.plan.gpu_models import KnownCard, card_called, card_of_size, is_of_size, known_card, satisfies
from colocate.probe.virtual_gpu.card import VirtualCard
from colocate.units import format_size


@dataclass(frozen=True)
class Card:
    """A card that may be used but is not open: a GPU by its UUID, or a virtual card by its size in bytes.

    A GPU with a size is used as a card of that size. ``name`` is the virtual card's if it is one of the table
    (`plan.gpu_models`); ``product`` and ``memory_bytes`` are what a GPU is. ``given``: ``--card`` says what it is.
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
        named = self.product or self.name or self.uuid or "a virtual card"
        return f"{named} of {format_size(size)}" if size else named

    @property
    def _is_whole(self) -> bool:
        return self.total_bytes is None or is_of_size(self.memory_bytes or 0, self.total_bytes)

    @property
    def figures(self) -> KnownCard:
        """What is known of such a card; of its product where that is in the table, else by its size."""
        if self.kind == "virtual" or not self._is_whole:
            return card_called(self.name or "", self.total_bytes or 0)
        try:
            return known_card(self.product or "")
        except PlanError:
            return card_of_size(self.memory_bytes or self.total_bytes or 0)

    def is_what(self, asked: str) -> bool:
        """The card, as it is used here, is the one that a group asks for by size or name."""
        size = (self.memory_bytes if self.kind == "nvidia" and self._is_whole else self.total_bytes) or 0
        # A part of a larger card is one by its size only.
        name = self.name if self.kind == "virtual" else self.product if self._is_whole else ""
        return satisfies(name or "", size, asked)


def gpu(info: DeviceInfo, total_bytes: int | None = None) -> Card:
    """A GPU, or a card of this size that is made of it."""
    product, size, given = info.name, info.total_bytes, total_bytes is not None
    return Card("nvidia", info.uuid, total_bytes, product=product, memory_bytes=size, given=given)


def as_asked(card: Card, asked: str | None) -> Card | None:
    """The card for a group that asks for one: a virtual card is made so unless ``--card`` says what it is.

    None where the card is another, or one of which too little is known to emulate it.
    """
    if asked is None:
        return card
    if card.kind == "nvidia" or card.given:
        return card if card.is_what(asked) else None
    try:
        known = known_card(asked)
    except PlanError:
        return None
    return replace(card, total_bytes=known.total_bytes, name=known.name)


@dataclass(frozen=True)
class Cards:
    """The cards of a run, those that others hold, and a sentence for the user about the choice."""

    free: tuple[Card, ...]
    busy: tuple[str, ...]
    sentence: str


def find_cards(kind: Kind, *, card_bytes: int, name: str | None = None, small: bool = False) -> Cards:
    """The cards that this run may use; ``card_bytes`` and ``name`` are those of the virtual one.

    Args:
        kind: What the user asked for.
        card_bytes: The size of a virtual card.
        name: The name of a virtual card.
        small: ``--card`` says so: GPUs are to be used as cards of ``card_bytes`` too.

    Raises:
        DeviceError: no card can be used. Names the cure.
    """
    choice = choose_device(kind)
    if choice.kind == "virtual":
        return Cards((Card("virtual", total_bytes=card_bytes, name=name, given=small),), (), choice.sentence)
    refusals = {device: _refusal(device.uuid) for device in choice.devices}
    size = card_bytes if small else None
    free = tuple(gpu(device, size) for device, refusal in refusals.items() if refusal is None)
    return Cards(free, tuple(filter(None, refusals.values())), choice.sentence)


def _refusal(uuid: str) -> str | None:
    """Why a card cannot be had at this moment, with who holds it; None for a free one."""
    try:
        with locked(uuid, "a look at whether it is free"):
            return None
    except DeviceError as error:
        return str(error)


@contextmanager
def opened(card: Card, state: Path, *, holder: str, wait_s: float = 0.0, run: str = "") -> Iterator[Device]:
    """A card for the time of one group: a GPU locked against other runs, or a new virtual card in the file ``state``.

    A GPU that is to be a smaller card gets its ballast when the group looks whether it is free, and loses it here. The
    ballast's log goes beside ``state``; it is known as the run's by the name of ``run``.

    Raises:
        DeviceError: the card does not answer, or another run holds it, still after ``wait_s`` seconds.
    """
    if card.uuid is not None:
        with (
            locked(card.uuid, holder, wait_s),
            closing(NvidiaDevice(card.uuid)) as whole,
            _sized(whole, card.total_bytes, state, f"{run}/{holder}/{ROLE}") as device,
        ):
            yield device
        return
    assert card.total_bytes is not None, "a card has a UUID or a size"
    yield new_virtual(card.figures, state)


@contextmanager
def _sized(whole: NvidiaDevice, total_bytes: int | None, state: Path, cookie: str) -> Iterator[Device]:
    """The card as one of this size; the card itself where it has that size anyway."""
    if total_bytes is None or is_of_size(whole.info.total_bytes, total_bytes):
        yield whole
        return
    with _sized_to(whole, total_bytes, state, cookie) as small:
        yield small


def refuse_instance(info: DeviceInfo) -> None:
    """A ballast needs a whole card: how CUDA tells an instance from others was never seen.

    Raises:
        DeviceError: the card is a MIG instance.
    """
    if info.instance_of is not None:
        raise DeviceError(f"{info.uuid}: expected a whole card to make a smaller one of, found a MIG instance of it")


@contextmanager
def _sized_to(whole: NvidiaDevice, total_bytes: int, state: Path, cookie: str) -> Iterator[SmallCard]:
    refuse_instance(whole.info)
    small = SmallCard(whole, total_bytes, log=state.with_name("ballast.log"), cookie=cookie)
    try:
        yield small
    finally:
        small.release()


@contextmanager
def smaller(device: Device, total_bytes: int, state: Path, *, cookie: str) -> Iterator[Device]:
    """An open card as one of a smaller size, for trials on it; afterwards it is what it was before.

    Raises:
        DeviceError: the card does not answer.
    """
    if isinstance(device, SmallCard):
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
        yield new_virtual(card_called(device.info.name, total_bytes), state)


def fresh(device: Device, state: Path) -> Device:
    """The card for another run of a group: the same GPU, which stays locked, or a new virtual card in ``state``."""
    if device.info.kind == "nvidia":
        return device
    return new_virtual(card_called(device.info.name, device.info.total_bytes), state)


def new_virtual(card: KnownCard, state: Path, *, refuses: bool = True) -> VirtualDevice:
    """An empty virtual card in the file ``state``; one that does not refuse lets programs hold more than there is."""
    VirtualCard.create(
        state,
        name=card.name,
        total_bytes=card.total_bytes,
        baseline_bytes=card.baseline_bytes,
        context_bytes=card.context_bytes,
        context_range_bytes=card.context_range_bytes,
        capability=card.capability,
        workspace_bytes=card.workspace_bytes,
        refuses=refuses,
    )
    return VirtualDevice(state)
