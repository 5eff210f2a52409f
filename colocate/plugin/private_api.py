# SPDX-License-Identifier: Apache-2.0
"""Private pytest and xdist APIs that we depend on, each with its reason.

`colocate.plugin.scheduler` is another place, since it is nothing but a scheduler as xdist wants one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def xdist_session(config: pytest.Config) -> Any:
    """Xdist's object for the session, in the controller; None without workers. No hook hands it out."""
    return config.pluginmanager.get_plugin("dsession")


def active_workers(distributed: Any) -> set[Any]:
    """The workers that have not ended: whoever ends a session early has to know for whom to wait."""
    return set(distributed._active_nodes)


def worker_processes(config: pytest.Config) -> Iterator[Any]:
    """The processes of the workers on this machine that still run, for a signal: execnet keeps them to itself."""
    manager = getattr(xdist_session(config), "nodemanager", None)
    for gateway in list(manager.group) if manager else ():
        process = getattr(getattr(gateway, "_io", None), "popen", None)
        if process is not None and process.poll() is None:
            yield process


def why_stopped(config: pytest.Config, session: pytest.Session) -> str | None:
    """Return why a session ends before its last case: xdist knows of ``-x`` and does not tell pytest's session."""
    reason = session.shouldfail or session.shouldstop or getattr(xdist_session(config), "shouldstop", False)
    return str(reason) if reason else None


def end_fixtures(session: pytest.Session) -> None:
    """Tear down what is set up, before anything is reported: pytest itself does so when everything is written."""
    session._setupstate.teardown_exact(None)


def run_first_with_lf(config: pytest.Config, nodeid: str) -> None:
    """Have ``--lf`` run a case that was not reached: pytest forgets what was skipped."""
    last_failed = config.pluginmanager.get_plugin("lfplugin")
    if last_failed is not None:
        last_failed.lastfailed[nodeid] = True


@contextmanager
def without_case_lines(config: pytest.Config) -> Iterator[None]:
    """Have pytest's terminal write no line of its own for a case, whatever ``-v`` says."""
    known, name = config._inicache, "verbosity_test_cases"
    before = known.get(name, "auto")
    known[name] = "0"
    try:
        yield
    finally:
        known[name] = before


def width_of(terminal: Any) -> int:
    """Columns of the terminal that pytest writes to; those of the machine's may be others."""
    return int(terminal._tw.fullwidth)


def stream_of(terminal: Any) -> Any:
    """Return the file that pytest's terminal writes to."""
    return terminal._tw._file


def write_through(terminal: Any, stream: Any) -> None:
    """Have pytest's terminal write to another stream: the live lines below must be taken away before each of its."""
    terminal._tw._file = stream
