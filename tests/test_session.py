"""A plan of twelve groups, run as a user runs it: every fault that a group can have, on a simulated GPU."""

import re
import signal
import subprocess
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from sessions import ROOT, Session, alive_below, arguments, plan, run, simulated_machine, stand_in
from waiting import wait_until

from colocate.cli.main import main

LOAD = stand_in("--hold", "1500", "--repeat")
EPOCH = stand_in("--hold", "700", "--steps", "20", "--probe")

GROUPS = {
    "feasible": (EPOCH, LOAD, "FEASIBLE", ""),
    "over-limit": (stand_in("--hold", "6000", "--steps", "20"), LOAD, "INFEASIBLE", "peak_over_limit"),
    "oom-foreground": (stand_in("--oom-at", "3"), LOAD, "INFEASIBLE", "foreground_out_of_memory"),
    "oom-background": (
        stand_in("--steps", "40", "--probe"),
        stand_in("--repeat", "--oom-at", "9"),
        "INFEASIBLE",
        "background_out_of_memory",
    ),
    "oom-swallowed": (stand_in("--oom-swallowed"), LOAD, "INFEASIBLE", "foreground_out_of_memory"),
    # Given up or too little overlap: that depends on whether it makes a step before it dies.
    "crash-loop": (EPOCH, stand_in("--repeat", "--die-at", "1"), "INCONCLUSIVE", ""),
    "stub": (EPOCH, stand_in("--stub", "--step-s", "0.05"), "INCONCLUSIVE", "background_gave_up"),
    "never-ready": (
        EPOCH,
        stand_in("--never-ready") | {"ready_timeout_s": 1},
        "INCONCLUSIVE",
        "background_never_ready",
    ),
    "hang": (stand_in("--hang-at", "3"), LOAD, "INCONCLUSIVE", "foreground_hang"),
    "foreground-fails": (stand_in("--fail-at", "3"), LOAD, "INFEASIBLE", "foreground_failed"),
    "solo": (EPOCH, None, "FEASIBLE", ""),
    "killed-worker": (
        {"command": ["{python}", str(ROOT / "tests/programs/kill_worker.py")], "name": "killer"},
        LOAD,
        None,
        "",
    ),
}


def entry(name: str) -> dict[str, object]:
    foreground, background, *_ = GROUPS[name]
    if background is None:
        return {"id": name, "mode": "default", **foreground}
    return {"id": name, "foreground": foreground, "background": background}


@pytest.fixture(scope="module")
def twelve(fake_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    """One session of all twelve groups with one worker."""
    folder = tmp_path_factory.mktemp("twelve")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        path = plan(folder / "plan.json", [entry(name) for name in GROUPS], stall_s=1.5)
        return run(path, folder, "-n1")


@pytest.mark.slow
@pytest.mark.parametrize("name", GROUPS)
def test_every_group_has_the_outcome_that_it_deserves(twelve: Session, name: str) -> None:
    *_, outcome, code = GROUPS[name]
    word = {"FEASIBLE": "passed", "INFEASIBLE": "failure", "INCONCLUSIVE": "error", None: "error"}[outcome]

    assert twelve.junit[name] == word, twelve.output
    if outcome is None:
        assert name not in twelve.verdicts
        assert "CRASHED" in twelve.page
    else:
        assert twelve.verdicts[name]["outcome"] == outcome
        assert not code or code in [reason["code"] for reason in twelve.verdicts[name]["reasons"]]


@pytest.mark.slow
def test_the_session_fails_and_its_records_can_be_judged_again(twelve: Session) -> None:
    assert twelve.code == 1
    assert set(twelve.junit) == set(GROUPS)
    assert re.search(r"time: longest \S+ \d+:\d\d, ", twelve.output), twelve.output
    assert main(["verify", str(twelve.run)]) == 0
    assert alive_below(twelve.folder) == []


@pytest.mark.slow
def test_the_summary_has_one_row_for_each_group(twelve: Session) -> None:
    rows = (twelve.run / "summary.csv").read_text().splitlines()

    assert len(rows) == 1 + len(GROUPS)  # also for the last one, whose worker was killed before it could write


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.parametrize("workers", ["-n0", "-n1"])
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
