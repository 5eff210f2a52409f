#!/usr/bin/env python3
"""A stand-in that does one thing to the harness while it trains: ``hostile.py WHAT [options of stand_in.py]``.

What it does begins with its first look at the time, in a thread beside the training or in place of it.
"""

import contextlib
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

STAND_IN = Path(__file__).with_name("stand_in.py")
EVENTS = Path(os.environ.get("COLOCATE_EVENTS", "/nonexistent/events/foreground.jsonl"))
PROBE = Path(os.environ.get("COLOCATE_PROBE", "/nonexistent"))
GROUP = EVENTS.parents[1]


def tell(path: Path, pid: int, **event: object) -> None:
    """One event, as a training writes it."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps({"t": time.monotonic(), "pid": pid, **event}).encode() + b"\n")


def epoch_end(**changes: object) -> dict[str, object]:
    known = {"event": "epoch_end", "epoch": 1, "steps": 50, "steps_full": 50, "cut": False, "metrics": {"loss": 0.1}}
    return {**known, **changes}


def replace_events(make: object) -> None:
    EVENTS.unlink(missing_ok=True)
    make()


def garbage() -> None:
    """Lines that are no events, between those that are."""
    with EVENTS.open("ab", buffering=0) as file:
        for line in (b"\xff\xfe\x00", b'{"t": NaN, "pid": 1, "event": "step"}', b"[" * 5000, b'{"t": 1e999}', b"7"):
            file.write(line + b"\n")
        file.write(b'{"event": "' + b"x" * 5_000_000 + b'"}\n')
    for time_t in (-1e9, 0.0, time.time(), 1e300):
        with EVENTS.open("ab", buffering=0) as file:
            file.write(json.dumps({**epoch_end(), "t": time_t, "pid": os.getpid()}).encode() + b"\n")
    tell(EVENTS, os.getpid(), **epoch_end(steps=-3, steps_full=-3))
    tell(EVENTS, os.getpid(), **epoch_end(samples_per_s=float("inf"), metrics={"loss": float("nan"), "\ud800": 1}))
    tell(EVENTS, os.getpid(), event="phase", phase="\x1b[2Jtrain\u202e", epoch=1)


def leave() -> None:
    """Success in the middle of the epoch."""
    os._exit(0)


def other_events() -> None:
    """The end of the other's epoch."""
    name = "background" if EVENTS.stem == "foreground" else "foreground"
    tell(EVENTS.with_stem(name), os.getpid(), **epoch_end())


def device_events() -> None:
    """Bytes without end in place of the events."""
    replace_events(lambda: EVENTS.symlink_to("/dev/zero"))


def pipe_events() -> None:
    """A pipe that nobody writes to in place of the events."""
    replace_events(lambda: os.mkfifo(EVENTS))


def folder_events() -> None:
    replace_events(EVENTS.mkdir)


def pipe_log() -> None:
    """A pipe that nobody reads in place of its own log."""
    log = GROUP / "training.log"
    log.unlink()
    os.mkfifo(log)


def pipe_tail() -> None:
    """A pipe that is called like a piece of its log."""
    os.mkfifo(GROUP / "training.log.tail-00000000")


def forged_probe() -> None:
    """A record that tells of more memory than any GPU has."""
    while True:
        record = {"pid": os.getpid(), "mode": "cuda", "optimizer_steps": 1, "max_reserved_bytes": 2**62}
        aside = PROBE / "forged"
        aside.write_text(json.dumps(record))
        aside.replace(PROBE / f"{os.getpid()}.json")
        time.sleep(0.01)


def future_probe() -> None:
    """Steps that will be made in a year."""
    later_t = time.monotonic() + 3e7
    record = {"pid": 7, "mode": "cuda", "optimizer_steps": 9, "first_step_t": later_t, "last_step_t": later_t}
    (PROBE / "7.json").write_text(json.dumps(record))


def pipe_probe() -> None:
    os.mkfifo(PROBE / "8.json")


def many_probes() -> None:
    for pid in range(1500):
        (PROBE / f"{pid}.json").write_text("{}")


def stop_self() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_supervisor() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)


def remove_run() -> None:
    while True:  # to the end of the process, for others make parts of it again
        shutil.rmtree(GROUP.parent, ignore_errors=True)
        time.sleep(0.002)


def main() -> None:
    what = globals()[sys.argv[1]]
    sys.argv = [str(STAND_IN), *sys.argv[2:]]
    delay_s = float(os.environ.get("HOSTILE_AFTER_S", "0.3"))

    def act() -> None:
        time.sleep(delay_s)
        with contextlib.suppress(OSError):
            what()

    threading.Thread(target=act, daemon=True).start()
    runpy.run_path(str(STAND_IN), run_name="__main__")


if __name__ == "__main__":
    main()
