"""Programs that nobody prepared for it run on the virtual GPU from start to end."""

import importlib.util

import pytest
from emulated import MIB, PROGRAMS, Bench, Run

pytestmark = pytest.mark.slow

FOREIGN = PROGRAMS / "foreign"
KINDS = ("digits", "rows_rnn", "twins", "words", "autoencoder", "forger", "waves", "economical", "trainer_like")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All of them in one process, since most of the time goes into importing torch."""
    bench = Bench(tmp_path_factory.mktemp("foreign"), batches_per_pass=4)
    return bench.run(PROGRAMS / "run_foreign.py", *(FOREIGN / f"{kind}.py" for kind in KINDS), timeout_s=600)


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_runs_unmodified_to_its_end(run: Run, kind: str) -> None:
    ends = [line.split() for line in run.output.splitlines() if line.startswith(f"-- {kind}.py")]

    assert ends, run.output[-2000:]
    assert 16 * MIB < int(ends[0][2]) < 2000 * MIB


def test_no_program_went_beyond_the_emulation(run: Run) -> None:
    assert run.exit_code == 0, run.output[-2000:]
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
