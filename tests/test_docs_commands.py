"""Every command of the docs is done, and every Python block; what cannot be done here is named with its reason.

Of the runs only two are done to their end, one on the simulated GPUs and one by the repository's own script: the others
collect their groups, which reads every option and the plan. What their options do has tests of its own.

In a prepared copy of the project, which stands for the real one in these respects and no others: the plan has two
groups whose trainings are stand-ins (tests/programs/stand_in.py), the NVIDIA library is the fake one with two GPUs,
dry runs of ``colocate predict`` are replaced by arithmetic, and the runs that a page names are made up.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import sessions
from groups import STAND_IN
from records import begin, finish
from sessions import Session
from test_docs import blocks

import colocate.advice.predictor
import colocate.advice.solo_profiles
from colocate.cli import OPTIONS
from colocate.cli.main import _parser as colocate_parser
from colocate.cli.main import main
from colocate.harness.simulation import NOTHING, Program, SimulatedRun
from colocate.plan.plan import load_plan
from colocate.results import journal
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.record import read_evidence
from colocate.units import MIB
from colocate.verdict import judge
from colocate.verdict.predicted_peak import PeakRange

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "workloads/README.md", "settings/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

# What is not done here, by a part of the line, and why.
NOT_HERE = {
    "scripts/test": "these tests would run themselves",
    "docker run": "needs docker and downloads an image",
    "sudo nvidia-smi": "needs a GPU and changes its settings",
    "--executor=slurm": "needs a Slurm cluster; tests/test_slurm.py has stand-ins for its commands",
    "$SLURM_": "needs a Slurm cluster; tests/test_slurm.py has stand-ins for its commands",
    "sbatch": "needs a Slurm cluster; tests/test_slurm.py has stand-ins for its commands",
    "scripts/gpu-evidence": "needs a GPU for minutes",
    "pip download": "downloads packages",
    "kubectl": "needs a Kubernetes cluster",
    "colocate fit": "takes minutes: every trial is a run; tests/test_fit.py does it with stand-ins",
    "--try-fixes": "takes minutes: every remedy is a run; its tests do it with stand-ins",
    "--stress": "takes a minute: a run per trial; tests/test_stress.py does it with stand-ins",
    "--device=nvidia --gpu": "needs CUDA for the balloon; tests/test_balloon.py has a fake one",
    "pip install .": "installs packages; tests/test_wheel.py installs the wheel",
    "cd my/own/project": "the reader's own folder",
    "colocate init": "writes into the folder; tests/test_wheel.py does it in one of its own",
}

# Names in a page that stand for the reader's own; and stand-ins are commands, which have no epochs to be set.
STANDS_FOR = {"PLAN": "my_plan.json", "--epochs=10": "--progress=10"}

# What has to be done before a line can be, in a folder of results of its own where the latest run is meant.
BEFORE = {
    "--resume": "colocate run plan.json --results=resumed",
    "colocate merge": "colocate run --archive=archives/both.jsonl",
}
IN_ADDITION = {"--resume": ["--results=resumed"], "colocate doctor": ["--quick"]}  # its trial has a test of its own


def commands(path: Path) -> list[str]:
    """The command lines of a page: what stands behind a prompt, and the lines of its bash blocks."""
    shown = [line for block in blocks(path, "console") for line in block.splitlines() if line.startswith("$ ")]
    shown += [line for block in blocks(path, "bash") for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in shown]
    return [shlex.join(line) for line in words if line]


def why_not(line: str) -> str | None:
    return next((why for part, why in NOT_HERE.items() if part in line), None)


def member(name: str, *options: str) -> dict[str, object]:
    words = ["{python}", str(STAND_IN), "--probe", *options]
    return {"command": words, "name": name, "ready_timeout_s": 20, "repeat_args": ["--repeat"]}


def entry(name: str, tier: str, foreground: str) -> dict[str, object]:
    load = member("resnet20", "--hold=600")
    return {"id": name, "tier": tier, "foreground": member(foreground, "--hold=900", "--steps=15"), "background": load}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The copy of the project, with an environment that is set up."""
    made = tmp_path_factory.mktemp("project")
    for name in ("conftest.py", "pytest.ini", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, made)
    for name in ("feasibility", "fixtures", "scripts"):
        shutil.copytree(ROOT / name, made / name, ignore=shutil.ignore_patterns("__pycache__"))
    (made / "settings").mkdir()
    groups = [entry("group07", "medium", "vulberta"), entry("group12", "high", "densenet121")]
    plan = {"experiment_name": "tiny", "limits": {"settle_s": 3}, "experiments": groups}
    (made / "settings/parallel_feasibility_test.json").write_text(json.dumps(plan))
    (own,) = blocks(ROOT / "README.md", "json")
    (made / "my_plan.json").write_text(own)
    (made / "plan.json").write_text(own)
    for name, options in (
        ("train", ["--probe", "--steps=15", "--hold=900"]),
        ("other", ["--probe", "--repeat", "--hold=600"]),
    ):
        source = f"import runpy, sys\nsys.argv += {options!r}\nrunpy.run_path({str(STAND_IN)!r}, run_name='__main__')\n"
        (made / f"{name}.py").write_text(source)
    interpreter = made / ".venv/bin/python"
    interpreter.parent.mkdir(parents=True)
    interpreter.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    interpreter.chmod(0o755)
    stamp = 'cat pyproject.toml constraints.txt - <<<"workloads,test" | cksum'
    done = subprocess.run(["bash", "-c", stamp], cwd=made, capture_output=True, text=True, check=True)
    (made / ".venv/colocate-stamp").write_text(done.stdout)
    finished_runs(made)
    return made


