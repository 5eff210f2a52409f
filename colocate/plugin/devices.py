"""Which cards this session may use, found before anything starts; the controller decides, its workers are told."""

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

from colocate.errors import ColocateError
from colocate.plugin.session import Session, is_worker, only_looks, session_of
from colocate.units import format_size

if TYPE_CHECKING:
    from colocate.device.acquire import Card, Cards
    from colocate.device.quarantine import Quarantine
    from colocate.plan.plan import Group
    from colocate.verdict.rules import Reason


def find(config: pytest.Config, card_bytes: int) -> "Cards":
    """The cards that ``--device`` allows; with ``--wait`` those that others hold count as free, after the others.

    Raises:
        pytest.UsageError: no card can be used; names the cure.
    """
    from colocate.device.acquire import find_cards, gpu
    from colocate.device.select import choose_device
    from colocate.plan.gpu_models import card_of_size, known_card

    try:
        asked = config.option.card is not None
        wanted = known_card(config.option.card) if asked else card_of_size(card_bytes)
        size, kind = wanted.total_bytes, config.option.device
        cards = find_cards(kind, card_bytes=size, name=wanted.name, small=asked)
        if cards.busy and config.option.wait:
            free = {card.uuid for card in cards.free}
            busy = [device for device in choose_device(kind).devices if device.uuid not in free]
            later = [gpu(device, size if asked else None) for device in busy]
            cards = dataclasses.replace(cards, free=(*cards.free, *later))
        _refuse_too_small(cards)
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    if not cards.free:
        held = "; ".join(cards.busy)
        raise pytest.UsageError(f"card: expected a free one, found none ({held}); wait for one with --wait=SECONDS")
    return cards


def _refuse_too_small(cards: "Cards") -> None:
    """A card that can never be the wanted one is known before anything starts."""
    from colocate.device.acquire import refuse_instance
    from colocate.device.nvml import list_devices
    from colocate.plan.gpu_models import is_of_size

    sized = {card.uuid: card.total_bytes for card in cards.free if card.kind == "nvidia" and card.total_bytes}
    for device in list_devices() if sized else ():
        wanted = sized.get(device.uuid)
        if not wanted or is_of_size(device.total_bytes, wanted):
            continue
        refuse_instance(device)
        if device.total_bytes < wanted:
            raise pytest.UsageError(
                f"--card: expected a card of at least {format_size(wanted)}, found {device.name} of "
                f"{format_size(device.total_bytes)}; leave --card away, or predict with --device=virtual"
            )


def register(config: pytest.Config) -> None:
    """Find the cards of this session, or take over the one that the controller has for this worker."""
    session = session_of(config)
    if only_looks(config):
        return
    if is_worker(config):
        from colocate.device.acquire import Card

        sent: dict[str, Any] = config.workerinput["colocate_card"]  # type: ignore[attr-defined]
        session.cards = (Card(**sent),)
        session.others = tuple(Card(**one) for one in config.workerinput["colocate_cards"])  # type: ignore[attr-defined]
        return
    if session.elsewhere is not None and session.elsewhere.gpu:  # each worker finds its own where it runs
        session.choice = session.elsewhere.sentence
        return
    found = find(config, session.plan.limits.card_bytes)
    session.cards, session.choice = found.free, found.sentence
    if session.elsewhere is not None:
        session.choice = session.elsewhere.sentence
    elif config.option.card is not None and found.free[0].kind == "nvidia":
        session.choice += f", as a card of {format_size(found.free[0].total_bytes or 0)}"


def why_none(session: Session, group: "Group", quarantine: "Quarantine") -> "Reason":
    """Why no card of this process is what a group asks for."""
    from colocate.device.acquire import as_asked
    from colocate.verdict.rules import Reason

    known = session.others or session.cards
    for card in known:
        why = quarantine.why(card.uuid)
        if why is not None and as_asked(card, group.card) is not None:
            return Reason("card_quarantined", f"{card.uuid}: {why}")
    found = ", ".join(dict.fromkeys(map(str, known)))
    return Reason("no_such_card", f"the group asks for a card {group.card!r}, found {found}")


def sendable(card: "Card") -> dict[str, Any]:
    """A card as builtin types, for a worker."""
    return dataclasses.asdict(card)
