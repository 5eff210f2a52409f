"""`colocate fit` finds what trying every value finds: on a simulated GPU and on the virtual GPU."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeNvml
from groups import STAND_IN, group, training

from colocate.advice.fit import Grid, LargestValue, Variable, option_value, variable
from colocate.advice.forecast import Answer, Forecast
from colocate.cli.main import main
from colocate.device.acquire import FoundGpu
from colocate.errors import PlanError
from colocate.harness.attempt import AttemptRunner
from colocate.harness.simulation import SimulatedRun
from colocate.plan.overrides import varied
from colocate.plan.plan import load_plan
from colocate.results.layout import RunDirectory
from colocate.units import MIB
from colocate.verdict.predicted_peak import PeakRange

SETTINGS = Path(__file__).parents[1] / "settings"

# 300 MiB of the background, 300 and 250 for each sample: below 1500 MiB up to 3 samples.
# A process list is read once a second at most: a foreground shorter than that may be on none of them.
QUICK = ("--steps", "80", "--step-s", "0.02", "--evaluate-steps", "1")
SAMPLES = ("--hold", "300", "--per-sample", "250")
LIMIT = "1500MB"
FITS_UP_TO = 3


def entry(foreground: list[str], background: list[str]) -> dict[str, Any]:
    def member(options: list[str]) -> dict[str, Any]:
        return {"command": ["{python}", str(STAND_IN), *options], "name": "stand_in", "ready_timeout_s": 60}

    return {
        "id": "pair",
        "mode": "parallel",
        "foreground": member(foreground),
        "background": {**member(background), "repeat_args": ["--repeat"]},
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a plan of one group of stand-ins whose memory is known."""
    plan = {
        "experiment_name": "known",
        "limits": {"gpu": "8GB", "peak": LIMIT, "settle_s": 3, "overlap": 0.1},
        "experiments": [entry([*QUICK, *SAMPLES, "--batch", "2"], ["--hold", "300", "--step-s", "0.01"])],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def fit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["fit", "pair", "--plan", "plan.json", "--json", *words])
    output = capsys.readouterr()
    assert output.out, output.err
    return code, json.loads(output.out)


@pytest.mark.slow
def test_on_a_gpu_it_finds_the_turn_that_trying_by_hand_finds(fake_nvml: FakeNvml, folder: Path, capsys: Any) -> None:
    code, found = fit(capsys, "--device", "nvidia", "--vary", "foreground.--batch", "--most", "4")

    plan = load_plan(folder / "plan.json")
    trials = AttemptRunner(
        RunDirectory(folder / f"every-{os.getpid()}"), plan.name, FoundGpu("nvidia", fake_nvml.uuid())
    )
    override = variable(plan.groups[0], "foreground.--batch", None).override
    around = (FITS_UP_TO, FITS_UP_TO + 1)  # the search itself has run the others
    every = {v: trials.attempt(varied(plan.groups[0], override(v), None)).verdict for v in around}
    assert max(value for value, verdict in every.items() if verdict.feasible) == FITS_UP_TO
    assert (code, found["largest"], found["refused"], found["undecided"]) == (0, FITS_UP_TO, FITS_UP_TO + 1, None)
    assert found["basis"] == "measured"
    assert found["headroom_bytes"] == every[FITS_UP_TO].headroom_bytes
    runs = [one for one in found["trials"] if one["value"] == FITS_UP_TO and one["how"] == "run"]
    assert len(runs) == 3, "the one that found it and two that confirm it"
    assert "has not used the GPU" in found["unpredicted"], "a program without PyTorch: the plan's value comes first"
    first = next(one for one in found["trials"] if one["how"] == "run")
    assert first["value"] == 2
    command = found["settings"]["foreground"]["command"]
    assert command[command.index("--batch") + 1] == str(FITS_UP_TO)

    (run,) = (folder / "results").iterdir()
    assert json.loads((run / "fit.json").read_text()) == found
    assert main(["verify", str(run)]) == 0, "every trial has a record that can be judged again"


