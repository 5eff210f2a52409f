"""`colocate predict` as people call it, with real programs on the virtual card."""

import json
import sys
from pathlib import Path

import pytest

from colocate.cards import known_card
from colocate.cli import main
from colocate.prediction import PeakRange
from colocate.rehearsal import NOTHING, Cache, Program, Rehearsal
from colocate.units import MIB

# 4 MiB of parameters, as much of gradients, twice that for Adam, and 4 MiB of activations per sample.
TRAINING = """
import argparse
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8)
options = parser.parse_args()
model = torch.nn.Linear(1024, 1024, bias=False).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    data = torch.zeros(options.batch_size, 1024, 1024, device="cuda")
    optimizer.zero_grad()
    model(data).sum().backward()
    optimizer.step()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, a plan around it, and a cache of its own."""
    (tmp_path / "train.py").write_text(TRAINING)
    member = {"command": ["{python}", "train.py"], "cwd": str(tmp_path)}
    plan = {
        "experiment_name": "pairs",
        "limits": {"card": "1GB", "peak": "1000MB"},
        "experiments": [
            {"id": "group01", "mode": "default", "name": "alone", **member},
            {"id": "group02", "foreground": {"name": "alone", **member}, "background": {"name": "alone", **member}},
        ],
    }
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def predicted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["predict", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_command_is_split_into_its_parts_and_known_the_second_time(folder, capsys) -> None:
    code, first = predicted(capsys, "--", sys.executable, "train.py", "--batch-size", "16")

    (training,) = first["trainings"]
    parts = {name: value / MIB for name, value in training["parts"].items()}
    assert code == 0
    assert (parts["parameters"], parts["gradients"], parts["optimizer"]) == (4, 4, pytest.approx(8, abs=0.01))
    assert 2 * 64 <= parts["activations"] <= 3 * 64 + 4, "input and output of 16 samples, and a gradient"
    assert parts["context"] == 344
    assert sum(training["parts"].values()) == training["peak"]["expected_bytes"]
    assert 344 * MIB < training["floor_bytes"] <= training["peak"]["expected_bytes"]
    assert training["optimizer_steps"] == 3
    assert (first["basis"], first["forecasts"][0]["answer"]) == ("predicted", "fits")

    _, again = predicted(capsys, "--", sys.executable, "train.py", "--batch-size", "16")
    assert again["trainings"][0]["cached"]
    assert again["trainings"][0]["peak"] == training["peak"]

    (folder / "train.py").write_text(TRAINING.replace("range(3)", "range(2)"))
    _, changed = predicted(capsys, "--", sys.executable, "train.py", "--batch-size", "16")
    assert not changed["trainings"][0]["cached"]
    assert changed["trainings"][0]["optimizer_steps"] == 2


@pytest.mark.slow
def test_a_plan_runs_every_training_once_and_adds_them_up(folder, capsys) -> None:
    code = main(["predict", "plan.json"])

    output = capsys.readouterr()
    assert code == 3
    assert max(map(len, output.out.splitlines()[1:])) <= 80, output.out
    assert output.err.count("alone") == 1, "two groups, three members, one program"
    lines = {line.split()[0]: line for line in output.out.splitlines() if line.startswith("group0")}
    assert lines["group01"].endswith(" fits")
    assert lines["group02"].endswith(" undecided")
    assert "not modelled: " in output.out


@pytest.mark.slow
def test_a_curve_grows_with_the_batch_and_the_largest_one_fits(folder, capsys) -> None:
    code, curve = predicted(capsys, "--card", "850MB", "--batch-size", "8,32", "--", sys.executable, "train.py")

    small, large = (one["peak"]["expected_bytes"] for one in curve["forecasts"])
    assert code == 0
    assert 2 * 24 * 4 * MIB <= large - small <= 3 * 24 * 4 * MIB + 40 * MIB

    code, found = predicted(capsys, "--card", "850MB", "--largest-batch", "--", sys.executable, "train.py")
    answers = {int(one["name"]): one["answer"] for one in found["forecasts"]}
    best = found["largest_batch"]
    assert code == 0
    assert answers[best] == "fits"
    assert all(answer == ("fits" if size <= best else answer) for size, answer in answers.items())
    assert min(size for size, answer in answers.items() if answer != "fits") - best <= max(1, best // 64)


@pytest.mark.slow
def test_a_program_that_fails_is_no_prediction(folder, capsys) -> None:
    (folder / "train.py").write_text("import torch\ntorch.zeros(3, device='cuda')\nraise SystemExit('no data')")

    code = main(["predict", "--", sys.executable, "train.py"])

    output = capsys.readouterr().out
    assert code == 2
    assert f"not predicted: {sys.executable} train.py expected the program to end well, found exit code 1" in " ".join(
        output.split()
    )
    assert "| no data" in output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--", "no-such-program"], "command: expected a program, got 'no-such-program'"),
        (["plan.json", "-k", "group07"], "-k: expected a group or training of pairs, got 'group07'"),
        (["plan.json", "-t", "other"], "training: expected one of alone, got 'other'"),
        (["plan.json", "--largest-batch"], "-t: expected the training whose batch size is to vary, got none"),
        (["plan.json", "--card", "Voodoo"], "--card: expected a size such as 8GB"),
        (["--vary", "bs", "--", "python"], "--vary: expected an option such as --batch-size, got 'bs'"),
    ],
)
def test_wrong_input_is_told_in_a_line(folder, capsys, words, told) -> None:
    assert main(["predict", *words]) == 2
    assert told in capsys.readouterr().err


def test_the_cache_knows_what_a_result_rests_on(folder, monkeypatch) -> None:
    cache, card = Cache(folder / "kept"), known_card("8GB")
    (folder / "settings.yaml").write_text("layers: 3")
    program = Program("one", (sys.executable, "train.py", "settings.yaml"), folder)
    result = Rehearsal("one", program.argv, 1.0, peak=PeakRange(1, 2, 3), parts=NOTHING)
    cache.keep(program, card, result, [str(folder / "train.py")], ["torch-2.14.1"])

    assert cache.find(program, card) is not None
    assert cache.find(program, known_card("6GB")) is None
    assert cache.find(Program("one", (sys.executable, "train.py"), folder), card) is None
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert cache.find(program, card) is None
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    (folder / "settings.yaml").write_text("layers: 4")
    assert cache.find(program, card) is None, "a file that the command line names"
    (folder / "settings.yaml").write_text("layers: 3")
    (folder / "train.py").write_text("changed")
    assert cache.find(program, card) is None, "a file that the program ran"


def test_failures_are_not_remembered(folder) -> None:
    cache, card = Cache(folder / "kept"), known_card("8GB")
    program = Program("one", (sys.executable, "train.py"), folder)

    cache.keep(program, card, Rehearsal("one", program.argv, 1.0, failure="no"), [], [])

    assert cache.find(program, card) is None
    assert not (folder / "kept").exists()
