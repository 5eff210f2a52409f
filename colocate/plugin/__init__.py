# SPDX-License-Identifier: Apache-2.0
"""The pytest layer: options, the plan of a session, pytest's words for verdicts, scheduling, progress and the page.

pytest loads it in every project in whose environment colocate is installed, and changes nothing there: until a plan is
collected only the options exist. The other modules are plugins of their own, registered in `pytest_configure`.
"""

import os
from importlib import import_module
from typing import Any

import pytest

from colocate.files import open_closed_streams
from colocate.plugin.invocation import collects_a_plan, is_worker, leads, only_looks
from colocate.plugin.options import add_options, option

# pluggy calls what was registered last first, and each of these needs what those above it have decided here. So at the
# end of a session proposals are made, then remedies tried, then the page is written, which shows both.
MODULES = (
    *("devices", "run_record", "resume", "outcomes", "collection", "workers", "completeness", "page", "progress"),
    *("remedies", "proposals", "github", "archive", "tasks", "gate"),
)
# Not imported in workers, nor where groups are only listed: a third of the time to start.
OF_A_LEADER = frozenset({"workers", "page", "remedies", "proposals", "github", "archive", "gate"})

open_closed_streams()  # before pytest captures them, which fails without


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest before it reads the arguments."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Called by xdist for ``-n auto``, before anything is configured; None leaves the number to xdist."""
    if not collects_a_plan(config) or only_looks(config):
        return None
    from colocate.plugin import workers

    return workers.num_workers(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Called by pytest to run its command; ``--resume-dry-run`` is one of its own."""
    if not collects_a_plan(config):
        return None
    if os.environ.get("COLOCATE_TASK"):
        from colocate.plugin import tasks

        tasks.become_task(config)
    if not option(config, "resume_dry_run"):
        return None
    from colocate.plugin import resume

    return resume.explain(config)


@pytest.hookimpl(optionalhook=True, trylast=True)
def pytest_metadata(metadata: dict[str, Any], config: pytest.Config) -> None:
    """Called by pytest-metadata with all that it found, which may include secrets of a CI system.

    It may be configured before this plugin is, so the hook is here and not in a module that is registered then.
    """
    if collects_a_plan(config):
        from colocate.plugin import run_record, session

        run_record.keep_what_is_known(metadata, session.start(config))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest in every process once the arguments are read."""
    if not collects_a_plan(config):
        return
    from colocate.plugin import handover, session, tasks, workers

    current = session.start(config)
    tasks.prepare(config, current)
    workers.run_virtual_groups_side_by_side(config, current)
    if is_worker(config) and not only_looks(config):
        handover.take_over(config, current)
    for name in MODULES:
        if (name not in OF_A_LEADER or leads(config)) and (name != "progress" or not is_worker(config)):
            config.pluginmanager.register(import_module(f"colocate.plugin.{name}"), f"colocate-{name}")
