# SPDX-License-Identifier: Apache-2.0
"""Drop bulky fields of records for large reports; they are read again when they are drawn.

Knows the keys of a record and nothing of pages.
"""

import json
from collections.abc import Mapping
from typing import Any

from colocate.plan import ROLES

# Of a page of more groups than this the details lie in files beside it, and are read one group at a time.
LARGE = 1000

_BULKY = frozenset({"progress_events", "last_lines", "argv", "metrics", "energy_metrics", "samples_per_s"})
_SHARED = ("versions", "device", "limits")

_known: dict[str, Any] = {}


def slim(experiment: dict[str, Any]) -> dict[str, Any]:
    """The same record without marks, copied log lines and command lines; equal parts of many records are one object."""
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
    if len(_known) > LARGE:
        _known.clear()
    return _known.setdefault(json.dumps(value, sort_keys=True), value)
