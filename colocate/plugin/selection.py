# SPDX-License-Identifier: Apache-2.0
"""Interpret ``-k`` for groups: ``group1`` is the first group, not every group whose id begins so.

Pure functions over words and ids. Imports no pytest: the hooks that call them are elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colocate.cli import GROUP, group_named
from colocate.errors import PlanError

if TYPE_CHECKING:
    from colocate.plan import Group

_WORD = re.compile(r"[\w:+\-.\[\]\\/]+")  # what pytest's own scanner takes for one identifier of an expression


def normalise(expression: str, ids: Sequence[str]) -> str:
    """The ``-k`` expression with every word that names one group turned into that group and no other.

    ``group1``, ``group_1``, ``group01`` and ``[group1]`` name the group whose id has that number; a word that is an id
    names its group. All other words (models, ``group12b``) stay as they are, and so do operators and brackets.

    Raises:
        PlanError: a word names a group that the plan does not have; one line for each.
    """
    mistakes: list[str] = []

    def replaced(match: re.Match[str]) -> str:
        word = match[0]
        named = group_named(word.strip("[]"), ids)
        if named is None and GROUP.fullmatch(word.strip("[]")):
            extent = ids[0] if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
            mistakes.append(f"-k: no {word} in the plan ({extent})")
        return word if named is None else _only(named, ids)

    rewritten = _WORD.sub(replaced, expression)
    if mistakes:
        raise PlanError(*dict.fromkeys(mistakes))
    return rewritten


def keywords(group: Group) -> set[str]:
    """The further names under which ``-k`` finds a group: its tier and its trainings' names, models, repositories."""
    names = {group.id, group.tier}
    for training in group.trainings:
        names |= {training.name, training.repository, training.model}
    return {name for name in names if name}


def _only(identifier: str, ids: Sequence[str]) -> str:
    """An expression for one id: ``-k`` looks for parts of names, so that longer ids around it must be excluded."""
    longer = [other for other in ids if identifier in other and other != identifier]
    return f"({identifier} and not ({' or '.join(longer)}))" if longer else identifier
