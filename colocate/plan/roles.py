# SPDX-License-Identifier: Apache-2.0
"""TODO."""

from typing import Literal

Role = Literal["foreground", "background"]

ROLES: tuple[Role, ...] = ("foreground", "background")
