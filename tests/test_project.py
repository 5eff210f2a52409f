"""The project's own files agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from colocate import __version__

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in requirements}


def test_pip_and_uv_get_the_same_versions() -> None:
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == PINS


def test_every_direct_requirement_is_pinned() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = names(PROJECT["project"]["dependencies"]) | names(extras["workloads"]) | names(extras["test"])

    assert wanted <= names(PINS)


def test_pytest_is_configured_in_one_place() -> None:
    """pytest.ini wins over pyproject.toml in silence."""
    assert "pytest" not in PROJECT["tool"]


@pytest.mark.parametrize(
    "path", [*sorted(filter(Path.is_file, (ROOT / "scripts").iterdir())), ROOT / ".ci/run"], ids=lambda path: path.name
)
def test_scripts_are_sound_for_the_shell(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, check=False).stderr == b""


def test_the_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    from colocate.cli.main import main

    with pytest.raises(SystemExit):
        main(["--version"])

    assert capsys.readouterr().out == f"colocate {__version__}\n"


def test_every_source_file_names_its_licence() -> None:
    folders = ("colocate", "fixtures", "feasibility", "workloads", "scripts")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]

    assert [path for path in files if "SPDX-License-Identifier: Apache-2.0" not in path.read_text()[:200]] == []
