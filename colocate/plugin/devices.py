# SPDX-License-Identifier: Apache-2.0
"""Find the GPUs that this session may use before anything starts; the controller tells its workers."""

from typing import TYPE_CHECKING

import pytest

from colocate.errors import ColocateError
from colocate.plugin.invocation import only_looks
from colocate.plugin.options import option
from colocate.plugin.session import Session, session_of
from colocate.units import format_size

if TYPE_CHECKING:
    from colocate.device import FoundGpus, Quarantine
    from colocate.plan import Group
    from colocate.verdict import Reason


def find(config: pytest.Config, gpu_bytes: int) -> "FoundGpus":
    """The GPUs that ``--device`` allows; with ``--wait`` those that others hold count as free, after the others.

    Raises:
        pytest.UsageError: no GPU can be used; names the cure.
    """
    from colocate.device import find_gpus
    from colocate.plan import gpu_model, model_of_size

    try:
        asked = option(config, "gpu") is not None
        wanted = gpu_model(option(config, "gpu")) if asked else model_of_size(gpu_bytes)
        kind, waits = option(config, "device"), bool(option(config, "wait"))
        return find_gpus(kind, gpu_bytes=wanted.total_bytes, name=wanted.name, small=asked, waits=waits)
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_configure(config: pytest.Config) -> None:
    """Find the GPUs of this session, unless the controller has told this worker."""
    session = session_of(config)
    if only_looks(config) or session.gpus:
        return
    if session.executor is not None:  # each task finds its own where it runs
        session.choice = session.executor.sentence
        return
    found = find(config, session.plan.limits.gpu_bytes)
    session.gpus, session.choice = found.free, found.sentence
    if option(config, "gpu") is not None and found.free[0].kind == "nvidia":
        session.choice += f", as a GPU of {format_size(found.free[0].total_bytes or 0)}"


def why_none(session: Session, group: "Group", quarantine: "Quarantine") -> "Reason":
    """Say why no GPU of this process is what a group asks for."""
    from colocate.device import as_asked
    from colocate.verdict import Reason, ReasonCode

    known = session.others or session.gpus
    for gpu in known:
        why = quarantine.why(gpu.uuid)
        if why is not None and as_asked(gpu, group.gpu) is not None:
            return Reason(ReasonCode.GPU_QUARANTINED, f"{gpu.uuid}: {why}")
    found = ", ".join(dict.fromkeys(map(str, known)))
    return Reason(ReasonCode.NO_SUCH_GPU, f"the group asks for a GPU {group.gpu!r}, found {found}")
