# SPDX-License-Identifier: Apache-2.0
"""Can these two trainings share one GPU? Every group of the plan is one case.

The fixtures watch the GPU and keep the background training going; the body runs the foreground for one epoch and
checks what came of it. A group whose evidence carries no verdict is an error, never a pass.
"""

from collections.abc import Callable

import pytest

from colocate.harness import GroupRun
from colocate.plugin.session import cases
from colocate.verdict import Verdict


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case per group of the plan, named by its id and marked by its tier."""
    metafunc.parametrize("group", cases(metafunc.config))


@pytest.mark.usefixtures("background")
def test_group(observation: GroupRun, conclude: Callable[[], Verdict]) -> None:
    """The foreground finishes its epoch beside the background, nobody runs out of memory, the peak stays below."""
    observation.run_foreground()

    verdict = conclude()

    assert not verdict.out_of_memory, str(verdict)
    assert not verdict.over_limit, str(verdict)
    assert verdict.epoch_finished, str(verdict)
    assert verdict.feasible, str(verdict)
