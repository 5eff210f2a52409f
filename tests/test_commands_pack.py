"""``colocate pack``: from stand-ins of known memory to a schedule, a plan, and the few runs that decided it."""

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import builders
import pytest
from fake_nvml import FakeNvml
from groups import group, training
from sessions import stand_in

from colocate.advice.packing import Load, PackingProblem
from colocate.advice.solo_profiles import SoloProfile, remembered, tells_its_need
from colocate.advice.speedup import GroupSpeedup, Speedup
from colocate.cli.main import main
from colocate.device.acquire import FoundGpu
from colocate.harness.attempt import AttemptRunner
from colocate.plan.plan import Group, load_plan
from colocate.results.layout import RunDirectory
from colocate.results.record import write_record
from colocate.verdict.predicted_peak import PeakRange
from colocate.verdict.rules import judge

# Names, and MiB while they train and while they evaluate. Two that evaluate for long meet for certain.
SIZES = {"a": (4000, 4000), "b": (3000, 3000), "c": (900, 900), "one": (1000, 3000), "two": (1001, 3000)}
LONG = ("--steps", "5", "--evaluate-steps", "20", "--step-s", "0.03")


def member(name: str) -> dict[str, Any]:
    held, highest = SIZES[name]
    options = ["--probe", "--hold", str(held), *(["--peak", str(highest)] if highest > held else []), *LONG]
    return {**stand_in(*options), "name": name, "repeat_args": ["--repeat"]}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Five different trainings; how they are grouped there is of no account."""
    entries: list[dict[str, Any]] = [{"mode": "default", **member(name)} for name in SIZES]
    limits = {"gpu": "8192MB", "peak": "5500MB", "settle_s": 5}
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"experiment_name": "five", "limits": limits, "experiments": entries}))
    return path


@pytest.mark.slow
def test_only_the_open_pair_is_run(
    fake_nvml: FakeNvml, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten pairs four surely fit, five surely do not, and "one" with "two" may: their evaluations need not meet."""
    out, results = tmp_path / "pack.json", tmp_path / "results"

    code = main(["pack", "--from", str(plan), "--device=nvidia", "--gpus=2", f"--out={out}", f"--results={results}"])
    said = " ".join(capsys.readouterr().out.split())

    assert "five: 5 trainings on 8 GB GPUs, measured" in said
    assert "10 pairs from 5 solo runs: 4 surely fit, 5 surely do not, 1 open; 1 of these were run" in said
    assert "2 GPUs, 2 rounds instead of 3" in said
    assert code == 0
    (pack,) = results.glob("pack_*")
    groups = [
        json.loads((one.path / "experiment.json").read_text())["group"]["id"] for one in RunDirectory(pack).groups()
    ]
    assert sorted(groups) == ["pair06", "solo01", "solo02", "solo03", "solo04", "solo05"]

    # Against every choice: what fits follows from what the stand-ins hold at their highest.
    fits = {pair for pair in combinations(SIZES, 2) if sum(max(SIZES[name]) for name in pair) < 5500}
    assert len(fits) == 4
    assert all("c" in pair for pair in fits), "so one pair is the most"
    written = load_plan(out)
    shared = [group for group in written.groups if group.background is not None]
    assert [{one.name for one in group.trainings} & {"c"} for group in shared] == [{"c"}]
    assert sorted(one.name for group in written.groups for one in group.trainings) == sorted(SIZES)
    assert written.limits.peak_bytes == 5500 * 2**20


