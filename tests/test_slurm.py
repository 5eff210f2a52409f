"""Groups as Slurm jobs, on a real cluster of two nodes with two simulated GPUs each, all of it on this machine."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
import sessions
import test_clusters
from sessions import Session, entry, plan
from slurm_cluster import Cluster, missing
from waiting import wait_until

from colocate.device import Quarantine
from colocate.errors import ColocateError
from colocate.plugin.slurm_arrays import SlurmArrays
from colocate.process import slurm
from colocate.report import status_line

pytestmark = pytest.mark.slow

FITS = entry("--hold=2000", "--steps=20", "--probe")
TOO_LARGE = entry("--hold=7000", "--steps=20")
FAILS = entry("--hold=100", "--fail-at=2")
QUICK = entry("--hold=300", "--steps=4", "--probe")
STEADY = entry("--hold=300", "--steps=60", "--step-s=0.1")
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

    def __init__(self, cluster, folder, entries, *more):
        self.cluster, self.folder = cluster, folder
        folder.mkdir(exist_ok=True)
        words = sessions.arguments(
            plan(folder / "plan.json", entries), folder, "--executor=slurm", "--progress=0.3", "--predict=0", *more
        )
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

    def task(self, group):
        """The machine, job and GPU of a group's task."""
        path = max(self.folder.glob(f"results/*/tasks/{group}.*.jsonl"))
        return json.loads(path.read_text().splitlines()[0])

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


def tasks(session):
    return json.loads((session.run / "run.json").read_text())["tasks"]


def evidence(session, group):
    """The evidence of the last attempt at a group."""
    found = [json.loads(path.read_text()) for path in session.run.glob("*/experiment.json")]
    return max((one["evidence"] for one in found if one["group"]["id"] == group), key=lambda one: one["attempt"])


def test_a_plan_on_two_nodes_comes_to_the_verdicts_of_a_local_run(idle, fake_machine, tmp_path):
    entries = [FITS, TOO_LARGE, FAILS, FITS, FITS]
    run = Running(idle, tmp_path / "slurm", entries).finish()
    assert run.code == 1, run.output
    assert {one["host"] for one in tasks(run)} == {"n1", "n2"}
    assert len({one["gpu"]["uuid"] for one in tasks(run)}) > 1
    for group in ("group01", "group04", "group05"):
        seen = evidence(run, group)
        assert seen["host"] in seen["device"]["uuid"], "the group ran on its node's GPU"
    for _ in range(4):
        fake_machine.add_gpu()
    local = sessions.run(tmp_path / "slurm/plan.json", tmp_path / "local", "--device=nvidia", "-n4", "--predict=0")
    assert outcomes(run) == outcomes(local)
    assert {name.partition("[")[2] for name in run.junit} == {name.partition("[")[2] for name in local.junit}
    assert sorted(run.junit.values()) == sorted(local.junit.values())
    assert "n1" in run.page
    verified = subprocess.run([sys.executable, "-m", "colocate", "verify", run.run], cwd=sessions.ROOT, check=False)
    assert verified.returncode == 0


def test_a_group_whose_node_is_lost_is_run_again_on_another_one(idle, tmp_path):
    """slurmd, its steps and all that runs in them go under load, as when the power fails; Slurm requeues the task."""
    words = ["-k", "group01 or group02", "--slurm=--comment='node loss' --time=9"]
    running = Running(idle, tmp_path, [STEADY, QUICK, FITS], *words)
    running.wait_for(r"group01 +train [1-9]")
    lost = running.task("group01")["host"]
    idle.lose(lost)
    try:
        wait_until(lambda: idle.pending(), 60)
        idle.begin_at_once()
        running.wait_for(rf"group01: its task on {lost} was lost; it runs again on (\w+)")
        run = running.finish()
    finally:
        idle.start_node(lost)
    assert run.code == 0, run.output
    assert set(run.junit.values()) == {"passed"}
    assert len(run.junit) == 2
    seen = evidence(run, "group01")
    assert (seen["attempt"], seen["host"] != lost) == (2, True)
    assert f"run again after its task on {lost} was lost" in run.page


def test_every_group_gets_the_gpu_that_it_asks_for(idle, tmp_path):
    """By a type, by a feature and by size; for want of one it is refused."""
    wishes = ("RTX 3070", "RTX 2070", "8 GB", "24GB")
    run = Running(idle, tmp_path, [QUICK | {"gpu": wish} for wish in wishes], "-n1").finish()
    assert run.code == 1, run.output
    hosts = {group: evidence(run, group)["host"] for group in ("group01", "group02")}
    assert hosts == {"group01": "n2", "group02": "n1"}
    assert (run.junit["group04"], run.output.count("[no_such_gpu]")) == ("error", 1)
    (line,) = [line for line in run.output.splitlines() if line.startswith("GPU of ")]
    found = "gpu of no type (2), gpu:rtx3070 (2), features ib, rtx_2070 in the default partition"
    assert line.startswith(f"GPU of group04: expected GPUs that Slurm tells to be '24GB', found {found}; it takes")


def test_a_task_that_is_cancelled_by_hand_is_told_so_and_the_others_go_on(idle, tmp_path):
    running = Running(idle, tmp_path, [ENDLESS, STEADY])
    running.wait_for(r"group01 +train [1-9]")
    idle.ask("scancel", running.task("group01")["job"])
    run = running.finish()
    assert run.code == 1, run.output
    assert sorted(run.junit.values()) == ["error", "passed"]
    assert re.search(
        r"(INTERRUPTED|CRASHED): .*its task on n\d ended without a report: slurmstepd\S* error: .*CANCELLED", run.output
    )


