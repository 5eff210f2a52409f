"""The trainings as people and the harness start them: as processes, from any folder."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow


def environment(folder: Path) -> dict[str, str]:
    ours = {"COLOCATE_EVENTS": str(folder / "events.jsonl"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours}


def events_of(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def train(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=600
    )


@contextmanager
def training(folder: Path, *command: str) -> Iterator[subprocess.Popen]:
    """A running training in a session of its own; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_short_training_ends_well_with_complete_events(tmp_path: Path) -> None:
    program = str(ROOT / "workloads" / "mnist_rnn.py")  # the next one is started as a module
    run = train(tmp_path, program, "--device", "cpu", "--epochs", "1", "--max-steps", "3", "--seed", "1334")

    assert run.returncode == 0, run.stderr
    events = events_of(tmp_path)
    kinds = [event["event"] for event in events if event["event"] != "step"]
    assert kinds == ["ready", "phase", "phase", "epoch_end", "end"]
    record = events[-2]
    assert (record["steps"], record["steps_full"], record["cut"]) == (3, 1875, True)
    assert set(record["metrics"]) == {"test_loss", "test_accuracy_percent"}
    assert len({event["pid"] for event in events}) == 1
    assert "epoch 1: 3 of 1875 steps (cut)" in run.stdout
    assert "\r" not in run.stdout  # a log, not a terminal


def test_a_repeated_training_goes_on_until_it_is_ended(tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--epochs", "1", "--max-steps", "2", "--repeat"]

    def epochs() -> list[int]:
        return [event["epoch"] for event in events_of(tmp_path) if event["event"] == "epoch_end"]

    with training(tmp_path, "-m", "workloads.mnist_rnn", *arguments) as process:
        wait_until(lambda: len(epochs()) >= 3, limit_s=300)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=120) == -signal.SIGTERM

    assert epochs()[:3] == [1, 2, 3]


def test_bug_localization_tells_steps_and_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('bug_localization must not need it')\n")
    arguments = ["--epochs", "1", "--rows", "4000", "--kfold", "3", "--max-steps", "5", "--jobs", "2"]

    run = train(tmp_path, "-m", "workloads.bug_localization", *arguments)

    assert run.returncode == 0, run.stderr
    events = events_of(tmp_path)
    steps = [(event["phase"], event["step"], event["steps"]) for event in events if event["event"] == "step"]
    assert steps[-2:] == [("train", 15, 15), ("evaluate", 3, 3)]
    record = events[-2]
    assert (record["event"], record["steps"], record["steps_full"]) == ("epoch_end", 15, 30_000)
    assert record["cut"] is True
    assert {event["pid"] for event in events} == {events[0]["pid"]}


def test_the_workers_of_bug_localization_end_with_it(tmp_path: Path) -> None:
    """Idle ones used to stay for 300 s after their parent had been killed."""

    def members(session: int) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _session(entry) == session:
                found.append(int(entry.name))
        return found

    with training(tmp_path, "-m", "workloads.bug_localization", "--kfold", "3", "--jobs", "2") as process:
        wait_until(lambda: any(event["event"] == "step" for event in events_of(tmp_path)), limit_s=300)
        assert len(members(process.pid)) >= 3
        process.kill()
        process.wait()
        wait_until(lambda: not members(process.pid))


def _session(entry: Path) -> int | None:
    """Session of a process, None for one that is gone or a zombie."""
    try:
        state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else int(session)
