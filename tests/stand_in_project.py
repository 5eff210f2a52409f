"""A small project whose cases attach fabricated verdicts: no training is run, everything of pytest's is real."""

import json
import os
import subprocess
import sys
from pathlib import Path

from sessions import LIGHT, ROOT, Session

CASES = """
import json, os, signal, time
from pathlib import Path
import pytest
from colocate.errors import DeviceError, InconclusiveError
from colocate.files import write_json
from colocate.plugin.session import cases, run_directory_of
from colocate.plugin.outcomes import attach
from colocate.results import GroupResult
from colocate.results.record import glance
from colocate.units import MIB
from colocate.verdict import Outcome, Reason, ReasonCode, Verdict

HERE = Path(__file__).parent.parent
WAYS = json.loads((HERE / "ways.json").read_text())


def pytest_generate_tests(metafunc):
    metafunc.parametrize("group", cases(metafunc.config))


def verdict(outcome, peak_mib, *reasons):
    peak, limit = peak_mib * MIB, 7500 * MIB
    reasons = tuple(Reason(ReasonCode(code), text) for code, text in reasons)
    sizes = (peak, peak, peak, limit, limit - peak)
    return Verdict(outcome, "measured", reasons, (), *sizes, "usable", 0.9, (), (), False)


@pytest.fixture
def directory(group, request):
    if WAYS.get(group.id) == "broken GPU":
        raise DeviceError("GPU: expected a reading, got none")
    folder = run_directory_of(request.config).group(group.foreground.name, group.number, parallel=True).create()
    folder.foreground_log.write_text(f"output of {group.id}")
    (HERE / f"{group.id}.gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    yield folder
    if WAYS.get(group.id) == "slow end":
        (HERE / f"{group.id}.ending").touch()
        time.sleep(600)
    folder.trace.write_text("elapsed_s,used_bytes\\n0.5,1048576\\n")
    (HERE / f"{group.id}.ended").touch()


def test_group(group, directory, request):
    way = WAYS.get(group.id, "feasible")
    (HERE / f"{group.id}.started").write_text(str(os.getpid()))  # here, for a signal in the fixture skips its end
    if way == "skip":
        pytest.skip("workloads/x.py is not there")
    (HERE / f"{group.id}.running").touch()
    if way in ("wait", "slow end"):
        time.sleep(600)
    verb, _, other = way.rpartition(" ")
    if verb in ("wait for", "outlive"):
        while not (HERE / f"{other}.ended").exists():
            time.sleep(0.02)
        time.sleep(0.5 if verb == "outlive" else 0)
    if way == "block the summary":
        (directory.path.parent / "summary.csv").mkdir()
    if way == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if way == "bug":
        raise ZeroDivisionError("a bug of the harness")
    if way == "nothing":
        return
    known = {
        "feasible": verdict(Outcome.FEASIBLE, 5000),
        "infeasible": verdict(Outcome.INFEASIBLE, 7812, ("peak_over_limit", "peak 7812 MiB, limit 7500 MiB")),
        "inconclusive": verdict(Outcome.INCONCLUSIVE, 5000, ("sensor_lost", "the GPU stopped answering <b>x</b>")),
    }
    found = known.get(way, known["feasible"])
    write_json(directory.experiment, {"evidence": {}})
    write_json(directory.verdict, found.to_json())
    attempt = glance(directory)
    attach(request.node, GroupResult.of(attempt, found, (attempt,)).as_planned(group))
    if found.outcome is Outcome.INCONCLUSIVE:
        raise InconclusiveError(str(found))
    assert not found.out_of_memory, str(found)
    assert not found.over_limit, str(found)
    assert found.epoch_finished, str(found)
    assert found.feasible, str(found)
"""


class Project:
    """The files of a stand-in project and ways to run pytest on it."""

    def __init__(self, folder: Path, ways: dict[str, str], num_groups: int, **entry: object) -> None:
        self.folder = folder
        for name in ("feasibility", "settings"):
            (folder / name).mkdir()
        (folder / "conftest.py").write_text('pytest_plugins = ("colocate.plugin", "colocate.plugin.short_options")\n')
        (folder / "pytest.ini").write_text((ROOT / "pytest.ini").read_text())
        (folder / "feasibility/test_groups.py").write_text(CASES)
        (folder / "ways.json").write_text(json.dumps(ways))
        self.write_plan(num_groups, **entry)

    @classmethod
    def at(cls, folder: Path) -> "Project":
        """The project that is in a folder already."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    def write_plan(self, num_groups: int, **entry: object) -> None:
        tiers = ("low", "medium", "high")
        entries = [
            {
                "mode": "parallel",
                "tier": tiers[number % 3],
                "expected_memory": f"{3000 + 100 * number}MB",
                "foreground": {"command": ["{python}", "-c", "pass"], "name": f"mnist_{number}"},
                "background": {"command": ["{python}", "-c", "pass"], "name": "resnet20"},
                **entry,
            }
            for number in range(num_groups)
        ]
        document = {"experiment_name": "stand_in", "experiments": entries}
        (self.folder / "settings/parallel_feasibility_test.json").write_text(json.dumps(document))

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        """Start pytest as a process of its own, in a group of its own."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "CI"))}
        environment = {**inherited, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **environment}
        device = [] if any(word.startswith("--device") for word in arguments) else ["--device=virtual"]
        chosen = any(word.startswith(("-n", "--executor", "no:xdist")) for word in arguments)
        workers = [] if chosen or "SIDE_BY_SIDE" in environment else ["-n0"]
        light = LIGHT[2:]  # --lf goes on with an earlier run
        command = [sys.executable, "-m", "pytest", *light, *device, *workers, "--junitxml=junit.xml", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: "subprocess.Popen[str]") -> Session:
        output, _ = process.communicate(timeout=600)
        return Session(process.returncode, output, self.folder)

    def run(self, *arguments: str, **environment: str) -> Session:
        return self.finish(self.start(*arguments, **environment))
