"""Groups as Slurm jobs, on a real cluster of two nodes with two simulated GPUs each, all of it on this machine."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import sessions
import test_clusters
from sessions import Session, plan, stand_in
from slurm_cluster import Cluster, missing
from waiting import wait_until

from colocate.errors import ColocateError
from colocate.plugin.slurm_workers import Elsewhere
from colocate.process import slurm
from colocate.report import status_line

pytestmark = pytest.mark.slow

BACKGROUND = stand_in("--hold=900", "--repeat", "--steps=4")


def entry(*options):
    return {"mode": "parallel", "foreground": stand_in(*options), "background": BACKGROUND}


FITS = entry("--hold=2000", "--steps=20", "--probe")
TOO_LARGE = entry("--hold=7000", "--steps=20")
FAILS = entry("--hold=100", "--fail-at=2")
QUICK = entry("--hold=300", "--steps=4", "--probe")
STEADY = entry("--hold=300", "--steps=60", "--step-s=0.1")
LONG = entry("--hold=300", "--steps=50", "--step-s=0.1")
ENDLESS = entry("--hold=300", "--steps=5000", "--step-s=0.1")


@pytest.fixture(scope="module")
def cluster(fake_nvml_library, tmp_path_factory):
    """Two nodes, n1 and n2."""
    lacking = missing()
    if lacking:
        pytest.skip(f"no Slurm here to run jobs with ({', '.join(lacking)} missing; apt-get install slurm-wlm munge)")
    found = Cluster(tmp_path_factory.mktemp("slurm"), fake_nvml_library)
    try:
        found.start()
        yield found
    finally:
        found.stop()
    assert not found.left()


@pytest.fixture
def idle(cluster):
    """The cluster with nothing on it before a test, and nothing of the test on it afterwards."""
    wait_until(lambda: set(cluster.states().values()) == {"idle"})
    yield cluster
    assert cluster.jobs() == []
    wait_until(lambda: not cluster.left())


class Running:
    """A session that goes on."""

    def __init__(self, cluster, folder, entries, *more, within=False):
        self.cluster, self.folder = cluster, folder
        folder.mkdir(exist_ok=True)
        words = sessions.arguments(
            plan(folder / "plan.json", entries), folder, "--executor=slurm", "--progress=0.3", "--predict=0", *more
        )
        if within:
            words = ["salloc", "--quiet", "--nodes=1", "--cpus-per-task=4", "--gres=gpu:2", "--mem=1000", *words]
        inherited = {name: value for name, value in os.environ.items() if name != "FAKE_NVML_STATE"}
        self.out = folder / "terminal"
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                words,
                cwd=sessions.ROOT,
                env={**inherited, **cluster.environment, "COLUMNS": "120"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @property
    def said(self):
        return self.out.read_text(errors="replace")

    def wait_for(self, pattern, limit_s=240):
        wait_until(lambda: re.search(pattern, self.said) or self.process.poll() is not None, limit_s)
        found = re.search(pattern, self.said)
        assert found, self.said
        return found

    def finish(self, limit_s=400):
        code = self.process.wait(limit_s)
        return Session(code, self.said, self.folder)


def outcomes(session):
    return {
        name: (verdict["outcome"], [r["code"] for r in verdict["reasons"]])
        for name, verdict in session.verdicts.items()
    }


def workers(session):
    return json.loads((session.run / "run.json").read_text())["workers"]


def evidence(session, group):
    """The evidence of the last attempt at a group."""
    found = [json.loads(path.read_text()) for path in session.run.glob("*/experiment.json")]
    return max((one["evidence"] for one in found if one["group"]["id"] == group), key=lambda one: one["attempt"])


def test_a_plan_on_two_nodes_comes_to_the_verdicts_of_a_local_run(idle, fake_machine, tmp_path):
    entries = [FITS, TOO_LARGE, FAILS, FITS, FITS]
    run = Running(idle, tmp_path / "slurm", entries).finish()
    assert run.code == 1, run.output
    reported = workers(run)
    assert {one["host"] for one in reported} == {"n1", "n2"}
    assert len({one["gpu"]["uuid"] for one in reported}) == 4, "every worker has a GPU of its own"
    for group in ("group01", "group04", "group05"):
        seen = evidence(run, group)
        assert seen["host"] in seen["device"]["uuid"], "the group ran on its node's GPU"
    for _ in range(4):
        fake_machine.add_gpu()
    local = sessions.run(tmp_path / "slurm/plan.json", tmp_path / "local", "--device=nvidia", "-n4", "--predict=0")
    assert outcomes(run) == outcomes(local)
    assert run.junit == local.junit
    assert "n1" in run.page
    verified = subprocess.run([sys.executable, "-m", "colocate", "verify", run.run], cwd=sessions.ROOT, check=False)
    assert verified.returncode == 0


def test_a_group_whose_node_is_lost_is_run_again_on_another_one_once(idle, tmp_path):
    """slurmd, its steps and all that runs in them go under load, as when the power fails."""
    words = ["-n1", "-k", "group01 or group02", "--slurm=--comment='node loss' --time=9"]
    running = Running(idle, tmp_path, [STEADY, QUICK, FITS], *words)
    running.wait_for(r"group01 +train [1-9]")
    lost = running.wait_for(r"gw0: job \d+ runs on (\w+)")[1]
    idle.lose(lost)
    try:
        running.wait_for(rf"group01: gw0 on {lost} was lost \(.+\); the group is run again elsewhere")
        run = running.finish()
    finally:
        idle.start_node(lost)
    assert run.code == 0, run.output
    assert set(run.junit.values()) == {"passed"}
    assert len(run.junit) == 2
    seen = evidence(run, "group01")
    assert (seen["attempt"], seen["host"] != lost) == (2, True)
    assert f"run again after gw0 on {lost} was lost" in run.page


def test_every_group_gets_a_worker_with_the_gpu_that_it_asks_for(idle, tmp_path):
    """By a type, by a feature and by size, one after the other with one worker; for want of one it is refused."""
    wishes = ("RTX 3070", "RTX 2070", "8 GB", "24GB")
    run = Running(idle, tmp_path, [QUICK | {"gpu": wish} for wish in wishes], "-n1").finish()
    assert run.code == 1, run.output
    hosts = {group: evidence(run, group)["host"] for group in ("group01", "group02", "group03")}
    assert hosts == {"group01": "n2", "group02": "n1", "group03": "n2"}
    assert len(workers(run)) == 2
    assert (run.junit["group04"], run.output.count("[no_such_gpu]")) == ("error", 1)
    (line,) = [line for line in run.output.splitlines() if line.startswith("GPU of ")]
    found = "gpu of no type (2), gpu:rtx3070 (2), features ib, rtx_2070 in the default partition"
    assert line.startswith(f"GPU of group04: expected GPUs that Slurm tells to be '24GB', found {found}; it takes")


def test_a_job_that_is_cancelled_by_hand_costs_its_group_an_attempt(idle, tmp_path):
    """Its GPU is on one machine only, so it is run again there although a worker is on another."""
    running = Running(idle, tmp_path, [STEADY | {"gpu": "RTX 2070"}, STEADY | {"gpu": "RTX 3070"}], "-n2")
    running.wait_for(r"group01 +train [1-9]")
    job = running.wait_for(r"gw0: job (\d+) runs on (\w+)")
    idle.ask("scancel", job[1])
    run = running.finish()
    assert run.code == 0, run.output
    assert "the group is run again elsewhere" in run.output
    assert run.junit == {"test_group[group01]": "passed"} or set(run.junit.values()) == {"passed"}
    assert len(run.junit) == 2
    again = [name for name in ("group01", "group02") if evidence(run, name)["attempt"] == 2]
    assert len(again) == 1
    assert "[worker_lost]" in run.page


def test_a_group_whose_job_is_lost_twice_has_crashed_once(idle, tmp_path):
    running = Running(idle, tmp_path, [ENDLESS], "-n1")
    for worker in ("gw0", "gw1"):
        job = running.wait_for(rf"{worker}: job (\d+) runs on \w+[^$]*group01 +(?:attempt 2: )?train [1-9]")
        idle.ask("scancel", job[1])
        running.wait_for(rf"\[{worker}\] node down")
    run = running.finish()
    assert run.code == 1, run.output
    assert run.junit == {"group01": "error"}
    assert re.search(r"the process that ran this group died \(gw1 on n\d was lost \(.*CANCELLED", run.output)
    assert "so did it before: gw0 on" in run.page


def test_what_waits_in_a_full_queue_is_told_with_its_reason_and_joins_when_a_gpu_becomes_free(idle, tmp_path):
    """`colocate watch` tells the same as the run's own terminal."""
    line = r"2 workers wait in the default partition: (Resources|Priority)|1 worker waits .*Resources"
    with idle.occupied():
        running = Running(idle, tmp_path, [QUICK, QUICK], "-n2")
        running.wait_for(line)
        (found,) = (tmp_path / "results").iterdir()
        words = [sys.executable, "-m", "colocate", "watch", "--once", found]
        watched = subprocess.run(words, cwd=sessions.ROOT, capture_output=True, text=True, check=True)
        assert re.search(line, watched.stdout)
    run = running.finish()
    assert run.code == 0, run.output
    assert not status_line.waiting(found)


