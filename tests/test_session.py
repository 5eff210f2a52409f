"""A plan run as a user runs it, with groups that end in every way; `test_group_run` has the faults one by one."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from sessions import ROOT, Session, alive_below, arguments, colocate, plan, run, simulated_machine, stand_in
from waiting import wait_until

LOAD = stand_in("--hold", "1500", "--repeat")
EPOCH = stand_in("--hold", "700", "--steps", "20", "--probe")


def kill_worker(number: str) -> dict[str, object]:
    return {"command": ["{python}", str(ROOT / "tests/programs/kill_worker.py"), number], "name": "killer"}


GROUPS = {
    "feasible": (EPOCH, LOAD, "FEASIBLE", ""),
    "over-limit": (stand_in("--hold", "6000", "--steps", "20"), LOAD, "INFEASIBLE", "peak_over_limit"),
    "oom-background": (
        stand_in("--steps", "40", "--probe"),
        stand_in("--repeat", "--oom-at", "9"),
        "INFEASIBLE",
        "background_out_of_memory",
    ),
    "never-ready": (
        EPOCH,
        stand_in("--never-ready") | {"ready_timeout_s": 1},
        "INCONCLUSIVE",
        "background_never_ready",
    ),
    "solo": (EPOCH, None, "FEASIBLE", ""),
    "told-worker": (kill_worker("SIGTERM"), LOAD, None, "INTERRUPTED"),  # once it cost all groups that were left
    "killed-worker": (kill_worker("SIGKILL"), LOAD, None, "CRASHED"),
}


def entry(name: str) -> dict[str, object]:
    foreground, background, *_ = GROUPS[name]
    if background is None:
        return {"id": name, "mode": "default", **foreground}
    return {"id": name, "foreground": foreground, "background": background}


@pytest.fixture(scope="module")
def mixed(fake_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One session of all groups with one worker."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        path = plan(folder / "plan.json", [entry(name) for name in GROUPS], stall_s=1.5)
        return run(path, folder, "-n1")


@pytest.mark.slow
def test_every_group_has_the_outcome_that_it_deserves(mixed: Session) -> None:
    for name, (*_, outcome, code) in GROUPS.items():
        word = {"FEASIBLE": "passed", "INFEASIBLE": "failure", "INCONCLUSIVE": "error", None: "error"}[outcome]
        assert mixed.junit[name] == word, mixed.output
        if outcome is not None:
            assert mixed.verdicts[name]["outcome"] == outcome, name
            assert not code or code in [reason["code"] for reason in mixed.verdicts[name]["reasons"]], name
        else:
            assert code in mixed.page
    assert "killed-worker" not in mixed.verdicts
    assert [reason["code"] for reason in mixed.verdicts["told-worker"]["reasons"]] == ["interrupted"]


@pytest.mark.slow
def test_the_session_fails_and_its_records_can_be_judged_again(mixed: Session) -> None:
    assert mixed.code == 1
    assert set(mixed.junit) == set(GROUPS)
    assert re.search(r"time: longest \S+ \d+:\d\d, ", mixed.output), mixed.output
    assert colocate(mixed.folder, "verify", mixed.run).code == 0
    assert alive_below(mixed.folder) == []
    rows = (mixed.run / "summary.csv").read_text().splitlines()
    assert len(rows) == 1 + len(GROUPS)  # also for the last one, whose worker was killed before it could write


ENDINGS = (("-n0", signal.SIGINT), ("-n1", signal.SIGTERM), ("-n0", signal.SIGHUP), ("-n1", signal.SIGKILL))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), ENDINGS, ids=[f"{workers}-{one.name}" for workers, one in ENDINGS])
def test_ending_a_session_leaves_nothing_alive(
    fake_nvml: FakeNvml, tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    """A SIGKILL leaves no outcome in the terminal, but no training either."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{number.name} is ignored here, as below nohup, and so it would be by the session")
    path = plan(tmp_path / "plan.json", [{"foreground": stand_in("--steps", "2000"), "background": LOAD}] * 2)
    with subprocess.Popen(
        arguments(path, tmp_path, workers), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        wait_until(lambda: list(tmp_path.glob("results/run_*/*/events/foreground.jsonl")))
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)

    session = Session(process.returncode, output, tmp_path)
    wait_until(lambda: not alive_below(tmp_path), 30)
    if number is not signal.SIGKILL:
        assert session.junit == {"group01": "failure", "group02": "skipped"} or session.junit == {
            "group01": "error",
            "group02": "skipped",
        }
        assert process.returncode == 128 + number
        assert session.verdicts["group01"]["reasons"][0]["code"] == "interrupted"
