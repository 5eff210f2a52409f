"""However a run ends, every selected group has one outcome in terminal, JUnit and page. Real processes and signals."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from stand_in_project import Project
from waiting import wait_until

pytestmark = pytest.mark.slow


def interrupted(tmp_path, send, number, *arguments, num_groups=4):
    """A run that gets a signal while group02 runs and group01 is done; with workers group03 runs too."""
    project = Project(tmp_path, {"group02": "wait", "group03": "wait"}, num_groups)
    process = project.start("feasibility", *arguments)
    running = ["group01.ended", "group02.started", *(["group03.started"] if arguments else [])]
    wait_until(lambda: all((tmp_path / name).exists() for name in running))
    send(process.pid, number)
    return project.finish(process)


def test_an_interrupted_run_names_what_ran_and_what_did_not_and_lf_continues_it(tmp_path):
    run = interrupted(tmp_path, os.kill, signal.SIGTERM)
    assert run.code == 143
    assert (tmp_path / "group02.ended").exists(), "the fixtures of the interrupted group must have been torn down"
    assert dict(run.rows) == {"group01": "Passed", "group02": "Error", "group03": "Skipped", "group04": "Skipped"}
    assert run.junit == {"group01": "passed", "group02": "error", "group03": "skipped", "group04": "skipped"}
    assert run.junit_counts == {"tests": 4, "errors": 1, "failures": 0, "skipped": 2}
    assert "1 passed, 2 skipped, 1 error" in run.output
    assert "group02 INTERRUPTED\n      while it ran, the run was ended by SIGTERM" in run.output
    assert "group04 NOT RUN" in run.output
    assert "INCOMPLETE: 3 groups have no verdict" in run.output
    assert "INCOMPLETE:" in run.page
    assert "output of group02" in run.page
    assert "memory of the GPU over 0 s" in run.page, "what the fixtures of the interrupted group wrote at their end"

    (tmp_path / "ways.json").write_text("{}")
    again = Project.at(tmp_path).run("feasibility", "--lf")
    assert again.code == 0
    assert dict(again.rows) == {"group02": "Passed", "group03": "Passed", "group04": "Passed"}


@pytest.mark.parametrize(
    ("send", "number"), [(os.kill, signal.SIGTERM), (os.killpg, signal.SIGINT)], ids=["SIGTERM", "Ctrl-C"]
)
def test_an_interrupted_run_with_workers_ends_them_cleanly(tmp_path, send, number):
    """SIGTERM reaches the controller, Ctrl-C its workers too, and is one interruption."""
    run = interrupted(tmp_path, send, number, "-n2", num_groups=5)
    assert run.code == 128 + number, run.output
    assert (tmp_path / "group02.ended").exists()
    assert (tmp_path / "group03.ended").exists()
    assert run.junit_counts["tests"] == 5
    assert [word for _, word in run.rows] == ["Passed", "Error", "Error", "Skipped", "Skipped"]
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in listing
    workers = [int((tmp_path / f"group0{number}.started").read_text()) for number in (2, 3)]
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_second_signal_ends_the_run_at_once(tmp_path):
    project = Project(tmp_path, {"group01": "slow end"}, 2)
    process = project.start("feasibility")
    wait_until((tmp_path / "group01.running").exists)
    process.send_signal(signal.SIGTERM)
    wait_until((tmp_path / "group01.ending").exists)
    process.send_signal(signal.SIGTERM)
    run = project.finish(process)
    assert run.code == 143
    assert not (tmp_path / "group01.ended").exists()


def test_sigint_works_where_it_was_ignored_at_the_start(tmp_path):
    """A script's ``&`` ignores SIGINT for its children, and Python then installs no handler: nothing happened."""
    project = Project(tmp_path, {"group01": "wait"}, 1)
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = project.start("feasibility")
    finally:
        signal.signal(signal.SIGINT, old)
    wait_until((tmp_path / "group01.started").exists)
    process.send_signal(signal.SIGINT)
    assert project.finish(process).code == 130


def test_a_killed_worker_is_a_crash_of_its_group_only(tmp_path):
    run = Project(tmp_path, {"group02": "die"}, 4).run("feasibility", "-n2")
    assert run.code == 1
    assert dict(run.rows) == {"group01": "Passed", "group02": "Error", "group03": "Passed", "group04": "Passed"}
    assert run.junit == {"group01": "passed", "group02": "error", "group03": "passed", "group04": "passed"}
    assert "group02 CRASHED" in run.output
    assert "3 passed, 1 error" in run.output


def test_a_worker_that_dies_in_another_test_costs_no_group(tmp_path):
    """The whole session used to end in an internal error."""
    project = Project(tmp_path, {}, 2)
    (tmp_path / "test_dies.py").write_text("import os\n\ndef test_dies():\n    os.kill(os.getpid(), 9)\n")
    run = project.run("feasibility", "test_dies.py", "-n2", "--predict=0")
    assert run.code == 1
    assert "2 of 2 groups feasible" in run.output


def test_a_failure_with_x_leaves_the_rest_not_run(tmp_path):
    run = Project(tmp_path, {"group02": "infeasible"}, 4).run("feasibility", "-x")
    assert run.code == 1
    assert dict(run.rows) == {"group01": "Passed", "group02": "Failed", "group03": "Skipped", "group04": "Skipped"}
    assert run.junit_counts == {"tests": 4, "errors": 0, "failures": 1, "skipped": 2}


def test_x_on_two_gpus_waits_for_the_group_that_runs_beside_the_failed_one_and_for_no_other(tmp_path):
    """group02 goes on while group01 fails: it is finished, and neither worker begins anything after it."""
    ways = {"group01": "infeasible", "group02": "outlive group01"}
    run = Project(tmp_path, ways, 6).run("feasibility", "-x", "-n2")
    assert run.code == 1
    assert [word for _, word in run.rows] == ["Failed", "Passed", "Skipped", "Skipped", "Skipped", "Skipped"]
    assert {path.name for path in tmp_path.glob("*.started")} == {"group01.started", "group02.started"}
