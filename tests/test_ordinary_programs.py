"""What ordinary programs do on a GPU works on the virtual one, and nothing of their user's is touched."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emulated import PROGRAMS, Bench

from colocate.harness import environment
from colocate.probe.virtual_gpu import VirtualGpu

ORDINARY = sorted((PROGRAMS / "ordinary").glob("*.py"))


@pytest.mark.slow
def test_ordinary_programs_run_to_their_end(tmp_path):
    """Each of these ended in words of torch's insides ("cannot swap", "no NVIDIA driver") or was refused."""
    run = Bench(tmp_path, batches_per_pass=4).run(PROGRAMS / "run_foreign.py", *ORDINARY, timeout_s=240)

    assert run.exit_code == 0, run.output[-3000:]
    ends = [line.split()[1] for line in run.output.splitlines() if line.startswith("-- ")]
    assert ends == [path.name for path in ORDINARY]
    assert run.record["unsupported"] is None
    assert "error_raised" not in run.record


@pytest.mark.slow
def test_only_a_caught_error_that_a_gpu_would_not_raise_is_told(tmp_path):
    """A loop that skips what raises used to get a confident, low figure; then every ordinary ``except`` was a doubt."""
    source = """
import torch

@torch.library.custom_op("tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    raise RuntimeError("only the emulation asks")

layer = torch.nn.Linear(10, 10).cuda()
for wrong in (lambda x: layer(x[:, :7]), twice)[:%d]:
    try:
        wrong(torch.randn(3, 10).cuda())
    except Exception:
        print("skipped")
"""
    doubts = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        run = Bench(folder, batches_per_pass=4).run_source(source % number)
        assert run.exit_code == 0, run.output
        assert run.output.count("skipped") == number, run.output
        doubts.append([code for code, _ in run.record["coverage"]["doubts"]])
    assert doubts == [[], ["error_caught"]]


def test_nothing_of_the_users_is_touched(tmp_path):
    """A prediction used to replace trained checkpoints, append to logs and leave folders behind."""
    work, ours = tmp_path / "work", tmp_path / "ours"
    (work / "kept" / "best").mkdir(parents=True)
    (work / "weights.pt").write_text("trained")
    (work / "log.csv").write_text("x\n")
    (work / "kept" / "best" / "model").write_text("best")
    (work / "latest").symlink_to("kept")
    ours.mkdir()
    VirtualGpu.create(ours / "GPU.json", name="Virtual 8 GB", total_bytes=8 << 30)
    env = environment.for_training(
        os.environ, cookie="files", events=ours / "events", probe=ours, uuid=None, virtual_gpu=ours / "GPU.json",
        scratch=ours / "scratch",
    )  # fmt: skip
    before = _everything_in(work)

    done = subprocess.run(
        [sys.executable, PROGRAMS / "saves_everything.py"],
        cwd=work,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "8192", "nvidia-smi tells of the virtual GPU"
    if "ermission denied" not in done.stderr:
        pytest.skip("this kernel has no Landlock: what a shell writes is not refused")
    assert _everything_in(work) == before
    shutil.rmtree(ours / "scratch")


def _everything_in(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in folder.rglob("*")
    }