@pytest.mark.slow
def test_on_the_virtual_gpu_it_finds_what_trying_every_value_finds(folder: Path, capsys: Any) -> None:
    document = json.loads((folder / "plan.json").read_text())
    for member in ("foreground", "background"):
        document["experiments"][0][member]["command"].append("--probe")
    (folder / "plan.json").write_text(json.dumps(document))

    code, found = fit(capsys, "--device", "virtual", "--vary", "foreground.--batch", "--most", "5")

    plan = load_plan(folder / "plan.json")
    gpu = FoundGpu("virtual", total_bytes=plan.limits.gpu_bytes)
    trials = AttemptRunner(RunDirectory(folder / f"every-{os.getpid()}"), plan.name, gpu)
    override = variable(plan.groups[0], "foreground.--batch", None).override
    every = {v: trials.attempt(varied(plan.groups[0], override(v), None)).verdict for v in range(1, 6)}
    outcomes = {value: str(verdict.outcome) for value, verdict in every.items()}
    largest = max(value for value, outcome in outcomes.items() if outcome == "FEASIBLE")
    undecided = [value for value, outcome in outcomes.items() if outcome == "INCONCLUSIVE"]
    assert undecided, outcomes
    assert (code, found["largest"], found["basis"]) == (0, largest, "predicted")
    assert found["undecided"] == [undecided[0], undecided[-1]]
    assert found["refused"] == min(
        (value for value, outcome in outcomes.items() if outcome == "INFEASIBLE"), default=None
    )
    assert found["headroom_bytes"] == every[largest].headroom_bytes


TRAINING = """
import argparse
import torch
from torch.utils.data import DataLoader, TensorDataset

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=2)
options = parser.parse_args()
model = torch.nn.Linear(1024, 1024, bias=False).cuda()
optimizer = torch.optim.Adam(model.parameters())
for batch, in DataLoader(TensorDataset(torch.zeros(64)), options.batch_size):
    optimizer.zero_grad()
    model(torch.zeros(len(batch), 20480, 1024, device="cuda")).sum().backward()
    optimizer.step()
"""


@pytest.mark.slow
def test_a_program_of_pytorch_is_foreseen_and_confirmed(folder: Path, capsys: Any) -> None:
    """Both values are forecast by themselves; the answer agrees, and one run of the group confirms it."""
    pytest.importorskip("torch")
    (folder / "train.py").write_text(TRAINING)
    document = json.loads((folder / "plan.json").read_text())
    document["limits"]["peak"] = "1100MB"
    alone = {"id": "pair", "mode": "default", "name": "own", "command": [sys.executable, "train.py"]}
    document["experiments"] = [alone]
    (folder / "plan.json").write_text(json.dumps(document))

    code, found = fit(capsys, "--device", "virtual", "--vary", "foreground.--batch-size", "--most", "2")

    predict = [
        "predict",
        "--json",
        "--gpu",
        "8GB",
        "--batch-size",
        "1,2",
        "--",
        sys.executable,
        "train.py",
    ]
    assert main(predict) == 0
    curve = {int(one["name"]): one["peak"] for one in json.loads(capsys.readouterr().out)["forecasts"]}
    fitting = [size for size, peak in curve.items() if peak["high_bytes"] < 1100 * MIB]
    assert (code, found["largest"], found["confirmations"]) == (0, max(fitting), 1)
    assert found["refused"] == min(
        (size for size, peak in curve.items() if peak["low_bytes"] >= 1100 * MIB), default=None
    )


# --- answers that are scripted ----------------------------------------------------------------------------------------


class Script:
    """A group whose memory is made up: forecasts and runs by value, and how often each was asked for."""

    def __init__(self, forecasts: Any, runs: Any) -> None:
        self.forecasts, self.runs = forecasts, runs
        self.ran: list[int] = []

    def foresee(self, group: Any) -> Forecast:
        answer = self.forecasts(value_of(group))
        limit = 100
        peak = {
            Answer.FITS: PeakRange(50, 60, 70),
            Answer.UNDECIDED: PeakRange(90, 95, 120),
            Answer.DOES_NOT_FIT: PeakRange(150, 160, 170),
        }.get(answer)
        return Forecast("pair", (SimulatedRun("own", (), 1.0, peak=peak, failure=None if peak else "broke"),), 0, limit)

    def attempt(self, group: Any, number: int) -> Any:
        self.ran.append(value_of(group))
        return self.runs(value_of(group), number)


def value_of(group: Any) -> int:
    return int(option_value(group.foreground.argv, "--batch") or 0)


def verdict(outcome: str, *codes: str) -> Any:
    from types import SimpleNamespace

    from colocate.verdict import Outcome, Reason, Verdict

    reasons = tuple(Reason(code, code) for code in codes)
    found = Verdict(Outcome(outcome), "measured", reasons, (), 1, 1, 1, 100, 99, "stable", 1.0, (), (), False)
    return SimpleNamespace(verdict=found, directory=SimpleNamespace(path=Path(f"of-{outcome}")))


def scripted(script: Script, basis: Any = "measured") -> Any:
    pair = group(training("own", "--batch", "8"), None)
    varies = Variable("foreground", "--batch", "int", 8)
    grid = Grid(1, 40, 1)
    return LargestValue(pair, varies, grid, None, basis, script.foresee, script.attempt, 1).find()


