# SPDX-License-Identifier: Apache-2.0
"""Types and defaults of command-line arguments that pytest's options and ``colocate`` share.

Each function is a type for argparse; all say what they expected and what they got.
"""

import argparse
import re
from collections.abc import Sequence
from math import inf, nan
from pathlib import Path

from colocate.files import shipped
from colocate.units import parse_size

DEFAULT_PLAN = Path("settings/parallel_feasibility_test.json")
DEVICES = ("auto", "nvidia", "virtual")
EFFORTS = ("quick", "normal", "full")
EFFORT = "COLOCATE_EFFORT"  # read by the probe of every dry run, whoever starts it


def default_plan() -> Path:
    """The plan where none is named: that of the current folder, else the twelve groups that colocate brings along."""
    return DEFAULT_PLAN if DEFAULT_PLAN.is_file() else shipped(str(DEFAULT_PLAN))


GROUP = re.compile(r"group[_-]?0*(\d{1,9})", re.IGNORECASE | re.ASCII)


def group_named(word: str, ids: Sequence[str]) -> str | None:
    """The id that a word means, or None: ``group1``, ``group_1`` and ``group01`` are the group of that number."""
    for known in (word, word.lower()):
        if known in ids:
            return known
    match = GROUP.fullmatch(word)
    numbered = {int(found[1]): known for known in reversed(ids) if (found := GROUP.fullmatch(known))}
    return numbered.get(int(match[1])) if match else None


def size(text: str) -> int:
    """Bytes of ``200MB``.

    Raises:
        argparse.ArgumentTypeError: the text is no size.
    """
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def whole(text: str) -> int:
    """A whole number from 1.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def number(text: str) -> int | float:
    """A number above 0, whole where it is written so.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    value = int(text) if text.isdecimal() else _float(text)
    if not 0 < value < inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def seconds(text: str) -> float:
    """A duration in seconds, from 0.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    value = _float(text)
    if not 0 <= value < inf:
        raise argparse.ArgumentTypeError(f"expected a number of seconds from 0, got {text!r}")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return nan
