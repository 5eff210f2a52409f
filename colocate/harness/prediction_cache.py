# SPDX-License-Identifier: Apache-2.0
"""The user's cache of dry runs: a result counts as long as everything that decides it is the same."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter

from colocate.errors import ColocateError
from colocate.files import read_json, write_json
from colocate.harness.simulated_run import Program, SimulatedRun
from colocate.plan import GpuModel

# Variables of the caller that say where it runs and not what: any other one may be a setting of the program.
ASIDE = ("TERM", "SSH_", "XDG_", "DBUS_", "WINDOW", "LS_COLORS", "PYTEST_", "PROMPT", "PS1", "LESS")
ASIDE_ALONE = frozenset({"_", "PWD", "OLDPWD", "SHLVL", "COLUMNS", "LINES", "DISPLAY", "HISTFILE"})

# Modules beside the probe's that decide what a result says.
DECIDING = ("harness/simul*.py", "harness/exploration.py", "harness/prediction_cache.py", "verdict/predicted_peak.py")

# Doubts that another call may not have: with more time it may see the rest.
PASSING = frozenset({"dry_run_timeout"})


class Cache:
    """Results of earlier dry runs, by the content of everything that decides them.

    A result counts as long as the command line, the files that it names or ran, the installed packages, the
    environment, the GPU and the emulation are the same.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> "Cache":
        """The cache in the user's folder for caches."""
        home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        return cls(Path(home, "colocate", "predictions"))

    def find(self, program: Program, gpu: GpuModel) -> SimulatedRun | None:
        """Return the stored dry run of a program, or None if there is none or something has changed since."""
        try:
            document = read_json(self._path(program, gpu))
            if any(digest(Path(name)) != content for name, content in document["files"].items()):
                return None
            return replace(_ADAPTER.validate_python(document["result"]), cached=True, name=program.name)
        except (ColocateError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(
        self, program: Program, gpu: GpuModel, result: SimulatedRun, files: Iterable[str], packages: Iterable[str]
    ) -> None:
        """Remember a result, unless it is a failure or was cut by the time it had.

        A cache that cannot be written is no failure of the prediction.
        """
        if result.failure is not None or PASSING & {code for code, _ in result.doubts}:
            return
        document = {
            "result": _ADAPTER.dump_python(result, mode="json"),
            "files": {name: digest(Path(name)) for name in files},
            "packages": list(packages),
        }
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self._path(program, gpu), document)

    def _path(self, program: Program, gpu: GpuModel) -> Path:
        return self.folder / f"{identity(program, repr(gpu))}.json"


def identity(program: Program, gpu: str) -> str:
    """A name for a program on a GPU, other than that of any program that could need other memory."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(ASIDE) and k not in ASIDE_ALONE}
    named = {word: digest(program.cwd / word) for word in program.argv[1:] if (program.cwd / word).is_file()}
    env, packages = sorted({**settings, **program.env}.items()), _packages_of(program.argv[0])
    parts = [list(program.argv), str(program.cwd), env, named, gpu, _ours(), packages]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@functools.cache
def _ours() -> list[str | None]:
    package = Path(__file__).parents[1]
    return [digest(path) for name in ("probe/**/*.py", *DECIDING) for path in sorted(package.glob(name))]


def digest(path: Path) -> str | None:
    """Return the hash of a file's content, or None if it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _packages_of(interpreter: str) -> list[str]:
    """List what is installed beside an interpreter, by folder names; empty outside a virtual environment."""
    folder = Path(interpreter).absolute().parent.parent
    return sorted(path.name for path in folder.glob("lib/python3*/site-packages/*.dist-info"))


_ADAPTER = TypeAdapter(SimulatedRun)
