import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import evidence, predicted_evidence, trace
from groups import training
from records import finish, planned, run_in
from waiting import wait_until

from colocate.report.summary_csv import COLUMNS, Summary, _alone, write_summary


@pytest.fixture
def run(tmp_path):
    return run_in(tmp_path)


def written(run):
    write_summary(run)
    return rows_of(run)


def test_a_row_has_the_numbers_of_the_record_and_its_basis_and_what_is_unknown_stays_empty(run):
    """In the order of the plan; a group that has not ended has none, and nothing is left beside the file."""
    finish(run, 10, predicted_evidence(1000, 800))
    finish(run, 9, evidence(trace=replace(trace(), samples=()), gpu_energy_j=None))
    write_summary(run)
    given = training("mnist", repository="examples", model="mnist")
    finish(run, 2, evidence(duration_s=12.5, gpu_energy_j=100.0), foreground=given)
    run.group("mnist", 1, parallel=True).create()
    rows = written(run)
    assert [row["group"] for row in rows] == ["group02", "group09", "group10"]
    assert sorted(path.name for path in run.path.iterdir() if path.is_file()) == ["summary.csv"]
    known, unknown, predicted = rows
    assert list(known) == list(COLUMNS)
    expected = {
        "group": "group02",
        "experiment_id": "mnist_parallel_002",
        "repository": "examples",
        "model": "mnist",
        "tier": "low",
        "foreground": "examples_mnist",
        "background": "resnet20",
        "expected_mib": "3500.0",
        "peak_mib": "3200.0",
        "limit_mib": "7500.0",
        "headroom_mib": "4300.0",
        "basis": "measured",
        "outcome": "FEASIBLE",
        "duration_seconds": "12.5",
        "gpu_energy_joules": "100.0",
        "directory": "mnist_parallel_002",
    }
    assert {name: known[name] for name in expected} == expected
    for name in ("peak_mib", "peak_low_mib", "headroom_mib", "memory_class", "gpu_energy_joules", "driver_version"):
        assert unknown[name] == ""
    assert "no_samples" in unknown["codes"].split()
    assert "never read" in unknown["reason"]
    assert predicted["basis"] == "predicted"
    assert float(predicted["peak_low_mib"]) < float(predicted["peak_mib"]) < float(predicted["peak_high_mib"])


def test_a_damaged_record_does_not_take_the_others_with_it(run):
    finish(run, 1).verdict.write_text("{")
    finish(run, 2)
    assert [row["group"] for row in written(run)] == ["group02"]


def waits_for_a_lock(pid):
    """The kernel lists whoever waits for a lock with an arrow; see proc_locks(5)."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f" {pid} " in line for line in lines)


REBUILD = """
import sys
from pathlib import Path
from colocate.report.summary_csv import write_summary
from colocate.results.layout import RunDirectory
write_summary(RunDirectory(Path(sys.argv[1])))
"""


def test_two_that_rebuild_the_file_take_turns_so_that_no_row_is_lost(run):
    """Without turns, one could write what it read before the other added a row."""
    finish(run, 1)
    command = [sys.executable, "-c", REBUILD, str(run.path)]
    with _alone(run.path):
        other = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        wait_until(lambda: waits_for_a_lock(other.pid) or other.poll() is not None)
        written_too_early = run.summary.exists()
        finish(run, 2)
    assert other.wait(timeout=120) == 0
    assert not written_too_early
    with run.summary.open(newline="") as file:
        assert [row["group"] for row in csv.DictReader(file)] == ["group01", "group02"]


def rows_of(run):
    with run.summary.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_added_one_by_one_are_those_of_the_whole_file(run):
    """A run of ten thousand groups used to read all their records again after each of them."""
    summary = Summary(run)
    for number in (3, 1, 2):
        finish(run, number, evidence(duration_s=0.1 * number, gpu_energy_j=None))
        summary.take(planned(number))
    added = run.summary.read_text()
    assert added == write_summary(run).read_text()


def test_a_group_that_ends_again_has_one_row(run):
    finish(run, 1)
    summary = Summary(run)
    summary.take(planned(1))
    finish(run, 1)
    summary.take(planned(1))
    (row,) = rows_of(run)
    assert row["directory"] == "mnist_parallel_001_attempt2"
    assert row["attempts"] == "2"


def test_the_first_group_of_a_resumed_run_has_its_row_at_once_and_only_what_ended_is_read(run):
    """Its record was on the disk already when the rows of the others were read: it counted as known."""
    finish(run, 1)
    write_summary(run)
    finish(run, 2)
    summary = Summary(run)
    summary.take(planned(2))
    assert [row["group"] for row in rows_of(run)] == ["group01", "group02"]
    finish(run, 3)
    run.group("mnist", 1, parallel=True).experiment.write_text("{")
    summary.take(planned(3))
    assert [row["group"] for row in rows_of(run)] == ["group01", "group02", "group03"]
