# SPDX-License-Identifier: Apache-2.0
"""The run directory and ``run.json``: what was asked for, written before the first group is run.

What came of it stands in the groups' records.
"""

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from typing import Any

import pytest

from colocate import __version__
from colocate.errors import ColocateError
from colocate.files import write_json
from colocate.plugin import resume
from colocate.plugin.invocation import leads
from colocate.plugin.options import option
from colocate.plugin.session import Session, folder, session_of
from colocate.process import boot_id
from colocate.results import PlanRecord, RunDirectory

SCHEMA = 1


def run_record(config: pytest.Config, session: Session) -> dict[str, Any]:
    """The plan with its rule, the GPUs, the arguments and the versions; never the environment."""
    return {
        "schema": SCHEMA,
        "boot_id": boot_id(),
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": asdict(PlanRecord.of(session.plan)),
        "gpu": {"choice": session.choice, "gpus": [asdict(gpu) for gpu in session.gpus]},
        "arguments": [str(argument) for argument in config.invocation_params.args],
        "versions": {"colocate": __version__, "python": platform.python_version(), "pytest": pytest.__version__},
    }


# What pytest-metadata may show of the machine: an allow-list, for its own redaction fails under xdist.
_SHOWN = ("Python", "Platform", "Packages", "Plugins")


def keep_what_is_known(metadata: dict[str, Any], session: Session) -> None:
    """Take out of the environment table all that is not known to be harmless; workers send theirs to the controller."""
    for name in set(metadata) - set(_SHOWN):
        del metadata[name]
    metadata["Python"] = platform.python_version()
    metadata["colocate"] = __version__
    metadata["Plan"] = escape(str(session.plan.path))


def pytest_configure(config: pytest.Config) -> None:
    """Make the run directory, once it is known that something can be run; a worker has its controller's.

    Raises:
        pytest.UsageError: the folder cannot be written.
    """
    if not leads(config):
        return
    session = session_of(config)
    try:
        if option(config, "resume") is not None:
            session.run_directory = resume.take_over(config, session)
            return
        # pytest-html writes into a folder of its own, unless somebody named a file.
        own = getattr(config.option, "htmlpath", "elsewhere") is None
        reports = folder(config, "reports", session.home) if own else None
        session.run_directory = RunDirectory.new(
            folder(config, "results", session.home), datetime.now(), reports=reports
        )
        resume.hold(config, session.run_directory)
        write_json(session.run_directory.record, run_record(config, session))
    except (ColocateError, OSError) as error:
        raise pytest.UsageError(str(error)) from error