def test_ctrl_c_leaves_nothing_on_any_node(idle, tmp_path):
    running = Running(idle, tmp_path, [ENDLESS, ENDLESS, ENDLESS])
    running.wait_for(r"group03 +train [1-9]")
    running.process.send_signal(signal.SIGINT)
    run = running.finish()
    assert run.code == 130, run.output
    assert set(run.junit.values()) <= {"error", "passed"}
    assert "INTERRUPTED" in run.output
    assert {verdict["reasons"][0]["code"] for verdict in run.verdicts.values()} == {"interrupted"}


def test_x_lets_what_runs_in_other_jobs_finish_and_takes_back_what_waits(idle, tmp_path):
    fails = entry("--hold=100", "--steps=60", "--step-s=0.05", "--fail-at=40")
    with idle.occupied(gpus=2):
        run = Running(idle, tmp_path, [fails, LONG, FITS, FITS], "-n3", "-x").finish()
        assert len(workers(run)) == 2, "what waits holds up nobody"
        assert not [job for job in idle.jobs() if "colocate" in job]
    assert run.code == 1, run.output
    assert {name: verdict["outcome"] for name, verdict in run.verdicts.items()} == {
        "group01": "INFEASIBLE",
        "group02": "FEASIBLE",
    }
    assert sorted(run.junit.values()) == ["failure", "passed", "skipped", "skipped"]


