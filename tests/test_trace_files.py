import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.device.base import Vitals
from colocate.results.trace_files import StoredTrace, read_energy, read_trace, write_trace, write_vitals
from colocate.verdict.evidence import Sample, Trace

SAMPLES = (Sample(0.0, 0), Sample(0.05, 1_073_741_824), Sample(0.1, 7_863_271_424))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "trace.csv"


def test_a_trace_is_a_small_csv_file(path):
    write_trace(path, Trace(SAMPLES, 0.05))

    assert path.read_text() == "elapsed_s,used_bytes\n0.000000,0\n0.050000,1073741824\n0.100000,7863271424\n"
    assert [file.name for file in path.parent.iterdir()] == ["trace.csv"]


@given(st.lists(st.builds(Sample, st.integers(0, 10**10).map(lambda us: us / 1e6), st.integers(0, 2**48)), max_size=20))
@settings(deadline=None)
def test_a_trace_survives_the_file(tmp_path_factory, samples):
    path = tmp_path_factory.mktemp("trace") / "trace.csv"
    write_trace(path, Trace(tuple(samples), 0.05))

    assert read_trace(path) == StoredTrace(tuple(samples), None)


def test_every_torn_last_line_is_dropped_and_told(path):
    """A file that a crash or a full disk cut anywhere never yields a number that was not written."""
    write_trace(path, Trace(SAMPLES, 0.05))
    whole = path.read_bytes()
    header = len("elapsed_s,used_bytes\n")
    for length in range(header, len(whole)):
        path.write_bytes(whole[:length])
        stored = read_trace(path)

        assert stored.samples == SAMPLES[: len(stored.samples)]
        assert (stored.torn is None) == (length == header or whole[length - 1 : length] == b"\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *(
            (f"elapsed_s,used_bytes\n0.0,1\n{line}\n0.1,2\n", f"line 3: expected elapsed_s,used_bytes, got '{line}'")
            for line in ("0.05,", "nan,2", "inf,2", "-inf,2", "0.05,-1", "0.05,9223372036854775808")
        ),
        ("time,memory\n0,1\n", "expected the columns"),
    ],
)
def test_what_is_no_reading_of_a_gpu_is_an_error(path, text, said):
    path.write_text(text)

    with pytest.raises(ValueError, match=f"trace.csv: {said}"):
        read_trace(path)


def test_an_energy_that_is_no_number_is_no_energy(tmp_path):
    for cell in ("nan", "inf"):
        (tmp_path / "gpu_energy.csv").write_text(f"elapsed_s,timestamp,energy_j,power_draw_w\n0.1,1,{cell},5\n")
        assert read_energy(tmp_path) == ()


def test_vitals_become_three_files_with_empty_fields_for_the_unknown(tmp_path):
    known = Vitals(
        power_mw=61_500, temperature_c=45, utilization_percent=0, memory_utilization_percent=7, memory_temperature_c=80
    )
    write_vitals(tmp_path, [(0.0, 1_700_000_000.25, known), (1.0, 1_700_000_001.25, Vitals(utilization_percent=30))])

    def rows(name):
        return list(csv.reader((tmp_path / name).read_text().splitlines()))

    assert rows("gpu_power.csv") == [
        ["timestamp", "power_draw_w"],
        ["1700000000.250", "61.5"],
        ["1700000001.250", ""],
    ]
    assert rows("gpu_temperature.csv") == [
        ["timestamp", "gpu_temp_c", "memory_temp_c"],
        ["1700000000.250", "45", "80"],
        ["1700000001.250", "", ""],
    ]
    assert rows("gpu_utilization.csv") == [
        ["timestamp", "gpu_util_percent", "memory_util_percent"],
        ["1700000000.250", "0", "7"],
        ["1700000001.250", "30", ""],
    ]
