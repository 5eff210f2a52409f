# SPDX-License-Identifier: Apache-2.0
"""The ``colocate`` command.

Only what the pytest layer needs is imported here, for that is loaded in everybody's sessions.
"""

from colocate.cli import arguments
from colocate.cli.arguments import DEFAULT_PLAN, GROUP, group_named
from colocate.cli.run_options import OPTIONS, PREFIX
