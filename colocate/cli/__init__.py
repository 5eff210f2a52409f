"""The `colocate` command: everything around a run that needs no pytest."""

from colocate.cli import arguments
from colocate.cli.arguments import DEFAULT_PLAN, GROUP, group_named
from colocate.cli.main import main

__all__ = [
    "DEFAULT_PLAN",
    "GROUP",
    "arguments",
    "group_named",
    "main",
]
