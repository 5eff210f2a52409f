"""What a run is doing, from files; and the terminal that shows it."""

import json
import os
import pty
import re
import select
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_in_project import Project

from colocate.cli.main import main
from colocate.plugin.progress import folded
from colocate.report import status_line
from colocate.report.terminal import Screen, Through
from colocate.results import journal, progress_file, status
from colocate.results.durations import Estimate, estimate
from colocate.results.layout import GroupDirectory
from colocate.results.progress_file import Heartbeat
from colocate.units import MIB


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run_20261124_053000"
    path.mkdir()
    (path / "run.json").write_text("{}")
    return path


def beat(run, name="group01", stage="foreground", **facts):
    directory = GroupDirectory(run / name).create()
    known = {"group": name, "background": True, "limit_bytes": 7500 * MIB, "epochs": 1, "started_at": time.time() - 62}
    Heartbeat(directory.path, **known).beat(
        stage, used_bytes=3000 * MIB, peak_bytes=3200 * MIB, foreground_at=time.time() - 50, **facts
    )
    return directory


def tell(directory, **event):
    with directory.events("foreground").open("a") as file:
        file.write(json.dumps({"t": 1.0, "pid": 1, "event": "step", **event}) + "\n")


def test_a_running_group_tells_progress_memory_peak_and_time_left(run):
    directory = beat(run)
    tell(directory, phase="train", epoch=1, step=25, steps=100)
    for role, reserved in (("foreground", 1000), ("background", 1500)):
        record = {"t": 1.0, "reserved_bytes": reserved * MIB, "context_bytes": 300 * MIB}
        (directory.probe(role) / "7.json").write_text(json.dumps(record))
    (state,) = status.running(run)
    text = "fg 1300 · bg 1800 · GPU 3000/7500 MiB  peak 3200  1:02  2:30 left"
    assert status_line.line_of(state, None, 100) == f"group01  train 25/100  {text}"
    assert status_line.line_of(state, None, 120) == f"group01  train 25/100  █████·······  {text}"
    assert status_line.line_of(state, 92.0, 100).endswith("0:30 left")


def test_with_less_room_a_line_tells_less_and_never_breaks(run):
    directory = beat(run)
    tell(directory, phase="train", epoch=1, step=25, steps=100)
    (state,) = status.running(run)
    lines = {width: status_line.line_of(state, None, width) for width in (60, 40, 20)}
    assert all(len(line) <= width and line.startswith("group01") for width, line in lines.items())
    assert "GPU 3000/7500 MiB  peak 3200" in lines[60]


def test_a_group_that_is_begun_again_says_so_and_why(run):
    """A retry used to look like a group that takes twice as long."""
    reasons = [{"code": "foreign_process", "text": "somebody"}, "damaged"]
    beat(run, "mnist_parallel_001").verdict.write_text(json.dumps({"outcome": "INCONCLUSIVE", "reasons": reasons}))
    beat(run, "mnist_parallel_001_attempt2")
    (state,) = status.running(run)
    assert (state.attempt, state.again_because) == (2, ("foreign_process",))
    assert status_line.again(state).endswith(" is begun again, attempt 2: foreign_process")
    assert "attempt 2: foreground starts" in status_line.line_of(state, None, 120)


def test_a_group_whose_heart_stopped_is_told_as_silent(run):
    directory = beat(run)
    path = directory.path / progress_file.NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "at": time.time() - 100}))
    (state,) = status.running(run)
    assert "no news for 1:40" in status_line.line_of(state, 9.0, 100)


def test_half_written_files_are_nobodys_trouble(run):
    directory = beat(run)
    directory.events("foreground").write_text('{"t": 1.0, "event": "phase", "phase": "train"}\n{"t": 2.0, "ev')
    (directory.probe("foreground") / "7.json").write_text('{"reserved')
    (state,) = status.running(run)
    assert (state.foreground.phase, state.foreground.used_bytes) == ("train", None)
    (directory.path / progress_file.NAME).write_text("{")
    assert status.running(run) == []


