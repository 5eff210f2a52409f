"""Which cards this session may use, found before anything starts; the controller decides, its workers are told."""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from colocate.errors import ColocateError
from colocate.plugin.configuration import is_worker, only_looks, session_of

if TYPE_CHECKING:
    from colocate.device.opening import Card, Cards


def find(config: pytest.Config, card_bytes: int) -> "Cards":
    """The cards that ``--device`` allows; with ``--wait`` those that others hold count as free, after the others.

    Raises:
        pytest.UsageError: no card can be used; names the cure.
    """
    from colocate.cards import card_of_size, known_card
    from colocate.device.choice import choose_device  # these load NVML's bindings
    from colocate.device.opening import Card, find_cards

    try:
        virtual = known_card(config.option.card) if config.option.card else card_of_size(card_bytes)
        cards = find_cards(config.option.device, card_bytes=virtual.total_bytes, name=virtual.name)
        if cards.busy and config.option.wait:
            known = {card.uuid for card in cards.free}
            later = [Card("nvidia", uuid) for uuid in choose_device(config.option.device).uuids if uuid not in known]
            cards = dataclasses.replace(cards, free=(*cards.free, *later))
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    if not cards.free:
        held = "; ".join(cards.busy)
        raise pytest.UsageError(f"card: expected a free one, found none ({held}); wait for one with --wait=SECONDS")
    return cards


def register(config: pytest.Config) -> None:
    """Find the cards of this session, or take over the one that the controller has for this worker."""
    session = session_of(config)
    if only_looks(config):
        return
    if is_worker(config):
        from colocate.device.opening import Card

        sent: dict[str, Any] = config.workerinput["colocate_card"]  # type: ignore[attr-defined]
        session.cards = (Card(**sent),)
        return
    found = find(config, session.plan.limits.card_bytes)
    session.cards, session.choice = found.free, found.sentence
    if config.option.card is not None and found.free[0].kind != "virtual":
        raise pytest.UsageError("--card: expected with a virtual card only, found a GPU; add --device=virtual")


def sendable(card: "Card") -> dict[str, Any]:
    """A card as builtin types, for a worker."""
    return dataclasses.asdict(card)
