# SPDX-License-Identifier: Apache-2.0
"""One reading of a GPU's context by a user, and the row of the user's own file that it makes.

Arithmetic and one small file; reads no GPU.
"""

import json
from pathlib import Path

from colocate.errors import ColocateError
from colocate.files import make_folder, write_text
from colocate.plan.gpu_models import Context, NamedRow, OwnGpusFile, named_row, own_file, own_gpus
from colocate.units import MIB, format_mib

# How far contexts without cuDNN lie apart on one machine: of 52 perceptrons on an A100, 49 within 4 MiB and all within
# 22 (GPUMemNet). Bare processes have not loaded cuBLAS's kernels.
VARIES_BYTES = 30 * MIB

# What cuDNN adds: on chips of the RTX 3080 and 3090, 88 MiB; on an A100 under cudnn.benchmark from 226 to 420 in 65 of
# 67 small programs of timm, 366 in the median of all (GPUMemNet).
CUDNN_ADDS_BYTES = 88 * MIB
CUDNN_ADDS_MOST_BYTES = 420 * MIB

NUMBER_BYTES = 2 * MIB  # the segment in which the one number lies
CONTEXT_COMMAND = "python -c \"import torch; torch.ones(1, device='cuda'); input()\""


def read_row(gpu: str, process_bytes: int) -> NamedRow:
    """The row of a GPU with its context from one reading.

    Args:
        gpu: a name of the table, or of the user's own file.
        process_bytes: what nvidia-smi shows for a process that does what `CONTEXT_COMMAND` does.

    Raises:
        PlanError: the GPU is in no table.
        ColocateError: the reading is no context.
    """
    row = named_row(gpu)
    context_bytes = process_bytes - NUMBER_BYTES
    if not 0 < context_bytes < row.total:
        expected = f"expected a reading between {format_mib(NUMBER_BYTES)} and the memory of {row.name}"
        raise ColocateError(f"{expected}, got {format_mib(process_bytes)}")
    split = row.context_with_cudnn
    added = CUDNN_ADDS_BYTES if split is None else split.expected - row.context.expected
    low = max(0, context_bytes - VARIES_BYTES)
    read = f"{format_mib(process_bytes)} that the user read of a process with one number on the GPU"
    figures = {
        "context": Context.model_construct(expected=context_bytes, low=low, high=context_bytes + VARIES_BYTES),
        "context_with_cudnn": Context.model_construct(
            expected=context_bytes + added, low=low, high=context_bytes + max(added, CUDNN_ADDS_MOST_BYTES)
        ),
        "sources": row.sources | {"context": read, "context_with_cudnn": f"estimated: {read}, and what cuDNN adds"},
    }
    return row.model_copy(update=figures)


def keep_row(row: NamedRow) -> Path:
    """Put a row into the user's own file, in place of an earlier one of that name; the file.

    Raises:
        PlanError: the file is there and contains mistakes.
        ColocateError: it cannot be written.
    """
    path = own_file()
    others = [one for one in own_gpus(path) if one.name != row.name]
    document = OwnGpusFile(gpus=[*others, row]).model_dump(mode="json", exclude_none=True)
    try:
        make_folder(path.parent)
        write_text(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        raise ColocateError(f"could not write {path}: {error.strerror or error}") from error
    own_gpus.cache_clear()
    return path
