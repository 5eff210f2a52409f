"""A plan run as a user runs it, with groups that end in every way: every view tells the same of every group.

`test_group_run` has the faults one by one.
"""

import csv
import json
import re
import signal
import subprocess
from dataclasses import dataclass

import pytest
import sessions
from sessions import ROOT, Session, alive_below, arguments, plan, simulated_machine, stand_in
from waiting import wait_until

from colocate.cli.main import main

pytestmark = pytest.mark.slow

LOAD = stand_in("--hold=1500", "--repeat", "--probe", "--steps=3")


def beside_load(*options: str) -> dict[str, object]:
    return {"foreground": stand_in("--steps=8", "--probe", *options), "background": LOAD, "tier": "low"}


def kills_worker(number: str) -> dict[str, object]:
    command = ["{python}", str(ROOT / "tests/programs/kill_worker.py"), number]
    return {"foreground": {"command": command, "name": "killer"}, "background": LOAD}


ABSENT = {"repo": "toys", "model": "car", "mode": "default", "hyperparameters": {}}
CATALOG = {"root": ".", "models": {"toys": {"path": ".", "models": ["car"], "command": ["{python}", "car.py"]}}}
GROUPS: list[tuple[dict[str, object], str, str]] = [
    (beside_load("--hold=5999.9") | {"expected_memory": "7399MB", "tolerance": "1MB"}, "FEASIBLE", ""),
    (beside_load("--hold=6000"), "INFEASIBLE", "peak_over_limit"),
    (
        {"foreground": stand_in(), "background": stand_in("--never-ready") | {"ready_timeout_s": 0.3}, "tier": "low"},
        "INCONCLUSIVE",
        "background_never_ready",
    ),
    ({"foreground": ABSENT, "background": LOAD, "tier": "low"}, "NOT RUN", ""),
    (
        beside_load("--steps=40") | {"background": stand_in("--repeat", "--oom-at=9")},
        "INFEASIBLE",
        "background_out_of_memory",
    ),
    ({"mode": "default", **stand_in("--steps=8", "--probe")}, "FEASIBLE", ""),
    (kills_worker("SIGTERM"), "INTERRUPTED", "interrupted"),  # once it cost all groups that were left
    (kills_worker("SIGKILL"), "CRASHED", ""),
    (beside_load("--hold=700", "--leak"), "INCONCLUSIVE", "gpu_not_returned"),
    (beside_load("--hold=700"), "INCONCLUSIVE", ""),  # refused for that
]
OUTCOMES = {f"group{number:02}": outcome for number, (_, outcome, _) in enumerate(GROUPS, start=1)}
LINE = re.compile(rf"^(?:\[ *\d+/\d+\] )?(group\d\d) ({'|'.join(set(OUTCOMES.values()))})\b", re.MULTILINE)


