# SPDX-License-Identifier: Apache-2.0
"""xdist's workers: how many, where, on which GPU each, and which group next.

A worker is bound to its GPU by UUID in its environment, so that the replacement of a dead worker keeps the GPU; a
number made of the worker's name would not.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from colocate.device import FoundGpu, Quarantine, as_asked
from colocate.plugin import devices, handover
from colocate.plugin.invocation import leads
from colocate.plugin.options import option
from colocate.plugin.scheduler import OneGroupAtATime
from colocate.plugin.session import Session, group_of, run_directory_of, session_of
from colocate.units import GIB

# Two trainings on a virtual GPU and what watches them: the largest of the plan's groups take 3 GiB.
HOST_BYTES_PER_GROUP = 4 * GIB

VISIBLE = "CUDA_VISIBLE_DEVICES"

# What a group is thought to take when the plan does not say; only the order of the groups depends on it.
UNKNOWN_MINUTES = 10.0


def num_workers(config: pytest.Config) -> int:
    """One worker per GPU that is free, or with ``--wait`` per GPU; on the virtual GPU one per processor.

    Raises:
        pytest.UsageError: there is no free GPU, or no GPU.
    """
    if option(config, "executor"):
        return 0
    found = devices.find(config, gpu_bytes=8 * GIB).free  # the plan is not read yet, and only the number matters
    if found[0].kind == "virtual":
        return num_virtual()
    return len(found)


def num_virtual() -> int:
    """How many groups run side by side on virtual GPUs: one per processor, as far as the memory of the host goes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available_bytes = int(fields["MemAvailable"].split()[0]) * 1024
    return max(1, min(len(os.sched_getaffinity(0)), available_bytes // HOST_BYTES_PER_GROUP))


def run_virtual_groups_side_by_side(config: pytest.Config, session: Session) -> None:
    """Each group has a virtual GPU of its own, so they need not wait for each other; ``-n0`` makes them."""
    of_xdist = config.option
    if not hasattr(of_xdist, "tx"):  # pytest -p no:xdist
        return
    asked = of_xdist.tx or of_xdist.numprocesses is not None or of_xdist.usepdb or of_xdist.capture == "no"
    if asked or not leads(config) or option(config, "device") == "nvidia" or option(config, "executor"):
        return
    most = min(num_virtual(), _num_selected(config, session))
    if most > 1 and devices.find(config, session.plan.limits.gpu_bytes).free[0].kind == "virtual":
        of_xdist.tx, of_xdist.dist = ["popen"] * most, "load"


def _num_selected(config: pytest.Config, session: Session) -> int:
    """How many groups may be run, as far as it is known before they are collected."""
    words = config.option.keyword.split(" or ") if config.option.keyword else []
    if words and all(word in session.plan.by_id for word in words):
        return len(words)
    named = [word for word in config.args if "::" in word]
    return len(named) if named and all("[" in word for word in named) else len(session.plan.groups)


class Workers:
    """Hooks of xdist in the controller."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.session = session_of(config)
        self._bound: list[FoundGpu] = []  # the GPUs that have a worker

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_setupnodes(self, specs: list[Any]) -> None:
        """Called before the workers are started: bind each to a GPU of its own."""
        gpus = [gpu for gpu in self.session.gpus if gpu.kind == "nvidia"]
        if gpus and len(specs) > len(gpus):
            raise pytest.UsageError(f"-n: expected at most {len(gpus)} workers, one per GPU, got {len(specs)}")
        self._bound = self._most_wanted(gpus)[: len(specs)]
        for spec, gpu in zip(specs, self._bound, strict=False):
            spec.env[VISIBLE] = gpu.uuid or ""

    def _most_wanted(self, gpus: list[FoundGpu]) -> list[FoundGpu]:
        """With fewer workers than GPUs, one for each GPU that a group asks for comes first."""
        asked = dict.fromkeys(group.gpu for group in self.session.plan.groups if group.gpu)
        first = [next((gpu for gpu in gpus if as_asked(gpu, one) is not None), None) for one in asked]
        return list(dict.fromkeys([*(gpu for gpu in first if gpu is not None), *gpus]))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Called before a worker is told what to do: hand over what was decided here."""
        node.workerinput.update(handover.told(self.session, self._gpu_of(node), self._gpus))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config) -> OneGroupAtATime:
        """Called once the workers are being started."""
        from xdist.workermanage import parse_tx_spec_config

        return OneGroupAtATime(
            num_workers=len(parse_tx_spec_config(config)),
            minutes=lambda nodeid: minutes(config, nodeid),
            usable=lambda node: self._in_order(node.gateway.spec.env.get(VISIBLE)),
            may_run=self._may_run,
            choices=self._choices,
            shows=self._shows,
        )

    @property
    def _gpus(self) -> list[FoundGpu]:
        """The GPUs of all workers."""
        return self._bound or list(self.session.gpus)

    def _gpu_of(self, node: Any) -> FoundGpu:
        bound = node.gateway.spec.env.get(VISIBLE)
        return next((gpu for gpu in self.session.gpus if gpu.uuid == bound), self.session.gpus[0])

    def _choices(self, nodeid: str) -> int:
        """Count the GPUs that will do for a group."""
        group = group_of(self.config, nodeid)
        return 0 if group is None else sum(as_asked(gpu, group.gpu) is not None for gpu in self._gpus)

    def _shows(self, nodeid: str) -> frozenset[str]:
        """The dry runs of a group, which later groups replay; none on a real GPU."""
        group = group_of(self.config, nodeid)
        if group is None or self._gpus[0].kind != "virtual":
            return frozenset()
        trainings = [("foreground", group.foreground), ("background", group.background)]
        return frozenset(f"{role} {one.argv} {one.cwd} {one.env}" for role, one in trainings if one and one.uses_gpu)

    def _may_run(self, nodeid: str, node: Any) -> bool:
        """The worker's GPU is what the group asks for; or nobody's is, and the group is refused there."""
        group = group_of(self.config, nodeid)
        asked = None if group is None else group.gpu
        if asked is None or as_asked(self._gpu_of(node), asked) is not None:
            return True
        return not any(as_asked(gpu, asked) is not None and self._in_order(gpu.uuid) for gpu in self._gpus)

    def _in_order(self, uuid: str | None) -> bool:
        """A GPU is not quarantined."""
        return Quarantine(run_directory_of(self.config).quarantine).why(uuid) is None


def minutes(config: pytest.Config, nodeid: str) -> float:
    """Return how long a group is expected to take."""
    group = group_of(config, nodeid)
    return UNKNOWN_MINUTES if group is None or group.expected_minutes is None else group.expected_minutes


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session."""
    config.pluginmanager.register(Workers(config))
