# SPDX-License-Identifier: Apache-2.0
"""List the files of its own that a program ran, so that a later prediction sees whether they changed.

Standard library only.
"""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path

OURS = str(Path(__file__).resolve().parent)


def files_of_program() -> list[str]:
    """The source files of the modules loaded so far, but for those that were installed and our own."""
    names = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    not_own = (*installed_folders(), OURS)
    own = {one for one in names if isinstance(one, str) and one.endswith(".py") and not one.startswith(not_own)}
    return sorted(path for path in {str(Path(one).resolve()) for one in own} if not path.startswith(not_own))


def installed_packages() -> list[str]:
    """Name and version of every distribution in sight, as their folders are called."""
    folders = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return sorted({found.stem for folder in folders for found in folder.glob("*.dist-info")})


def installed_folders() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, as they are named and as they resolve."""
    return _installed_folders(tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _installed_folders(entries: tuple[str, ...]) -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    names |= {entry for entry in entries if Path(entry).name in ("site-packages", "dist-packages")}
    return tuple(sorted({name for one in names for name in (one, str(Path(one).resolve()))}))
