"""``run.json``: what was asked for, written before the first group; what came of it stands in the groups' records."""

import platform
from datetime import UTC, datetime
from typing import Any

import pytest

from colocate import __version__
from colocate.plugin import cards
from colocate.plugin.configuration import Session, is_worker, only_looks, session_of
from colocate.run_directory import write_json

SCHEMA = 1


def run_record(config: pytest.Config, session: Session) -> dict[str, Any]:
    """The plan with its rule, the cards, the arguments and the versions; never the environment."""
    plan = session.plan
    return {
        "schema": SCHEMA,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": {
            "name": plan.name,
            "path": str(plan.path),
            "content_hash": plan.content_hash,
            "groups": list(plan.ids),
            "needed": plan.needed(len(plan.groups)),
            "success_rate": plan.limits.success_rate,
        },
        "card": {"choice": session.choice, "cards": [cards.sendable(card) for card in session.cards]},
        "arguments": [str(argument) for argument in config.invocation_params.args],
        "versions": {"colocate": __version__, "python": platform.python_version(), "pytest": pytest.__version__},
    }


def register(config: pytest.Config) -> None:
    """Write it, where something is going to be run."""
    session = session_of(config)
    if session.run_directory is not None and not is_worker(config) and not only_looks(config):
        write_json(session.run_directory.record, run_record(config, session))
