import os
import stat
import subprocess
import sys
import threading
from math import inf
from pathlib import Path

import pytest
from waiting import wait_until

from colocate.device.lock import locked
from colocate.errors import DeviceError

HOLD = """
import sys, time
from pathlib import Path
from colocate.device.lock import locked
with locked("GPU-1", "night run", folder=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "locks"


@pytest.fixture
def other_run(folder):
    """A process of another run that holds GPU-1 until its input ends."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_busy_gpu_names_its_holder_and_another_is_free(folder, other_run, monkeypatch):
    said = rf"GPU-1: .* held by pid {other_run.pid} of .+ since .+ UTC \(night run\); wait"
    monkeypatch.setenv("COLOCATE_LOCK_FOLDER", str(folder))  # as containers can be given a common one
    for options in ({"folder": folder}, {"folder": folder, "wait_s": 0.15}, {}):
        with pytest.raises(DeviceError, match=said), locked("GPU-1", "mine", **options):
            pass
    (folder / "GPU-1.lock").write_text("")  # nothing yet
    with pytest.raises(DeviceError, match="held by an unknown process"), locked("GPU-1", "mine", folder=folder):
        pass
    with locked("GPU-2", "mine", folder=folder):
        pass


def test_the_lock_dies_with_its_holder_whose_programs_do_not_inherit_it(folder, other_run):
    other_run.kill()
    other_run.wait()

    with locked("GPU-1", "mine", folder=folder):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with pytest.raises(KeyError), locked("GPU-1", "mine", folder=folder):
            raise KeyError
        with (
            locked("GPU-1", "first", folder=folder),
            pytest.raises(DeviceError, match=f"pid {os.getpid()} .*first"),
            locked("GPU-1", "second", folder=folder),
        ):
            pass
    finally:
        child.kill()
        child.wait()


def test_waiting_ends_when_the_holder_lets_go(folder, other_run):
    timer = threading.Timer(0.2, other_run.stdin.close)
    timer.start()

    with locked("GPU-1", "mine", wait_s=inf, folder=folder):
        assert other_run.wait() == 0
    timer.join()


def test_all_users_may_use_the_files_and_nobody_may_remove_anothers(folder):
    previous = os.umask(0o077)
    try:
        with locked("GPU-1", "mine", folder=folder):
            pass
    finally:
        os.umask(previous)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "GPU-1.lock").stat().st_mode) == 0o666


def test_a_link_in_place_of_the_lock_is_not_followed(folder, tmp_path):
    folder.mkdir()
    target = tmp_path / "precious"
    target.write_text("precious")
    (folder / "GPU-1.lock").symlink_to(target)

    with pytest.raises(DeviceError, match="expected a lock file for GPU-1"), locked("GPU-1", "mine", folder=folder):
        pass
    assert target.read_text() == "precious"


@pytest.mark.slow
def test_many_processes_take_turns(folder, tmp_path):
    """Each adds one to a counter that only the lock protects."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    program = (
        "import sys; from pathlib import Path; from colocate.device.lock import locked\n"
        "for _ in range(20):\n"
        "    with locked('GPU-1', 'turn', float('inf'), Path(sys.argv[1])):\n"
        "        path = Path(sys.argv[2]); path.write_text(str(int(path.read_text()) + 1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", program, str(folder), str(counter)]
    processes = [subprocess.Popen(command, env=environment) for _ in range(3)]

    wait_until(lambda: all(process.poll() is not None for process in processes))
    assert counter.read_text() == "60"
