# SPDX-License-Identifier: Apache-2.0
"""Choose the kind of GPU of a cluster for each group of a plan.

Knows what Slurm tells of its machines, types of GPUs and features; asks for nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from colocate.plan import Group, may_mean
from colocate.process import Node

Request = tuple[str, ...]
"""Options of sbatch that make a task's GPU one of a kind."""

ANY: Request = ()

# Whoever says one of these has chosen the kind of GPU for all groups.
_CHOOSES = re.compile(r"^(--gres|--gpus|-G|--constraint|-C|--nodelist|-w)")


def chosen(options: Iterable[str]) -> bool:
    """The user's options of sbatch say what kind of GPU all groups get."""
    return any(map(_CHOOSES.match, options))


def kinds(nodes: Iterable[Node], asked: str) -> Counter[Request]:
    """Return the requests that get the GPU a group asks for, by types or else features, and how many there are."""
    types, features = Counter[Request](), Counter[Request]()
    for node in nodes:
        types.update({(f"--gres=gpu:{kind}:1",): count for kind, count in node.types if may_mean(kind, asked)})
        features.update({(f"--constraint={word}",): node.gpus for word in node.features if may_mean(word, asked)})
    return +types or +features


def request_for(nodes: Sequence[Node], asked: str | None) -> Request:
    """Return the request that gets a group the GPU it asks for: of several kinds the most frequent; else any GPU."""
    common = kinds(nodes, asked).most_common(1) if asked is not None else []
    return common[0][0] if common else ANY


def unmet(nodes: Sequence[Node], place: str, groups: Iterable[Group]) -> Iterator[str]:
    """A line for every GPU that groups ask for and that Slurm does not tell of."""
    by_wish: dict[str, list[str]] = {}
    for group in groups:
        if group.gpu is not None and not kinds(nodes, group.gpu):
            by_wish.setdefault(group.gpu, []).append(group.id)
    for wish, names in by_wish.items():
        cure = "it takes any GPU; ask with --slurm='--gres=gpu:TYPE:1' or '--constraint=WORD'"
        expected = f"expected GPUs that Slurm tells to be {wish!r}"
        yield f"GPU of {', '.join(names)}: {expected}, found {_reported(nodes)} in {place}; {cure}"


def _reported(nodes: Iterable[Node]) -> str:
    """Describe it, such as ``gpu:a100 (4), features ib, large``."""
    types, features = Counter[str](), Counter[str]()
    for node in nodes:
        types.update({f"gpu:{kind}" if kind else "gpu of no type": count for kind, count in node.types})
        features.update(node.features if node.gpus else ())
    named = ", ".join(f"{kind} ({count})" for kind, count in sorted(types.items()))
    return f"{named}, {'features ' + ', '.join(sorted(features)) if features else 'no features'}"
