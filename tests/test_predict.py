"""`colocate predict` as people call it, with real programs on the virtual GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from emulated import PROGRAMS

import colocate.advice.predictor
import colocate.harness.simulation
from colocate.advice import Answer, Forecast
from colocate.cli.main import main
from colocate.harness.simulation import NOTHING, Cache, Program, SimulatedRun
from colocate.plan.gpu_models import gpu_model
from colocate.units import MIB
from colocate.verdict.predicted_peak import PeakRange

TRAINING = (PROGRAMS / "linear.py").read_text()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program, a plan around it, and a cache of its own."""
    (tmp_path / "train.py").write_text(TRAINING)
    member = {"command": ["{python}", "train.py"], "cwd": str(tmp_path)}
    plan = {
        "experiment_name": "pairs",
        "limits": {"gpu": "1GB", "peak": "1000MB"},
        "experiments": [
            {"id": "group01", "mode": "default", "name": "solo", **member},
            {"id": "group02", "foreground": {"name": "solo", **member}, "background": {"name": "solo", **member}},
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
def test_a_plan_runs_every_training_once_and_a_command_is_split_into_its_parts(folder, capsys) -> None:
    """Two groups, three members, one program; asked for again as a command it is known already."""
    code = main(["predict", "plan.json"])

    output = capsys.readouterr()
    assert code == 3
    assert max(map(len, output.out.splitlines()[1:])) <= 80, output.out
    assert output.err.count("solo") == 1
    lines = {line.split()[0]: line for line in output.out.splitlines() if line.startswith("group0")}
    assert lines["group01"].endswith(" fits")
    assert lines["group02"].endswith(" undecided")
    assert "not modelled: " in output.out

    code, known = predicted(capsys, "--gpu=1GB", "--", sys.executable, "train.py")
    (training,) = known["trainings"]
    parts = {name: value / MIB for name, value in training["parts"].items()}
    assert (code, training["cached"]) == (0, True)
    assert (parts["parameters"], parts["gradients"], parts["optimizer"]) == (4, 4, pytest.approx(8, abs=0.01))
    assert 2 * 32 <= parts["activations"] <= 3 * 32 + 4, "input and output of 8 samples, and a gradient"
    assert parts["context"] == 344
    assert sum(training["parts"].values()) == training["peak"]["expected_bytes"]
    assert 344 * MIB < training["floor_bytes"] <= training["peak"]["expected_bytes"]
    assert training["optimizer_steps"] == 3
    assert (known["basis"], known["forecasts"][0]["answer"]) == ("predicted", "fits")

    code, curve = predicted(capsys, "--gpu=1GB", "--batch-size=16", "--", sys.executable, "train.py")
    (larger,) = curve["forecasts"]
    grown = larger["peak"]["expected_bytes"] - known["forecasts"][0]["peak"]["expected_bytes"]
    assert (code, larger["name"], curve["flag"]) == (0, "16", "--batch-size")
    assert 2 * 8 * 4 * MIB <= grown <= 3 * 8 * 4 * MIB + 40 * MIB, "8 samples more, 4 MiB each"


@pytest.mark.slow
def test_a_program_that_fails_is_no_prediction(folder, capsys) -> None:
    (folder / "train.py").write_text("raise SystemExit('no data')")

    code = main(["predict", "--", sys.executable, "train.py"])

    output = capsys.readouterr().out
    assert code == 3
    assert f"not predicted: {sys.executable} train.py expected the program to end well, found exit code 1" in " ".join(
        output.split()
    )
    assert "| no data" in output


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--", "no-such-program"], "command: expected a program, got 'no-such-program'"),
        (["plan.json", "-k", "group07"], "-k: expected a group or training of pairs, got 'group07'"),
        (["plan.json", "-t", "other"], "training: expected one of solo, got 'other'"),
        (["plan.json", "--batch-size", "8"], "-t: expected the training whose batch size is to vary, got none"),
        (["plan.json", "--gpu", "Voodoo"], "--gpu: expected a size such as 8GB"),
        (["--vary", "bs", "--", "python"], "--vary: expected an option such as --batch-size, got 'bs'"),
    ],
)
def test_wrong_input_is_told_in_a_line(folder, capsys, words, reported) -> None:
    assert main(["predict", *words]) == 2
    assert reported in capsys.readouterr().err


def test_the_cache_knows_what_a_result_rests_on(folder, monkeypatch) -> None:
    cache, gpu = Cache(folder / "kept"), gpu_model("8GB")
    (folder / "settings.yaml").write_text("layers: 3")
    program = Program("one", (sys.executable, "train.py", "settings.yaml"), folder)
    result = SimulatedRun("one", program.argv, 1.0, peak=PeakRange(1, 2, 3), parts=NOTHING)
    cache.keep(program, gpu, result, [str(folder / "train.py")], ["torch-2.14.1"])

    assert cache.find(program, gpu) is not None
    assert cache.find(program, gpu_model("6GB")) is None
    assert cache.find(Program("one", (sys.executable, "train.py"), folder), gpu) is None
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    assert cache.find(program, gpu) is None
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    (folder / "settings.yaml").write_text("layers: 4")
    assert cache.find(program, gpu) is None, "a file that the command line names"
    (folder / "settings.yaml").write_text("layers: 3")
    (folder / "train.py").write_text("changed")
    assert cache.find(program, gpu) is None, "a file that the program ran"


def test_failures_are_not_remembered(folder) -> None:
    cache, gpu = Cache(folder / "kept"), gpu_model("8GB")
    program = Program("one", (sys.executable, "train.py"), folder)

    cache.keep(program, gpu, SimulatedRun("one", program.argv, 1.0, failure="no"), [], [])

    assert cache.find(program, gpu) is None
    assert not (folder / "kept").exists()


