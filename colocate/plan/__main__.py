# SPDX-License-Identifier: Apache-2.0
"""``python -m colocate.plan [FOLDER]`` writes the JSON Schemas of the settings files into a folder (settings)."""

import sys

from colocate.plan.plan import write_schemas

write_schemas(*sys.argv[1:] or ["settings"])
