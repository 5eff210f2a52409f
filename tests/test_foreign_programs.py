"""Programs that nobody prepared for it run on the virtual GPU from start to end."""

import importlib.util

import pytest
from emulated import MIB, PROGRAMS, Bench

pytestmark = pytest.mark.slow

FOREIGN = PROGRAMS / "foreign"
KINDS = ("digits", "rows_rnn", "twins", "words", "autoencoder", "forger", "waves", "economical", "trainer_like")


def test_programs_run_unmodified_to_their_end(tmp_path) -> None:
    """All of them in one process, since most of the time goes into importing torch."""
    bench = Bench(tmp_path, batches_per_pass=4)
    run = bench.run(PROGRAMS / "run_foreign.py", *(FOREIGN / f"{kind}.py" for kind in KINDS), timeout_s=600)

    assert run.exit_code == 0, run.output[-2000:]
    ends = [line.split()[1:] for line in run.output.splitlines() if line.startswith("-- ")]
    assert [name for name, _ in ends] == [f"{kind}.py" for kind in KINDS]
    assert all(16 * MIB < int(reserved) < 2000 * MIB for _, reserved in ends), ends
    assert run.record["unsupported"] is None
    assert run.record["num_ooms"] == 0
    assert run.record["passes_cut"] > 0
    assert [note.split(":")[0] for note in run.record["notes"]] == ["cudnn.benchmark is on"], "the forger asks for it"


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="the Trainer needs accelerate")
def test_the_trainer_of_transformers_runs_unmodified(tmp_path) -> None:
    run = Bench(tmp_path, batches_per_pass=4).run(FOREIGN / "fine_tuning.py")

    assert run.exit_code == 0, run.output[-2000:]
    assert "eval_accuracy" in run.output
    assert run.record["unsupported"] is None
