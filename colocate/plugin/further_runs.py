# SPDX-License-Identifier: Apache-2.0
"""``--stress`` and ``--compare-solo``: what further runs tell of a group that fits, beside its verdict."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from colocate.errors import ColocateError
from colocate.plugin.options import option
from colocate.verdict import Outcome

if TYPE_CHECKING:
    from colocate.device import Device
    from colocate.plan import Group
    from colocate.results import GroupResult

_log = logging.getLogger("colocate")


def with_further_runs(
    config: pytest.Config, device: "Device", group: "Group", result: "GroupResult", plan: str
) -> "Iterator[GroupResult]":
    """Yield the result of a case each time another answer that is asked for has been added to it.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import settle, stress

    if result.outcome != Outcome.FEASIBLE or result.deciding is None:
        return
    if (resolution := option(config, "stress")) is not None:
        try:
            found = stress(device, group, result.deciding, plan=plan, resolution_bytes=resolution)
            text, margin = f"stress: {found}", found.holds_bytes
        except (ColocateError, OSError) as error:
            text, margin = f"the distance to the breaking point is not known: {error}", None
            _log.warning("%s: %s", group.id, text)
        result = replace(result, margin_pass_bytes=margin).with_warning(text)
        yield result
    if option(config, "compare_solo") and group.background is not None:
        try:
            answer = str(settle(group, result, device))
        except (ColocateError, OSError) as error:
            answer = f"not known: {error}"
            _log.warning("%s: whether sharing is worth it is %s", group.id, answer)
        yield replace(result, speedup=answer)
