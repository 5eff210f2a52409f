# SPDX-License-Identifier: Apache-2.0
"""What a worker of xdist, or a task elsewhere, is told by the session that it works for.

Builtin types only: execnet sends nothing else, and a task reads them from a JSON file.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from colocate.device import FoundGpu
from colocate.harness import Decision
from colocate.plugin.session import Session
from colocate.results import GroupDirectory, RunDirectory, group_results, read_attempt


def told(session: Session, gpu: FoundGpu | None = None, others: Sequence[FoundGpu] = ()) -> dict[str, Any]:
    """The run, the decisions of ``--resume``, and the GPU to use with those of all workers; a task finds its own."""
    assert session.run_directory is not None, "whoever has workers runs groups"
    return {
        "colocate_run": str(session.run_directory.path),
        "colocate_gpus": [asdict(one) for one in (gpu, *others) if one is not None],
        "colocate_decisions": [
            {
                "group": one.group,
                "why": one.why,
                "reused": one.reused is not None,
                "done": [attempt.directory.path.name for attempt in one.done],
            }
            for one in session.decisions.values()
        ],
    }


def take_over(config: pytest.Config, session: Session) -> None:
    """Put what this process was told into its session; it reads the records of earlier sessions itself."""
    known: dict[str, Any] = config.workerinput  # type: ignore[attr-defined]
    session.run_directory = run = RunDirectory(Path(known["colocate_run"]))
    gpus = tuple(FoundGpu(**one) for one in known["colocate_gpus"])
    session.gpus, session.others = gpus[:1], gpus[1:]
    sent = known["colocate_decisions"]
    found = group_results(run) if any(one["reused"] for one in sent) else {}
    for one in sent:
        done = tuple(read_attempt(GroupDirectory(run.path / name)) for name in one["done"])
        reused = found[one["group"]] if one["reused"] else None
        session.decisions[one["group"]] = Decision(one["group"], one["why"], reused, done)
