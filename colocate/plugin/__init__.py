"""The pytest layer: options, the plan of a session, pytest's words for verdicts, scheduling, progress and the page.

The root conftest names this package in ``pytest_plugins``. Until the feasibility cases are collected only the options
exist: the other modules are registered in `pytest_configure`, and not at all for `pytest tests`.
"""

import pytest

from colocate.plugin import session
from colocate.plugin.options import add_options


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest before it reads the arguments."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Called by xdist for ``-n auto``, before anything is configured; None leaves the number to xdist."""
    if not session.collects_cases(config) or session.only_looks(config):
        return None
    from colocate.plugin import workers

    return workers.num_workers(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Called by pytest to run its command; ``--resume-dry-run`` is one of its own."""
    if not session.collects_cases(config):
        return None
    from colocate.plugin import workers

    if workers.are_elsewhere(config):
        from colocate.plugin.slurm_session import Replacing

        config.pluginmanager.register(Replacing(), "colocate-replacing")
    if not config.option.resume_dry_run:
        return None
    from colocate.plugin import resume

    return resume.explain(config)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Called by pytest in every process once the arguments are read."""
    if not session.collects_cases(config):
        return
    current = session.start(config)
    from colocate.plugin import (
        archive,
        collection,
        completeness,
        devices,
        github,
        outcomes,
        page,
        progress,
        proposals,
        remedies,
        resume,
        run_record,
        workers,
    )

    workers.prepare(config, current)
    # pluggy calls what was registered last first, and each of these needs what those above it have decided here. So at
    # the end of a session proposals are made, then remedies tried, then the page is written, which shows both.
    modules = (
        devices,
        run_record,
        resume,
        outcomes,
        collection,
        workers,
        completeness,
        page,
        progress,
        remedies,
        proposals,
        github,
        archive,
    )
    for module in modules:
        module.register(config)