@pytest.fixture(scope="module")
def done():
    """What was done in the folder already of that which has to be done before a line."""
    return set()


def finished_runs(made: Path) -> None:
    """The runs that the pages name."""
    names = ("results/main", *(f"results/run_20261124_0{hour}3000" for hour in (5, 6)))
    for name in (*names, "shared/results/run_20261124_053000", "shared/results/run_20261124_054500"):
        run = RunDirectory(made / name)
        begin(run)
        finish(run)
        journal.append(run.path, "started", groups=["group01"])
        journal.append(run.path, "ended")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI", "COLOCATE_"))}
    locks = {name: value for name, value in os.environ.items() if name == "COLOCATE_LOCK_FOLDER"}
    return {**kept, **locks, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}


def expanded(word: str, folder: Path) -> list[str]:
    """What a shell makes of a word with a star."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.glob(word)) if "*" in word else []
    return found or [word]


def do(words: Sequence[str], folder: Path) -> Session:
    """Do a command line as it stands, but for what `STANDS_FOR` replaces; a run in a process of its own."""
    words = [re.sub("|".join(STANDS_FOR), lambda found: STANDS_FOR[found[0]], word) for word in words]
    words = [found for word in words for found in expanded(word, folder)]
    own: dict[str, str] = {}
    while "=" in words[0]:
        name, _, value = words[0].partition("=")
        own[name], words = value, words[1:]
    apart = ("run", "watch", "doctor")  # `watch` writes past Python's streams, `doctor` into the user's folder
    if words[0] == "colocate" and words[1] not in apart:
        return sessions.colocate(folder, *words[1:])
    light = ["-p", "no:hypothesispytest", "-p", "no:anyio"]
    python = {"pytest": ["-m", "pytest", *light], "colocate": ["-m", "colocate"]}
    if words[0] in python:
        words = [sys.executable, *python[words[0]], *words[1:]]
    done = subprocess.run(
        words,
        cwd=folder,
        env={**environment(), "XDG_CONFIG_HOME": str(folder), **own},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Session(done.returncode, done.stdout + done.stderr, folder)


def do_with_what_it_needs(line: str, folder: Path, done: set[str]) -> Session:
    words = shlex.split(line)
    for part, before in BEFORE.items():
        if part in line and before not in done:
            first = do(shlex.split(before), folder)
            assert first.code == 0, first.output
            done.add(before)
    words += [more for part, added in IN_ADDITION.items() if part in line for more in added]
    return do(words, folder)


def simulated(programs: Sequence[Program], gpu: object, **settings: object) -> list[SimulatedRun]:
    """A program wants 100 MiB for each sample of its batch, of which it has 32 if it does not say."""
    found = []
    for program in programs:
        sizes = [int(after) for word, after in zip(program.argv, program.argv[1:], strict=False) if is_batch(word)]
        size = 100 * (sizes or [32])[-1] * MIB
        found.append(SimulatedRun(program.name, program.argv, 1.0, peak=PeakRange(size, size, size), parts=NOTHING))
    return found


def is_batch(word: str) -> bool:
    return word in ("--batch-size", "--bs")


def lines() -> list[str]:
    """Every command line once; of those that differ in the selection only one."""
    found = [line for path in reversed(PAGES) for line in commands(path)]
    return list({re.sub(r" -[km] \S+| --plan=PLAN|group\d+", "", line): line for line in found}.values())


def of_kind(*beginnings: str) -> list[str]:
    return [line for line in lines() if line.startswith(beginnings) and why_not(line) is None]


SESSIONS = ("scripts/feasibility", "pytest feasibility", "colocate run", "pytest plan.json", "CUDA_VISIBLE_DEVICES")


def test_every_command_is_done_or_named_with_a_reason():
    kinds = (*SESSIONS, "colocate ", "python ")
    assert [line for line in lines() if not line.startswith(kinds) and why_not(line) is None] == []
    assert len(lines()) >= 30


@pytest.mark.slow
def test_the_runs_of_the_docs_run(folder, done, fake_nvml, subtests):
    fake_nvml.add_gpu(uuid="GPU-4f5e0000-0000-4000-8000-000000000000")
    for line in of_kind(*SESSIONS):
        whole = line in ("colocate run plan.json --device=nvidia -n auto", "scripts/feasibility -m high")
        whole = whole or "--resume" in line
        with subtests.test(line):
            session = do_with_what_it_needs(line if whole else f"{line} --collect-only", folder, done)
            assert session.code == 0, session.output
            assert (" passed" if whole else "group") in session.output, session.output
            assert not whole or "the plan holds" in session.output or "-m" in line, session.output


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in of_kind("colocate ") if not re.match("colocate (predict|pairs|pack|run|init)", line)]
)
def test_a_command_around_a_run_does_its_work(line, folder, done, fake_nvml):
    command = do_with_what_it_needs(line, folder, done)
    assert command.code == 0, command.output
    assert command.output.strip()
    for written in re.findall(r"--(?:out|page)=(\S+)", line):
        assert (folder / written).exists()


@pytest.mark.parametrize("line", of_kind("colocate predict"))
def test_a_prediction_of_the_docs_answers(line, folder, monkeypatch, capsys):
    monkeypatch.setattr(colocate.advice.predictor, "simulate", simulated)
    monkeypatch.chdir(ROOT)
    assert main(shlex.split(line)[1:]) in (0, 1), "what fits and what does not are both answers"
    assert "predicted for a" in capsys.readouterr().out


@pytest.mark.parametrize("line", of_kind("colocate pairs", "colocate pack"))
def test_a_plan_of_the_docs_is_written(line, tmp_path, monkeypatch, capsys):
    for name in ("settings", "workloads"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setattr(colocate.advice.solo_profiles, "simulate", simulated)
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)[1:]) == 0
    (written,) = re.findall(r"^plan: (\S+):", capsys.readouterr().out, re.M)
    assert load_plan(tmp_path / written).groups


def test_the_plan_of_the_ci_page_loads(tmp_path):
    (plan,) = blocks(ROOT / "docs/how-to/ci.md", "json")
    (tmp_path / "plan.json").write_text(plan)
    for name in ("train.py", "other.py"):
        (tmp_path / name).touch()
    assert load_plan(tmp_path / "plan.json").groups[0].budget_bytes == 3200 * MIB


@pytest.mark.slow
def test_the_loop_of_the_workloads_page_trains(tmp_path, monkeypatch):
    """The block as it stands there, with the names that its reader has: a model, loaders, arguments."""
    torch = pytest.importorskip("torch")
    from workloads import common

    (block,) = blocks(ROOT / "workloads/README.md", "python")
    monkeypatch.setenv("COLOCATE_EVENTS", str(tmp_path / "events"))
    args = common.torch_parser("", epochs=1, batch_size=2, lr=0.1, seed=1).parse_args(["--device", "cpu"])
    model = torch.nn.Linear(3, 1)
    loader = torch.utils.data.DataLoader(torch.ones(6, 3), batch_size=2)
    known = {
        "common": common,
        "args": args,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_loader": loader,
        "test_loader": loader,
        "batch_loss": lambda model, batch, device: model(batch).sum(),
        "test_loss": 0.5,
    }
    before = model.weight.detach().clone()
    exec(block, known)
    assert not torch.equal(before, model.weight)
    events = [json.loads(line)["event"] for line in (tmp_path / "events").read_text().splitlines()]
    assert events[0] == "ready"
    assert events[-2:] == ["epoch_end", "end"]


def test_lines_that_are_not_done_here_have_only_options_that_there_are():
    """With those of this repository's workflow, and of the one that `colocate init` writes."""
    pages = [ROOT / "README.md", ROOT / ".github/workflows/feasibility.yml"]
    found = [
        line for page in pages for line in re.findall(r"run: (?:exec )?((?:scripts|colocate).*)", page.read_text())
    ]
    assert len(found) == len(pages)
    found += [line for line in lines() if why_not(line) is not None]
    known = {f"--{name}" for name in OPTIONS} | {"--html", "--junitxml", "--collect-only", "--lf", "--setup-plan"}
    for words in map(shlex.split, found):
        if words[:2] in (["pytest", "feasibility"], ["colocate", "run"]) or words[0] == "scripts/feasibility":
            assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, words
        elif words[0] == "colocate":
            colocate_parser().parse_args(words[1:])


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path):
    pytest.importorskip("torch")
    page, plan = ROOT / "docs/tutorial.md", tmp_path / "plan.json"
    saved = r"[Ss]ave this as `([\w./]+)`[^\n]*\n\n```\w+\n(.*?)```"
    for name, text in re.findall(saved, page.read_text(), re.DOTALL):
        (tmp_path / name).write_text(text)
    assert {path.name for path in tmp_path.iterdir()} == {"small.py", "large.py", "plan.json"}
    first, verify, second = (line.split() for line in commands(page) if line.startswith("colocate"))

    run = do([*first, "--device=virtual"], tmp_path)
    assert run.code == 0, run.output
    line = r"group01 FEASIBLE \(predicted\) peak (\d+)-(\d+) MiB"
    came, reported = (list(map(int, re.search(line, text).groups())) for text in (run.output, page.read_text()))
    assert came == pytest.approx(reported, rel=0.1), "the page shows what comes out, whatever the build of torch"
    assert (tmp_path / "reports/latest/report.html").exists()

    verified = sessions.colocate(tmp_path, *verify[1:2], run.run)
    assert verified.code == 0, verified.output

    plan.write_text(plan.read_text().replace('"peak": "7500MB"', '"peak": "2500MB"'))
    assert second[:2] == ["colocate", "run"]
    (record,) = run.run.glob("*/experiment.json")
    evidence = read_evidence(GroupDirectory(record.parent))
    limits = replace(evidence.limits, peak_bytes=load_plan(plan).limits.peak_bytes)
    assert judge(replace(evidence, limits=limits)).codes == ("peak_over_limit",)
