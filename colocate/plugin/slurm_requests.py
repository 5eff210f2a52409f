# SPDX-License-Identifier: Apache-2.0
"""Choose the kinds of GPUs of a cluster for the groups of a plan, and the number of workers for each.

Knows what Slurm tells of its machines, types of GPUs and features; asks for nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from colocate.plan import Group, may_mean
from colocate.process import Node

Request = tuple[str, ...]
"""Options of srun that make a worker's GPU one of a kind."""

ANY: Request = ()

# Whoever says one of these has chosen the kind of GPU for all workers.
_CHOOSES = re.compile(r"^(--gres|--gpus|-G|--constraint|-C|--nodelist|-w)")


def chosen(options: Iterable[str]) -> bool:
    """The user's options of srun say what kind of GPU all workers get."""
    return any(map(_CHOOSES.match, options))


def kinds(nodes: Iterable[Node], asked: str) -> Counter[Request]:
    """Return the requests that get a worker with the GPU a group asks for, by types or else features."""
    types, features = Counter[Request](), Counter[Request]()
    for node in nodes:
        types.update({(f"--gres=gpu:{kind}:1",): count for kind, count in node.types if may_mean(kind, asked)})
        features.update({(f"--constraint={word}",): node.gpus for word in node.features if may_mean(word, asked)})
    return +types or +features


def gives(node: Node, request: Request) -> bool:
    """A machine has what is asked for."""
    has = {f"--gres=gpu:{kind}:1" for kind, _ in node.types} | {f"--constraint={word}" for word in node.features}
    return has.issuperset(request)


def requests(nodes: Sequence[Node], asked: Iterable[str | None], most: int) -> list[Request]:
    """Return one request per worker, for groups that ask for these GPUs.

    At most ``most``, and of a kind no more than groups or GPUs; but of every kind at least one, and those in front.
    """
    groups, gpus = Counter[Request](), Counter[Request]()
    for wish, count in Counter(asked).items():
        common = kinds(nodes, wish).most_common(1) if wish is not None else []
        request, gpus[request] = common[0] if common else (ANY, most)
        groups[request] += count
    wanted = {request: min(count, gpus[request]) for request, count in groups.items()}
    found = sorted((one for one in wanted if one != ANY and wanted[one]), key=lambda one: -groups[one])
    given = Counter(found)
    while len(found) < most:
        left = [request for request in wanted if given[request] < wanted[request]]
        if not left:
            break
        found.append(max(left, key=lambda one: groups[one] / (given[one] + 1)))
        given[found[-1]] += 1
    return found


def unmet(nodes: Sequence[Node], place: str, groups: Iterable[Group]) -> Iterator[str]:
    """A line for every GPU that groups ask for and that Slurm does not tell of."""
    by_wish: dict[str, list[str]] = {}
    for group in groups:
        if group.gpu is not None and not kinds(nodes, group.gpu):
            by_wish.setdefault(group.gpu, []).append(group.id)
    for wish, names in by_wish.items():
        cure = "it takes a worker that happens to have one; ask with --slurm='--gres=gpu:TYPE:1' or '--constraint=WORD'"
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
