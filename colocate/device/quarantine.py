# SPDX-License-Identifier: Apache-2.0
"""GPUs that nothing may be measured on for the rest of a run: one file per GPU, seen by every worker of the run.

A GPU that is lost, holds a process that cannot be ended, or does not come back to its baseline would spoil whatever
is measured next. The other GPUs of the machine go on.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from colocate.errors import ColocateError, DeviceLost
from colocate.files import make_folder, read_json, write_json


class Quarantine:
    """The quarantined GPUs of one run, in a folder of its run directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, uuid: str, why: str) -> None:
        """Let nothing more be started on this GPU.

        Raises:
            OSError: the disk is full or gone.
        """
        make_folder(self._folder)
        write_json(self._file(uuid), {"uuid": uuid, "why": why, "since": datetime.now(UTC).isoformat()})

    def why(self, uuid: str | None) -> str | None:
        """Say why this GPU must not be used, or None if it may be."""
        if uuid is None or not self._file(uuid).exists():
            return None
        try:
            return str(read_json(self._file(uuid))["why"])
        except (ColocateError, KeyError, TypeError) as error:
            return f"its note cannot be read ({error})"

    @contextmanager
    def watching(self, uuid: str | None) -> Iterator[str | None]:
        """Say why a GPU must not be used; one that is lost on opening is put into quarantine here."""
        try:
            yield self.why(uuid)
        except DeviceLost as error:
            if uuid is not None:
                self.add(uuid, str(error))
            raise

    def lift(self) -> None:
        """Forget them all: whoever resumes a run had the time to look after its GPUs."""
        for file in self._folder.glob("*.json"):
            file.unlink(missing_ok=True)

    def _file(self, uuid: str) -> Path:
        return self._folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', uuid)}.json"