def steady(value: int, turn: int = 20) -> Answer:
    return Answer.FITS if value <= turn else Answer.DOES_NOT_FIT


def test_a_gpu_is_asked_first_where_the_prediction_turns() -> None:
    script = Script(steady, lambda value, _: verdict("FEASIBLE" if value <= 22 else "INFEASIBLE"))
    found = scripted(script)
    assert script.ran[0] == 20
    assert (found.largest, found.refused, found.confirmations) == (22, 23, 2)
    assert len(set(script.ran)) <= 6


def test_an_inconclusive_run_is_repeated_once_and_then_counts_as_neither() -> None:
    def runs(value: int, number: int) -> Any:
        if value == 20:
            return verdict("INCONCLUSIVE", "sensor_gap")
        return verdict("FEASIBLE" if value < 20 else "INFEASIBLE")

    script = Script(steady, runs)
    found = scripted(script)
    assert script.ran.count(20) == 2
    assert (found.largest, found.undecided, found.refused) == (19, (20, 20), 21)

    once = Script(steady, lambda value, number: verdict("INCONCLUSIVE") if number == 1 and value == 20 else runs(3, 1))
    assert scripted(once).undecided is None


def test_a_run_that_contradicts_the_forecast_decides() -> None:
    """On one day in two the group peaks higher: a value is only believed in every run."""
    script = Script(steady, lambda value, _: verdict("FEASIBLE" if value <= 11 else "INFEASIBLE", "peak_over_limit"))
    found = scripted(script, basis="predicted")
    assert (found.largest, found.refused) == (11, 12)

    script = Script(steady, lambda value, number: verdict("INFEASIBLE" if value > 15 and number > 1 else "FEASIBLE"))
    found = scripted(script)
    assert found.largest is not None
    assert found.largest <= 15
    assert found.confirmations >= 1

    script = Script(lambda value: Answer.DOES_NOT_FIT, lambda value, _: verdict("INFEASIBLE"))
    found = scripted(script, basis="predicted")
    assert (found.largest, found.refused, found.undecided, script.ran) == (None, 1, None, [])


def test_where_no_run_carries_a_verdict_nothing_is_claimed_and_the_search_ends() -> None:
    script = Script(lambda value: Answer.UNKNOWN, lambda value, _: verdict("INCONCLUSIVE", "too_little_overlap"))
    found = scripted(script)
    assert (found.largest, found.refused, found.unpredicted) == (None, None, "own broke")
    assert len(set(script.ran)) == 3


# --- what may vary ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (7, "batch_size", "expected such as foreground.batch_size"),
        (7, "foreground.attention", "expected a number of VulBERTa_mlp"),
        (7, "foreground.batchsize", "got 'batchsize'"),
        (7, "other.batch_size", "expected such as foreground.batch_size"),
        (11, "background.max_iter", "uses the GPU"),
        (None, "background.--batch", "has none"),
    ],
)
def test_what_is_no_number_of_the_training_is_refused(number: int | None, text: str, message: str) -> None:
    from colocate.plan.catalog import load_catalog

    plan = load_plan(SETTINGS / "parallel_feasibility_test.json")
    given = group(training("own"), None) if number is None else plan.groups[number - 1]
    with pytest.raises(PlanError, match=message):
        variable(given, text, load_catalog(SETTINGS / "models.json"))

    with pytest.raises(PlanError, match="found 'many'"):
        option_value(["train", "--batch", "many"], "--batch")
    found = [option_value(["train", *words], "--batch") for words in (["--batch=4"], ["--batch", "0.5"], [])]
    assert found == [4, 0.5, None]


def test_a_grid_of_fractions_has_its_values() -> None:
    grid = Grid(0.1, 1.0, 0.1)
    assert [grid.value(place) for place in range(grid.last + 1)] == [round(0.1 * n, 1) for n in range(1, 11)]
    assert grid.place(0.35) == 2


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["group77"], "group: expected one of pair, got 'group77'"),
        (["pair", "--vary", "foreground.--lr", "--least", "0.5"], "expected whole numbers"),
        (["pair", "--vary", "foreground.--batch", "--least", "9", "--most", "3"], "--most: expected at least 9, got 3"),
        (["pair", "--vary", "foreground.batch_size"], "stand_in is a command"),
    ],
)
def test_wrong_input_is_told_in_a_line(folder: Path, capsys: Any, words: list[str], reported: str) -> None:
    assert main(["fit", *words, "--plan", "plan.json", "--device", "virtual"]) == 2
    assert reported in capsys.readouterr().err
    assert not (folder / "results").exists()
