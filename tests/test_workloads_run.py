"""What surrounds the loops of the trainings: events, cuts, accumulation, endings."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from workloads import common, mnist_rnn


def arguments(*given: str) -> argparse.Namespace:
    parser = common.torch_parser("a test", epochs=1, batch_size=4, lr=0.1, seed=0)
    return parser.parse_args(["--device", "cpu", *given])


def progress_with(*given: str) -> common.Progress:
    return common.Progress("test", arguments(*given))


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("COLOCATE_EVENTS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def one_epoch(progress: common.Progress, train: int, test: int, *, made: int | None = None) -> None:
    """So many steps, of which fewer may be made."""
    progress.begin("train", train)
    for _ in range(train if made is None else made):
        progress.batch(4, torch.tensor(1.0))
        progress.step()
    progress.begin("evaluate", test)
    for _ in range(test):
        progress.step()
    progress.end_epoch({"metric": 1.0})


def test_an_epoch_with_fewer_steps_is_cut(events: Any) -> None:
    progress = progress_with()
    one_epoch(progress, 3, 2)
    one_epoch(progress, 3, 2, made=1)

    whole, cut = (event for event in events() if event["event"] == "epoch_end")
    assert [whole[name] for name in ("epoch", "steps", "steps_full", "samples", "cut")] == [1, 3, 3, 12, False]
    assert [cut[name] for name in ("epoch", "steps", "steps_full", "samples", "cut")] == [2, 1, 3, 4, True]
    assert whole["metrics"] == {"metric": 1.0}
    assert whole["samples_per_s"] > 0


@pytest.mark.parametrize(
    ("given", "steps", "samples", "cut"),
    [
        (["--accumulate=1"], 3, 10, False),
        (["--accumulate=2"], 2, 10, False),
        (["--accumulate=2", "--max-steps=1"], 1, 8, True),
        (["--max-steps=3"], 3, 10, True),  # one of four steps of the evaluation is missing
    ],
)
def test_a_training_makes_its_steps(
    events: Any, monkeypatch: pytest.MonkeyPatch, given: list[str], steps: int, samples: int, cut: bool
) -> None:
    """Ten samples in batches of four, the last one of two."""
    monkeypatch.setattr("workloads.samples.MNIST_LENGTH", {"train": 10, "t10k": 4})
    monkeypatch.setattr(mnist_rnn, "TEST_BATCH_SIZE", 1)

    mnist_rnn.main(["--device=cpu", "--workers=0", "--data-dir=none", "--epochs=1", "--batch-size=4", *given])

    record = events()[-2]
    assert (record["steps"], record["samples"], record["cut"]) == (steps, samples, cut)
    assert record["steps_full"] == (2 if "--accumulate=2" in given else 3)


def test_events_come_in_order_with_the_first_and_the_last_step(events: Any) -> None:
    with progress_with() as progress:
        for _ in range(2):  # told once
            progress.ready("synthetic", common.num_parameters(torch.nn.Linear(2, 3)), 100)
        one_epoch(progress, 100, 100)

    reported = events()
    assert [event["event"] for event in reported if event["event"] != "step"] == [
        "ready",
        "phase",
        "phase",
        "epoch_end",
        "end",
    ]
    assert reported[0] | {"t": 0, "pid": 0} == {
        "t": 0,
        "pid": 0,
        "event": "ready",
        "data": "synthetic",
        "parameters": 9,
        "steps_per_epoch": 100,
        "device": "cpu",
    }
    for phase in ("train", "evaluate"):
        steps = [event["step"] for event in reported if event["event"] == "step" and event["phase"] == phase]
        assert (steps[0], steps[-1]) == (1, 100)
        assert len(steps) < 50  # ten a second, not all
    assert [event["t"] for event in reported] == sorted(event["t"] for event in reported)
    assert reported[-1]["exit"] == "ok"


def test_what_is_not_finite_is_missing(events: Any) -> None:
    progress = progress_with()
    progress.begin("train", 1)
    progress.batch(4, torch.tensor(math.nan))
    progress.step()
    progress.end_epoch({"loss": math.inf, "accuracy": 0.5})

    step, record = (event for event in events() if event["event"] in ("step", "epoch_end"))
    assert "loss" not in step
    assert record["metrics"] == {"accuracy": 0.5}


OUT_OF_MEMORY = (
    "CUDA out of memory. Tried to allocate 192.00 MiB. GPU 0 has a total capacity of 9.77 GiB of which 12.00 MiB is "
    "free. Of the allocated memory 8.10 GiB is allocated by PyTorch, and 180.00 MiB is reserved but unallocated."
)


@pytest.mark.parametrize(
    ("error", "how", "requested_bytes"),
    [
        (torch.OutOfMemoryError(OUT_OF_MEMORY), "out_of_memory", 192 * 2**20),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", None),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "out_of_memory", None),
        (ZeroDivisionError("one by none"), "error", None),
    ],
)
def test_running_out_of_memory_has_an_exit_code_and_a_last_line_and_any_other_error_passes_through(
    events: Any, capfd: Any, error: Exception, how: str, requested_bytes: int | None
) -> None:
    with pytest.raises((SystemExit, ZeroDivisionError)) as ending, progress_with():
        raise error

    told, lines = events()[-1], capfd.readouterr().err.strip().splitlines()
    assert (told["exit"], told.get("requested_bytes")) == (how, requested_bytes)
    assert str(error) in told["message"]
    if how == "error":
        assert ending.value is error
        return
    assert ending.value.code == common.EXIT_OUT_OF_MEMORY  # type: ignore[union-attr]
    asked = "192 MiB" if requested_bytes else "unknown"
    assert lines[-1].startswith(f"test: out of memory: asked for {asked}, held ")
    assert type(error).__name__ in "\n".join(lines[:-1])


def test_without_an_events_file_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLOCATE_EVENTS", raising=False)
    monkeypatch.chdir(tmp_path)

    common.write_event("end", exit="ok")

    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_weights_are_loaded_by_name_and_shape_and_those_of_another_model_are_refused(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    stored = {"old.weight": torch.full((2, 2), 7.0), "old.bias": torch.ones(3)}
    torch.save(stored, tmp_path / "weights.pt")

    common.load_weights(model, tmp_path / "weights.pt", rename=lambda name: name.removeprefix("old."))

    assert model.weight.tolist() == [[7.0, 7.0], [7.0, 7.0]]
    assert model.bias.shape == (2,)
    with pytest.raises(ValueError, match="none that fits"):
        common.load_weights(torch.nn.Linear(2, 2), tmp_path / "weights.pt")
    with pytest.raises(argparse.ArgumentTypeError, match="not including"):
        common.fraction("1")  # a dropout of all


@pytest.mark.slow
def test_densenet_weights_under_their_old_names_fit() -> None:
    from workloads.densenet121 import modern_name

    old = "features.denseblock1.denselayer2.norm.1.weight"

    assert modern_name(old) == "features.denseblock1.denselayer2.norm1.weight"
    assert modern_name("features.norm0.weight") == "features.norm0.weight"


def test_loaders_leave_a_core_to_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda _: {0, 1, 2})

    assert common.loader_options(arguments(), workers=4)["num_workers"] == 2
    expected = {"num_workers": 1, "pin_memory": False, "persistent_workers": True}
    assert common.loader_options(arguments(), workers=1) == expected


@pytest.mark.slow
def test_one_seed_gives_one_result(events: Any) -> None:
    for seed in (7, 7, 8):
        mnist_rnn.main(
            ["--device=cpu", "--workers=0", "--data-dir=none", "--max-steps=2", "--epochs=1", f"--seed={seed}"]
        )

    losses = [event["metrics"]["test_loss"] for event in events() if event["event"] == "epoch_end"]
    assert losses[0] == losses[1] != losses[2]
