# SPDX-License-Identifier: Apache-2.0
"""The session: its plan, run directory and GPUs, decided once before anything starts."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colocate.cli import DEFAULT_PLAN, arguments
from colocate.errors import ColocateError, PlanError
from colocate.plugin.invocation import CASES, absolute, home, plan_argument
from colocate.plugin.options import option
from colocate.results import GroupDirectory, GroupResult, RunDirectory

if TYPE_CHECKING:
    from colocate.device import FoundGpu
    from colocate.harness import Decision
    from colocate.plan import Group, Plan
    from colocate.plugin.slurm_arrays import SlurmArrays
    from colocate.results import Attempt
    from colocate.verdict import PlanVerdict


@dataclass
class Session:
    """The decisions for one pytest session; in a worker, those of its controller."""

    plan: "Plan"
    home: Path
    cases: str  # how the ids of its cases begin
    run_directory: RunDirectory | None = None
    report: Path | None = None
    gpus: "tuple[FoundGpu, ...]" = ()
    choice: str | None = None
    selected: "tuple[Group, ...]" = ()  # what is to be run, as soon as it was collected
    notes: list[str] = field(default_factory=list)
    results: dict[str, GroupResult] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)  # what of the records was gone when the session ended
    estimates: dict[str, float] = field(default_factory=dict)
    decisions: "dict[str, Decision]" = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    executor: "SlurmArrays | None" = None
    others: "tuple[FoundGpu, ...]" = ()  # in a worker, the GPUs of all workers

    def recorded(self) -> "Iterator[tuple[Group, GroupDirectory, GroupResult]]":
        """The groups that left a record, in the plan's order, each with its folder and what pytest was told of it."""
        for group in self.plan.groups:
            result = self.results.get(group.id)
            if result is not None and result.directory:
                yield group, GroupDirectory(Path(result.directory)), result

    def plan_verdict(self) -> "PlanVerdict":
        """Return the plan's verdict by the groups so far, including those of earlier sessions of the same run."""
        from colocate.verdict import PlanVerdict

        found = self.earlier | {name: result.outcome for name, result in self.results.items()}
        plan = self.plan
        return PlanVerdict.of(plan.ids, found, plan.needed(len(plan.groups)), plan.limits.success_rate)


SESSION = pytest.StashKey[Session]()


def session_of(config: pytest.Config) -> Session:
    """Return the session's decisions.

    Raises:
        pytest.UsageError: cases are collected although no argument names them.
    """
    session = config.stash.get(SESSION, None)
    if session is None:
        raise pytest.UsageError(f"{CASES}: expected among the arguments of pytest, found {config.args!r}")
    return session


def run_directory_of(config: pytest.Config) -> RunDirectory:
    """Return the run directory: the same in the controller and all its workers.

    Raises:
        pytest.UsageError: nothing is run (``--collect-only``), so there is none.
    """
    directory = session_of(config).run_directory
    if directory is None:
        raise pytest.UsageError("run directory: expected a session that runs groups, found one that only collects")
    return directory


def gpu_for(config: pytest.Config, group: "Group") -> "FoundGpu | None":
    """The GPU of this process for a group: a GPU, or the virtual GPU that is made for it; None for want of one.

    Raises:
        pytest.UsageError: nothing is run (``--collect-only``), so there is none.
    """
    from colocate.device import as_asked

    found = session_of(config).gpus
    if not found:
        raise pytest.UsageError("GPU: expected a session that runs groups, found one that only collects")
    return next((gpu for one in found if (gpu := as_asked(one, group.gpu)) is not None), None)


def done_of(config: pytest.Config, group: "Group") -> "tuple[Attempt, ...]":
    """The runs of a group that an earlier session has finished and that still hold."""
    decision = session_of(config).decisions.get(group.id)
    return () if decision is None else decision.done


def group_of(config: pytest.Config, nodeid: str) -> "Group | None":
    """The group that a case stands for; None for any other test."""
    session = config.stash.get(SESSION, None)
    if session is None or not nodeid.startswith(session.cases) or not nodeid.endswith("]"):
        return None
    return session.plan.by_id.get(nodeid[nodeid.rindex("[") + 1 : -1])


def cases(config: pytest.Config) -> list[Any]:
    """Make one pytest parameter per group, with its tier as a mark, for ``metafunc.parametrize("group", ...)``."""
    return [
        pytest.param(group, id=group.id, marks=getattr(pytest.mark, group.tier) if group.tier else ())
        for group in session_of(config).plan.groups
    ]


