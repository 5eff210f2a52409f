"""``python -m colocate`` is the ``colocate`` command."""

import sys

from colocate.cli.main import main

sys.exit(main())
