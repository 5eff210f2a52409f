"""What the fuzzer begins with: the settings of the project, and documents of each kind."""

import json
from collections.abc import Iterator
from pathlib import Path

import builders

ROOT = Path(__file__).parents[2]

_SETTINGS = {
    "plan": ("settings/parallel_feasibility_test.json", "settings/minimal_validation.json"),
    "catalog": ("settings/models.json", "settings/models_green_deep_learning.json"),
}
_OWN_COMMAND = {
    "experiment_name": "own",
    "limits": {"gpu": "8GB", "peak": 7500, "success_rate": 0.5, "overlap": 0.8, "settle_s": 3},
    "tiers": {"low": 1, "high": {"expected_success": 0.8}},
    "experiments": [
        {
            "id": "pair",
            "tier": "low",
            "foreground": {"command": ["{python}", "-c", "pass"], "metric_patterns": {"loss": "loss (\\d+)"}},
            "background": {"command": ["{python}", "-m", "this"], "env": {"A": "b"}, "repeat_args": ["x"]},
            "expected_memory": "3GB",
            "limit": "4GB",
        },
        {"mode": "default", "command": ["sh", "-c", "true"], "name": "solo", "uses_gpu": False},
    ],
}
_EVENTS = [
    {"t": 10.5, "pid": 7, "event": "ready", "data": "real", "parameters": 10, "steps_per_epoch": 5, "device": "cuda"},
    {"t": 11, "pid": 7, "event": "phase", "phase": "train", "epoch": 1},
    {"t": 12, "pid": 7, "event": "step", "phase": "train", "epoch": 1, "step": 1, "steps": 5, "loss": 0.4},
    {
        "t": 19,
        "pid": 7,
        "event": "epoch_end",
        "epoch": 1,
        "steps": 5,
        "steps_full": 5,
        "cut": False,
        "metrics": {"a": 1},
    },
    {"t": 20, "pid": 7, "event": "end", "exit": "out_of_memory", "requested_bytes": 9, "message": "CUDA"},
]


def seeds(target: str) -> Iterator[bytes]:
    """The files to begin with."""
    for name in _SETTINGS.get(target, ()):
        yield (ROOT / name).read_bytes()
    if target == "plan":
        yield json.dumps(_OWN_COMMAND).encode()
    if target in ("events", "heartbeat"):
        yield b"".join(json.dumps(event).encode() + b"\n" for event in _EVENTS)
    if target == "experiment":
        yield json.dumps(
            {"group": {"id": "group01"}, "samples": 24, "evidence": builders.evidence().to_json()}
        ).encode()
