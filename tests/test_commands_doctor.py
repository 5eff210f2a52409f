"""``colocate doctor`` on machines that have this and lack that."""

import os
import signal
import subprocess
import sys

import pytest
from fake_nvml import FakeNvml

from colocate.cli import diagnostics
from colocate.cli.diagnostics import Finding, verdict_of
from colocate.cli.main import main

BARE = [Finding("packages", "ok", ""), Finding("torch", "ok", ""), Finding("plan", "ok", "")]


def found(about, *arguments):
    return next(finding for finding in diagnostics.examine(*arguments, quick=True) if finding.about == about)


@pytest.fixture
def no_driver(monkeypatch):
    monkeypatch.setattr(diagnostics, "library_present", lambda: False)


def test_without_a_gpu_it_says_what_still_works_and_ends_well(no_driver, tmp_path, capsys):
    assert main(["doctor", "--quick", "--results", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "warning GPU: none: libnvidia-ml.so.1 is not there; predictions on the virtual GPU, verify, report" in out
    assert "-> to measure, install the NVIDIA driver" in out
    assert out.splitlines()[-1] == "ready to predict on a virtual GPU, which needs no GPU: colocate run"


@pytest.mark.slow
def test_the_virtual_gpu_is_tried_with_the_torch_at_hand(no_driver):
    pytest.importorskip("torch")
    assert diagnostics._virtual_gpu() == Finding("virtual GPU", "ok", "works with this torch")


def test_a_trial_that_fails_says_what_the_program_said(tmp_path):
    failed = diagnostics._tried(["sh", "-c", "echo boom >&2; exit 3"], {}, tmp_path)
    assert (failed.state, "its trial ended with 3 and said 'boom'" in failed.text) == ("error", True)


def test_a_plan_that_cannot_be_used_is_no_run(no_driver, tmp_path, capsys):
    (tmp_path / "plan.json").write_text('{"experiments": []}')
    assert main(["doctor", "--quick", "--plan", str(tmp_path / "plan.json")]) == 1
    assert "no run is possible before this is mended: plan" in capsys.readouterr().out


def test_a_driver_that_fails_is_never_passed_over_and_without_gpu_and_emulation_nothing_is_possible(
    tmp_path, monkeypatch
):
    findings = [*BARE, Finding("GPU", "error", "NVML: driver not loaded"), Finding("virtual GPU", "ok", "")]
    possible, text = verdict_of(findings)
    assert not possible
    assert "--device=virtual" in text
    findings = [*BARE, Finding("GPU", "warning", "none"), Finding("virtual GPU", "error", "")]
    possible, text = verdict_of(findings)
    assert not possible
    assert text.startswith("no run is possible: there is no GPU, and the virtual GPU does not ")

    monkeypatch.setattr(diagnostics, "ROOM_BYTES", 2**62)
    finding = diagnostics._disk(tmp_path / "not/there/yet")
    assert (finding.state, "make room" in finding.cure) == ("warning", True)


def test_a_gpu_is_named_with_its_driver_and_a_simulated_one_stamped(fake_nvml: FakeNvml, tmp_path):
    finding = found("GPU", None, tmp_path)
    assert finding.state == "ok"
    assert "1 free" in finding.text
    assert "(SIMULATED)" in finding.text
    assert found("accounting", None, tmp_path).state in ("ok", "warning")


def test_a_reader_that_has_seen_enough_is_no_fault(tmp_path):
    """As `colocate doctor | head -1`."""
    command = [sys.executable, "-m", "colocate", "doctor", "--quick", "--results", str(tmp_path)]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)

    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")
