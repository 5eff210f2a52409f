"""The subcommands of ``colocate``, one module each.

A module has ``add(commands)``, which declares its arguments and sets ``run``, a function from the parsed options to an
exit code: 0 well, 1 a finding, 2 input that cannot be used. What it needs it imports when it runs, so that ``--help``
is quick.
"""

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
WELL, FINDING, USAGE = 0, 1, 2


def new(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Declare a subcommand; ``example`` is shown below its arguments in ``--help``."""
    return commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
