# SPDX-License-Identifier: Apache-2.0
"""Programs that compile: the eager program runs in their place, behind the same objects.

Compiled code has a memory plan of its own, which nobody knows beforehand. FlexAttention, which is compiled as a rule,
is done by an operator that keeps as much.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..imports import AfterImport
from ..record import Record

# How many matrices of scores in single precision live at once in FlexAttention without torch.compile: product, result
# of the program's function, masked scores and their softmax (``math_attention`` of torch._higher_order_ops).
DENSE_SCORES = 4

_thread = threading.local()


def replace_compilers(record: Record, watcher: AfterImport) -> None:
    """Replace ``torch.compile`` and what needs it."""

    def started() -> None:
        """A compiled function runs; libraries that compile some when they are imported may never call them."""
        if not record.fields.get("compiled"):
            record.fields["compiled"] = True
            record.note("torch.compile is ignored: the eager program is predicted, in a range wider on both sides")

    def compile(model: Any = None, *args: Any, **kwargs: Any) -> Any:
        if model is None:
            return compile
        from torch._dynamo.eval_frame import OptimizedModule  # a third of a program's start: only where it is wanted

        return (
            OptimizedModule(model, functools.partial(as_compiled, started=started))
            if isinstance(model, torch.nn.Module)
            else as_compiled(model, started)
        )

    torch.compile = compile
    torch.nn.Module.compile = lambda self, *args, **kwargs: started()
    # The fused path of nn.TransformerEncoder and nn.MultiheadAttention in evaluation has no fake kernels.
    torch.backends.mha.set_fastpath_enabled(False)
    watcher.when("torch.nn.attention.flex_attention", lambda module: _replace_flex_attention(module, record))


def as_compiled(function: Callable[..., Any], started: Callable[[], None]) -> Callable[..., Any]:
    """The same function, within which `compiled` is true; ``started`` is called before it runs."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        started()
        _thread.depth = getattr(_thread, "depth", 0) + 1
        try:
            return function(*args, **kwargs)
        finally:
            _thread.depth -= 1

    run._torchdynamo_orig_callable = function  # type: ignore[attr-defined]
    return run


def compiled() -> bool:
    """Whether this thread is inside a function that would be compiled on a GPU."""
    return getattr(_thread, "depth", 0) > 0


def _replace_flex_attention(module: Any, record: Record) -> None:
    flex_attention = module.flex_attention

    @functools.wraps(flex_attention)
    def attention(
        query: Any, key: Any, value: Any, score_mod: Any = None, block_mask: Any = None, scale: float | None = None,
        enable_gqa: bool = False, return_lse: bool = False, kernel_options: Any = None, *, return_aux: Any = None,
    ) -> Any:  # fmt: skip
        if not isinstance(query, FakeTensor):
            return flex_attention(
                query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, kernel_options,
                return_aux=return_aux,
            )  # fmt: skip
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        if not compiled():
            record.note("flex_attention without torch.compile: whole matrices of scores are assumed")
            query = DenseScores.apply(query, key)
        output, statistics = torch.ops.aten._scaled_dot_product_efficient_attention.default(
            query, key, value, None, True, scale=scale
        )[:2]
        if return_aux is not None:
            return output, module.AuxOutput(lse=statistics, max_scores=statistics)
        return (output, statistics) if return_lse else output

    module.flex_attention = attention


class DenseScores(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Takes the memory of whole matrices of scores for a moment, forward and backward."""

    @staticmethod
    def forward(context: Any, query: Any, key: Any) -> Any:
        """The query itself."""
        context.shape = (*query.shape[:-1], key.shape[-2])
        _hold_for_a_moment(context.shape, query.device)
        return query.view_as(query)

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        """The gradient itself."""
        _hold_for_a_moment(context.shape, gradient.device)
        return gradient, None


def _hold_for_a_moment(shape: tuple[int, ...], device: torch.device) -> None:
    held = [torch.empty(shape, dtype=torch.float32, device=device) for _ in range(DENSE_SCORES)]
    del held