def test_killing_the_controller_leaves_nothing_on_any_node(idle, tmp_path):
    running = Running(idle, tmp_path, [ENDLESS, ENDLESS])
    running.wait_for(r"group02 +train [1-9]")
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not idle.jobs())


def test_inside_an_allocation_the_workers_are_steps_of_it(idle, tmp_path):
    """Side by side on one machine: a step takes all memory of its job there unless it is told not to."""
    running = Running(idle, tmp_path, [LONG, LONG], within=True)
    run = running.finish()
    assert run.code == 0, run.output
    assert len({one["job"] for one in workers(run)}) == 1
    assert len({one["gpu"]["uuid"] for one in workers(run)}) == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "--executor=slurm:fast",
            "--executor=slurm:fast: expected a partition of this cluster, found none of that name",
        ),
        ("--executor=slurm:closed", "--executor=slurm: expected partition closed to take jobs, found it down"),
        ("--executor=kubernetes", "expected slurm or slurm:PARTITION, got 'kubernetes'"),
        ("--slurm=gpu", "--slurm: expected options of srun such as '--account=lab', got 'gpu'"),
    ],
)
def test_what_slurm_cannot_give_is_a_usage_error(idle, tmp_path, option, said):
    run = Running(idle, tmp_path, [FITS], option).finish()
    assert run.code == 4
    assert said in run.output
    assert "Traceback" not in run.output


