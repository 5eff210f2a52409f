"""What this pytest session runs: its plan, its run directory, its GPUs; decided once, before anything starts.

Nothing here acts unless the arguments collect the feasibility cases: `pytest tests` needs no plan and no GPU.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from colocate.cli import DEFAULT_PLAN
from colocate.errors import ColocateError, PlanError
from colocate.results import GroupDirectory, RunDirectory

if TYPE_CHECKING:
    from colocate.device import FoundGpu
    from colocate.harness import Decision
    from colocate.plan import Group, Plan
    from colocate.plugin.slurm_workers import Elsewhere
    from colocate.results import Attempt
    from colocate.verdict import PlanVerdict

CASES = Path("feasibility")


@dataclass
class Session:
    """What was decided for one pytest session; in a worker, as its controller decided it."""

    plan: "Plan"
    home: Path
    case_folder: str | None = None
    run_directory: RunDirectory | None = None
    report: Path | None = None
    gpus: "tuple[FoundGpu, ...]" = ()
    choice: str | None = None
    selected: "tuple[Group, ...]" = ()  # what is to be run, as soon as it was collected
    notes: list[str] = field(default_factory=list)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)
    decisions: "dict[str, Decision]" = field(default_factory=dict)
    earlier: dict[str, str] = field(default_factory=dict)
    elsewhere: "Elsewhere | None" = None
    others: "tuple[FoundGpu, ...]" = ()  # in a worker, the GPUs of all workers

    def recorded(self) -> "Iterator[tuple[Group, GroupDirectory, dict[str, Any]]]":
        """The groups that left a record, in the plan's order, each with its folder and what pytest was told of it."""
        for group in self.plan.groups:
            reported = self.records.get(group.id)
            if reported is not None and reported["directory"]:
                yield group, GroupDirectory(Path(reported["directory"])), reported

    def plan_verdict(self) -> "PlanVerdict":
        """How the plan stands by the groups so far, also by what an earlier session of the same run found of others."""
        from colocate.verdict import PlanVerdict

        found = self.earlier | {name: record["outcome"] for name, record in self.records.items()}
        plan = self.plan
        return PlanVerdict.of(plan.ids, found, plan.needed(len(plan.groups)), plan.limits.success_rate)


SESSION = pytest.StashKey[Session]()


def session_of(config: pytest.Config) -> Session:
    """What was decided for this session.

    Raises:
        pytest.UsageError: the feasibility cases are collected although no argument names them.
    """
    session = config.stash.get(SESSION, None)
    if session is None:
        raise pytest.UsageError(f"{CASES}: expected among the arguments of pytest, found {config.args!r}")
    return session


def plan_of(config: pytest.Config) -> "Plan":
    """The plan that this session runs."""
    return session_of(config).plan


def run_directory_of(config: pytest.Config) -> RunDirectory:
    """Where this session's groups are recorded: the same folder in the controller and all its workers.

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
    if session is None or not nodeid.startswith(f"{_case_folder(config, session)}/") or not nodeid.endswith("]"):
        return None
    return session.plan.by_id.get(nodeid[nodeid.rindex("[") + 1 : -1])


def selects(config: pytest.Config) -> bool:
    """Fewer groups than those of the plan may be run: only who collects the cases knows which."""
    names = ("keyword", "markexpr", "lf", "deselect")
    return any(getattr(config.option, name, None) for name in names) or any("::" in word for word in config.args)


def all_cases(config: pytest.Config) -> list[str]:
    """The cases of the whole plan, for a session in which nobody collected any; none where fewer may be wanted."""
    if selects(config):
        return []
    session = session_of(config)
    file = f"{_case_folder(config, session)}/test_groups.py"
    return [f"{file}::test_group[{name}]" for name in session.plan.ids]


def cases(config: pytest.Config) -> list[Any]:
    """One pytest parameter per group: its id, and its tier as a mark, for ``metafunc.parametrize("group", ...)``."""
    groups = plan_of(config).groups
    return [pytest.param(group, id=group.id, marks=_marks(group)) for group in groups]


def _marks(group: "Group") -> tuple[pytest.MarkDecorator, ...]:
    return (getattr(pytest.mark, group.tier),) if group.tier else ()


def is_worker(config: pytest.Config) -> bool:
    """This process runs what an xdist controller tells it."""
    return hasattr(config, "workerinput")


def leads(config: pytest.Config) -> bool:
    """This process decides and writes for a session that runs groups: xdist's controller, or the only process."""
    return not is_worker(config) and not only_looks(config)


