# SPDX-License-Identifier: Apache-2.0
"""Predict one program or one group in one call, for notebooks and other tools. ``colocate predict`` does the same."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from colocate.advice.forecast import Forecast
from colocate.advice.predictor import Predictor
from colocate.errors import PlanError
from colocate.harness import Cache, Program, simulate
from colocate.plan import GpuModel, Group, gpu_model, model_of_size
from colocate.units import GIB


def predict(
    what: Group | Sequence[str],
    *,
    gpu: str | None = None,
    cwd: Path | str = ".",
    timeout_s: float = 600.0,
    cached: bool = True,
) -> Forecast:
    """Predict the GPU memory of a command or of a group of a plan by dry runs; needs no GPU.

    Args:
        what: a command as a list of words, such as ``["python", "train.py"]``, or a group of a loaded plan.
        gpu: a size such as ``"8GB"`` or a name of the table of GPUs (the plan's GPU for a group, else 8 GB).
        cwd: the folder in which a command runs.
        timeout_s: how long one program may take; one that was ended is not predicted.
        cached: use results of earlier calls, and keep new ones.

    Returns:
        A forecast with its ``answer``, its ``peak`` (a range in bytes) and the reasons that leave it undecided.

    Raises:
        PlanError: there is no such program or GPU, or a training of the group cannot be run.
    """
    cache = Cache.of_user() if cached else None
    if isinstance(what, Group):
        wanted = gpu or what.gpu
        model = gpu_model(wanted) if wanted else model_of_size(what.limits.gpu_bytes)
        return Predictor(model, cache=cache, timeout_s=timeout_s).forecast(what, _limit_bytes(what, model))
    model = gpu_model(gpu) if gpu else model_of_size(8 * GIB)
    (run,) = simulate([_program(what, Path(cwd))], model, cache=cache, timeout_s=timeout_s)
    return Forecast(run.name, (run,), model.baseline_bytes, model.total_bytes)


def _limit_bytes(group: Group, model: GpuModel) -> int:
    """Return the plan's limit, or the whole of a GPU of another size."""
    return group.limits.peak_bytes if model.total_bytes == group.limits.gpu_bytes else model.total_bytes


def _program(words: Sequence[str], cwd: Path) -> Program:
    executable = shutil.which(words[0]) if words else None
    if executable is None:
        raise PlanError(f"command: expected a program, found {words[:1]!r}; is it installed?")
    return Program(Path(words[-1]).name, (executable, *map(os.fspath, words[1:])), cwd.absolute())