def test_what_srun_refuses_at_once_is_told_once_in_its_words(idle, tmp_path):
    run = Running(idle, tmp_path, [FITS, FITS], "--slurm=--nonsense").finish()
    assert run.code == 2
    assert run.output.count(": expected a worker of its job, found none: srun: unrecognized option '--nonsense'") == 1
    assert "no worker is left and none will come: srun: unrecognized option '--nonsense'; see --slurm" in run.output
    assert run.junit == {"group01": "skipped", "group02": "skipped"}


def test_what_waits_for_somebody_to_change_something_is_told_to_do_so_and_ctrl_c_takes_it_back(idle, tmp_path):
    running = Running(idle, tmp_path, [FITS], "--executor=slurm:short", "--slurm=--time=9")
    running.wait_for(r"waits in partition short: PartitionTimeLimit, which does not pass by itself \(job \d+\)")
    running.process.send_signal(signal.SIGINT)
    run = running.finish()
    assert run.code == 130, run.output
    assert idle.jobs() == []


def test_options_of_srun_are_words():
    assert slurm.options("--account=lab --comment='two words'") == ("--account=lab", "--comment=two words")
    with pytest.raises(ColocateError, match="expected options of srun"):
        slurm.options("gpu")


def test_an_array_of_tasks_and_a_merge_as_on_the_page(idle, tmp_path):
    """docs/how-to/clusters.md, submitted to the real queue: nothing is shared but the folder of the journals."""
    folder = test_clusters.project(tmp_path)
    (folder / "groups.sh").write_text(test_clusters.array_script())
    words = ["sbatch", "--wait", "--array=1-2", "--cpus-per-task=2", "groups.sh"]
    done = subprocess.run(
        words, cwd=folder, env=test_clusters.environment(folder, **on_path(idle, folder)), check=False, timeout=400
    )
    assert done.returncode == 0
    merged = test_clusters.do("colocate merge journals/*.jsonl", folder)
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert "1 of 2 groups share an 8 GB GPU" in merged.stdout


def on_path(cluster, folder):
    found = cluster.environment
    return {**found, "PATH": f"{folder}/bin:{found['PATH']}"}


@pytest.mark.parametrize(
    ("reported", "count"),
    [
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0,1),gpu:v100:2", 6),
        ("gpu:1g.5gb:14", 14),
        ("shard:8,gpu:1", 1),
        ("(null)", 0),
        ("shard:8", 0),
        ("N/A", 0),
    ],
)
def test_gpus_are_counted_in_what_slurm_tells(reported, count):
    assert slurm.Node("n1", 8, slurm.gpus(reported)).gpus == count


def test_a_machine_without_slurm_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ColocateError, match="expected sinfo on this machine, found none; run this on a login node"):
        slurm.nodes("gpu")
    assert slurm.version() is None


def test_a_cluster_of_one_machine_has_no_other_to_run_a_group_again_on(tmp_path, monkeypatch):
    """Then it is run on the same one, as where no other has such a GPU; with another it must not be."""
    typed = ("--gres=gpu:a100:1",)
    for names, request, avoided in (
        (("n1",), (), frozenset()),
        (("n1", "n2"), (), frozenset({"n1"})),
        (("n1", "n2"), typed, frozenset()),
    ):
        machines = tuple(slurm.Node(name, 8, (("a100" if name == "n1" else "", 2),)) for name in names)
        monkeypatch.setattr(slurm, "nodes", lambda partition, machines=machines: machines)
        monkeypatch.setattr(slurm, "allocation", lambda: None)
        monkeypatch.setattr(slurm, "queued", lambda names: {})
        jobs = Elsewhere("slurm:gpu", "--account=lab", gpu=True)
        assert (jobs.most_workers, jobs.cpus) == (2 * len(names), 4)
        slot, command = jobs.ask("gw1", tmp_path, request, frozenset({"n1"}))
        jobs.ending = True
        assert slot.avoid == avoided
        assert ("--exclude=n1" in command) == bool(avoided)
        words = shlex.split(command)
        assert words.index("--account=lab") > words.index("--gres=gpu:1"), "what the user says wins"
