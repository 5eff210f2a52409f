# SPDX-License-Identifier: Apache-2.0
"""Schedule groups on xdist's workers: the longest first, and only when a worker is free.

xdist's own schedulers give every worker two tests at the start, consecutive ones: on four GPUs the two longest groups
of a plan then run one after the other (70 instead of 40 minutes in the measured example). Public hooks only; see
`colocate.plugin.collection` for the sentinel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest


class OneGroupAtATime:
    """A scheduler of xdist. Tests are indices into the workers' common collection; the sentinel is one past its end.

    Args:
        num_workers: How many are waited for before anything is given to one.
        minutes: How long a group is expected to take.
        usable: A worker's GPU is in order.
        may_run: A group may be run by a worker.
        choices: How many workers' GPUs will do for a group.
        shows: Names of what a group shows that others need not show again; such a group waits while one that shows
            the same is running, as long as there is another.
    """

    def __init__(
        self,
        num_workers: int,
        minutes: Callable[[str], float],
        usable: Callable[[Any], bool] = lambda node: True,
        may_run: Callable[[str, Any], bool] = lambda nodeid, node: True,
        choices: Callable[[str], int] = lambda nodeid: 0,
        shows: Callable[[str], frozenset[str]] = lambda nodeid: frozenset(),
    ) -> None:
        self.num_workers = num_workers
        self.minutes = minutes
        self.usable = usable
        self.may_run = may_run
        self.choices = choices
        self.shows = shows
        self._shown: frozenset[str] = frozenset()
        self.collection: list[str] = []  # of all workers, once the first groups are given out
        self._collections: dict[Any, list[str]] = {}
        self._running: dict[Any, list[int]] = {}
        self._waiting: list[int] = []

    @property
    def nodes(self) -> list[Any]:
        """The workers that can be given something."""
        return list(self._running)

    @property
    def collection_is_completed(self) -> bool:
        """Every worker of the start has told what it collected."""
        return len(self._collections) >= self.num_workers

    @property
    def has_pending(self) -> bool:
        """Something is still to be run or running."""
        return bool(self._waiting) or any(self._running.values())

    @property
    def tests_finished(self) -> bool:
        """Every group has been run; xdist then ends the workers."""
        idle = all(index == self._sentinel for queue in self._running.values() for index in queue)
        return self.collection_is_completed and not self._waiting and idle

    def _is_busy(self, node: Any) -> bool:
        return any(index != self._sentinel for index in self._running[node])

    @property
    def _sentinel(self) -> int:
        return len(self.collection)

    def add_node(self, node: Any) -> None:
        """Called when a worker is ready to collect."""
        self._running[node] = []

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        """Called when a worker has collected.

        Raises:
            pytest.UsageError: it collected other groups than the others, so that no index means the same to both.
        """
        if self.collection and list(collection) != self.collection:
            raise pytest.UsageError(f"worker {node.gateway.id}: expected the same groups as in the other workers")
        self._collections[node] = list(collection)

    def schedule(self) -> None:
        """Called when all have collected, and again when the replacement of a dead worker has."""
        if not self.collection:
            collections = list(self._collections.values())
            if any(other != collections[0] for other in collections):
                raise pytest.UsageError("workers: expected the same groups in all of them, found different ones")
            self.collection = collections[0]
            self._waiting = sorted(range(len(self.collection)), key=self._order)
        self.feed()

    def _order(self, index: int) -> tuple[int, float]:
        """First what few GPUs will do for, lest those be taken by what any would do for; of these the longest."""
        nodeid = self.collection[index]
        return self.choices(nodeid), -self.minutes(nodeid)

    def feed(self) -> None:
        """Give every idle worker its next group."""
        for node in self.nodes:
            self._feed(node)

    def _feed(self, node: Any) -> None:
        if node.shutting_down or self._is_busy(node):
            return
        # A worker whose GPU is quarantined would refuse group after group while the others are still busy.
        others = [other for other in self.nodes if other is not node and not other.shutting_down]
        if not self._waiting or (not self.usable(node) and any(map(self.usable, others))):
            node.shutdown()
            return
        possible = [index for index in self._waiting if self.may_run(self.collection[index], node)]
        if not possible:  # what is left must not be run here; another worker is there or will come
            return
        following = next((index for index in possible if not self._is_being_shown(index)), possible[0])
        self._waiting.remove(following)
        pair = [following, self._sentinel]
        self._running[node] += pair
        node.send_runtest_some(pair)

    def _is_being_shown(self, index: int) -> bool:
        """A group that is running will show what this one would have to show for itself now."""
        running = (one for queue in self._running.values() for one in queue if one != self._sentinel)
        return bool((self._shows(index) - self._shown) & frozenset().union(*map(self._shows, running)))

    def _shows(self, index: int) -> frozenset[str]:
        return self.shows(self.collection[index])

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        """Called when a worker is done with one index; its next group follows at once."""
        self._running[node].remove(item_index)
        if item_index != self._sentinel:
            self._shown |= self._shows(item_index)
            self._feed(node)

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        """Called after a worker gave tests back, which this scheduler never asks for."""
        raise NotImplementedError

    def remove_node(self, node: Any) -> str | None:
        """Called when a worker is gone; the answer is the group that it was running."""
        left = [index for index in self._running.pop(node) if index != self._sentinel]
        if left:
            return self.collection[left[0]]
        if self.collection:
            self.feed()  # others may now be the only ones for a group that was to go elsewhere
        return None
