"""What a coverage-guided fuzzer once found, one example each, and a short walk of the same kind."""

import json
import random

import builders
import pytest
from fuzz.corpus import seeds
from fuzz.mutation import mutated
from fuzz.targets import TARGETS

PROBE = {"pid": 7, "mode": "cuda", "optimizer_steps": 3, "first_step_t": 11, "last_step_t": 12}


def event(**more):
    return json.dumps({"t": 12, "pid": 7, "event": "step", **more}).encode() + b"\n"


def epoch_end(**more):
    known = {"event": "epoch_end", "epoch": 1, "steps": 5, "steps_full": 5, "cut": False, "metrics": {}}
    return event(**{**known, **more})


def experiment(**more):
    document = {"group": {"id": "group01", "number": 1}, "samples": 24, "evidence": builders.evidence().to_json()}
    return {"experiment_id": "x", "timestamp": None, **document, **more}


def record_with(*path):
    """A sound record with another value, the last of the words, at a place of its evidence."""
    document = experiment()
    *keys, last, value = path
    place = document["evidence"]
    for key in keys:
        place = place[key]
    place[last] = value
    return json.dumps(document).encode()


def journal_of(**more):
    return json.dumps({"event": "group", "record": {"group": "group01", **more}}).encode() + b"\n"


def nested(depth):
    return b"[" * depth + b"]" * depth


FOUND = [
    # Half a surrogate pair in a word of a training: the record of the group could not be written.
    ("events", event(phase="\ud800")),
    # Infinity as a rate, also from 1e999: the record could not be written either.
    ("events", epoch_end(samples_per_s=float("inf"))),
    ("events", epoch_end(samples_per_s=12345).replace(b"12345", b"1e999")),
    # An epoch of -5 steps counted as a finished one.
    ("events", epoch_end(steps=-5, steps_full=-5)),
    ("probe", json.dumps(PROBE | {"last_step_t": "nan", "last_oom": {"t": "inf"}, "num_ooms": 1}).encode()),
    # A record or a trace with 8 exabytes: a page with a line for each 2000 MiB of them.
    ("probe", json.dumps(PROBE | {"max_reserved_bytes": 2**63 - 1}).encode()),
    ("trace", b"elapsed_s,used_bytes\n0.1,9223372036854775000\n"),
    ("trace", b"elapsed_s,used_bytes\n0.1,241172480\ninf,241172480\n"),
    # Letters that turn the line around, quoted in a mistake.
    ("plan", json.dumps({"experiments": [{"mode": "default", "command": ["\u202e/x"]}]}).encode()),
    # Records of which parts are missing or something else: the page and summary.csv ended in a traceback.
    ("experiment", json.dumps(experiment(timestamp={})).encode()),
    ("experiment", json.dumps({k: v for k, v in experiment().items() if k != "timestamp"}).encode()),
    ("experiment", json.dumps(experiment(foreground="x", background=[], group={"id": "group01"})).encode()),
    ("experiment", record_with("background", "x")),
    ("experiment", record_with("device", [])),
    ("experiment", record_with("run", {})),
    ("experiment", record_with("foreground", "process_runs", {"a": 1})),
    ("experiment", record_with("foreground", "progress_events", 0)),
    ("experiment", record_with("background", "progress_events", 3, "pid", {})),
    ("experiment", record_with("background", "progress_events", 3, "kind", [])),
    ("experiment", record_with("trace", "gaps", [{"start_s": None, "end_s": None}])),
    ("experiment", record_with("limits", "peak_bytes", "7500")),
    # An end that no calendar has.
    (
        "experiment",
        record_with("duration_s", 1e308).replace(b'"started_at": null', b'"started_at": "2026-11-24T07:30:40Z"'),
    ),
    ("experiment", nested(100_000)),
    ("verdict", nested(100_000)),
    ("run", json.dumps({"plan": {"name": "test", "success_rate": {}}, "arguments": 3}).encode()),
    ("journal", json.dumps({"event": "started", "groups": 0.5, "estimates": {"group01": 1e308}}).encode()),
    ("journal", journal_of(device_name=[], basis=True, peak_bytes="x", reasons=3)),
    ("journal", journal_of(directory="/" + "\U00010300" * 120)),
    ("journal", journal_of(directory="..")),
    ("heartbeat", json.dumps({"group": "group01", "at": "never", "epochs": -1}).encode()),
    ("heartbeat", json.dumps({"at": -1e308, "waiting": [{"name": 7}, {"name": "job 7", "reason": []}, 3]}).encode()),
]


@pytest.mark.parametrize(("target", "data"), FOUND, ids=[f"{target}-{n}" for n, (target, _) in enumerate(FOUND)])
def test_what_was_found_is_answered_in_words(target, data, tmp_path):
    TARGETS[target](data, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_short_walk_finds_nothing(target, tmp_path):
    chance = random.Random(target)
    begun = list(seeds(target)) or [json.dumps(PROBE).encode()]
    for _ in range(25):
        data = chance.choice(begun)
        for _ in range(chance.randrange(1, 6)):
            data = mutated(data, chance.randrange(1 << 30))
        TARGETS[target](data, tmp_path)
