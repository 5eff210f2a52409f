# SPDX-License-Identifier: Apache-2.0
"""Files of a run that say something of some of its groups: ``proposals.json`` and ``remedies.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.results.lenient import read_leniently
from colocate.verdict import PeakRange, Verdict

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Proposed:
    """One proposal and what is predicted of it; ``peak`` and ``answer`` are None where ``why_not`` says why."""

    kind: str | None = None
    role: str | None = None
    training: str | None = None
    text: str | None = None
    settings: str | None = None
    why: str | None = None
    change: Any = None
    peak: PeakRange | None = None
    answer: str | None = None
    why_not: str | None = None


@dataclass(frozen=True, slots=True)
class Proposals:
    """The proposals for one group, as it was with these settings."""

    content_hash: str | None = None
    gpu: str | None = None
    limit_bytes: int | None = None
    proposals: tuple[Proposed, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """How a group ended before or after a change."""

    outcome: str | None = None
    basis: str | None = None
    codes: tuple[str, ...] = ()
    peak_bytes: int | None = None
    peak_low_bytes: int | None = None
    peak_high_bytes: int | None = None
    limit_bytes: int | None = None
    headroom_bytes: int | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> "Figures":
        """Take them from a verdict."""
        known = {name: getattr(verdict, name) for name in cls.__slots__}
        return cls(**known | {"outcome": str(verdict.outcome), "codes": tuple(map(str, verdict.codes))})


@dataclass(frozen=True, slots=True)
class Tried:
    """One proposal that was run: what was predicted of it, how it ended, and what to write into the plan."""

    group: str | None = None
    kind: str | None = None
    role: str | None = None
    training: str | None = None
    settings: str | None = None
    why: str | None = None
    answer: str | None = None
    peak: PeakRange | None = None
    after: Figures = Figures()
    directory: str | None = None
    member: Any = None


@dataclass(frozen=True, slots=True)
class Remedies:
    """What was tried for one group, as it was with these settings; ``holds`` is the place of the one that fits."""

    content_hash: str | None = None
    before: Figures = Figures()
    tried: tuple[Tried, ...] = ()
    holds: int | None = None


Entry = TypeVar("Entry", Proposals, Remedies)


def read(path: Path, kind: type[Entry]) -> dict[str, Entry]:
    """Read a file's entries by group; empty if there is no file that can be read."""
    try:
        document = read_json(path)
        groups = document["groups"] if document["schema"] == SCHEMA else {}
        return {str(name): read_leniently(one, kind) for name, one in groups.items() if isinstance(one, dict)}
    except (ColocateError, KeyError, TypeError, AttributeError):
        return {}


def write(path: Path, entries: Mapping[str, Proposals | Remedies]) -> None:
    """Put these in its place.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    write_json(path, {"schema": SCHEMA, "groups": {name: asdict(entry) for name, entry in entries.items()}})
