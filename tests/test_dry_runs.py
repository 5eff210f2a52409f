"""A program whose dry run the session knows is replayed in later groups, and run where that could differ."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import sessions
from emulated import Bench
from groups import group, training

from colocate.harness import DryRuns
from colocate.harness.dry_runs import is_sound
from colocate.harness.training_monitor import TrainingMonitor
from colocate.plan import Training
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.process import Exit
from colocate.results import RunDirectory
from colocate.units import MIB
from colocate.verdict import ReasonCode

TRAINS = """
import sys, torch
layer = torch.nn.Linear(1000, int(sys.argv[1])).cuda()
optimizer = torch.optim.Adam(layer.parameters())
data = torch.utils.data.TensorDataset(torch.randn(640, 1000))
for epoch in range(2):
    for (batch,) in torch.utils.data.DataLoader(data, batch_size=8):
        loss = layer(batch.cuda()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("epoch", epoch, "is over")
"""


@pytest.mark.slow
def test_a_later_group_replays_what_an_earlier_one_has_shown_and_comes_to_the_same(tmp_path):
    """Of 24 trainings of the study twelve are the same as an earlier one, and each took seconds to import PyTorch."""
    program = tmp_path / "trains.py"
    program.write_text(TRAINS)
    foreground, background = (
        {"command": ["{python}", str(program), size], "name": name, "ready_timeout_s": 120}
        for name, size in (("small", "2000"), ("large", "4000"))
    )
    groups = [{"foreground": foreground, "background": background}] * 2
    session = sessions.run(sessions.plan(tmp_path / "plan.json", groups), tmp_path, "-n0", "--device=virtual")

    assert session.code == 0, session.output
    records = [json.loads(path.read_text()) for path in sorted(session.run.glob("small_parallel_*/experiment.json"))]
    verdicts = [session.verdicts[name] for name in ("group01", "group02")]
    sizes = [{name: one[name] for name in ("peak_bytes", "peak_low_bytes", "peak_high_bytes")} for one in verdicts]
    assert sizes[0] == sizes[1]
    assert verdicts[1]["overlap"] > 0.9
    for role in ("foreground", "background"):
        run, replayed = (record["evidence"][role] for record in records)
        assert "replayed" not in str(run["allocators"])
        assert "what it showed in group01, replayed" in str(replayed["allocators"])
        assert [one["exit"]["cpu_s"] < 1 for one in replayed["process_runs"]].count(True) == len(
            replayed["process_runs"]
        )
    log = (session.run / "small_parallel_002" / "training.log").read_text()
    assert "showed in group01" in log
    assert "epoch 1 is over" in log
    assert not (session.run / ".dry_runs").exists()


def test_where_the_gpu_is_too_full_for_what_was_recorded_the_program_itself_is_run(tmp_path):
    recording = {
        "argv": [sys.executable, "-c", "print('it ran itself')"],
        "note": "replayed",
        "began_t": 0.0,
        "ended_t": 1.0,
        "ends": True,
        "record": {"torch": "2", "history": [[0.5, 9000 * MIB]], "optimizer_steps": 0, "first_step_t": None}
        | {"last_step_t": None, "context_bytes": 1, "max_allocated_bytes": 1, "allocated_bytes": 1, "notes": []},
        "events": [],
        "output": [],
    }
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(recording))

    ran = Bench(tmp_path).run_source(
        f"import sys; sys.argv = ['', {str(path)!r}]; from colocate_probe.virtual_gpu.replay import main; main()"
    )

    assert ran.exit_code == 0
    assert "it ran itself" in ran.output, ran.output


WELL = Exit(0, None, 2.0)


@pytest.fixture
def shown(tmp_path):
    """Tells a session's dry runs of a training that ended well, with changes to its record, and gives the command."""
    directory = RunDirectory(tmp_path).group("a", 1, parallel=True).create()
    VirtualGpu.create(directory.virtual_gpu, name="GPU", total_bytes=8192 * MIB)
    program = Training("a", (sys.executable, "a.py"), tmp_path)
    directory.foreground_log.write_text("done\n")
    file = tmp_path / "a.py"
    file.write_text("1")

    def command(exits=WELL, edited=False, pids=(7,), **changes):
        for pid in pids:
            record = {
                "pid": pid,
                "optimizer_steps": 3,
                "mode": "virtual",
                "max_reserved_bytes": 5,
                "files": [str(file)],
                "notes": [],
            }
            (directory.probe("foreground") / f"{pid}.json").write_text(json.dumps(record | changes))
        monitor = TrainingMonitor("foreground", program, directory)
        started = SimpleNamespace(pids=pids, exit=exits, log=directory.foreground_log, started_t=1.0)
        monitor.processes = [SimpleNamespace(**vars(started), command=SimpleNamespace(argv=program.argv))]
        dry_runs = DryRuns(tmp_path / "dry_runs")
        dry_runs.keep(monitor, directory, "group01")
        if edited:
            file.write_text("2")
        wanted = dry_runs.allocator(program, "foreground", directory.virtual_gpu)
        words = dry_runs.replayed(program, "foreground", 0, directory.virtual_gpu)
        assert (wanted is None) == (words is None)
        assert wanted is None or (wanted.max_reserved_bytes, wanted.optimizer_steps) == (5, 3)
        return words

    return command


def test_a_program_is_replayed_as_long_as_its_files_are_the_same(shown):
    words = shown()
    assert words[0] == sys.executable
    assert json.loads(Path(words[-1]).read_text())["output"] == ["done"]
    assert shown(edited=True) is None


@pytest.mark.parametrize(
    "unlike",
    [
        {"asked_free_bytes": 1},
        {"num_ooms": 1},
        {"unsupported": "no"},
        {"mode": "cuda"},
        {"max_reserved_bytes": 0},
        {"files": None},
        {"exits": Exit(1, None, 2.0)},
        {"exits": None},
        {"pids": (7, 8)},
    ],
    ids=str,
)
def test_what_may_depend_on_others_or_was_not_seen_whole_is_run_again(shown, unlike):
    assert shown(**unlike) is None


@pytest.mark.parametrize(
    ("overlap", "codes", "sound"),
    [
        (0.9, [], True),
        (0.9, [ReasonCode.UNDECIDED], True),
        (0.3, [], False),
        (None, [ReasonCode.PEAK_OVER_LIMIT], False),
        (0.9, [ReasonCode.TOO_LITTLE_OVERLAP], False),
        (0.9, [ReasonCode.FOREIGN_PROCESS, ReasonCode.UNDECIDED], False),
    ],
)
def test_only_programs_that_trained_beside_each_other_are_replayed(overlap, codes, sound):
    """A background that stood still would make steps without end in a replay, and the next group would fit."""
    verdict = SimpleNamespace(overlap=overlap, codes=codes)
    assert is_sound(verdict, group(training("a"), training("b"))) is sound
