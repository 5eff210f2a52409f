"""Figures out of evidence. The evidence here is made up, and exists in the folders of these tests only."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sessions import ROOT

from colocate.errors import ColocateError
from colocate.plan.gpu_models import GpuModelsFile
from colocate.units import MIB
from colocate.verdict.predicted_peak import MORE

sys.path.insert(0, str(ROOT / "scripts"))  # after the tests' own modules, of which one is called sessions

from gpu_evidence.calibration import (
    calibrate,
    comparisons,
    main,
    proposal,
    read_evidence,
    same_gpu,
    update_table,
)

CONTEXT_MIB = 500


def solo(reserved_mib: int, rest_mib: int, **changes: Any) -> dict[str, Any]:
    peak = (reserved_mib + rest_mib + 10) * MIB
    member = {"name": "x", "reserved_bytes": reserved_mib * MIB, "out_of_memory": 0, **changes}
    return {
        "state": "done",
        "peak_bytes": peak,
        "sampled_bytes": peak,
        "baseline_bytes": 10 * MIB,
        "members": {"foreground": member},
    }


def peak(reserved_mib: int) -> dict[str, Any]:
    """A prediction with margins of 12 % down and as much up as is in use, contexts from 400 to 700 MiB."""
    sizes = (0.88 * reserved_mib + 400, reserved_mib + CONTEXT_MIB, (1 + MORE) * reserved_mib + 700)
    return {"peak": [round(size * MIB) for size in sizes]}


def made_up(folder: Path, **changes: Any) -> Path:
    """An evidence folder of a synthetic GPU."""
    units = {
        "machine": {"state": "done", "versions": {"torch": "0.0.0"}, "capability": "9.0"},
        "solo a": solo(1000, 480),
        "solo b": solo(2100, 520),
        "solo c": solo(800, 560),
        "solo ran out": solo(5000, 9999, out_of_memory=1),
        "solo beside a foreign process": {**solo(1000, 20_000), "codes": ["foreign_process"]},
        "small group02": {**solo(100, 500), "codes": ["background_never_ready"]},
        "small group01": {
            "peak_bytes": 4200 * MIB,
            "baseline_bytes": 0,
            "members": {"foreground": {"out_of_memory": 0}},
        },
        "predictions": {
            "context_bytes": CONTEXT_MIB * MIB,
            "context_range_bytes": [400 * MIB, 700 * MIB],
            "programs": {"a": peak(1000), "b": peak(2000), "c": peak(1200), "beside a foreign process": peak(1000)},
            "groups": {
                "group02": {"peak": [3000 * MIB, 3800 * MIB, 4100 * MIB]},
                "group01": {"peak": [3000 * MIB, 3800 * MIB, 4100 * MIB]},
            },
        },
    }
    document = {
        "schema": 1,
        "basis": "measured",
        "gpu": "SYNTHETIC GPU 16GB",
        "total_bytes": 16000 * MIB,
        "driver": "0.0 (synthetic)",
        "units": units,
        **changes,
    }
    folder.mkdir()
    (folder / "evidence.json").write_text(json.dumps(document))
    return folder


def test_contexts_are_what_is_held_beside_the_allocator_and_margins_the_least_that_would_have_held(
    tmp_path: Path,
) -> None:
    found = calibrate([made_up(tmp_path / "synthetic")])

    assert found.context_bytes == (480 * MIB, 520 * MIB, 560 * MIB)
    assert found.baseline_bytes == 10 * MIB
    assert set(found.rests) == {"a", "b", "c"}, "what ran out of memory, or was not alone, tells nothing"
    assert found.source == "measured: synthetic (driver 0.0 (synthetic), torch 0.0.0), 3 programs alone"
    assert found.less == pytest.approx(1 - 800 / 1200)
    assert found.more == pytest.approx(2100 / 2000 - 1, abs=1e-6)
    assert "33.3% down and 5.0% up would have held" in "\n".join(proposal(found))


def test_intervals_are_held_against_what_was_measured(tmp_path: Path) -> None:
    found = {one.name: one for one in comparisons(read_evidence(made_up(tmp_path / "synthetic")))}

    assert {name: one.held for name, one in found.items()} == {
        "solo a": "yes",
        "solo b": "yes",
        "solo c": "below",
        "small group01": "above",
    }
    assert found["solo a"].error == pytest.approx(1500 / 1480 - 1)


def test_the_table_gets_a_new_row_with_its_source(tmp_path: Path) -> None:
    table = Path(shutil.copy(ROOT / "settings" / "gpu_models.json", tmp_path))

    said = update_table(calibrate([made_up(tmp_path / "synthetic")]), table)

    assert said.endswith("added SYNTHETIC GPU 16GB")
    read = GpuModelsFile.model_validate(json.loads(table.read_text()))
    row = next(row for row in read.gpus if row.name == "SYNTHETIC GPU 16GB")
    assert (row.context.low, row.context.expected, row.context.high) == (480 * MIB, 520 * MIB, 560 * MIB)
    assert (row.compute_capability, row.cublas_workspace, row.baseline) == ("9.0", 32 * MIB, 10 * MIB)
    assert row.sources["context"].startswith("measured: synthetic")


def test_a_known_row_changes_and_the_rest_stays_as_it_was_written(tmp_path: Path) -> None:
    table = Path(shutil.copy(ROOT / "settings" / "gpu_models.json", tmp_path))
    before = table.read_text().splitlines()

    said = update_table(calibrate([made_up(tmp_path / "synthetic", gpu="NVIDIA H100 80GB HBM3")]), table)

    after = table.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert said.endswith("changed NVIDIA H100 80GB")
    assert len(changed) == 4
    assert changed[0][1].strip() == '"context": {"expected": "520MB", "low": "480MB", "high": "560MB"},'


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"basis": "simulated"}, "expected figures measured on a GPU, found 'simulated' ones"),
        ({"basis": "predicted"}, "expected figures measured on a GPU, found 'predicted' ones"),
        ({"gpu": "Other"}, "expected evidence of one kind of GPU, found Other, SYNTHETIC"),
        ({"units": {"solo a": solo(1000, 500)}}, "expected at least 3 trainings measured alone, found 1"),
    ],
)
def test_what_was_not_measured_or_on_another_gpu_or_too_little_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folders = [made_up(tmp_path / "synthetic", **changes)]
    folders += [made_up(tmp_path / "other")] if "gpu" in changes else []
    with pytest.raises(ColocateError, match=said):
        calibrate(folders)
    assert [same_gpu("NVIDIA H100 80GB", f"NVIDIA H100 {more}") for more in ("80GB HBM3", "NVL")] == [True, False]


def test_the_command_prints_and_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Path(shutil.copy(ROOT / "settings" / "gpu_models.json", tmp_path))

    assert main([str(made_up(tmp_path / "synthetic")), "--update", "--table", str(table)]) == 0

    said = capsys.readouterr().out
    assert "context   520 MiB (480 MiB to 560 MiB)" in said
    assert "intervals 2 of 4 held, 1 above, 1 below" in said
    assert "SYNTHETIC GPU 16GB" in table.read_text()


@pytest.mark.slow
def test_the_benchmark_compares_an_evidence_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/prediction_accuracy.py", "--evidence", str(made_up(tmp_path / "synthetic"))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "| small group01 | 3800 (3000 to 4100) | 4200 | -9.5% | above |" in done.stdout
    assert "3 x training: median error" in done.stdout
