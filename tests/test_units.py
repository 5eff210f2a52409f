import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.plan.validation import size_text
from colocate.units import GIB, MIB, format_mib, mib_text, parse_size, span_text, to_mib


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("7500MB", 7500 * MIB),
        ("7500 mb", 7500 * MIB),
        ("8GB", 8192 * MIB),
        (" 7.5 GiB ", 7680 * MIB),
        ("1MiB", MIB),
        ("17B", 17),
        ("7500", 7500 * MIB),
        (7500, 7500 * MIB),
        (0.5, MIB // 2),
    ],
)
def test_sizes_mean_what_nvidia_smi_prints_under_their_units(text: str | float, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    "text", ["", "MB", "-5MB", "7,5GB", "7500 KB", "8TB", "1e3MB", "0x10MB", "\u0667MB", True, -1, "8GBGB"]
)
def test_what_is_no_size_is_refused_and_shown(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"expected a size such as '7500MB' or '8GB', got"):
        parse_size(text)


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**50), st.sampled_from(["MB", "MiB", "mb", " MB", ""]))
def test_a_size_prints_and_reads_back_exactly(num_bytes: int, unit: str) -> None:
    assert parse_size(size_text(num_bytes)) == num_bytes
    mib = num_bytes // MIB
    assert to_mib(parse_size(f"{mib}{unit}")) == mib
    assert format_mib(mib * MIB) == f"{mib} MiB"
    assert parse_size(f"{mib}GB") == parse_size(f"{mib} GiB") == parse_size(f"{mib * 1024}MB") == mib * GIB


@settings(deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_a_size_or_a_value_error(text: str) -> None:
    try:
        num_bytes = parse_size(text)
    except ValueError:
        return
    assert num_bytes >= 0


@settings(deadline=None)
@given(st.integers(min_value=0, max_value=2**25), st.integers(min_value=-(2**21), max_value=2**21))
def test_no_rounding_hides_on_which_side_of_a_limit_a_size_is(limit_mib: int, more: int) -> None:
    """7499.9 MiB used to be FEASIBLE at "peak 7500 MiB, limit 7500 MiB"."""
    shown = float(mib_text(limit_mib * MIB + more, beside=limit_mib * MIB))
    assert (shown > limit_mib, shown < limit_mib) == (more > 0, more < 0)


def test_digits_come_only_where_they_tell_two_sizes_apart() -> None:
    texts = [mib_text(round(mib * MIB), beside=7500 * MIB) for mib in (7500, 7499.9, 7499.99, 7500.4, 7499, 5234.4)]
    assert texts == ["7500", "7499.9", "7499.99", "7500.4", "7499", "5234"]
    assert span_text(5100 * MIB, round(7499.9 * MIB), beside=7500 * MIB) == "5100-7499.9"


def test_an_unknown_size_is_a_word_and_zero_is_a_number() -> None:
    assert format_mib(None) == "unknown"
    assert format_mib(None, "not measured") == "not measured"
    assert format_mib(0) == "0 MiB"
