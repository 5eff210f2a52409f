"""One outcome, many views: whoever reads a run anywhere reads the same verdicts, peaks and answer for the plan."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import sessions
from sessions import Session, plan, simulated_machine, stand_in

from colocate.cli.main import main

pytestmark = pytest.mark.slow

LOAD = stand_in("--hold=1500", "--repeat", "--probe", "--steps=3")


def beside_load(*options: str) -> dict[str, object]:
    return {"foreground": stand_in("--steps=8", "--probe", *options), "background": LOAD, "tier": "low"}


ABSENT = {"repo": "toys", "model": "car", "mode": "default", "hyperparameters": {}}
CATALOG = {"root": ".", "models": {"toys": {"path": ".", "models": ["car"], "command": ["{python}", "car.py"]}}}
GROUPS = [
    beside_load("--hold=5999.9") | {"expected_memory": "7399MB", "tolerance": "1MB"},
    beside_load("--hold=6000"),
    {"foreground": stand_in(), "background": stand_in("--never-ready") | {"ready_timeout_s": 0.3}, "tier": "low"},
    {"foreground": ABSENT, "background": LOAD, "tier": "low"},
    beside_load("--hold=700", "--leak"),
    beside_load("--hold=700"),
]
OUTCOMES = {
    "group01": "FEASIBLE",
    "group02": "INFEASIBLE",
    "group03": "INCONCLUSIVE",
    "group04": "NOT RUN",
    "group05": "INCONCLUSIVE",  # leaves memory on the GPU
    "group06": "INCONCLUSIVE",  # refused for that
}
# The plan holds, and it is the gate: what does not fit is no failure of the job.
WORDS = {"FEASIBLE": "passed", "INFEASIBLE": "skipped", "INCONCLUSIVE": "skipped", "NOT RUN": "skipped"}
LINE = re.compile(r"^(?:\[\d/\d\] )?(group\d\d) (FEASIBLE|INFEASIBLE|INCONCLUSIVE|NOT RUN)\b", re.MULTILINE)


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
def viewed(fake_nvml_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Viewed:
    folder = tmp_path_factory.mktemp("viewed")
    with pytest.MonkeyPatch.context() as patch, simulated_machine(folder, fake_nvml_library, patch) as fake:
        fake.add_gpu()
        patch.setenv("GITHUB_STEP_SUMMARY", str(folder / "job.md"))
        patch.setenv("GITHUB_ACTIONS", "true")
        (folder / "models.json").write_text(json.dumps(CATALOG))
        path = plan(folder / "plan.json", GROUPS, settle_s=0.2, success_rate=0.2)
        options = (f"--catalog={folder / 'models.json'}", "--predict=0", "--gate=plan")
        return Viewed(sessions.run(path, folder, *options), (folder / "job.md").read_text())


@pytest.fixture
def colocate(viewed: Viewed, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command says of the run."""

    def said_by(*words: str) -> str:
        assert main([*words, str(viewed.session.run)]) == 0
        return capfd.readouterr().out

    return said_by


def shown_in(page: str) -> dict[str, str]:
    bodies = re.findall(r"<tbody[^>]*data-outcome[^>]*>", page)
    return {re.search(r"group\d\d", one)[0]: re.search(r'data-outcome="(.*?)"', one)[1] for one in bodies}  # type: ignore[index]


def test_every_view_has_the_same_outcome_of_every_group(viewed: Viewed, colocate: Callable[..., str]) -> None:
    session, judged = viewed.session, {name: word for name, word in OUTCOMES.items() if word != "NOT RUN"}
    cells = re.findall(r"\| (group\d\d) \| ([A-Z ]+?)(?: \(measured\))? \|", viewed.job)

    assert dict(LINE.findall(session.output)) == OUTCOMES, session.output
    assert session.junit == {name: WORDS[outcome] for name, outcome in OUTCOMES.items()}
    assert dict(LINE.findall(colocate("watch", "--once"))) == OUTCOMES
    assert shown_in(session.page) == OUTCOMES
    colocate("report")
    assert shown_in((session.run / "report.html").read_text()) == OUTCOMES
    assert dict(cells) == OUTCOMES
    assert {name: row["outcome"] for name, row in viewed.csv.items()} == judged
    assert {name: verdict["outcome"] for name, verdict in session.verdicts.items()} == {
        name: word for name, word in judged.items() if name != "group06"
    }
    assert colocate("verify").count(": agrees, ") == len(session.verdicts)
    annotated = dict(re.findall(r"\n::\w+ title=(group\d\d)::([A-Z ]+?)(?: \(measured\))?:", session.output))
    assert annotated == {name: word for name, word in OUTCOMES.items() if word != "FEASIBLE"}


def test_a_group_over_its_budget_is_told_everywhere_and_stays_feasible(viewed: Viewed) -> None:
    assert "MiB over budget" in viewed.reported
    assert "1 group over budget: group01 by " in viewed.reported
    assert "::warning title=group01::peak " in viewed.session.output
    assert "OVER BUDGET:" in viewed.session.page
    assert "over budget by " in viewed.job


def test_a_plan_that_holds_though_groups_are_missing_says_both(viewed: Viewed, colocate: Callable[..., str]) -> None:
    (headline,) = re.findall(r'class="headline[^>]*>(.*?)</h2>', viewed.session.page)

    assert viewed.session.code == 0
    assert (
        "1 of 6 groups feasible, 3 inconclusive; 1 needed (20 % of 6, rounded down): the plan holds" in viewed.reported
    )
    assert "INCOMPLETE: 1 group has no verdict (NOT RUN: group04)" in viewed.session.output
    assert headline.endswith("3 inconclusive, 1 without a verdict; 1 needed: the plan holds")
    assert headline in colocate("report")
    assert headline in viewed.job
    assert "INCOMPLETE:" in viewed.session.page


def test_a_peak_just_below_the_limit_is_never_shown_as_the_limit(viewed: Viewed, colocate: Callable[..., str]) -> None:
    line = "group01 FEASIBLE (measured) peak 7499.9 MiB, headroom 0.1 MiB"

    assert line in viewed.session.output
    assert line in colocate("watch", "--once")
    assert "| 7499.9 MiB | 0.1 MiB |" in viewed.job
    assert float(viewed.csv["group01"]["peak_mib"]) < float(viewed.csv["group01"]["limit_mib"])
    assert "group02 INFEASIBLE (measured) peak 7500 MiB, headroom 0 MiB" in viewed.session.output


def test_what_an_earlier_session_found_counts_where_it_holds_and_nowhere_else(
    fake_nvml_library: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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
