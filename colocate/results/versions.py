# SPDX-License-Identifier: Apache-2.0
"""The versions of what decides how a training runs; they are part of every record, and a resumed run compares them."""

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from colocate import __version__

# Libraries whose versions were seen to move a peak; transformers alone by a tenth.
MOVE_MEMORY = ("accelerate", "diffusers", "lightning", "peft", "timm", "torch", "torchvision", "transformers")

# And those of the twelve trainings. What else a training imports is its own affair.
PACKAGES = (*MOVE_MEMORY, "scikit-learn", "numpy")


@cache
def packages() -> dict[str, str]:
    """Name to version of this interpreter, of colocate and of the packages that are installed."""
    found = {"colocate": __version__, "python": platform.python_version()}
    return found | {name: number for name in PACKAGES if (number := _version(name)) is not None}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
