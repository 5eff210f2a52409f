# SPDX-License-Identifier: Apache-2.0
"""Drop the bulky fields of records, of which ten thousand fill no memory then; who needs those reads the file again."""

import json
from collections.abc import Mapping
from typing import Any

from colocate.plan import ROLES

_BULKY = frozenset({"progress_events", "last_lines", "metrics", "energy_metrics", "samples_per_s"})
_SHARED = ("versions", "device", "limits")

MOST_SHARED = 1000
_known: dict[str, Any] = {}


def slim(experiment: dict[str, Any]) -> dict[str, Any]:
    """The same record without progress events and copied log lines; equal parts of many records are one object."""
    evidence = experiment.get("evidence")
    if not isinstance(evidence, dict):
        return experiment
    lighter = {**evidence, **{role: _without_bulk(evidence[role]) for role in ROLES if role in evidence}}
    lighter |= {name: _shared(evidence[name]) for name in _SHARED if name in evidence}
    settings: dict[str, Any] = {role: _without_bulk(experiment[role]) for role in ROLES if role in experiment}
    return experiment | settings | {"evidence": lighter}


def _without_bulk(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_bulk(child) for key, child in value.items() if key not in _BULKY}
    return [_without_bulk(child) for child in value] if isinstance(value, list) else value


def _shared(value: Any) -> Any:
    if len(_known) > MOST_SHARED:
        _known.clear()
    return _known.setdefault(json.dumps(value, sort_keys=True), value)
