"""Groups of stand-in trainings on a simulated GPU, run by the real harness."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from seen import note_verdict

from colocate.device.nvml import NvidiaDevice
from colocate.harness.group_run import GroupRun
from colocate.harness.sampler import Sampler
from colocate.plan.catalog import Training
from colocate.plan.plan import Group, Limits
from colocate.process.procfs import with_cookie
from colocate.results.layout import GroupDirectory
from colocate.verdict.rules import Verdict

# Part of the cookie: workers of one test session must not find each other's trainings.
RUN = f"run-{os.getpid()}"

STAND_IN = Path(__file__).parent / "programs" / "stand_in.py"


def training(name: str, *options: str, **changes: Any) -> Training:
    known = {"argv": (sys.executable, str(STAND_IN), *options), "cwd": Path(__file__).parent, "ready_timeout_s": 60.0}
    return Training(name, **{**known, **changes})


def group(foreground: Training, background: Training | None, **limits: Any) -> Group:
    return Group("group01", 1, foreground, background, Limits(**{"settle_s": 3.0, "longest_gap_s": 10.0, **limits}))


@contextmanager
def observing(
    group: Group, uuid: str, folder: Path, *, listed_every_s: float = 0.1, **changes: Any
) -> Iterator[GroupRun]:
    directory = GroupDirectory(folder / RUN / group.id).create()
    with closing(NvidiaDevice(uuid)) as device, Sampler(device, processes_interval_s=listed_every_s) as monitor:
        monitor.wait_for_sample(60.0)
        with GroupRun(group, device, monitor, directory, plan="test", **changes) as observation:
            yield observation
    if observation.verdict is not None:
        note_verdict(observation.verdict)


def observe(observation: GroupRun, then: Callable[[], object] = lambda: None) -> Verdict:
    """Run a group from start to end; ``then`` is done once its background trains."""
    observation.preflight()
    observation.start_background()
    then()
    observation.run_foreground()
    return observation.conclude()


def judged(group: Group, uuid: str, folder: Path, then: Callable[[], object] = lambda: None) -> Verdict:
    """The verdict of a group that is run from start to end; nothing of it is left."""
    with observing(group, uuid, folder) as observation:
        verdict = observe(observation, then)
    assert with_cookie(f"{RUN}/{group.id}") == []
    return verdict
