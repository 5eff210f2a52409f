"""bitsandbytes on the virtual GPU: a stand-in with its operators and signatures, so that no GPU build is needed."""

import pytest
from emulated import Bench

OPERATORS = """
import torch
from torch.library import define, register_fake, register_kernel
define("bitsandbytes::int8_vectorwise_quant", "(Tensor A, float threshold=0.0) -> (Tensor, Tensor, Tensor?)")
define("bitsandbytes::int8_mm_dequant", "(Tensor A, Tensor r, Tensor c, ScalarType? dtype=None) -> Tensor")
define("bitsandbytes::dequantize_4bit", "(Tensor A, int[] shape, ScalarType dtype) -> Tensor")
define("bitsandbytes::gemm_4bit", "(Tensor A, Tensor B, int[] shapeB) -> Tensor")

@register_fake("bitsandbytes::int8_vectorwise_quant")
def _(A, threshold=0.0):
    torch.library.get_ctx().new_dynamic_size()

@register_fake("bitsandbytes::int8_mm_dequant")
def _(A, r, c, dtype=None):
    return torch.empty_like(A, dtype=dtype)

@register_fake("bitsandbytes::dequantize_4bit")
def _(A, shape, dtype):
    return torch.empty(shape, dtype=dtype, device=A.device)

@register_fake("bitsandbytes::gemm_4bit")
def _(A, B, shapeB):
    return torch.empty((*A.shape[:-1], shapeB[0]), dtype=A.dtype, device=A.device)
"""

KERNELS = """
import torch
from ._ops import register_kernel

@register_kernel("bitsandbytes::gemm_4bit", "default")
def _(A, B, shapeB):
    return torch.nn.functional.linear(A, torch.ops.bitsandbytes.dequantize_4bit.default(B, shapeB, A.dtype))
"""

PAGES = """
def get_paged(*shape, dtype, device):
    raise RuntimeError("no driver")

def fill(tensor, value):
    raise RuntimeError("no driver")
"""

WEIGHTS_OF_4_BITS = """
import torch, bitsandbytes.kernels
x, packed = torch.ones(2048, 4096, device="cuda").half(), torch.zeros(8 << 20, 1, device="cuda", dtype=torch.uint8)
torch.ops.bitsandbytes.gemm_4bit(x, packed, [4096, 4096])
print(round(torch.cuda.max_memory_allocated() / 2**20))
"""

MATRIX_OF_8_BITS = """
import torch, bitsandbytes._ops
x = torch.ones(4096, 4096, device="cuda", dtype=torch.float16)
rows, scales, columns = torch.ops.bitsandbytes.int8_vectorwise_quant(x, threshold=6.0)
sums = rows.to(torch.int32)
torch.ops.bitsandbytes.int8_mm_dequant(sums, scales, scales, dtype=torch.bfloat16)
print(rows.dtype, columns.numel(), round(torch.cuda.max_memory_allocated() / 2**20))
"""

PAGED_STATES = """
import torch, bitsandbytes.functional as functional
state = functional.get_paged(1024, 1024, dtype=torch.uint8, device=torch.device("cuda", 0))
functional.fill(state, 0)
print(round(torch.cuda.memory_allocated() / 2**20))
"""


@pytest.fixture
def bench(tmp_path):
    package = tmp_path / "bitsandbytes"
    package.mkdir()
    for name, source in (("__init__", ""), ("_ops", OPERATORS), ("kernels", KERNELS), ("functional", PAGES)):
        (package / f"{name}.py").write_text(source)
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("program", "printed"),
    [
        # x in single precision and then in half of it, or: x, packed and full weights, result, cuBLAS workspace
        (WEIGHTS_OF_4_BITS, str(16 + 8 + 32 + 16 + 8)),
        # x, rows, sums, and their product in half precision and in bfloat16
        (MATRIX_OF_8_BITS, f"torch.int8 0 {32 + 16 + 64 + 32 + 32}"),
        (PAGED_STATES, "1"),
    ],
)
def test_operators_of_bitsandbytes_hold_what_their_parts_hold(bench, program, printed):
    run = bench.run_source(program)

    assert run.output.strip() == printed, run.output


def test_states_that_the_driver_may_move_to_the_host_are_not_certain(bench):
    record = bench.run_source(PAGED_STATES).record

    assert record["certain_reserved_bytes"] == 0
    assert any(note.startswith("states of a paged optimizer are counted on the GPU") for note in record["notes"])


def test_without_the_parts_quantised_weights_are_refused(bench):
    """With PyTorch 2.4 the library's fake kernels ran, and the full weights of each product were not counted."""
    older = "import torch\ndel torch.library.register_torch_dispatch\n"
    run = bench.run_source(older + WEIGHTS_OF_4_BITS.replace("gemm_4bit(", "gemm_4bit.default("))

    assert run.exit_code != 0
    assert run.record["unsupported"].startswith("expected PyTorch 2.5 or newer for the quantised weights")
