# SPDX-License-Identifier: Apache-2.0
"""Sizes: bytes inside, MiB at the edges. The only module that knows what MB, MiB and GB mean.

MB and GB in plans mean MiB and GiB, because that is what nvidia-smi prints under those names. Read as decimal units,
the plan's 7500 MB would be 7152.6 MiB: enough to turn a verdict.
"""

import re
from decimal import Decimal

MIB = 1024**2
GIB = 1024**3

_DIGITS = 30  # beyond any memory there is, and well within what a float can hold

_MOST_DECIMALS = 7  # a byte is 0.00000095 MiB

_FACTORS = {"": MIB, "b": 1, "mb": MIB, "mib": MIB, "gb": GIB, "gib": GIB}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE | re.ASCII)


def parse_size(text: str | int | float) -> int:
    """Bytes meant by a size of a plan: ``"7500MB"``, ``"8GB"``, ``"7.5 GiB"`` or a bare number of MiB.

    Raises:
        ValueError: the text is no size; the message says what one looks like.
    """
    match = _SIZE.fullmatch(str(text)) if not isinstance(text, bool) else None
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None or len(match[1]) > _DIGITS:
        raise ValueError(f"expected a size such as '7500MB' or '8GB', got {text!r}")
    return round(Decimal(match[1]) * factor)


def to_mib(num_bytes: int) -> float:
    """Bytes as MiB, unrounded: compare in bytes and round only to print."""
    return num_bytes / MIB


def mib_text(num_bytes: int | None, *, beside: int | None = None) -> str:
    """Bytes as ``"5234"``; blank where they are not known.

    Whole MiB, but for a size so near to the one that it is shown ``beside`` that rounding would make both the same:
    7499.9 below a limit of 7500.
    """
    if num_bytes is None:
        return ""
    texts = (f"{to_mib(num_bytes):.{digits}f}" for digits in range(_MOST_DECIMALS + 1))
    if beside is None or num_bytes == beside:
        return next(texts)
    return next(text for digits, text in enumerate(texts) if float(text) != round(to_mib(beside), digits))


def span_text(low_bytes: int, high_bytes: int, *, beside: int | None = None) -> str:
    """From so many to so many MiB, as in ``"5100-5360"``."""
    return f"{mib_text(low_bytes, beside=beside)}-{mib_text(high_bytes, beside=beside)}"


def format_mib(num_bytes: int | None, unknown: str = "unknown", *, beside: int | None = None) -> str:
    """Bytes as ``"5234 MiB"``, see :func:`mib_text`; what is not known stays a word, never a number."""
    return unknown if num_bytes is None else f"{mib_text(num_bytes, beside=beside)} MiB"


def format_size(num_bytes: int) -> str:
    """A size of a GPU as people say it: ``"8 GB"``, or in MiB where it is no whole number of GiB."""
    return f"{num_bytes // GIB} GB" if num_bytes and num_bytes % GIB == 0 else format_mib(num_bytes)


def duration_text(seconds: float | None) -> str:
    """A duration such as ``4 min 12 s``."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def energy_text(joules: float | None) -> str:
    """An energy such as ``35 Wh``; below a tenth of that in joules."""
    if joules is None:
        return ""
    return f"{joules:.0f} J" if joules < 360 else f"{joules / 3600:.1f} Wh"


def plural(number: int, noun: str) -> str:
    """Such as ``1 group`` and ``2 groups``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