def test_what_waits_in_a_full_queue_is_told_and_a_gpu_in_quarantine_is_gone_around(idle, tmp_path):
    """`colocate watch` tells the same as the run's own terminal, with Slurm's reason.

    A task on a quarantined GPU gives it back at once, and would have been followed there by one group after the other.
    """
    line = r"2 groups wait in the default partition: (Resources|Priority)|1 group waits .*Resources"
    with idle.occupied():
        running = Running(idle, tmp_path, [QUICK, QUICK])
        running.wait_for(line)
        (found,) = (tmp_path / "results").iterdir()
        words = [sys.executable, "-m", "colocate", "watch", "--once", found]
        watched = subprocess.run(words, cwd=sessions.ROOT, capture_output=True, text=True, check=True)
        assert re.search(line, watched.stdout)
        for number in range(2):
            Quarantine(found / "quarantine").add(f"GPU-n1-{number:04}-0000-0000-000000000000", "it did not come back")
    run = running.finish()
    assert run.code == 0, run.output
    assert not status_line.waiting(found)
    assert {evidence(run, group)["host"] for group in ("group01", "group02")} == {"n2"}


def test_ctrl_c_leaves_nothing_on_any_node(idle, tmp_path):
    running = Running(idle, tmp_path, [ENDLESS, ENDLESS, ENDLESS])
    running.wait_for(r"group03 +train [1-9]")
    running.process.send_signal(signal.SIGINT)
    run = running.finish()
    assert run.code == 130, run.output
    assert set(run.junit.values()) == {"error"}
    assert "INTERRUPTED" in run.output
    assert {verdict["reasons"][0]["code"] for verdict in run.verdicts.values()} == {"interrupted"}


def test_x_takes_back_what_waits_and_ends_what_runs(idle, tmp_path):
    fails = entry("--hold=100", "--steps=60", "--step-s=0.05", "--fail-at=40")
    with idle.occupied(gpus=2):
        run = Running(idle, tmp_path, [fails, ENDLESS, FITS, FITS], "-x", "--gate=groups").finish()
        assert not [job for job in idle.jobs() if "colocate" in job]
    assert run.code == 1, run.output
    found = {name: verdict["outcome"] for name, verdict in run.verdicts.items()}
    assert found == {"group01": "INFEASIBLE", "group02": "INCONCLUSIVE"}
    assert sorted(run.junit.values()) == ["error", "failure", "skipped", "skipped"]


def test_what_a_killed_session_has_submitted_goes_on_and_a_resumed_one_takes_it_over(idle, tmp_path):
    running = Running(idle, tmp_path, [STEADY, STEADY])
    running.wait_for(r"group02 +train [1-9]")
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not idle.jobs(), 120)
    run = Running(idle, tmp_path, [STEADY, STEADY], "--resume").finish()
    assert run.code == 0, run.output
    assert run.output.count(", reused\n") == 2
    assert idle.jobs() == []


def test_what_slurm_cannot_give_is_told_in_a_line(idle, tmp_path):
    for place, (option, code, said) in enumerate((
        ("--executor=slurm:fast", 4, "slurm:fast: expected a partition of this cluster, found none of that name"),
        ("--executor=slurm:closed", 4, "slurm: expected partition closed to take jobs, found it down"),
        ("--slurm=--nonsense", 2, "sbatch: unrecognized option '--nonsense'"),
    )):  # fmt: skip
        run = Running(idle, tmp_path / str(place), [FITS, FITS], option).finish()
        assert run.code == code
        assert said in run.output
        assert "Traceback" not in run.output
    assert run.junit == {"group01": "skipped", "group02": "skipped"}


def test_what_waits_for_somebody_to_change_something_is_told_to_do_so_and_ctrl_c_takes_it_back(idle, tmp_path):
    running = Running(idle, tmp_path, [FITS], "--executor=slurm:short", "--slurm=--time=9")
    running.wait_for(r"waits in partition short: PartitionTimeLimit, which does not pass by itself \(job \d+_0\)")
    running.process.send_signal(signal.SIGINT)
    run = running.finish()
    assert run.code == 130, run.output
    assert idle.jobs() == []


def test_options_of_sbatch_are_words():
    assert slurm.options("--account=lab --comment='two words'") == ("--account=lab", "--comment=two words")
    with pytest.raises(ColocateError, match="expected options of sbatch"):
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
    merged = test_clusters.do("colocate merge archives/*.jsonl", folder)
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert "1 of 2 groups share an 8 GB GPU" in merged.stdout


def on_path(cluster, folder):
    found = cluster.environment
    return {**found, "PATH": f"{folder}/bin:{found['PATH']}"}


def test_gpus_are_counted_in_what_slurm_tells():
    told = {"gpu:2": 2, "gpu:a100:4(S:0-1)": 4, "gpu:a100:4(S:0,1),gpu:v100:2": 6, "gpu:1g.5gb:14": 14}
    told |= {"shard:8,gpu:1": 1, "(null)": 0, "shard:8": 0, "N/A": 0}
    assert {text: slurm.Node("n1", 8, slurm.gpus(text)).gpus for text in told} == told


def test_a_machine_without_slurm_is_told_so_and_inside_of_a_job_the_way_to_use_its_gpus(tmp_path, monkeypatch):
    """A session there used to start its groups as steps of that job."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ColocateError, match="expected sinfo on this machine, found none; run this on a login node"):
        slurm.nodes("gpu")
    assert slurm.version() is None

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    with pytest.raises(ColocateError, match="found job 12; to use the GPUs of this one, leave --executor away"):
        SlurmArrays("slurm:gpu", "", gpu=True)
