import heapq
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.plugin.scheduler import OneGroupAtATime


class FakeWorker:
    """A worker as the scheduler sees it: it starts an index only when it knows the next one."""

    def __init__(self, name):
        self.gateway = SimpleNamespace(id=name)
        self.queue = []
        self.shutting_down = False

    def send_runtest_some(self, indices):
        assert not self.shutting_down, "nothing may be sent to a worker that was told to end"
        self.queue += indices

    def shutdown(self):
        self.shutting_down = True

    def next_index(self):
        """What it can start now: with one index left it waits, unless that is all there will be."""
        if len(self.queue) > 1 or (self.queue and self.shutting_down):
            return self.queue[0]
        return None


def scheduler_with(num_workers, minutes):
    names = [f"f.py::test_group[group{number:02}]" for number in range(1, len(minutes) + 1)]
    lengths = dict(zip(names, minutes, strict=True))
    scheduler = OneGroupAtATime(num_workers, lengths.__getitem__)
    workers = [FakeWorker(f"gw{number}") for number in range(num_workers)]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, names)
    return scheduler, workers


def play(scheduler, workers, minutes):
    """Run everything in simulated time: (what each worker did in which order, minutes until the last was done)."""
    scheduler.schedule()
    order, events, now, serial, busy = [], [], 0.0, 0, set()
    while True:
        for worker in workers:
            index = worker.next_index()
            if worker.gateway.id not in busy and index is not None:
                busy.add(worker.gateway.id)
                serial += 1
                length = minutes[index] if index < len(minutes) else 0.0
                heapq.heappush(events, (now + length, serial, worker, index))
        if not events:
            return order, now
        now, _, worker, index = heapq.heappop(events)
        busy.discard(worker.gateway.id)
        worker.queue.pop(0)
        if index < len(minutes):
            order.append(index)
        scheduler.mark_test_complete(worker, index, 0.0)


def test_twelve_groups_on_four_gpus_take_hardly_longer_than_the_longest():
    """xdist's own schedulers took 70 minutes for this plan when it was sorted: the two longest met on one GPU."""
    minutes = [2, 3, 4, 7, 8, 9, 10, 12, 15, 20, 30, 40]
    assert play(*scheduler_with(4, minutes), minutes)[1] <= 42


@settings(deadline=None)
@given(st.lists(st.integers(1, 40), max_size=15), st.integers(1, 5))
def test_every_group_runs_once_and_the_run_is_at_most_a_third_longer_than_the_best(minutes, num_workers):
    """Longest first is at worst 4/3 of the optimum (Graham 1969), for which the two bounds below are lower bounds."""
    scheduler, workers = scheduler_with(num_workers, minutes)
    order, total = play(scheduler, workers, minutes)
    assert sorted(order) == list(range(len(minutes)))
    assert scheduler.tests_finished
    assert all(worker.shutting_down for worker in workers)
    in_order = sorted([0, *minutes], reverse=True)
    pair = sum(in_order[num_workers - 1 : num_workers + 1]) if len(minutes) > num_workers else 0
    assert total <= 4 / 3 * max(sum(minutes) / num_workers, in_order[0], pair) + in_order[0] / 3


def test_the_group_of_a_dead_worker_is_named_and_its_replacement_takes_the_rest():
    scheduler, workers = scheduler_with(2, [10, 9, 8, 7])
    scheduler.schedule()
    assert scheduler.remove_node(workers[0]) == "f.py::test_group[group01]"
    replacement = FakeWorker("gw2")
    scheduler.add_node(replacement)
    scheduler.add_node_collection(replacement, scheduler.collection)
    scheduler.schedule()
    order, _ = play(scheduler, [workers[1], replacement], [10, 9, 8, 7])
    assert sorted(order) == [1, 2, 3]


def test_a_worker_that_dies_idle_or_before_anything_was_collected_has_no_group_and_ends_no_other():
    scheduler = OneGroupAtATime(1, lambda nodeid: 1.0)
    first, second = FakeWorker("gw0"), FakeWorker("gw1")
    scheduler.add_node(first)
    scheduler.add_node(second)
    assert scheduler.remove_node(first) is None
    assert not second.shutting_down

    scheduler, workers = scheduler_with(2, [1])
    scheduler.schedule()
    assert scheduler.remove_node(workers[1]) is None


def test_workers_that_collected_different_groups_are_refused():
    scheduler = OneGroupAtATime(2, lambda nodeid: 1.0)
    for name, ids in (("gw0", ["a"]), ("gw1", ["b"])):
        worker = FakeWorker(name)
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, ids)
    with pytest.raises(pytest.UsageError, match="expected the same groups"):
        scheduler.schedule()


def test_a_group_waits_while_another_shows_what_it_need_not_show_again():
    """Two groups with the same background, started together, would both have to dry-run it."""
    scheduler, workers = scheduler_with(2, minutes=[4, 3, 2, 1])
    same = {"f.py::test_group[group01]", "f.py::test_group[group02]", "f.py::test_group[group04]"}
    scheduler.shows = lambda nodeid: frozenset({"a background"} if nodeid in same else ())

    scheduler.schedule()
    assert [worker.queue[0] for worker in workers] == [0, 2]

    scheduler.mark_test_complete(workers[1], 2)
    assert workers[1].queue[-2:] == [1, 4], "nothing else is left"
