"""The subcommands around a finished run, on fabricated records."""

import json
import re
from dataclasses import replace

import pytest
from builders import device_info, evidence, foreground, out_of_memory, predicted_evidence, simulated
from records import begin, finish, run_in

from colocate.cli.main import COMMANDS, main
from colocate.plan.plan import load_plan
from colocate.results import journal
from colocate.units import MIB


@pytest.fixture
def plan(tmp_path):
    """A plan of three groups: two of a catalog, one of commands."""
    (tmp_path / "plans").mkdir()
    catalog = {
        "root": ".",
        "models": {
            "examples": {
                "path": ".",
                "models": ["mnist", "mnist_rnn"],
                "command": ["{python}", "-c", "pass"],
                "supported_hyperparams": {
                    "epochs": {"flag": "--epochs", "type": "int", "default": 14, "models": ["mnist"]},
                    "seed": {"flag": "--seed", "type": "int"},
                },
            }
        },
    }
    (tmp_path / "plans/models.json").write_text(json.dumps(catalog))
    (tmp_path / "plans/train.py").write_text("pass\n")
    pair = {
        "foreground": {
            "repo": "examples",
            "model": "mnist",
            "mode": "default",
            "hyperparameters": {"epochs": 1, "seed": 7},
        },
        "background": {"repo": "examples", "model": "mnist_rnn", "hyperparameters": {}},
        "expected_minutes": 0.5,
    }
    own = {"foreground": {"command": ["{python}", "train.py"]}, "background": {"command": ["{python}", "train.py"]}}
    path = tmp_path / "plans/plan.json"
    path.write_text(json.dumps({"experiment_name": "three", "experiments": [pair, {**pair, "tier": "low"}, own]}))
    return load_plan(path)


@pytest.fixture
def run(tmp_path, plan):
    """A run of that plan: stable, infeasible, usable."""
    found = run_in(tmp_path / "results")
    kept = {"path": str(plan.path), "document": plan.to_json(), "catalog": str(plan.catalog)}
    begin(found, 3, needed=2, name=plan.name, **kept)
    wrong = foreground(out_of_memory=(out_of_memory(),), allocators=(simulated(9000),))
    finish(found, 1, predicted_evidence(800, 500))
    finish(found, 2, replace(predicted_evidence(9000, 500), foreground=wrong))
    finish(found, 3, predicted_evidence(1900, 800))
    return found


def test_every_command_shows_an_example(capsys):
    for command in COMMANDS:
        name = {"follow_up": "next"}.get(module := command.__name__.rpartition(".")[2], module)
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert re.search(rf"examples?:\s+colocate {name}", capsys.readouterr().out)


# report


