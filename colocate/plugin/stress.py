"""``--stress``: after a group that fits, how much more memory could be taken before it breaks."""

import argparse
import logging
from typing import TYPE_CHECKING

import pytest

from colocate.cli import arguments
from colocate.errors import ColocateError
from colocate.units import format_mib

if TYPE_CHECKING:
    from colocate.device import Device
    from colocate.plan import Group
    from colocate.plugin.outcomes import Record
    from colocate.results import GroupResult

DEFAULT = "64MB"

_log = logging.getLogger("colocate")


def add_option(group: pytest.OptionGroup) -> None:
    """Declare the option."""
    group.addoption(
        "--stress",
        nargs="?",
        const=DEFAULT,
        type=resolution,
        metavar="SIZE",
        help="After a group that fits, take more and more of the GPU until it breaks, and say how much that was, to "
        "within SIZE; write --stress=SIZE (64MB). Some four to ten further runs of the group.",
    )


def resolution(text: str) -> int:
    """A size of at least 2 MiB, which is what a driver gives out at a time.

    Raises:
        argparse.ArgumentTypeError: the text is no size, or a smaller one.
    """
    from colocate.advice import LEAST_RESOLUTION_BYTES

    size = arguments.size(text)
    if size < LEAST_RESOLUTION_BYTES:
        raise argparse.ArgumentTypeError(f"expected at least {format_mib(LEAST_RESOLUTION_BYTES)}, got {text!r}")
    return size


def stressed(
    config: pytest.Config, device: "Device", group: "Group", group_result: "GroupResult", plan: str, record: "Record"
) -> "Record":
    """The record of a case with its distance to the breaking point, where that is asked for and the group fits.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import stress

    wanted = config.getoption("stress")
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
