# SPDX-License-Identifier: Apache-2.0
"""``--stress`` and ``--compare-solo``: what further runs tell of a group that fits, beside its verdict."""

import logging
from collections.abc import Iterator
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


def with_further_runs(
    config: pytest.Config, device: "Device", group: "Group", group_result: "GroupResult", plan: str, record: "Record"
) -> "Iterator[Record]":
    """Yield the record of a case each time another answer that is asked for has been added to it.

    What goes wrong here costs the answer, never the verdict.
    """
    from colocate.advice import SoloRunCache, settle, stress

    if not group_result.verdict.feasible:
        return
    if (resolution := option(config, "stress")) is not None:
        try:
            found = stress(device, group, group_result.deciding, plan=plan, resolution_bytes=resolution)
            text, margin = f"stress: {found}", found.holds_bytes
        except (ColocateError, OSError) as error:
            text, margin = f"the distance to the breaking point is not known: {error}", None
            _log.warning("%s: %s", group.id, text)
        record = {**record, "margin_pass_bytes": margin, "warnings": [*record["warnings"], text]}
        yield record
    if option(config, "compare_solo") and group.background is not None:
        try:
            answer = str(settle(group, group_result, device, cache=SoloRunCache.of_user()))
        except (ColocateError, OSError) as error:
            answer = f"not known: {error}"
            _log.warning("%s: whether sharing is worth it is %s", group.id, answer)
        yield {**record, "speedup": answer}
