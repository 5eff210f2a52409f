"""The names that harness, probe and workloads agree on without importing each other."""

import sys
from pathlib import Path

from colocate.harness import environment
from colocate.process import procfs

ROOT = Path(__file__).parents[1]
CALLER = {"PATH": "/bin", "PYTHONPATH": "/theirs", "CUDA_VISIBLE_DEVICES": "3", "COLOCATE_EVENTS": "/of/an/outer/run"}


def made(**changes: object) -> dict[str, str]:
    known: dict[str, object] = {"cookie": "run/group01/foreground", "events": Path("/e"), "probe": Path("/p")}
    return environment.for_training(CALLER, **{**known, "uuid": "GPU-1", "virtual_gpu": None, **changes})  # type: ignore[arg-type]


def test_a_training_sees_one_gpu_and_keeps_the_rest_of_its_environment() -> None:
    env = made()

    assert (env["PATH"], env["CUDA_VISIBLE_DEVICES"]) == (f"{Path(sys.executable).parent}:/bin", "GPU-1")
    assert env["PYTHONPATH"] == f"{environment.INJECTED}:/theirs"
    assert env["COLOCATE_EVENTS"] == "/e"
    assert environment.VIRTUAL_GPU not in env


def test_python_in_a_script_is_the_interpreter_of_the_plan() -> None:
    """It used to be whichever came first in PATH: without an activated environment the system's, with no PyTorch."""
    env = made(program="/envs/theirs/bin/python3.9")

    assert env["PATH"] == "/envs/theirs/bin:/bin"


def test_the_virtual_gpu_hides_the_real_ones() -> None:
    env = made(uuid=None, virtual_gpu=Path("/GPU"))

    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["COLOCATE_VIRTUAL_GPU"] == "/GPU"
    assert int(env["COLOCATE_BATCHES_PER_PASS"]) >= 2

    beside = made(uuid=None, virtual_gpu=Path("/GPU"), beside=Path("/b"), stall_s=30.0)
    assert beside["COLOCATE_BESIDE"] == "15:/b", "a wait for the background must not look like a stall"


def test_the_injected_folder_holds_nothing_but_sitecustomize() -> None:
    """Whatever else lay there would be importable in every training."""
    assert [path.name for path in environment.INJECTED.iterdir() if path.suffix == ".py"] == ["sitecustomize.py"]


def test_probe_and_workloads_use_the_same_names() -> None:
    probe = "".join(path.read_text() for path in (ROOT / "colocate/probe").rglob("*.py"))
    workloads = (ROOT / "workloads/common.py").read_text()

    for name in (
        *(environment.PROBE, environment.VIRTUAL_GPU, environment.BATCHES_PER_PASS),
        *(environment.BESIDE, environment.READY, environment.AWAIT),
    ):
        assert f'"{name}"' in probe
    assert f'"{environment.EFFORT}"' in probe
    assert f'"{environment.EVENTS}"' in workloads
    assert procfs.COOKIE == environment.COOKIE


def test_what_a_training_writes_to_does_not_depend_on_its_folder() -> None:
    """Below a results folder named from here; ``colocate fit`` with a plan of another folder failed by that."""
    env = made(events=Path("results/e"), probe=Path("results/p"), virtual_gpu=Path("results/GPU"))

    for name in (environment.EVENTS, environment.PROBE, environment.VIRTUAL_GPU):
        assert Path(env[name]) == Path.cwd() / "results" / Path(env[name]).name
