# SPDX-License-Identifier: Apache-2.0
"""Collect the groups of a plan: as a test file of its own, with words for ``-k``; in a worker, a last item to wait at.

A worker of xdist starts one test only when it knows the next. The sentinel is always "the next", so that the
controller may decide which group comes next when a GPU is free, not before.
"""

from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from colocate.plugin import selection
from colocate.plugin.invocation import is_worker, plan_argument
from colocate.plugin.session import group_of, plan_node, session_of

SENTINEL = "__next__"

CASE_MODULE = "colocate.feasibility.test_groups"
CASE = "test_group"
FIXTURE_MODULES = tuple(
    f"colocate.fixtures.{name}" for name in ("run_directory", "device", "monitor", "background", "foreground")
)


class PlanCases(pytest.Module):
    """A plan as a test file: its cases are those of `feasibility/`, whatever the project calls its own tests.

    The fixtures belong to the file, so that a `device` of the project's conftest does not take the place of ours.
    """

    def _getobj(self) -> ModuleType:
        module = ModuleType(self.path.stem)
        for name in FIXTURE_MODULES:
            fixtures = vars(import_module(name))
            vars(module).update({key: value for key, value in fixtures.items() if not key.startswith("__")})
        cases = vars(import_module(CASE_MODULE))
        vars(module).update({key: value for key, value in cases.items() if not key.startswith("__")})
        return module

    def funcnamefilter(self, name: str) -> bool:
        """Called by pytest with each name; the project may have other rules for its own."""
        return name == CASE

    def classnamefilter(self, name: str) -> bool:
        """Called by pytest with each name; there are no classes."""
        return False


class Sentinel(pytest.Item):
    """The item after the last group: it is run by nobody and reported to nobody."""

    def runtest(self) -> None:
        """Do nothing."""


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Called for every file that may be collected; the plan is one of them."""
    if file_path != plan_argument(parent.config):
        return None
    node: Any = PlanCases.from_parent(parent, path=file_path, nodeid=plan_node(parent.config, file_path))
    return node  # type: ignore[no-any-return]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every group is one case: a plugin that multiplies tests would let a later verdict cover an earlier one.

    Raises:
        pytest.UsageError: a case stands for no group of the plan, or a group has several.
    """
    prefix = session_of(config).cases
    seen: set[str] = set()
    for item in items:
        if getattr(item, "originalname", None) == CASE and item.nodeid.startswith(prefix):
            group = group_of(config, item.nodeid)
            if group is None or group.id in seen:
                found = "one of no group" if group is None else "a second one"
                text = f"{item.nodeid}: expected one case for each group, found {found}"
                raise pytest.UsageError(f"{text}; runs_per_config of the plan repeats groups, nothing else may")
            seen.add(group.id)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let ``-k`` find a group by the models, repositories and tier in it."""
    group = group_of(item.config, item.nodeid)
    if group is not None:
        item.extra_keyword_matches.update(selection.keywords(group))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """In a worker, append the sentinel after xdist has told the controller what was collected: it never sees it."""
    if session.items and is_worker(session.config):
        session.items.append(Sentinel.from_parent(session.items[-1].parent or session, name=SENTINEL))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Pass over the sentinel."""
    return True if isinstance(item, Sentinel) else None
