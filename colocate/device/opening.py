"""Which cards a run may use, and one of them opened for the time of a group."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colocate.device import Device
from colocate.device.choice import Kind, choose_device
from colocate.device.lock import locked
from colocate.device.nvidia import NvidiaDevice
from colocate.device.virtual import VirtualDevice
from colocate.errors import DeviceError
from colocate.probe.card import VirtualCard
from colocate.units import MIB, format_size

# What driver and desktop hold on a card before anything trains: read 57 times on the study's idle RTX 3080.
VIRTUAL_BASELINE_BYTES = 232 * MIB


@dataclass(frozen=True)
class Card:
    """A card that may be used but is not open: a GPU by its UUID, or a virtual card by its size in bytes."""

    kind: Literal["nvidia", "virtual"]
    uuid: str | None = None
    total_bytes: int | None = None


@dataclass(frozen=True)
class Cards:
    """The cards of a run, those that others hold, and a sentence for the user about the choice."""

    free: tuple[Card, ...]
    busy: tuple[str, ...]
    sentence: str


def find_cards(kind: Kind, *, card_bytes: int) -> Cards:
    """The cards that this run may use; ``card_bytes`` is the size of the virtual one.

    Raises:
        DeviceError: no card can be used. Names the cure.
    """
    choice = choose_device(kind)
    if choice.kind == "virtual":
        return Cards((Card("virtual", total_bytes=card_bytes),), (), choice.sentence)
    refusals = {uuid: _refusal(uuid) for uuid in choice.uuids}
    free = tuple(Card("nvidia", uuid) for uuid, refusal in refusals.items() if refusal is None)
    return Cards(free, tuple(filter(None, refusals.values())), choice.sentence)


def _refusal(uuid: str) -> str | None:
    """Why a card cannot be had at this moment, with who holds it; None for a free one."""
    try:
        with locked(uuid, "a look at whether it is free"):
            return None
    except DeviceError as error:
        return str(error)


@contextmanager
def opened(card: Card, state: Path, *, holder: str, wait_s: float = 0.0) -> Iterator[Device]:
    """A card for the time of one group: a GPU locked against other runs, or a new virtual card in the file ``state``.

    Raises:
        DeviceError: the card does not answer, or another run holds it, still after ``wait_s`` seconds.
    """
    if card.uuid is not None:
        with locked(card.uuid, holder, wait_s), closing(NvidiaDevice(card.uuid)) as device:
            yield device
        return
    assert card.total_bytes is not None, "a card has a UUID or a size"
    yield _new_virtual(card.total_bytes, state)


def fresh(device: Device, state: Path) -> Device:
    """The card for another run of a group: the same GPU, which stays locked, or a new virtual card in ``state``."""
    return device if device.info.kind == "nvidia" else _new_virtual(device.info.total_bytes, state)


def _new_virtual(total_bytes: int, state: Path) -> Device:
    name = f"virtual {format_size(total_bytes)} card"
    VirtualCard.create(state, name=name, total_bytes=total_bytes, baseline_bytes=VIRTUAL_BASELINE_BYTES)
    return VirtualDevice(state)
