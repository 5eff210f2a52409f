from pathlib import Path

import execnet
import numpy as np
import pytest
from groups import group, training

from colocate.plugin.outcomes import Outcomes, plain, properties, unjudged
from colocate.results.schema import RECORD_FIELDS
from colocate.units import MIB
from colocate.verdict.rules import Outcome


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.float64(1.5), 1.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (Path("/a/b"), "/a/b"),
        (Outcome.FEASIBLE, "FEASIBLE"),
        ((1, {Outcome.FEASIBLE: None}), [1, {"FEASIBLE": None}]),
        (True, True),
        (None, None),
    ],
)
def test_records_hold_builtin_types_only(value, sent):
    """A numpy number or a path on a report ended the whole session: xdist can send builtin types only."""
    found = plain(value)
    assert found == sent
    assert type(found) is type(sent)


def test_unknown_numbers_are_left_out_of_junit_and_sizes_are_mib():
    record = unjudged(group(training("mnist"), None), "NOT RUN", "its script is not there")
    assert set(record) == set(RECORD_FIELDS)
    found = dict(properties({**record, "peak_bytes": 5000 * MIB}))
    assert found["peak_mib"] == 5000.0
    assert found["reasons"] == "its script is not there"
    assert "headroom_mib" not in found
    assert "background" not in found


def test_a_record_with_a_large_negative_number_travels_between_workers():
    """execnet sends no integer below -2**31: a headroom of -2537 MiB ended every session with workers."""
    record = unjudged(group(training("mnist"), None), "NOT RUN", "") | {"headroom_bytes": -2537 * MIB}
    sending = Outcomes().pytest_report_to_serializable()
    next(sending)
    with pytest.raises(StopIteration) as sent:
        sending.send({"colocate": record})

    arrived = execnet.loads(execnet.dumps(sent.value.value))
    next(Outcomes().pytest_report_from_serializable(arrived))

    assert arrived["colocate"] == record
