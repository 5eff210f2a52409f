"""The wheel in an environment of its own: what is in it, what it runs in any folder, and what it leaves alone."""

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from groups import STAND_IN

from colocate.cli.main import main

ROOT = Path(__file__).parents[1]
PLAN = {
    "limits": {"settle_s": 3},
    "experiments": [
        {
            "foreground": {"command": ["{python}", str(STAND_IN), "--probe", "--steps=15", "--hold=900"]},
            "background": {"command": ["{python}", str(STAND_IN), "--probe", "--repeat", "--hold=600"]},
        }
    ],
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of this checkout, built from a copy, so that nothing is written into it."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip("this is no checkout")
    for name in files.stdout.splitlines():
        if not name.startswith(("tests/", "benchmarks/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = (folder / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a virtual environment with the wheel and, from around it, everything but colocate."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    outside = [path for path in sys.path if path.endswith("-packages")]
    (packages / "outside.pth").write_text("\n".join(outside))
    return folder / "bin/python"


def run(python, folder, *words):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "CI"))}
    return subprocess.run(
        [str(python), "-m", *words], cwd=folder, env=inherited, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name_and_everything_of_the_checkout(wheel):
    """`workloads` used to lie beside it in everybody's site-packages, and cases, fixtures and settings were missing."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"colocate"}

    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]
    ours = {name for name in files if name.startswith("colocate/")}
    moved = {f"colocate/{name}" for name in files if name.split("/")[0] in ("fixtures", "settings", "workloads")}
    assert names == ours | moved | {"colocate/feasibility/test_groups.py"}


def test_the_list_of_packages_is_that_of_the_tree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = {".".join(path.relative_to(ROOT).parts[:-1]) for path in (ROOT / "colocate").rglob("__init__.py")}
    moved = {"colocate.feasibility", "colocate.fixtures", "colocate.settings", "colocate.workloads"}
    assert set(project["tool"]["setuptools"]["packages"]) == found | moved


@pytest.mark.slow
def test_a_plan_runs_in_any_folder_from_the_wheel(python, tmp_path, fake_nvml):
    """Beside a conftest whose fixtures have the names of ours, and settings that no session of ours should follow."""
    fake_nvml.add_gpu()
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    (tmp_path / "other.json").write_text('{"experiments": 3}')
    (tmp_path / "conftest.py").write_text("import pytest\n@pytest.fixture\ndef device(): return 'mine'\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers\npython_functions = check_*\n")

    for words in (
        ["colocate", "run", "plan.json", "--device=nvidia"],
        ["pytest", "plan.json", "-k", "group1", "--colocate-device=nvidia"],
    ):
        done = run(python, tmp_path, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.splitlines()[-1] == "exit 0: 1 of 1 feasible, 1 needed by the plan"
    assert len(list(tmp_path.glob("results/run_*/summary.csv"))) == 2
    assert (tmp_path / "reports/latest/report.html").exists()


@pytest.mark.slow
def test_the_twelve_groups_come_along(python, tmp_path):
    done = run(python, tmp_path, "colocate", "run", "--collect-only", "-q")
    assert re.findall(r"\[(group\d\d)\]", done.stdout) == [f"group{number:02}" for number in range(1, 13)]
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_project_without_a_plan_is_as_without_colocate(python, tmp_path):
    """No output, no option without prefix, no import of what a run needs; a JSON with experiments stays a file."""
    (tmp_path / "test_mine.py").write_text(
        "import sys\n\ndef test_mine(pytestconfig):\n"
        "    assert not {'colocate.plan', 'colocate.harness', 'pydantic', 'pandas'} & set(sys.modules)\n"
        "    assert not [name for name in vars(pytestconfig.option) if name in ('plan', 'device', 'gpu', 'results')]\n"
    )
    (tmp_path / "data.json").write_text('{"experiments": []}')
    session = [run(python, tmp_path, "pytest", *more).stdout for more in ((), ("-p", "no:colocate.plugin"))]

    texts = [re.sub(r"in [\d.]+s|plugins: .*", "", text) for text in session]
    assert texts[0] == texts[1]
    assert "1 passed" in texts[0]
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith((".", "_"))) == [
        "data.json",
        "test_mine.py",
    ]


def test_init_writes_a_plan_and_a_workflow_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    assert main(["init", "python train.py --epochs 1", "bash -c 'sleep 1'"]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["experiments"][0]["foreground"]["command"] == ["{python}", "train.py", "--epochs", "1"]
    workflow = (tmp_path / ".github/workflows/colocate.yml").read_text()
    assert 'colocate" run plan.json' in workflow
    assert re.findall(r"uses: \S+@(\S+)", workflow) == re.findall(r"uses: \S+@([0-9a-f]{40})", workflow)

    from colocate.plan import load_plan

    assert load_plan(tmp_path / "plan.json").ids == ("group01",)
    assert main([]) == 0
    assert "colocate run plan.json" in capsys.readouterr().out
    assert main(["init"]) == 2
    assert "found plan.json and .github/workflows/colocate.yml" in capsys.readouterr().err
