"""`colocate.harness.attempt`: groups run one after the other outside a pytest session."""

import os
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from groups import group, training

from colocate.device.acquire import FoundGpu
from colocate.device.quarantine import Quarantine
from colocate.errors import DeviceError
from colocate.harness.attempt import AttemptRunner
from colocate.process.procfs import with_cookie
from colocate.results.layout import RunDirectory
from colocate.units import MIB

PAIR = group(
    training("epoch", "--hold", "700", "--steps", "80"), training("load", "--hold", "1500", "--repeat"), peak="2500MB"
)


def trials(fake: FakeNvml, folder: Path) -> AttemptRunner:
    return AttemptRunner(RunDirectory(folder / f"run-{os.getpid()}"), "test", FoundGpu("nvidia", fake.uuid()))


@pytest.mark.slow
def test_every_trial_has_a_record_and_leaves_nothing_behind(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    several = trials(fake_nvml, tmp_path)

    first, second = several.attempt(PAIR), several.attempt(PAIR)

    assert first.verdict.feasible, first.verdict
    assert first.verdict.peak_bytes == 2200 * MIB
    assert first.directory.path != second.directory.path
    assert with_cookie(f"{several.run.name}/") == []


def test_nothing_is_tried_on_a_gpu_in_quarantine(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    several = trials(fake_nvml, tmp_path)
    Quarantine(several.run.quarantine).add(fake_nvml.uuid(), "it was lost")

    with pytest.raises(DeviceError, match="it was lost"):
        several.attempt(PAIR)
    assert not list(several.run.path.glob("*/experiment.json"))
