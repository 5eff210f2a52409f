"""The pytest-html page: columns, details and summary from `colocate.report.page`; plain ``pytest`` writes it."""

import pytest


def register(config: pytest.Config) -> None:
    """Take part in this session."""
