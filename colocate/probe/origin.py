# SPDX-License-Identifier: Apache-2.0
"""List the files of its own that a program ran, so that a later prediction sees whether they changed.

Standard library only.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

OURS = str(Path(__file__).resolve().parent)


def files_of_program() -> list[str]:
    """The source files of the modules loaded so far, but for those that were installed and our own."""
    found = set()
    for module in list(sys.modules.values()):
        name = getattr(module, "__file__", None)
        if isinstance(name, str) and name.endswith(".py"):
            path = str(Path(name).resolve())
            if not path.startswith((*installed_folders(), OURS)):
                found.add(path)
    return sorted(found)


def installed_packages() -> list[str]:
    """Name and version of every distribution in sight, as their folders are called."""
    folders = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    return sorted({found.stem for folder in folders for found in folder.glob("*.dist-info")})


def installed_folders() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, as they are named and as they resolve."""
    paths = sysconfig.get_paths()
    names = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    names |= {entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")}
    return tuple(sorted({name for one in names for name in (one, str(Path(one).resolve()))}))
