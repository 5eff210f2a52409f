"""xdist's workers: how many, on which card each, and which group next.

A worker is bound to its card by UUID in its environment, so that the replacement of a dead worker keeps the card; a
number made of the worker's name would not.
"""

import os
from typing import Any

import pytest

from colocate.plugin import cards, elsewhere
from colocate.plugin.configuration import Session, group_of, leads, session_of
from colocate.plugin.scheduler import OneGroupAtATime
from colocate.quarantine import Quarantine
from colocate.units import GIB

VISIBLE = "CUDA_VISIBLE_DEVICES"

# What a group is thought to take when the plan does not say; only the order of the groups depends on it.
UNKNOWN_MINUTES = 10.0


def num_workers(config: pytest.Config) -> int:
    """One worker per card that is free, or with ``--wait`` per card; on the virtual card one per pair of cores.

    Raises:
        pytest.UsageError: there is no free card, or no card.
    """
    if elsewhere.wanted(config):
        return elsewhere.make(config).most_workers
    found = cards.find(config, card_bytes=8 * GIB).free  # the plan is not read yet, and only the number matters
    if found[0].kind == "virtual":
        return max(1, len(os.sched_getaffinity(0)) // 2)  # a group is two trainings
    return len(found)


class Workers:
    """Hooks of xdist in the controller."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: list[Any]) -> None:
        """Called before the workers are started: bind each to a card of its own."""
        gpus = [card for card in self.session.cards if card.kind == "nvidia"]
        if gpus and len(specs) > len(gpus):
            raise pytest.UsageError(f"-n: expected at most {len(gpus)} workers, one per card, got {len(specs)}")
        for spec, gpu in zip(specs, gpus, strict=False):
            spec.env[VISIBLE] = gpu.uuid or ""

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Called before a worker is told what to do: hand over what was decided here."""
        directory = self.session.run_directory
        assert directory is not None, "a session with workers runs groups"
        bound = node.gateway.spec.env.get(VISIBLE)
        card = next((card for card in self.session.cards if card.uuid == bound), self.session.cards[0])
        node.workerinput["colocate_run"] = str(directory.path)
        node.workerinput["colocate_card"] = cards.sendable(card)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> OneGroupAtATime:
        """Called once the workers are being started."""
        from xdist.workermanage import parse_tx_spec_config

        if self.session.elsewhere is not None:
            queued = config.pluginmanager.get_plugin("dsession")
            assert queued is not None, "registered before a scheduler is made"
            return OneGroupAtATime(
                1,
                lambda nodeid: minutes(config, nodeid),
                self._usable,
                self.session.elsewhere.may_run,
                queued.run_again,
            )
        return OneGroupAtATime(len(parse_tx_spec_config(config)), lambda nodeid: minutes(config, nodeid), self._usable)

    def _usable(self, node: Any) -> bool:
        """The card of a worker is not quarantined."""
        directory = self.session.run_directory
        bound = node.gateway.spec.env.get(VISIBLE)
        return directory is None or Quarantine(directory.quarantine).why(bound) is None


def minutes(config: pytest.Config, nodeid: str) -> float:
    """How long a group is expected to take."""
    group = group_of(config, nodeid)
    return UNKNOWN_MINUTES if group is None or group.expected_minutes is None else group.expected_minutes


def register(config: pytest.Config) -> None:
    """Take part in this session."""
    if leads(config):
        config.pluginmanager.register(Workers(session_of(config)), "colocate-workers")