def test_a_heartbeat_is_due_once_a_second_and_at_once_for_something_new(tmp_path):
    heart = Heartbeat(tmp_path)
    assert heart.is_due("background")
    heart.beat("background")
    assert not heart.is_due("background")
    assert heart.is_due("foreground")
    Heartbeat(tmp_path / "nowhere").beat("background")  # costs nobody anything


# Estimates.


def test_the_plan_is_asked_first_and_earlier_runs_as_soon_as_there_are_any(tmp_path):
    groups = {"group01": ("hash1", 2.0), "group02": ("hash2", None)}
    first = estimate(groups, tmp_path, ["GPU-1"])
    assert first.sentence(list(groups)) == "about 4 min 00 s for 2 groups (1 by the plan, 1 unknown)"
    for number, seconds in enumerate((30.0, 50.0, 40.0, 1000.0)):  # the latest three count, by their median
        run = tmp_path / f"run_2026112{4 - number}_053000"
        run.mkdir()
        record = {"group": "group01", "content_hash": "hash1", "duration_s": seconds, "device_uuid": "GPU-1"}
        journal.append(run, "group", record=record)
    second = estimate(groups, tmp_path, ["GPU-1"])
    assert second.seconds == {"group01": 40.0}
    assert estimate(groups, tmp_path, ["GPU-2"]).seconds == {"group01": 120.0}, "another GPU"


@settings(deadline=None)
@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=20), st.integers(1, 8))
def test_gpus_side_by_side_never_beat_the_longest_group(times, gpus):
    groups = [str(place) for place in range(len(times))]
    total = Estimate(dict(zip(groups, times, strict=True))).total_s(groups, gpus)
    assert max(times) <= total <= sum(times) * 1.000001


# The terminal.


class Terminal:
    """A real pseudo terminal, and what stands on it at the end."""

    def __init__(self):
        self.master, self.slave = pty.openpty()
        self.environment = {"TERM": "xterm", "COLUMNS": "80"}

    def received(self):
        data = b""
        while select.select([self.master], [], [], 0.05)[0]:
            data += os.read(self.master, 65536)
        return data.decode()

    def shown(self):
        """What a person sees, by the few movements that are used."""
        lines, row = [""], 0
        for part in re.findall(r"\x1b\[1A|\x1b\[2K|\r|\n|[^\x1b\r\n]+", self.received()):
            if part == "\x1b[1A":
                row -= 1
            elif part == "\x1b[2K":
                lines[row] = ""
            elif part == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif part != "\r":
                assert len(lines[row] + part) <= 80, "a line that wraps cannot be taken away"
                lines[row] += part
        return [line for line in lines if line]


@pytest.fixture
def terminal():
    found = Terminal()
    yield found
    os.close(found.master)
    os.close(found.slave)


def test_what_others_write_is_never_mixed_with_the_changing_lines(terminal):
    screen = Screen(terminal.slave, terminal.environment)
    with os.fdopen(os.dup(terminal.slave), "w") as stream:
        reporter = Through(stream, screen)
        screen.draw(["group01 running", "0 of 2 done"])
        screen.draw(["group01 still running", "0 of 2 done"])
        reporter.write("group01 FEASIBLE\n")
        screen.draw(["group02 running", "1 of 2 done"])
        reporter.write("test_x ")
        screen.draw(["group02 running", "1 of 2 done"])
        reporter.write("passed\n")
        screen.close()
    assert terminal.shown() == ["group01 FEASIBLE", "test_x ", "passed"]


def test_a_long_first_line_is_folded_between_words_and_a_path_stays_whole():
    """An 80-column terminal used to break the line about the GPU in the middle of a word."""
    path = "/a/path/of/more/than/twenty-columns/settings/plan.json"
    assert folded(f"GPU: no driver here: predicting; {path}: 12 groups", 20) == [
        "GPU: no driver here:",
        "  predicting;",
        f"  {path}:",
        "  12 groups",
    ]


def test_lines_are_cut_to_the_width_and_a_terminal_that_cannot_move_gets_plain_ones(terminal):
    screen = Screen(terminal.slave, terminal.environment)
    screen.draw(["x" * 500, "y" * 500])
    assert terminal.shown() == ["x" * 79, "y" * 79]
    screen.close()
    terminal.received()

    screen = Screen(terminal.slave, {**terminal.environment, "TERM": "dumb"})
    screen.draw(["never shown"])
    screen.line("shown")
    assert terminal.shown() == ["shown"]
    screen.close()


