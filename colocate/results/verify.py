# SPDX-License-Identifier: Apache-2.0
"""Judges recorded groups again: the verdict must follow from what is on disk, today as on the day of the run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colocate.errors import ColocateError
from colocate.files import read_json
from colocate.results.layout import GroupDirectory
from colocate.results.record import read_evidence
from colocate.verdict import Verdict, judge


@dataclass(frozen=True)
class Verified:
    """One group judged again."""

    group: str
    agrees: bool
    text: str

    def __str__(self) -> str:
        return f"{self.group}: {self.text}"


def judge_record(directory: Path | str) -> Verdict:
    """Judge one recorded group again, by its files alone.

    Args:
        directory: the folder of a group in a run directory.

    Raises:
        ColocateError: there is no whole record in it.
    """
    return judge(read_evidence(GroupDirectory(Path(directory))))


def verify(directory: Path) -> Iterator[Verified]:
    """Judge the groups below a run directory, or the one group whose folder this is.

    A record that cannot be read, or without a verdict, does not agree.

    Raises:
        ColocateError: there is no record in this folder.
    """
    groups = [GroupDirectory(path.parent) for path in sorted(directory.glob("*/experiment.json"))]
    if GroupDirectory(directory).experiment.exists():
        groups = [GroupDirectory(directory)]
    if not groups:
        raise ColocateError(f"{directory}: expected a run directory or the folder of a group, found no record in it")
    return map(_verify, groups)


def _verify(directory: GroupDirectory) -> Verified:
    try:
        evidence = read_evidence(directory)
        found = Verdict.from_json(read_json(directory.verdict)) if directory.verdict.exists() else None
    except (ColocateError, ValueError) as error:
        return Verified(directory.path.name, False, str(error))
    again, group = judge(evidence), f"{evidence.group} ({directory.path.name})"
    if found is None:
        return Verified(group, False, f"no verdict on disk; judged now: {again}")
    if found != again:
        return Verified(group, False, f"expected {again}, found {found}")
    return Verified(group, True, f"agrees, {again}")
