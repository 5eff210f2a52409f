import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colocate.harness.probe_records import ProbeReader
from colocate.harness.training_events import EventReader, Progress
from colocate.verdict.evidence import ProgressEvent


def line(time_s: float, event: str, **more: Any) -> str:
    return json.dumps({"t": time_s, "pid": 7, "event": event, **more}) + "\n"


def reader_of(path: Path, text: str | bytes) -> EventReader:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    reader = EventReader(path)
    reader.poll()
    return reader


def test_events_become_marks_epochs_and_out_of_memories(tmp_path: Path) -> None:
    text = line(1, "ready", data="synthetic") + line(2, "step", phase="train", step=1)
    text += line(3, "epoch_end", epoch=1, steps=5, steps_full=5, cut=False, metrics={"accuracy": 0.5}, samples_per_s=9)
    text += line(3, "epoch_end", epoch=2, steps=4, steps_full=5, cut=False)  # fewer steps: cut, whatever it says
    text += line(4, "end", exit="out_of_memory", requested_bytes=100, message="CUDA out of memory")
    reader = reader_of(tmp_path / "events.jsonl", text)

    assert reader.data == "synthetic"
    assert [event.kind for event in reader.progress.progress_events] == [
        "ready",
        "step",
        "epoch_end",
        "epoch_end",
        "end",
    ]
    assert (reader.epochs[0].metrics, reader.epochs[0].cut) == ({"accuracy": 0.5}, False)
    assert reader.epochs[1].cut
    assert reader.out_of_memory[0].requested_bytes == 100


def test_a_torn_line_is_read_again_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    reader.poll()  # not there yet
    whole = line(1, "ready")
    path.write_text(whole[:10])
    reader.poll()
    assert reader.progress.progress_events == ()

    path.write_text(whole)
    reader.poll()
    assert len(reader.progress.progress_events) == 1
    assert reader.bad_lines == 0


@given(
    st.dictionaries(
        st.sampled_from(["t", "pid", "event", "steps", "epoch", "metrics", "cut", "steps_full", "phase"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("epoch_end"),
    ).map(lambda event: json.dumps(event).encode())
    | st.binary(max_size=40)
    | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(lambda value: json.dumps(value).encode())
)
def test_a_line_of_any_shape_is_an_event_or_counted_as_none(
    tmp_path_factory: pytest.TempPathFactory, written: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "events.jsonl"
    reader = reader_of(path, written.replace(b"\n", b"").strip() + b"\n")

    assert len(reader.progress.progress_events) + reader.bad_lines == int(bool(written.strip()))


@given(st.lists(st.floats(0, 0.4), min_size=1, max_size=200))
def test_many_steps_are_thinned_but_first_and_last_stay(pauses: list[float]) -> None:
    progress, times = Progress(), []
    for pause in pauses:
        times.append((times[-1] if times else 0.0) + pause)
        progress.add(ProgressEvent(times[-1], 1, "step", "train"))

    kept = [event.elapsed_s for event in progress.progress_events]
    assert (kept[0], kept[-1]) == (times[0], times[-1])
    assert len(kept) <= 3 + times[-1] / 0.25
    assert progress.longest_pause_s == max([b - a for a, b in itertools.pairwise(times)], default=0.0)


def record(folder: Path, pid: int, **changes: Any) -> None:
    known = {"pid": pid, "mode": "cuda", "optimizer_steps": 3, "first_step_t": 1.0, "last_step_t": 2.0, "num_ooms": 0}
    (folder / f"{pid}.json").write_text(json.dumps(known | changes))


def test_the_probe_counts_steps_of_a_training_that_writes_no_events(tmp_path: Path) -> None:
    reader = ProbeReader(tmp_path)
    record(tmp_path, 5)
    reader.poll()
    record(tmp_path, 5, optimizer_steps=9, last_step_t=7.0)
    reader.poll()

    assert [(event.elapsed_s, event.step) for event in reader.progress.progress_events] == [
        (1.0, 1),
        (2.0, 3),
        (7.0, 9),
    ]


def test_the_probe_tells_of_an_out_of_memory_that_was_swallowed(tmp_path: Path) -> None:
    (tmp_path / "6.json").write_text('{"pid": 6, "optim')  # half written: passed over
    reader = ProbeReader(tmp_path)
    reader.poll()
    assert reader.allocators == ()
    record(tmp_path, 5, num_ooms=2, last_oom={"t": 1.5, "requested_bytes": 64, "message": "CUDA out of memory"})
    reader.poll()

    assert [(oom.count, oom.requested_bytes, oom.source) for oom in reader.out_of_memory] == [(2, 64, "probe")]
