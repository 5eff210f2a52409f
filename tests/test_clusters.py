"""The commands of docs/how-to/clusters.md, done as each engine would do them, on a plan of two stand-ins."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from sessions import ROOT, entry, plan

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/how-to/clusters.md").read_text()
PLAN = [entry("--hold=2000", "--steps=20", "--probe"), entry("--hold=7000", "--steps=20", "--probe")]


def project(folder):
    """What a checkout has that a run needs, with a plan that is done in seconds."""
    for name in ("conftest.py", "pytest.ini"):
        shutil.copy(ROOT / name, folder)
    for name in ("feasibility", "fixtures", "settings"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    plan(folder / "settings/parallel_feasibility_test.json", PLAN)
    (folder / "scripts").mkdir()
    for name, words in {
        "pytest": "pytest",
        "colocate": "colocate",
        "scripts/feasibility": "colocate run",
    }.items():
        shim = folder / name if "/" in name else folder / "bin" / name
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/bash\nexec {sys.executable} -m {words} "$@"\n')
        shim.chmod(0o755)
    shutil.copy(folder / "bin/colocate", folder / "scripts/colocate")
    return folder


def environment(folder, **variables):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI", "SLURM"))}
    return {**inherited, "PYTHONPATH": str(ROOT), "PATH": f"{folder}/bin:{os.environ['PATH']}", **variables}


def do(script, folder, **variables):
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def section(title):
    return PAGE.split(f"### {title}\n")[1].split("\n### ")[0]


def array_script():
    """The page's job script for Slurm, without what only a real cluster may have."""
    return re.search(r"```bash\n(.*?)```", section("Slurm job arrays"), re.DOTALL)[1]


def kubernetes_script():
    found = re.search(r"- \|\n(.*?)\n {10}resources:", section("Kubernetes Indexed Jobs"), re.DOTALL)[1]
    return "\n".join(line.strip() for line in found.splitlines())


def matrix_scripts():
    return re.findall(r"- run: (?:COLOCATE_EXTRAS= )?(scripts/.*)", section("CI matrices"))  # here nothing is set up


def test_every_engine_runs_its_group_and_the_journals_become_one_run(fake_nvml, tmp_path):
    """Slurm counts its tasks as the page tells it to, from 1; Kubernetes counts from 0, whatever it is told."""
    folder = project(tmp_path)
    first = do(array_script(), folder, SLURM_ARRAY_TASK_ID="1")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "group01 FEASIBLE" in first.stdout
    second = do(kubernetes_script(), folder, JOB_COMPLETION_INDEX="1")
    assert second.returncode == 0, "a group that does not fit is an answer and not a failed pod"
    assert "group02 INFEASIBLE" in second.stdout
    assert {path.name for path in (folder / "archives").iterdir()} == {"group1.jsonl", "group2.jsonl"}

    (merge,) = re.findall(r"\$ (colocate merge .*)", PAGE)
    merged = do(merge, folder)
    assert merged.returncode == 0, merged.stdout + merged.stderr
    assert "1 of 2 groups share an 8 GB GPU" in merged.stdout
    assert (folder / "reports/merged.html").exists()

    run, verdict = matrix_scripts()
    assert run.startswith('scripts/feasibility -k "group${{ matrix.group }}" --archive='), "as the array's script does"
    assert do(verdict, folder).returncode == 0, "0.95 of 2 groups is one, and one fits"
    (folder / "archives/group1.jsonl").unlink()
    assert do(verdict, folder).returncode == 1