# watch


def test_watch_shows_the_moment_and_ends_with_the_run(run, capfd):
    assert main(["watch", str(run.parent)]) == 2
    assert "expected a run directory, found no run.json in it" in capfd.readouterr().err
    beat(run)
    journal.append(run, "started", groups=["group01", "group02"], estimates={"group01": 100.0, "group02": 60.0})
    assert main(["watch", str(run), "--once"]) == 0
    out = capfd.readouterr().out
    assert "group01  foreground starts" in out
    assert "run_20261124_053000: 0 of 2 groups done, 1 running, about 1:38 left" in out
    journal.append(run, "group", record={"group": "group01", "outcome": "CRASHED"})
    journal.append(run, "ended")
    assert main(["watch", str(run)]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "group01 CRASHED",
        "run_20261124_053000: ended, 0 groups judged, 1 without a verdict",
    ]


def test_watch_tells_what_waits_in_a_queue_and_since_when_nobody_says_so(run, capfd):
    (run / "tasks").mkdir()
    rows = [{"name": f"job {number}", "reason": "Resources"} for number in (12, 13)]
    progress_file.tell(run / progress_file.QUEUE, {"place": "partition gpu", "waiting": rows})
    assert main(["watch", str(run), "--once"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "2 groups wait in partition gpu: Resources (job 12, job 13)",
        "run_20261124_053000: no group has begun",
    ]
    progress_file.tell(
        run / progress_file.QUEUE, {"place": "partition gpu", "waiting": rows[:1], "at": time.time() - 75}
    )
    assert status_line.waiting(run) == ["1 group waits in partition gpu: Resources (job 12), no news for 1:15"]


# The run's own terminal.


@pytest.mark.slow
def test_where_the_output_is_no_terminal_a_plain_line_comes_now_and_then(tmp_path):
    project = Project(tmp_path, {"group01": "wait"}, 2)
    reported: list[str] = []
    with project.start("feasibility", "-n2", "--progress=0.3") as process:
        for line in process.stdout:
            reported.append(line)
            if re.match(r"group01  \d:\d\d", line):
                break
        process.terminate()
        out = "".join([*reported, *process.stdout])
    assert process.returncode == 143, out
    assert "\x1b" not in out
    assert "time: not known yet for 2 groups" in out


@pytest.mark.slow
def test_the_second_run_knows_what_the_first_took(tmp_path):
    project = Project(tmp_path, {}, 2)
    first = project.run("feasibility", "--progress=0")
    assert not re.search(r"^group01  \d", first.output, re.MULTILINE), "no line of progress"
    record = {"outcome": "FEASIBLE", "duration_s": 90.0, "device_name": "virtual 8 GB GPU"}
    (path,) = Path(tmp_path).glob("results/*/journal.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    reported = [{**line, "record": {**line["record"], **record}} if "record" in line else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in reported))
    assert "time: about 3 min 00 s for 2 groups (2 by earlier runs)" in project.run("feasibility").output


def test_a_journal_that_grows_is_read_line_by_line_and_each_line_once(run):
    reader = journal.Reader(run)
    journal.append(run, "started", groups=["group01"])
    first = reader.read()
    assert first.selected == ("group01",)
    with (run / journal.NAME).open("a") as file:
        file.write('{"event": "group", "record": {"group": "gro')
    assert not reader.read().results
    with (run / journal.NAME).open("a") as file:
        file.write('up01"}}\n')
    assert list(reader.read().results) == ["group01"]
    journal.append(run, "ended")
    assert reader.read().ended_at is not None
    assert journal.read(run) == reader.read()


def test_folders_of_finished_groups_are_not_looked_into_again(run):
    beat(run, "group01").verdict.write_text("{}")
    beat(run, "group02")
    finished = set()
    assert [state.group for state in status.running(run, finished)] == ["group02"]
    assert finished == {"group01"}
    GroupDirectory(run / "group01").verdict.unlink()
    assert [state.group for state in status.running(run, finished)] == ["group02"]
