# SPDX-License-Identifier: Apache-2.0
"""The short spelling of our options, for a project in which nobody else's options are around, such as this one."""

import pytest

from colocate.plugin.options import add_short_spelling


def pytest_addoption(parser: pytest.Parser) -> None:
    """Called by pytest for a conftest that asks for this module."""
    add_short_spelling(parser)