def test_a_rebuilt_page_and_summary_lie_in_the_run_directory(run, capsys):
    assert main(["report", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of 3 groups are predicted to share an 8 GB GPU")
    assert "2 of 3 groups" in (run.path / "report.html").read_text()
    assert (run.path / "summary.csv").exists()


def test_a_folder_without_a_run_or_a_page_that_cannot_be_written_is_one_line(run, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "expected a run directory, found neither run.json nor the record of a group in it" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["report", str(run.path), "--out", str(tmp_path / "file" / "x.html")]) == 2
    assert "could not write the folder" in capsys.readouterr().err


def test_several_runs_become_one_page(run, tmp_path, capsys):
    other = run_in(tmp_path / "results", 25)
    other.record.write_text(run.record.read_text())
    finish(other, 2, evidence(device=device_info(name="Other 8 GB")))
    out = tmp_path / "both/report.html"
    assert main(["report", str(run.path), str(other.path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("needed: the plan") == 2
    assert 'href="../results/run_20261125_053000/mnist_parallel_002/trace.csv"' in out.read_text()


# compare


@pytest.fixture
def later(run, tmp_path):
    """The same plan once more: the first group needs 600 MiB more, the second fits."""
    found = run_in(tmp_path / "results", 25)
    found.record.write_text(run.record.read_text())
    finish(found, 1, predicted_evidence(1400, 500))
    finish(found, 2, predicted_evidence(800, 500))
    finish(found, 3, predicted_evidence(1900, 800))
    return found


def test_a_comparison_names_verdicts_peaks_and_what_it_comes_to(run, later, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["compare", str(run.path), str(later.path), "--page", str(page)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run_20261124_053000 -> run_20261125_053000"
    assert lines[1].startswith("group01 FEASIBLE (predicted): peak +600 to 2402-3225 MiB")
    assert lines[2].startswith("group02 INFEASIBLE -> FEASIBLE (predicted)")
    assert "1 verdict changed; 1 peak grew, most group01 by 600 MiB; 1 fell" in lines
    assert max(len(line) for line in lines if page.name not in line) <= 80
    assert 'id="comparison"' in page.read_text()
    assert ">+600<" in page.read_text()


def test_what_got_worse_makes_the_exit_code(run, later, capsys, monkeypatch):
    """A peak that is not known any more is no pass, and a group that fits no more is a finding though its peak is not.

    Outside of a job of GitHub nothing is published.
    """
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def compared(before, after, allowed):
        code = main(["compare", str(before.path), str(after.path), "--fail-above", allowed])
        said = capsys.readouterr().out
        assert "::" not in said
        return code, said

    for allowed, code in (("599MB", 1), ("600MB", 0)):
        found, said = compared(run, later, allowed)
        assert (found, "group01: grew by 600 MiB" in said) == (code, bool(code))
    code, said = compared(later, run, "9GB")
    assert (code, "group02: was feasible, is infeasible (foreground_out_of_memory" in said) == (1, True)
    journal.append(later.path, "group", record={"group": "group01", "number": 1, "outcome": "CRASHED"})
    code, said = compared(run, later, "1GB")
    gone = "group01: was feasible, is crashed; its peak was known before and is not any more"
    assert (code, gone in said) == (1, True)


def test_a_job_of_github_gets_a_summary_and_annotations(run, later, capsys, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main(["compare", str(run.path), str(later.path), "--fail-above=200MB"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert lines == ["::error title=group01::grew by 600 MiB, at most 200 MiB allowed"]
    assert main(["compare", str(run.path), str(later.path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("::")]
    assert lines == ["::warning title=group01::grew by 600 MiB to 2402-3225 MiB"]
    first = summary.read_text().splitlines()
    assert first[0] == "## What changed: run\\_20261124\\_053000 → run\\_20261125\\_053000"
    assert first[6].startswith("| :x: | group01 | FEASIBLE (predicted) | FEASIBLE (predicted) |")
    assert first[6].endswith("| +600 MiB | grew by 600 MiB, at most 200 MiB allowed |")
    assert sum(line.startswith("## ") for line in first) == 2, "the second comparison is added"


def test_a_comparison_names_another_driver_and_other_versions(run, tmp_path, capsys):
    before, after = run_in(tmp_path), run_in(tmp_path, 25)
    for found, driver, torch in ((before, "550.54", "2.13.0"), (after, "570.1", "2.14.1")):
        versions = {"torch": torch, "colocate": "0.1.0"}
        finish(found, 1, evidence(device=device_info(driver_version=driver), versions=versions))
    assert main(["compare", str(before.path), str(after.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "changed: driver 550.54 -> 570.1, torch 2.13.0 -> 2.14.1"
    assert lines[2].startswith("group01 FEASIBLE (measured): peak +0 to 3200 MiB")


def test_peaks_of_different_gpus_are_not_subtracted(tmp_path, capsys, monkeypatch):
    """A group of an 8 GB GPU used to have "grown" when the next run had one of 24 GB."""
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    before, after = run_in(tmp_path), run_in(tmp_path, 25)
    for found, name in ((before, "Test 8 GB"), (after, "Test 24 GB")):
        finish(found, 1, evidence(device=device_info(name=name)))
    page = tmp_path / "page.html"
    assert main(["compare", str(before.path), str(after.path), "--fail-above=1GB", f"--page={page}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "changed: GPU Test 8 GB -> Test 24 GB"
    assert lines[2].startswith("group01 FEASIBLE (measured): peak not comparable")
    assert lines[2].endswith("another basis or GPU")
    assert lines[3] == "0 verdicts changed; 0 peaks grew; 0 fell"
    assert "group01: is of another GPU, so how its peak grew is not known" in lines
    reported = "changed: GPU Test 8 GB -&gt; Test 24 GB."
    assert reported in page.read_text()
    assert reported in (tmp_path / "summary.md").read_text()


# next


def test_the_next_plan_has_the_recommended_pairs_at_full_length(run, capsys):
    assert main(["next", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "left out: group02" in out
    assert "predicted to fit" in out
    plan = load_plan(run.path / "next.json")
    assert plan.ids == ("group01", "group03")
    first = plan.groups[0]
    assert first.foreground.hyperparameters == {"epochs": 14, "seed": 7}
    assert first.expected_minutes == 7.0
    assert first.expected_bytes == 2230 * MIB
    assert "stable: predicted peak" in first.note


def test_one_class_and_epochs_can_be_asked_for_and_those_without_a_default_are_left_to_the_program(run, plan, tmp_path):
    out = tmp_path / "elsewhere/plan.json"
    assert main(["next", str(run.path), "--class=stable", "--epochs=3", "--out", str(out)]) == 0
    (only,) = load_plan(out).groups
    assert (only.id, only.foreground.hyperparameters["epochs"]) == ("group01", 3)

    document = json.loads(plan.catalog.read_text())
    del document["models"]["examples"]["supported_hyperparams"]["epochs"]["default"]
    plan.catalog.write_text(json.dumps(document))
    assert main(["next", str(run.path)]) == 0
    first, own = load_plan(run.path / "next.json").groups
    assert "epochs" not in first.foreground.hyperparameters
    asked = plan.groups[2].foreground
    assert (own.foreground.cwd, own.foreground.argv) == (asked.cwd, asked.argv), "own commands start where they did"


def test_a_run_that_recommends_nothing_writes_no_plan(tmp_path, run, capsys):
    for number in (1, 3):
        (run.group("mnist", number, parallel=True).path / "verdict.json").unlink()
    assert main(["next", str(run.path)]) == 1
    assert "no group is stable or usable" in capsys.readouterr().out
    assert not (run.path / "next.json").exists()
