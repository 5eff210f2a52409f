"""What cannot be emulated says so in one line that names what stopped it."""

import pytest
from emulated import Bench, Run

pytestmark = pytest.mark.slow


@pytest.fixture
def bench(tmp_path) -> Bench:
    """Programs on a virtual GPU of 8 GiB."""
    return Bench(tmp_path)


def refusals(run: Run) -> list[str]:
    return [line for line in run.output.splitlines() if line.startswith("colocate: not emulated: ")]


def test_another_framework_is_refused_before_it_trains_on_the_host(bench: Bench) -> None:
    """It would find no GPU, fall back to the processor in silence, and seem to need nothing of the GPU."""
    module, name = "jax", "JAX"
    (bench.folder / f"{module}.py").write_text("__version__ = '9.1'\n")

    run = bench.run_source(f"import {module}\nprint('trained')")

    assert run.exit_code == 69
    assert "trained" not in run.output
    assert refusals(run) == [
        f"colocate: not emulated: expected a PyTorch program, found {name} 9.1; it needs a real GPU"
    ]
    assert run.record["unsupported"] == f"expected a PyTorch program, found {name} 9.1"


def test_another_framework_beside_torch_is_none_of_our_business_and_a_second_gpu_is_not_there(bench: Bench) -> None:
    """TensorBoard's writer imports TensorFlow where it is installed.

    A program of several GPUs must say so itself, or start NCCL and be refused.
    """
    (bench.folder / "tensorflow.py").write_text("")

    run = bench.run_source(
        "import torch, tensorflow\nprint(torch.cuda.device_count())\ntorch.zeros(3, device='cuda:1')"
    )

    assert run.record["unsupported"] is None
    assert run.output.splitlines()[0] == "1"
    assert "invalid device ordinal" in run.output
    assert run.exit_code == 1


def test_custom_cuda_code_is_refused_and_custom_host_code_is_not(bench: Bench) -> None:
    run = bench.run_source("""
import torch
from torch.utils import cpp_extension
for load in (
    lambda: cpp_extension.load("fast_attention", ["bindings.cpp", "kernel.cu"]),
    lambda: cpp_extension.load_inline("fast_norm", "", cuda_sources="__global__ void norm() {}"),
):
    try:
        load()
    except RuntimeError as error:
        print("refused", type(error).__name__)
cpp_extension.load_inline = cpp_extension.load_inline
try:
    cpp_extension.load("of_the_host", ["missing.cpp"])
except Exception as error:
    print("not refused", type(error).__name__)
""")

    assert [line.split(", found ")[1] for line in refusals(run)] == [
        "the custom CUDA extension 'fast_attention'; it needs a real GPU",
        "the custom CUDA extension 'fast_norm'; it needs a real GPU",
    ]
    assert run.output.count("refused UnsupportedError") == 2
    assert "not refused UnsupportedError" not in run.output
