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
    folders = map(Path, _package_folders(tuple(sys.path)))
    return sorted({found.stem for folder in folders for found in folder.glob("*.dist-info")})


@functools.cache
def is_own(path: str) -> bool:
    """A source file of the program: neither installed nor ours."""
    return not path.startswith(("<", OURS, *installed_folders()))


def installed_folders() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages, as they are named and as they resolve."""
    return _installed_folders(tuple(sys.path))


@functools.lru_cache(maxsize=16)
def _installed_folders(entries: tuple[str, ...]) -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    names = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")} | _package_folders(entries)
    return tuple(sorted({name for one in names for name in (one, str(Path(one).resolve()))}))


@functools.lru_cache(maxsize=16)
def _package_folders(entries: tuple[str, ...]) -> frozenset[str]:
    """Those of the search path that an installer filled, also as ``pip install --target``; never the program's own."""
    own = {*entries[:1], "", str(Path.cwd())}
    filled = (one for one in entries if one not in own and any(Path(one).glob("*.dist-info")))
    return frozenset(one for one in entries if Path(one).name in ("site-packages", "dist-packages")) | {*filled}
