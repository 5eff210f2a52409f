# SPDX-License-Identifier: Apache-2.0
"""``--archive FILE``: everything that a page needs of the groups of this session, in one file to take elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from colocate.errors import ColocateError
from colocate.plugin.invocation import absolute
from colocate.plugin.options import option
from colocate.plugin.outcomes import told_of
from colocate.plugin.session import group_of, run_directory_of, session_of, warn
from colocate.results import Writer


class ArchiveWriting:
    """Hooks in the controller or the only process."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.writer = Writer(absolute(config, option(config, "archive")), run_directory_of(config))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Carry a group once it is done and the run's own journal has it."""
        group = group_of(self.config, report.nodeid)
        if group is None or report.when != "teardown":
            return
        result = session_of(self.config).results.get(group.id) or told_of(report)
        with self._reported():
            self.writer.group(Path(result.directory or "").name if result else "")

    def pytest_unconfigure(self) -> None:
        """Carry the rest."""
        with self._reported():
            self.writer.end()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """A journal file that cannot be written costs nothing but itself: the records are on disk."""
        try:
            yield
        except (OSError, ColocateError) as error:
            warn(self.config, f"could not write the archive: {error}")


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this session.

    Raises:
        pytest.UsageError: the file cannot be written.
    """
    if option(config, "archive") is None:
        return
    try:
        config.pluginmanager.register(ArchiveWriting(config))
    except ColocateError as error:
        run_directory_of(config).discard()
        raise pytest.UsageError(str(error)) from error
