# SPDX-License-Identifier: Apache-2.0
"""``--stress``: after a group that fits, how much more memory could be taken before it breaks."""

import logging
from typing import TYPE_CHECKING

import pytest

from colocate.errors import ColocateError
from colocate.plugin.options import option

if TYPE_CHECKING:
    from colocate.device import Device
    from colocate.plan import Group
    from colocate.plugin.outcomes import Record
    from colocate.results import GroupResult

_log = logging.getLogger("colocate")


def stressed(
    config: pytest.Config, device: "Device", group: "Group", group_result: "GroupResult", plan: str, record: "Record"
) -> "Record":
    """The record of a case with its distance to the breaking point, where that is asked for and the group fits.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import stress

    wanted = option(config, "stress")
    if wanted is None or not group_result.verdict.feasible:
        return record
    try:
        found = stress(device, group, group_result.deciding, plan=plan, resolution_bytes=wanted)
    except (ColocateError, OSError) as error:
        _log.warning("%s: its distance to the breaking point is not known: %s", group.id, error)
        return {
            **record,
            "warnings": [*record["warnings"], f"the distance to the breaking point is not known: {error}"],
        }
    return {**record, "margin_pass_bytes": found.holds_bytes, "warnings": [*record["warnings"], f"stress: {found}"]}