def terminal_of(config: pytest.Config) -> Any:
    """The terminal reporter of pytest; None in a worker, and where it is switched off."""
    return config.pluginmanager.get_plugin("terminalreporter")


def say(config: pytest.Config, text: str) -> None:
    """A line on the terminal, but for ``-q``."""
    terminal = terminal_of(config)
    if terminal is not None and config.option.verbose >= 0:
        terminal.write_line(text)


def warn(config: pytest.Config, text: str) -> None:
    """A line in yellow on the terminal, with ``-q`` too: something that was asked for is not there."""
    terminal = terminal_of(config)
    if terminal is not None:
        terminal.write_line(text, yellow=True)


def start(config: pytest.Config) -> Session:
    """The session, begun by whoever asks first: read the plan, apply it to ``-k``, and make marks of its tiers.

    Raises:
        pytest.UsageError: plan, catalog or ``-k`` cannot be used; one line per mistake, exit code 4.
    """
    if SESSION in config.stash:
        return config.stash[SESSION]
    _refuse_to_repeat(config)
    if option(config, "effort"):
        os.environ[arguments.EFFORT] = option(config, "effort")
    try:
        session = _new(config)
        _rewrite_keyword(config, session)
    except PlanError as error:
        raise pytest.UsageError(*error.mistakes) from error
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[SESSION] = session
    for tier in sorted({group.tier for group in session.plan.groups if group.tier}):
        config.addinivalue_line("markers", f"{tier}: groups of this tier in {session.plan.name}")
    return session


# Options of plugins that run a test again, by name, with the number from which on they do: a group that does
# not fit would be run until it does. pytest-rerunfailures, pytest-retry, flaky, pytest-flakefinder, pytest-stress and
# xdist's --looponfail; pytest-repeat, pytest-loop and pytest-run-parallel.
_REPEATING = {
    **dict.fromkeys(("reruns", "retries", "force_flaky", "flake_finder_enable", "looponfail"), 1),
    **dict.fromkeys(("stress_hours", "stress_minutes", "stress_seconds"), 1),
    **dict.fromkeys(("count", "loop", "parallel_threads", "iterations"), 2),
}


def _refuse_to_repeat(config: pytest.Config) -> None:
    """Refuse what would run a group again until it passes.

    Raises:
        pytest.UsageError: such an option, or such a setting in an ini file, is given.
    """
    for name, least in _REPEATING.items():
        try:
            value = getattr(config.option, name, None) or config.getini(name)
            times = int(value or 0)
        except (ValueError, KeyError, TypeError):
            continue  # no plugin that has it, or another plugin's option of this name
        if times >= least:
            text = f"--{name.replace('_', '-')}: expected groups to be judged once, got {value!r}"
            raise pytest.UsageError(f"{text}; leave it out, runs_per_config of the plan repeats groups")


def _new(config: pytest.Config) -> Session:
    """The session of a plan that is collected itself, from where it was started; or of the cases of a checkout."""
    path, project = plan_argument(config), home(config)
    if path is not None:
        return Session(_load(config, path), config.invocation_params.dir, f"{plan_node(config, path)}::")
    assert project is not None, "cases are collected where a conftest asks for this plugin"
    folder = project / CASES
    inside = folder.is_relative_to(config.rootpath)
    cases = f"{folder.relative_to(config.rootpath).as_posix() if inside else CASES}/"
    asked = option(config, "plan")
    return Session(_load(config, absolute(config, asked) if asked else project / DEFAULT_PLAN), project, cases)


def plan_node(config: pytest.Config, path: Path) -> str:
    """The node id of a plan that is collected as a test file."""
    return path.relative_to(config.rootpath).as_posix() if path.is_relative_to(config.rootpath) else path.name


def _load(config: pytest.Config, path: Path) -> "Plan":
    from colocate.plan import load_plan

    catalog = option(config, "catalog")
    catalog = absolute(config, catalog) if catalog else None
    return load_plan(path, catalog, epochs=option(config, "epochs"))


def _rewrite_keyword(config: pytest.Config, session: Session) -> None:
    from colocate.plugin import selection

    written = config.option.keyword
    if written:
        read = selection.normalise(written, session.plan.ids)
        if read != written:
            config.option.keyword = read
            session.notes.append(f"-k {written!r} read as {read!r}")


def folder(config: pytest.Config, name: str, home: Path) -> Path:
    """The folder that ``--results`` or ``--reports`` names; that of this name in the session's own without it."""
    given = option(config, name)
    return absolute(config, given) if given else home / name
