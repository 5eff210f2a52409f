"""`scripts/gpu-evidence` from end to end on the simulated GPU and on the virtual one, and its arithmetic."""

import json
import math
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_nvml import MIB, FakeNvml
from sessions import ROOT, plan, stand_in

from colocate.verdict.evidence import Sample

NVIDIA_SMI = """#!{python}
import sys, time, pynvml
pynvml.nvmlInit()
GPU = pynvml.nvmlDeviceGetHandleByIndex(0)
while "-lms" in sys.argv:
    print(pynvml.nvmlDeviceGetMemoryInfo(GPU, pynvml.nvmlMemory_v2).used // 1024**2, flush=True)
    time.sleep(0.1)
print("simulated nvidia-smi")
"""


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The package beside the script."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_evidence.overhead
    import gpu_evidence.pages
    import gpu_evidence.smi

    return gpu_evidence


def groups(folder: Path) -> Path:
    steps = ("--steps=40", "--context=120", "--probe")
    pairs = [(1500, 2500), (5000, 4000)]
    return plan(
        folder / "plan.json",
        [
            {
                "foreground": named(f"epoch_{ours}", f"--hold={ours}", *steps),
                "background": named(f"load_{theirs}", f"--hold={theirs}", *steps),
                "expected_memory": "4000MB",
            }
            for ours, theirs in pairs
        ],
    )


def named(name: str, *options: str) -> dict[str, Any]:
    return {**stand_in(*options), "name": name, "repeat_args": ["--repeat"]}


