from dataclasses import replace

import execnet
import pytest
from groups import group, training

from colocate.plugin import outcomes
from colocate.plugin.outcomes import properties
from colocate.results import GroupResult
from colocate.units import MIB


def test_unknown_numbers_are_left_out_of_junit_and_sizes_are_mib():
    result = GroupResult.without_verdict(group(training("mnist"), None), "NOT RUN", "its script is not there")
    found = dict(properties(replace(result, peak_bytes=5000 * MIB)))
    assert found["peak_mib"] == 5000.0
    assert found["reasons"] == "its script is not there"
    assert "headroom_mib" not in found
    assert "background" not in found


def test_a_record_with_a_large_negative_number_travels_between_workers():
    """execnet sends no integer below -2**31: a headroom of -2537 MiB ended every session with workers."""
    result = GroupResult.without_verdict(group(training("mnist"), None), "NOT RUN", "")
    result = replace(result, headroom_bytes=-2537 * MIB)
    sending = outcomes.pytest_report_to_serializable()
    next(sending)
    with pytest.raises(StopIteration) as sent:
        sending.send({"colocate": result})

    arrived = execnet.loads(execnet.dumps(sent.value.value))
    next(outcomes.pytest_report_from_serializable(arrived))

    assert arrived["colocate"] == result
