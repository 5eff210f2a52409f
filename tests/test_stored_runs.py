"""What stored runs come to when they are read together: by GPU, driver, plan, and as far as their records are whole."""

import pytest
from builders import device_info, evidence, too_large
from records import STARTED_AT, begin, body, finish, run_in

from colocate.results import journal
from colocate.results.layout import RunDirectory
from colocate.results.reader import parts, read_run
from colocate.units import MIB


@pytest.fixture
def run(tmp_path):
    return run_in(tmp_path / "results")


@pytest.fixture
def other(tmp_path):
    """A second run beside the first."""
    return run_in(tmp_path / "results", 25)


def test_a_run_of_which_only_the_records_are_left_or_that_was_moved_has_the_same_rows(run, tmp_path):
    begin(run)
    directory = finish(run)
    record = {"group": "group01", "number": 1, "outcome": "FEASIBLE", "directory": str(directory.path)}
    journal.append(run.path, "group", record=record)
    run.path.rename(tmp_path / "elsewhere")
    moved = RunDirectory(tmp_path / "elsewhere")
    (row,) = read_run(moved.path).results
    assert row.deciding.group.id == "group01"
    (moved.path / journal.NAME).unlink()
    moved.record.unlink()
    (row,) = read_run(moved.path).results
    assert (row.peak_bytes, row.outcome) == (3200 * MIB, "FEASIBLE")


def test_a_record_of_another_version_is_shown_as_far_as_it_is_known(run):
    begin(run)
    finish(run).verdict.write_text('{"outcome": "FEASIBLE"}')
    assert [(row.group, row.outcome) for row in read_run(run.path).results] == [("group01", "FEASIBLE")]


@pytest.mark.parametrize("device", [{"name": "Other 8 GB"}, {"driver_version": "570.86"}], ids=["gpu", "driver"])
def test_runs_on_other_gpus_or_with_other_drivers_are_counted_apart(run, other, device):
    for one, seen in ((run, None), (other, evidence(device=device_info(**device)))):
        begin(one)
        finish(one, 1, seen)
    found = parts([read_run(run.path), read_run(other.path)])
    assert [part.plan_verdict.feasible for part in found] == [1, 1]
    assert [part.driver for part in found] == [None, device.get("driver_version")]
    whole = body(run, other)
    assert whole.count('class="headline') == 2
    assert ('data-sort="gpu"' in whole) is ("name" in device)


def test_a_group_that_asks_for_another_gpu_counts_where_it_had_it_and_a_run_ends_with_its_last_group(run):
    plan = {"experiments": [{"id": "group01"}, {"id": "group02", "gpu": "24GB"}]}
    begin(run, 2, needed=2, document=plan)
    finish(run, 1, evidence(started_at=STARTED_AT, duration_s=90.0))
    finish(run, 2, evidence(device=device_info(name="Other 24 GB")))
    stored = read_run(run.path)
    ours, theirs = (part.plan_verdict.missing() for part in parts([stored]))
    assert ours is None
    assert theirs == "INCOMPLETE: 1 group has no verdict (not selected: group01)"
    assert (stored.ended_at, stored.duration_s) == ("2026-11-24T05:31:30+00:00", 90.0)


def test_shards_of_one_plan_on_one_gpu_are_counted_together(run, other):
    for one, number in ((run, 1), (other, 2)):
        begin(one, 2, needed=2)
        finish(one, number)
    (part,) = parts([read_run(run.path), read_run(other.path)])
    assert part.plan_verdict.holding == "holds"


def test_two_runs_that_disagree_are_told(run, other):
    for one, seen in ((run, None), (other, too_large())):
        begin(one)
        finish(one, 1, seen)
    assert "SEVERAL RUNS DISAGREE:</b> group01" in body(run, other)
