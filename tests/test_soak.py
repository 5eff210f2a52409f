"""A short soak with a fixed seed; `soak.py` runs long ones by hand."""

from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from seen import note
from soak import soak


@pytest.mark.slow
def test_a_short_soak_holds_its_invariants(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    fake_nvml.add_gpu()
    result = soak(tmp_path, fake_nvml, number=8, seed=7)
    note(f"8 groups, {len(result.broken)} broken invariants")

    assert result.broken == [], result.session.output
