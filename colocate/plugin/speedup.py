"""The option that asks whether sharing is worth it, and the comparison after a group that fits."""

import logging
from typing import TYPE_CHECKING

import pytest

from colocate.errors import ColocateError

if TYPE_CHECKING:
    from colocate.device import Device
    from colocate.plan import Group
    from colocate.plugin.outcomes import Record
    from colocate.results import GroupResult

_log = logging.getLogger("colocate")


def add_option(group: pytest.OptionGroup) -> None:
    """Declare it."""
    group.addoption(
        "--compare-solo",
        action="store_true",
        help="Run the trainings of every feasible group alone too, and say whether sharing saves time and energy.",
    )


def compared(
    config: pytest.Config, device: "Device", group: "Group", group_result: "GroupResult", record: "Record"
) -> "Record":
    """The record of a case with the answer, where it is asked for and the group fits.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import Cache, settle

    if not config.getoption("compare_solo") or not group_result.verdict.feasible or group.background is None:
        return record
    try:
        found = settle(group, group_result, device, cache=Cache.of_user())
    except (ColocateError, OSError) as error:
        _log.warning("%s: whether it is worth it is not known: %s", group.id, error)
        return {**record, "speedup": f"not known: {error}"}
    return {**record, "speedup": str(found)}