def only_looks(config: pytest.Config) -> bool:
    """Groups are listed, not run: no GPU is needed and nothing is written."""
    option = config.option
    return any(
        getattr(option, name, False)
        for name in ("collectonly", "setupplan", "showfixtures", "help", "version", "resume_dry_run")
    )


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


def home(config: pytest.Config) -> Path:
    """The project's folder: where the conftest stands that asked for this plugin.

    Not pytest's rootdir: what stands after an option with a space, as in ``--plan FILE``, counts as an argument there.
    """
    for plugin in config.pluginmanager.get_plugins():
        if "colocate.plugin" in getattr(plugin, "pytest_plugins", ()) and getattr(plugin, "__file__", None):
            return Path(plugin.__file__).parent
    return config.rootpath


def collects_cases(config: pytest.Config) -> bool:
    """An argument names the folder of the cases, something in it, or a folder around it."""
    if config.option.help or config.option.version:
        return False
    folder = home(config) / CASES
    ignored = [_absolute(config, name) for name in config.getoption("ignore") or ()]
    if any(folder.is_relative_to(path) for path in ignored):
        return False
    paths = [_absolute(config, argument.split("::")[0]) for argument in config.args]
    return any(folder.is_relative_to(path) or path.is_relative_to(folder) for path in paths)


def _absolute(config: pytest.Config, name: str) -> Path:
    return Path(os.path.abspath(config.invocation_params.dir / name))  # noqa: PTH100 - keeps symbolic links


def _case_folder(config: pytest.Config, session: Session) -> str:
    if session.case_folder is None:
        folder = session.home / CASES
        inside = folder.is_relative_to(config.rootpath)
        session.case_folder = folder.relative_to(config.rootpath).as_posix() if inside else str(CASES)
    return session.case_folder


@contextmanager
def lasting() -> Iterator[None]:
    """What is made inside lives as long as the session: Python's collector of cycles need never walk through it.

    Of 10,000 groups that walk took 2 of 6 seconds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def start(config: pytest.Config) -> Session:
    """Read the plan, apply it to ``-k``, and make marks of its tiers.

    Raises:
        pytest.UsageError: plan, catalog or ``-k`` cannot be used; one line per mistake, exit
            code 4.
    """
    try:
        with lasting():
            session = Session(_load(config), home(config))
        _rewrite_keyword(config, session)
    except PlanError as error:
        raise pytest.UsageError(*error.mistakes) from error
    except ColocateError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[SESSION] = session
    for tier in sorted({group.tier for group in session.plan.groups if group.tier}):
        config.addinivalue_line("markers", f"{tier}: groups of this tier in {session.plan.name}")
    return session


def _load(config: pytest.Config) -> "Plan":
    from colocate.plan import load_plan

    option = config.option
    path = _absolute(config, option.plan) if option.plan else home(config) / DEFAULT_PLAN
    catalog = _absolute(config, option.catalog) if option.catalog else None
    return load_plan(path, catalog, epochs=option.epochs)


def _rewrite_keyword(config: pytest.Config, session: Session) -> None:
    from colocate.plugin import selection

    written = config.option.keyword
    if written:
        read = selection.normalise(written, session.plan.ids)
        if read != written:
            config.option.keyword = read
            session.notes.append(f"-k {written!r} read as {read!r}")


def folder(config: pytest.Config, option: str, home: Path) -> Path:
    """The folder that ``--results`` or ``--reports`` names; below the project without it."""
    given = config.getoption(option)
    return _absolute(config, given) if given else home / option
