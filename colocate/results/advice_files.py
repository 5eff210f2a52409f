# SPDX-License-Identifier: Apache-2.0
"""Files of a run that say something of some of its groups: ``proposals.json`` and ``remedies.json``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colocate.errors import ColocateError
from colocate.files import read_json, write_json

SCHEMA = 1


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file's entries by group; empty if there is no file that can be read."""
    try:
        document = read_json(path)
        groups = document["groups"] if document["schema"] == SCHEMA else {}
        return {str(name): one for name, one in groups.items() if isinstance(one, dict)}
    except (ColocateError, KeyError, TypeError, AttributeError):
        return {}


def write(path: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Put these in its place.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    write_json(path, {"schema": SCHEMA, "groups": entries})