# --- GPUs that groups ask for ----------------------------------------------------------------------------------------


@pytest.fixture
def several_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plan for a GPU of 1 GB with groups for others; a program takes half of whatever GPU it is dry-run on."""

    def simulate(programs: Any, gpu: Any, **settings: Any) -> list[SimulatedRun]:
        half = PeakRange(*[gpu.total_bytes // 2] * 3)
        return [SimulatedRun(one.name, one.argv, 1.0, peak=half, parts=NOTHING) for one in programs]

    monkeypatch.setattr(colocate.advice.predictor, "simulate", simulate)
    member = {"command": ["{python}", "train.py"], "name": "solo", "mode": "default"}
    wishes = [{}, {"gpu": "2GB"}, {"gpu": "2GB", "limit": "1900MB"}, {"gpu": "RTX 3080"}, {"gpu": "Nothing 9"}]
    plan = {
        "experiment_name": "several",
        "limits": {"gpu": "1GB", "peak": "1000MB"},
        "experiments": [{**member, **wish} for wish in wishes],
    }
    path = folder / "several.json"
    path.write_text(json.dumps(plan))
    return path


def test_every_group_is_predicted_for_the_gpu_that_it_asks_for(several_gpus: Path, capsys) -> None:
    """As a run has it: the plan's limit holds on a larger GPU too, unless a group has its own."""
    code, found = predicted(capsys, str(several_gpus))

    names = ["virtual 1 GB GPU", "virtual 2 GB GPU", "NVIDIA GeForce RTX 3080 (virtual)"]
    assert [gpu["name"] for gpu in found["gpus"]] == names
    assert [one["gpu"] for one in found["trainings"]] == names
    reported = {one["name"]: (one["gpu"], one["limit_bytes"] // MIB, one["answer"]) for one in found["forecasts"]}
    assert reported == {
        "group01": (names[0], 1000, "fits"),
        "group02": (names[1], 1000, "does not fit"),
        "group03": (names[1], 1900, "fits"),
        "group04": (names[2], 1000, "does not fit"),
        "group05": (names[0], 1000, "not predicted"),
    }
    assert code == 2

    main(["predict", str(several_gpus)])
    said = capsys.readouterr().out
    assert [line for line in said.splitlines() if "predicted for" in line] == [
        "several: predicted for a virtual 1 GB GPU, limit 1000 MiB; nothing was measured",
        "several: predicted for a virtual 2 GB GPU, limit 1000 MiB; nothing was measured",
        "several: predicted for a NVIDIA GeForce RTX 3080 (virtual) of 10 GB, limit 1000 MiB; nothing was measured",
    ]
    assert "limit 1900 MiB: group03" in said
    assert "group05 is for a GPU 'Nothing 9', which is not in" in said


def test_a_gpu_of_ones_own_is_no_gpu_for_a_group_that_asks_for_another(several_gpus: Path, capsys) -> None:
    code, found = predicted(capsys, str(several_gpus), "--gpu=2GB", "-k", "group01,group03,group04")

    reported = {one["name"]: (one["limit_bytes"] // MIB, one["failures"]) for one in found["forecasts"]}
    why = "group04 is for a GPU 'RTX 3080' and not for a virtual 2 GB GPU"
    assert reported == {"group01": (2048, []), "group03": (1900, []), "group04": (1000, [why])}
    assert code == 2


@pytest.mark.slow
def test_values_that_nobody_knows_never_make_a_program_fit(tmp_path) -> None:
    """A branch was never entered, a search for a batch size overflowed, and a program off the GPU needed 0 MiB."""
    program, idle = str(PROGRAMS / "by_values.py"), "print('trained elsewhere')"
    kinds = ("branch", "search", "best", "patience", "stages", "hard")
    programs = [
        *(Program(kind, (sys.executable, program, kind), tmp_path) for kind in kinds),
        Program("idle", (sys.executable, "-c", idle), tmp_path),
    ]
    gpu = gpu_model("1GB")

    found = colocate.harness.simulation.simulate(programs, gpu, cache=None, timeout_s=300)
    branch, search, best, patience, stages, hard, idle_run = found

    assert branch.failure is None, branch.last_lines
    assert branch.peak is not None
    assert branch.peak.low_bytes < 450 * MIB, "the branch may be left out"
    assert branch.peak.expected_bytes > (344 + 4 * 64) * MIB, "weights, gradients and two states of the large network"
    assert branch.doubts == ()
    assert any("by_values.py:" in note for note in branch.notes)
    assert best.peak is not None
    assert best.peak.low_bytes < 450 * MIB, "it may never score better"
    assert best.peak.high_bytes > (344 + 100 * 4) * MIB, "or in every turn"
    for one in (patience, stages):
        assert [code for code, _ in one.doubts] == ["longest_batch_unseen"], "it may grow until the end"
    assert hard.peak is not None
    assert hard.peak.low_bytes < 450 * MIB, "no loss may be so high"
    assert hard.peak.expected_bytes > (344 + 600) * MIB, "or all, also in passes that were cut behind whole ones"
    assert [code for code, _ in search.doubts][-1] == "takes_what_it_gets", search
    assert search.peak is not None
    assert search.peak.expected_bytes <= gpu.total_bytes
    assert (idle_run.peak, idle_run.failure_code) == (None, "emulation_not_started")
    answers = [Forecast(one.name, (one,), 0, gpu.total_bytes).answer for one in (search, idle_run)]
    assert answers == [Answer.UNDECIDED, Answer.UNKNOWN]
