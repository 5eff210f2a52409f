"""Workers and GPUs: one worker per free GPU, bound to it by UUID. On a simulated machine, with real sessions."""

import os

import pytest
from fake_nvml import MIB
from stand_in_project import Project

from colocate.device.lock import locked

pytestmark = pytest.mark.slow


def gpus_of(folder, *groups):
    return [(folder / f"{group}.gpu").read_text() for group in groups]


def test_every_free_gpu_gets_a_worker_of_its_own_that_its_replacement_keeps(fake_machine, tmp_path):
    """The number in a worker's name would not do: the replacement of gw1 is gw2."""
    for _ in range(3):
        fake_machine.add_gpu()
    busy, *free = (fake_machine.uuid(place) for place in range(3))
    ways = {"group01": "die", "group02": "wait for group03"}
    with locked(busy, "somebody else"):
        run = Project(tmp_path, ways, 3).run("feasibility", "--device=nvidia", "-n", "auto")
    assert "created: 2/2 workers" in run.output
    assert dict(run.rows) == {"group01": "Error", "group02": "Passed", "group03": "Passed"}
    first, second, third = gpus_of(tmp_path, "group01", "group02", "group03")
    assert {first, second} == set(free)
    assert third == first, "the replacement of the worker that died has its GPU"


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor runs one group at a time")
def test_virtual_groups_run_side_by_side_unless_one_at_a_time_is_asked_for(tmp_path):
    """They used to wait for each other although each has a GPU of its own."""
    run = Project(tmp_path, {"group01": "wait for group02"}, 2).run("feasibility", SIDE_BY_SIDE="1")
    assert dict(run.rows) == {"group01": "Passed", "group02": "Passed"}
    assert "2/2 workers" in run.output
    (tmp_path / "one").mkdir()
    one = Project(tmp_path / "one", {}, 2).run("feasibility", "-k", "group01", SIDE_BY_SIDE="1")
    assert "workers" not in one.output


def test_every_mig_instance_gets_a_worker_and_their_gpu_none(fake_machine, tmp_path):
    fake_machine.add_gpu()
    for _ in range(2):
        fake_machine.add_instance("3g.4gb", total_bytes=4096 * MIB)
    run = Project(tmp_path, {"group01": "wait for group02"}, 2).run("feasibility", "--device=nvidia", "-n", "auto")
    assert dict(run.rows) == {"group01": "Passed", "group02": "Passed"}
    assert set(gpus_of(tmp_path, "group01", "group02")) == {fake_machine.uuid(1), fake_machine.uuid(2)}


def test_what_a_machine_cannot_give_is_refused_before_anything_starts(fake_machine, tmp_path):
    """Two groups on one GPU would judge each other; a MIG instance is no whole GPU to make a smaller one of."""
    fake_machine.add_gpu()
    project = Project(tmp_path, {}, 2)

    def refused(*words):
        run = project.run("feasibility", "--device=nvidia", *words)
        assert run.code == 4
        assert "Traceback" not in run.output
        return run.output

    assert "-n: expected at most 1 workers, one per GPU, got 2" in refused("-n2")
    too_large = "--gpu: expected a GPU of at least 12 GB, found NVIDIA GeForce RTX 2070 (simulated) of 8 GB"
    assert too_large in refused("--gpu=12GB")
    with locked(fake_machine.uuid(), "the run of somebody else"):
        out = refused("-n", "auto")
    assert "expected a free one, found none" in out
    assert "the run of somebody else" in out
    fake_machine.add_instance("3g.4gb", total_bytes=4096 * MIB)
    assert "expected a whole GPU to make a smaller one of, found a MIG instance of it" in refused("--gpu=2GB")