@pytest.mark.slow
def test_what_an_earlier_run_measured_is_known(
    fake_nvml: FakeNvml, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The open pair was run before, and did not fit; the other one saved time, as told beside its record."""
    document = json.loads(plan.read_text())
    document["experiments"] = document["experiments"][2:]
    plan.write_text(json.dumps(document))
    trainings = {one.name: one for group in load_plan(plan).groups for one in group.trainings}
    run, gpu = RunDirectory(tmp_path / "run_before"), FoundGpu("nvidia", fake_nvml.uuid())
    limits = load_plan(plan).limits
    trials = AttemptRunner(run, "before", gpu)
    trials.attempt(Group("both", 1, trainings["one"], trainings["two"], limits))
    small = trials.attempt(Group("small", 2, trainings["one"], trainings["c"], limits))
    speedup = GroupSpeedup((Speedup(2.0, 2.0, 10.0, 1.5),))
    (small.directory.path / "speedup.json").write_text(json.dumps(speedup.to_json()))
    words = ["pack", "--from", str(plan), "--device=nvidia", f"--known={run.path}", f"--out={tmp_path / 'pack.json'}"]

    assert main([*words, f"--results={tmp_path / 'results'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "1 open; 0 of these were run, 2 pairs were measured in earlier runs" in said
    assert "of room, saves 1.5 s" in said


@pytest.mark.slow
def test_nothing_is_run_where_nothing_is_to_be(
    fake_nvml: FakeNvml, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --measure=0 the open pair stays open, and the exit code says so."""
    document = json.loads(plan.read_text())
    document["experiments"] = document["experiments"][3:]
    plan.write_text(json.dumps(document))
    words = ["pack", "--from", str(plan), "--device=nvidia", "--measure=0", f"--results={tmp_path / 'results'}"]

    assert main([*words, f"--out={tmp_path / 'pack.json'}"]) == 3
    assert "optimal among the pairs that surely fit; open ones may give more" in capsys.readouterr().out


@pytest.mark.slow
def test_a_pair_without_a_verdict_is_open_and_not_one_that_does_not_fit(
    fake_nvml: FakeNvml, plan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that is the background when they share hangs there: it never takes a second epoch."""
    document = json.loads(plan.read_text())
    document["experiments"] = document["experiments"][3:]
    document["experiments"][-1] |= {"repeat_args": ["--never-ready"], "ready_timeout_s": 1}
    plan.write_text(json.dumps(document))
    words = ["pack", "--from", str(plan), "--device=nvidia", f"--results={tmp_path / 'results'}"]

    code = main([*words, f"--out={tmp_path / 'pack.json'}"])
    said = " ".join(capsys.readouterr().out.split())

    assert code == 3
    assert "1 of these were run, 1 without a verdict, which do not share" in said
    assert "open ones may give more" in said


def test_a_run_alone_that_was_disturbed_tells_no_need() -> None:
    assert tells_its_need(judge(builders.evidence(background=None)))
    assert not tells_its_need(judge(builders.evidence(background=None, faults=(("foreign_process", "somebody"),))))
    samples = builders.evidence().trace.samples
    gap = replace(builders.evidence().trace, samples=(*samples[:12], *samples[16:]))
    assert not tells_its_need(judge(builders.evidence(background=None, trace=gap)))


def test_what_was_measured_elsewhere_is_not_known(tmp_path: Path) -> None:
    """8 GB of a larger GPU is no 8 GB GPU."""
    run = RunDirectory(tmp_path / "run_1")
    pair = group(training("mnist"), training("load"))
    seen = builders.evidence()
    write_record(run.group("mnist", 1, parallel=True).create(), pair, seen, [], run.name)
    argv = [seen.foreground.argv, seen.background.argv]
    solos = [SoloProfile(replace(training("any"), argv=one), Load(PeakRange(0, 0, 0), 0), "measured") for one in argv]
    problem = PackingProblem((), 0, seen.limits.peak_bytes)
    size, name = seen.device.total_bytes, seen.device.name

    assert remembered(problem, solos, run, size, name).known == {(0, 1): True}
    assert remembered(problem, solos, run, size).known == {(0, 1): True}
    assert remembered(problem, solos, run, size, "8 GB of an NVIDIA H100").known == {}


def test_a_virtual_gpu_measures_nothing(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--from", str(plan), "--device=virtual", "--measure=3"]) == 2
    assert "a virtual GPU cannot decide what its own interval leaves open" in capsys.readouterr().err


def test_a_catalog_and_a_plan_are_one_too_many(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "settings/models.json", "--from", str(plan)]) == 2
    assert "expected a catalog or a plan" in capsys.readouterr().err
