# SPDX-License-Identifier: Apache-2.0
"""``python -m colocate`` is the ``colocate`` command."""

import sys

from colocate.cli import main

sys.exit(main.main())
