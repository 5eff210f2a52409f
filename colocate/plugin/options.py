# SPDX-License-Identifier: Apache-2.0
"""The options of a run as pytest has them; `colocate.cli.run_options` declares them."""

import argparse
from typing import Any

import pytest

from colocate.cli import OPTIONS, PREFIX


def add_options(parser: pytest.Parser) -> None:
    """Declare the options with their prefix, all in one group of ``pytest --help``."""
    group = parser.getgroup("colocate", "Can these two trainings share one GPU?")
    for name, settings in OPTIONS.items():
        group.addoption(f"{PREFIX}{name}", dest=_dest(name), **settings)


def add_short_spelling(parser: pytest.Parser) -> None:
    """Declare the same options without the prefix, where nobody else's options are around."""
    group = parser.getgroup("colocate")
    for name, settings in OPTIONS.items():
        group.addoption(f"--{name}", dest=_dest(name), **{**settings, "default": argparse.SUPPRESS})


def option(config: pytest.Config, name: str) -> Any:
    """The value of one of our options, by its short name with ``_`` for ``-``."""
    return getattr(config.option, f"colocate_{name}")


def _dest(name: str) -> str:
    return f"colocate_{name.replace('-', '_')}"
