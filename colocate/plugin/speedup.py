# SPDX-License-Identifier: Apache-2.0
"""``--compare-solo``: after a group that fits, compare sharing with running alone."""

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


def compared(
    config: pytest.Config, device: "Device", group: "Group", group_result: "GroupResult", record: "Record"
) -> "Record":
    """The record of a case with the answer, where it is asked for and the group fits.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import Cache, settle

    if not option(config, "compare_solo") or not group_result.verdict.feasible or group.background is None:
        return record
    try:
        found = settle(group, group_result, device, cache=Cache.of_user())
    except (ColocateError, OSError) as error:
        _log.warning("%s: whether it is worth it is not known: %s", group.id, error)
        return {**record, "speedup": f"not known: {error}"}
    return {**record, "speedup": str(found)}