@dataclass
class Viewed:
    """A session and its job summary."""

    session: Session
    job: str

    @property
    def reported(self) -> str:
        """The terminal without its line ends."""
        return " ".join(self.session.output.split())

    @property
    def csv(self) -> dict[str, dict[str, str]]:
        with (self.session.run / "summary.csv").open(newline="") as file:
            return {row["group"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def viewed(fake_nvml_library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("viewed")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        patch.setenv("GITHUB_STEP_SUMMARY", str(folder / "job.md"))
        patch.setenv("GITHUB_ACTIONS", "true")
        (folder / "models.json").write_text(json.dumps(CATALOG))
        path = plan(folder / "plan.json", [entry for entry, *_ in GROUPS], settle_s=0.2, success_rate=0.2)
        options = (f"--catalog={folder / 'models.json'}", "--predict=0", "--gate=plan", "-n1")
        return Viewed(sessions.run(path, folder, *options), (folder / "job.md").read_text())


@pytest.fixture
def colocate(viewed, capfd):
    """What a command says of the run."""

    def said_by(*words: str) -> str:
        assert main([*words, str(viewed.session.run)]) == 0
        return capfd.readouterr().out

    return said_by


def shown_in(page: str) -> dict[str, str]:
    bodies = re.findall(r"<tbody[^>]*data-outcome[^>]*>", page)
    return {re.search(r"group\d\d", one)[0]: re.search(r'data-outcome="(.*?)"', one)[1] for one in bodies}  # type: ignore[index]


def test_every_view_has_the_same_outcome_of_every_group(viewed, colocate):
    session = viewed.session
    cells = re.findall(r"\| (group\d\d) \| ([A-Z ]+?)(?: \(measured\))? \|", viewed.job)
    colocate("report")

    assert dict(LINE.findall(session.output)) == OUTCOMES, session.output
    assert dict(LINE.findall(colocate("watch", "--once"))) == OUTCOMES
    assert shown_in(session.page) == OUTCOMES
    assert shown_in((session.run / "report.html").read_text()) == OUTCOMES
    assert dict(cells) == OUTCOMES
    assert {name: row["outcome"] for name, row in viewed.csv.items()} == {
        name: outcome for name, outcome in OUTCOMES.items() if outcome != "NOT RUN"
    }
    annotated = dict(re.findall(r"\n::\w+ title=(group\d\d)::([A-Z ]+?)(?: \(measured\))?:", session.output))
    assert annotated == {name: outcome for name, outcome in OUTCOMES.items() if outcome != "FEASIBLE"}
    # The plan holds, and it is the gate: what does not fit is no failure of the job.
    assert session.junit == {name: "passed" if one == "FEASIBLE" else "skipped" for name, one in OUTCOMES.items()}


def test_every_group_leaves_the_record_that_it_deserves_which_can_be_judged_again(viewed, colocate):
    verdicts = viewed.session.verdicts
    codes = {name: [reason["code"] for reason in found["reasons"]] for name, found in verdicts.items()}

    assert verdicts.keys() == OUTCOMES.keys() - {"group04", "group08", "group10"}
    assert [name for name, (_, _, code) in zip(OUTCOMES, GROUPS, strict=True) if code and code not in codes[name]] == []
    assert colocate("verify").count(": agrees, ") == len(verdicts)
    assert re.search(r"time: longest \S+ \d+:\d\d, ", viewed.session.output)
    assert alive_below(viewed.session.folder) == []


def test_a_group_over_its_budget_is_told_everywhere_and_stays_feasible(viewed):
    assert "MiB over budget" in viewed.reported
    assert "1 group over budget: group01 by " in viewed.reported
    assert "::warning title=group01::peak " in viewed.session.output
    assert "OVER BUDGET:" in viewed.session.page
    assert "over budget by " in viewed.job


def test_a_plan_that_holds_though_groups_are_missing_says_both(viewed, colocate):
    (headline,) = re.findall(r'class="headline[^>]*>(.*?)</h2>', viewed.session.page)

    assert viewed.session.code == 0
    assert (
        "2 of 10 groups feasible, 3 inconclusive; 2 needed (20 % of 10, rounded down): the plan holds"
        in viewed.reported
    )
    missing = "INCOMPLETE: 3 groups have no verdict (NOT RUN: group04; INTERRUPTED: group07; CRASHED: group08)"
    assert missing in viewed.reported
    assert headline.endswith("3 inconclusive, 3 without a verdict; 2 needed: the plan holds")
    assert headline in colocate("report")
    assert headline in viewed.job
    assert "INCOMPLETE:" in viewed.session.page


def test_a_peak_just_below_the_limit_is_never_shown_as_the_limit(viewed, colocate):
    line = "group01 FEASIBLE (measured) peak 7499.9 MiB, headroom 0.1 MiB"

    assert line in viewed.session.output
    assert line in colocate("watch", "--once")
    assert "| 7499.9 MiB | 0.1 MiB |" in viewed.job
    assert float(viewed.csv["group01"]["peak_mib"]) < float(viewed.csv["group01"]["limit_mib"])
    assert "group02 INFEASIBLE (measured) peak 7500 MiB, headroom 0 MiB" in viewed.session.output


def test_what_an_earlier_session_found_counts_where_it_holds_and_nowhere_else(fake_nvml_library, tmp_path, capfd):
    """With -k the terminal used to know the chosen group only, while the page told of all."""
    pairs = [beside_load("--hold=700"), beside_load("--hold=800")]
    with pytest.MonkeyPatch.context() as patch, simulated_machine(tmp_path, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        path = plan(tmp_path / "plan.json", pairs, success_rate=1)
        journal = f"--archive={tmp_path / 'j.jsonl'}"
        sessions.run(path, tmp_path, journal)
        reused = sessions.run(path, tmp_path, journal, "--resume", "-k", "group01", "--gate=plan")
        nothing = sessions.run(path, tmp_path, "--resume", "-k", "nothing")
        assert (nothing.code, "2 of 2 groups share" in nothing.page) == (5, True)
        for record in reused.run.glob("*_002/experiment.json"):
            document = json.loads(record.read_text())
            document["evidence"]["versions"] |= {"torch": "1.0"}
            record.write_text(json.dumps(document))
        changed = sessions.run(path, tmp_path, journal, "--resume", "-k", "group01", "--gate=plan")

    assert reused.code == 0
    assert "2 of 2 groups feasible; 2 needed" in reused.output
    assert changed.code == 0, "the one group that was selected fits"
    assert "1 of 2 groups feasible; 2 needed" in changed.output
    assert "(to be run again: group02)" in changed.output
    headline = "1 of 2 groups can share an 8 GB GPU, 1 without a verdict; 2 needed: the plan is undecided"
    assert headline in changed.page

    assert main(["merge", str(tmp_path / "j.jsonl"), f"--results={tmp_path / 'merged'}"]) == 1
    merged = capfd.readouterr().out
    assert headline in merged
    assert "group02 is left out, it is to be run again: versions changed: torch 1.0 to" in merged


ENDINGS = (("-n0", signal.SIGINT), ("-n1", signal.SIGTERM), ("-n0", signal.SIGHUP), ("-n1", signal.SIGKILL))


@pytest.mark.parametrize(("workers", "number"), ENDINGS, ids=[f"{workers}-{one.name}" for workers, one in ENDINGS])
def test_ending_a_session_leaves_nothing_alive(fake_nvml, tmp_path, number, workers):
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
