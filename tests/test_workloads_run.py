"""What surrounds the loops of the trainings: events, cuts, accumulation, endings."""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from workloads import common


def run_with(*given: str) -> common.Run:
    parser = common.torch_parser("a test", epochs=1, batch_size=4, lr=0.1, seed=0)
    return common.Run("test", parser.parse_args(["--device", "cpu", "--workers", "0", *given]))


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv("COLOCATE_EVENTS", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def loader(samples: int, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(samples)), 4, **options)


class CutLoader:
    """A loader as the virtual GPU makes it: a short pass of one that keeps its length, or promises another."""

    def __init__(self, whole: DataLoader, batches: int, promised: int | None = None) -> None:
        self.batches = list(whole)[:batches]
        self.length = len(whole) if promised is None else promised

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Any:
        return iter(self.batches)


def one_epoch(run: common.Run, train: Any, test: Any) -> list[int]:
    """Samples of each step."""
    seen = []
    for _ in run.epochs():
        for step in run.train(train):
            seen.append(sum(len(batch[0]) for batch in step.batches))
            step.done(torch.tensor(1.0))
        for _ in run.evaluate(test):
            pass
        run.epoch_end({"metric": 1.0})
    return seen


@pytest.mark.parametrize(
    ("given", "train", "test", "seen", "cut"),
    [
        ([], loader(10), loader(8), [4, 4, 2], False),
        (["--accumulate", "2"], loader(20), loader(4), [8, 8, 4], False),
        (["--max-steps", "2"], loader(12), loader(4), [4, 4], True),
        (["--max-steps", "3"], loader(12), loader(16), [4, 4, 4], True),
        ([], CutLoader(loader(40), 3), loader(4), [4, 4, 4], True),
        ([], CutLoader(loader(16), 2, promised=3), loader(4), [4, 4], True),
        ([], loader(12), CutLoader(loader(40), 3), [4, 4, 4], True),
    ],
    ids=["whole", "accumulated", "max-steps", "max-steps in evaluation", "cut", "ends early", "cut evaluation"],
)
def test_an_epoch_tells_its_steps_and_a_shorter_one_is_cut(
    events: Any, given: list[str], train: Any, test: Any, seen: list[int], cut: bool
) -> None:
    assert one_epoch(run_with(*given), train, test) == seen

    record = events()[-1]
    steps_full = -(-len(train) // (2 if "--accumulate" in given else 1))
    assert (record["steps"], record["steps_full"], record["cut"]) == (len(seen), steps_full, cut)
    assert record["metrics"] == {"metric": 1.0}
    assert record["samples_per_s"] > 0


def test_an_optimizer_step_that_was_not_made_is_not_counted(events: Any) -> None:
    run = run_with()
    for _ in run.epochs():
        for step in run.train(loader(8)):
            if not step.batches[0][0][0]:  # only the first
                step.done()
        run.epoch_end({})

    assert (events()[-1]["steps"], events()[-1]["cut"]) == (1, True)


def test_events_come_in_order_with_the_first_and_the_last_step(events: Any) -> None:
    with run_with() as run:
        run.ready("synthetic", torch.nn.Linear(2, 3), loader(400))
        one_epoch(run, loader(400), loader(400))

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


def test_parts_of_an_epoch_number_their_steps_on(events: Any) -> None:
    run = run_with()
    for _ in run.epochs():
        for part in (1, 2):
            for step in run.train(loader(4), part=part, parts=2):
                step.done()
        run.epoch_end({})

    assert [(event["step"], event["steps"]) for event in events() if event["event"] == "step"] == [(1, 2), (2, 2)]
    assert [event["event"] for event in events()].count("phase") == 1
    assert (events()[-1]["steps"], events()[-1]["steps_full"]) == (2, 2)


def test_what_is_not_finite_is_missing(events: Any) -> None:
    run = run_with()
    for _ in run.epochs():
        for step in run.train(loader(4)):
            step.done(torch.tensor(math.nan))
        run.epoch_end({"loss": math.inf, "accuracy": 0.5})

    step, record = (event for event in events() if event["event"] in ("step", "epoch_end"))
    assert "loss" not in step
    assert record["metrics"] == {"accuracy": 0.5}


def test_repetitions_number_their_epochs_on_and_are_ready_once(events: Any) -> None:
    run = run_with("--repeat", "--epochs", "2")
    for _, _ in zip(range(3), run.repeats(), strict=False):
        run.ready("real", torch.nn.Linear(1, 1), loader(4))
        one_epoch(run, loader(4), loader(4))

    reported = events()
    assert [event["epoch"] for event in reported if event["event"] == "epoch_end"] == [1, 2, 3, 4, 5, 6]
    assert [event["event"] for event in reported].count("ready") == 1
    assert len(list(run_with().repeats())) == 1


def test_a_checkpoint_is_a_phase(events: Any, tmp_path: Path) -> None:
    run = run_with("--save", str(tmp_path / "checkpoint.pt"))
    for _ in run.epochs():
        run.save(model={"weight": torch.ones(2)})

    assert events()[-1]["phase"] == "save"
    assert torch.load(tmp_path / "checkpoint.pt")["model"]["weight"].tolist() == [1.0, 1.0]


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
    with pytest.raises((SystemExit, ZeroDivisionError)) as ending, run_with():
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
    run = run_with()
    run.arguments.workers = None
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda _: {0, 1, 2})

    assert run.loader_options(workers=4)["num_workers"] == 2
    assert run.loader_options(workers=1) == {"num_workers": 1, "pin_memory": False, "persistent_workers": True}


@pytest.mark.slow
def test_one_seed_gives_one_result(events: Any) -> None:
    from workloads import mnist_rnn

    for seed in (7, 7, 8):
        mnist_rnn.main(
            ["--device=cpu", "--workers=0", "--data-dir=none", "--max-steps=2", "--epochs=1", f"--seed={seed}"]
        )

    losses = [event["metrics"]["test_loss"] for event in events() if event["event"] == "epoch_end"]
    assert losses[0] == losses[1] != losses[2]
