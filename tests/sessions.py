"""Whole pytest sessions as a user starts them, in a process of their own, and what they left behind."""

import contextlib
import html
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fake_nvml import FakeNvml
from groups import STAND_IN
from seen import note

from colocate.cli.main import main
from colocate.harness.environment import EVENTS
from colocate.process.procfs import ProcessId, variable_of, with_cookie

ROOT = Path(__file__).parents[1]
LIGHT = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:anyio")
"""Plugins that only these tests have installed, and whose import would cost every session half a second."""


@dataclass(frozen=True)
class Session:
    """A finished session: exit code, terminal, and the files it wrote below ``folder``."""

    code: int
    output: str
    folder: Path

    @property
    def run(self) -> Path:
        (run,) = (self.folder / "results").iterdir()
        return run

    @property
    def verdicts(self) -> dict[str, dict[str, Any]]:
        """The verdicts on disk by group."""
        found = {}
        for path in self.run.glob("*/verdict.json"):
            group = json.loads((path.parent / "experiment.json").read_text())["group"]["id"]
            found[group] = json.loads(path.read_text())
        return found

    @property
    def junit(self) -> dict[str, str]:
        """passed, failure, error or skipped by group, as JUnit has it."""
        return {_group(case.get("name", "")): _word(case) for case in self._suite.iter("testcase")}

    @property
    def junit_counts(self) -> dict[str, int]:
        return {name: int(self._suite.get(name, "")) for name in ("tests", "errors", "failures", "skipped")}

    @property
    def _suite(self) -> ElementTree.Element:
        return ElementTree.parse(self.folder / "junit.xml").getroot()[0]

    @property
    def page(self) -> str:
        """The report; of several in this folder the latest."""
        return max(self.folder.glob("reports/run_*/report.html")).read_text()

    @property
    def rows(self) -> list[tuple[str, str]]:
        """pytest-html's word for each group, by group."""
        blob = html.unescape(re.search(r'data-jsonblob="(.*?)"', self.page, re.DOTALL)[1])  # type: ignore[index]
        tests = json.loads(blob)["tests"].items()
        return sorted((_group(nodeid), test["result"]) for nodeid, found in tests for test in found)


@contextmanager
def simulated_machine(folder: Path, library: Path, patch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    """A simulated machine without GPUs, seen by this process and by its children."""
    with FakeNvml.create(folder / "fake_nvml.state", library) as fake:
        for name, value in fake.environment.items():
            patch.setenv(name, value)
        patch.setenv("COLOCATE_LOCK_FOLDER", str(folder / "locks"))
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        yield fake


def stand_in(*options: str) -> dict[str, Any]:
    """A member of a plan that runs the stand-in."""
    return {"command": ["{python}", str(STAND_IN), *options], "name": "stand_in", "ready_timeout_s": 60}


LOAD = stand_in("--hold", "1500", "--repeat", "--probe")
EPOCH = stand_in("--hold", "700", "--steps", "10", "--probe")


def pair(foreground: dict[str, Any] = EPOCH, background: dict[str, Any] = LOAD, **more: Any) -> dict[str, Any]:
    """A group of a plan: 700 MiB beside 1500."""
    return {"foreground": foreground, "background": background, **more}


def entry(*options: str) -> dict[str, Any]:
    """A group of a plan: such a stand-in beside 900 MiB."""
    return pair(stand_in(*options), stand_in("--hold=900", "--repeat", "--steps=4"))


def plan(path: Path, entries: list[dict[str, Any]], **limits: Any) -> Path:
    """A plan file of parallel groups."""
    document = {
        "experiment_name": "stand-ins",
        "mode": "parallel",
        "limits": {"settle_s": 3, "longest_gap_s": 10, **limits},
        "experiments": entries,
    }
    path.write_text(json.dumps(document))
    return path


def arguments(plan: Path, folder: Path, *more: str) -> list[str]:
    """The command line of a session that keeps its files in ``folder``."""
    files = [f"--results={folder / 'results'}", f"--reports={folder / 'reports'}", f"--junitxml={folder / 'junit.xml'}"]
    return [sys.executable, "-m", "pytest", "feasibility", f"--plan={plan}", *files, *LIGHT, *more]


def run(plan: Path, folder: Path, *more: str, timeout_s: float = 600) -> Session:
    """Run a session to its end."""
    done = subprocess.run(
        arguments(plan, folder, *more),
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    note(f"exit code {done.returncode}")
    return Session(done.returncode, done.stdout + done.stderr, folder)


def colocate(folder: Path, *words: object) -> Session:
    """The command in a folder, in this process: starting one more interpreter would cost more than what it does."""
    said = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    return Session(code, said.getvalue(), folder)


def alive_below(folder: Path) -> list[ProcessId]:
    """The trainings that still run of whatever keeps its records below a folder, and of nothing else."""
    marked = f"{folder}/"
    return [one for one in with_cookie("") if (variable_of(one.pid, EVENTS) or "").startswith(marked)]


def _group(name: str) -> str:
    match = re.search(r"\[(.+)\]", name)
    return match[1] if match else name


def _word(case: ElementTree.Element) -> str:
    return "+".join(child.tag for child in case if child.tag in ("failure", "error", "skipped")) or "passed"