def gathered(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    more = ["--work", str(folder / "work"), "--minutes=3", "--rounds=2", "--block=0.6", *options]
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu-evidence"), "--plan", str(folder / "plan.json"), *more],
        env={**os.environ, "COLOCATE_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_on_the_simulated_gpu_all_is_done_and_says_what_it_is(
    large_gpu: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_gpu.state.gpus[0].baseline_bytes = 30 * MIB
    groups(tmp_path)
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(NVIDIA_SMI.format(python=sys.executable))
    smi.chmod(smi.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{smi.parent}:{os.environ['PATH']}")
    out = tmp_path / "out"
    units = ["solo epoch_1500", "smi", "small", "kill", "overhead", "whole group02"]

    done = gathered(tmp_path, "--device=nvidia", "--out", str(out), *(f"--only={name}" for name in units))

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "evidence.json").read_text())
    said = found["units"]
    assert found["basis"] == "simulated"
    assert [said[f"small group0{n}"]["outcome"] for n in (1, 2)] == ["FEASIBLE", "INFEASIBLE"]
    assert "foreground_out_of_memory" in said["small group02"]["codes"]
    assert said["whole group02"]["codes"] == ["peak_over_limit"], "the whole GPU holds it, the plan's limit does not"
    solo = said["solo epoch_1500"]
    assert solo["peak_bytes"] - solo["baseline_bytes"] == 1500 * MIB
    assert solo["members"]["foreground"]["reserved_bytes"] == 1380 * MIB
    assert said["smi"]["kept"], said["smi"]
    assert said["kill"]["kept"], said["kill"]
    assert said["kill"]["under_load"]["used_bytes"] > 70 * 1024 * MIB
    assert said["overhead_sampler"]["state"] == said["overhead_probe"]["state"] == "done"
    assert abs(said["overhead_probe"]["difference"]) < 0.5, "a stand-in sleeps: what is tested is that it is measured"
    for path in out.rglob("*"):
        if path.is_file():
            assert "NOT EVIDENCE" in path.read_text()[:400], path
    assert (out / "traces" / "small_group01.csv").read_text().count("\n") > 20
    assert large_gpu.used_bytes() == 30 * MIB
    assert not (ROOT / "docs" / "evidence").exists()


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(large_gpu: FakeNvml, tmp_path: Path) -> None:
    groups(tmp_path)
    out = ("--device=nvidia", "--out", str(tmp_path / "out"))

    first = gathered(tmp_path, *out, "--only=solo epoch_1500")
    short = gathered(tmp_path, *out, "--only=solo epoch", "--minutes=0.2")
    last = gathered(tmp_path, *out, "--only=solo epoch")

    assert [first.returncode, short.returncode, last.returncode] == [0, 3, 0], short.stdout + short.stderr
    assert "run it again" in short.stdout
    assert done(first) == ["solo epoch_1500"]
    assert done(short) == []
    assert done(last) == ["solo epoch_5000"]


def done(call: "subprocess.CompletedProcess[str]") -> list[str]:
    """The units that a call has done."""
    return re.findall(r"^done +(.+?) \(", call.stdout, re.MULTILINE)


@pytest.mark.slow
def test_what_was_not_measured_never_goes_to_the_evidence(tmp_path: Path) -> None:
    groups(tmp_path)

    done = gathered(tmp_path, "--device=virtual", "--out", str(ROOT / "docs" / "evidence" / "mine"), "--write")

    assert done.returncode == 2
    assert "docs/evidence is for what was measured, this is not" in done.stderr
    assert not (ROOT / "docs" / "evidence").exists()


def test_its_own_place_is_elsewhere(evidence: Any, tmp_path: Path) -> None:
    assert evidence.pages.place("measured", "h100", tmp_path, None) == tmp_path / "docs/evidence/h100"
    for basis in ("simulated", "predicted"):
        assert evidence.pages.place(basis, "h100", tmp_path, None) == tmp_path / "results/not-evidence/h100"
        assert evidence.pages.place(basis, "h100", tmp_path, tmp_path / "docs/x/../evidence") is None


# --- arithmetic


def test_step_times_leave_out_what_lies_between_phases(evidence: Any) -> None:
    steps = [(0.0, 1, 1), (1.0, 11, 1), (9.0, 1, 2), (10.0, 11, 2)]

    assert evidence.overhead.step_time(steps, 0.0, math.inf) == pytest.approx(0.1)
    assert evidence.overhead.step_time(steps, 0.5, 9.5) is None


def test_a_difference_comes_with_its_noise(evidence: Any) -> None:
    found = evidence.overhead.compared([0.100, 0.101, 0.099, 0.100], [0.1001, 0.1011, 0.0991, 0.1001], "x")

    assert found["difference"] == pytest.approx(0.001)
    assert found["noise"] == pytest.approx(0.00816, rel=0.01)
    assert found["kept"]
    assert not found["shown"], "the noise is larger than the target"


def test_students_quantile(evidence: Any) -> None:
    for freedom, quantile in ((3, 3.182), (6, 2.447), (8, 2.306), (18, 2.101)):
        assert evidence.overhead.student(freedom) == pytest.approx(quantile, rel=0.02)


def test_readings_are_compared_only_where_nothing_changes(evidence: Any) -> None:
    ours = tuple(Sample(n / 20, (500 if n < 40 else 700) * MIB) for n in range(80))

    assert evidence.smi.paired([(1.0, 500.0), (2.0, 600.0), (3.0, 700.0)], ours) == [(500.0, 500.0), (700.0, 700.0)]


@pytest.mark.slow
def test_missing_packages_come_from_a_folder_of_wheels(tmp_path: Path) -> None:
    """As on a machine without a network; the wheel here is made up."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "pynvml-0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pynvml.py", "")
        wheel.writestr("pynvml-0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pynvml\nVersion: 0\n")
        wheel.writestr("pynvml-0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("pynvml-0.dist-info/RECORD", "")

    done = subprocess.run(
        [sys.executable, "-S", "-m", "gpu_evidence", "--wheels", str(wheels), "--work", str(tmp_path / "work")],
        env={"PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "missing: pydantic, pandas, torch; bring them as wheels: --wheels DIR" in done.stderr
    assert (tmp_path / "work" / "packages" / "pynvml.py").exists()
