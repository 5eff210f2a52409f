"""The monitor on scripted GPUs, on the simulated NVIDIA GPU, and with everything that can go wrong in between."""

import threading
import time
from functools import partial

import pytest
from doubles import Blocking, FakeDevice
from fake_nvml import MIB
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import wait_until

from colocate.device.base import DeviceProcess, Vitals
from colocate.device.nvml import NvidiaDevice
from colocate.errors import DeviceError, DeviceLost, ImplausibleReading
from colocate.harness import sampler as monitor_module
from colocate.harness.sampler import Sampler, _Schedule
from colocate.verdict.evidence import Sample

MEMORY = "nvmlDeviceGetMemoryInfo_v2"

# Readings follow each other fast in these tests, so that no test has to wait for long.
Quick = partial(Sampler, interval_s=0.002, vitals_interval_s=0.01, processes_interval_s=0.05)


def wait_for_samples(monitor, count):
    wait_until(lambda: len(monitor.trace().samples) >= count)


def quiet_s(monitor):
    trace = monitor.trace()
    return trace.duration_s - (trace.samples[-1].elapsed_s if trace.samples else 0.0)


# --- samples


def test_samples_are_the_gpus_readings_in_order():
    with Quick(FakeDevice([100, 300, 200])) as monitor:
        wait_for_samples(monitor, 4)
    trace = monitor.trace()

    assert [sample.used_bytes for sample in trace.samples[:4]] == [100, 300, 200, 200]
    assert [*trace.samples] == sorted(trace.samples)
    assert trace.peak == monitor.peak() == Sample(trace.samples[1].elapsed_s, 300)
    assert monitor.latest() == trace.samples[-1]
    assert trace.lost is None
    assert trace.gaps == ()


def test_the_trace_can_be_asked_while_sampling_and_no_longer_changes_afterwards():
    with Quick(FakeDevice([1])) as monitor:
        first, second = monitor.wait_for_sample(5), monitor.wait_for_sample(5)
        assert second.elapsed_s > first.elapsed_s
        early = monitor.trace()
        wait_for_samples(monitor, len(early.samples) + 2)
    late = monitor.trace()

    assert late.samples[: len(early.samples)] == early.samples
    assert early.duration_s < late.duration_s
    assert monitor.trace() == late
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")]


def test_waiting_for_a_sample_ends_when_the_gpu_is_lost():
    blocking = Blocking()
    with Quick(FakeDevice([blocking, DeviceLost("gone")])) as monitor:
        threading.Timer(0.05, blocking.released.set).start()
        monitor.wait_for_sample(20)
        assert monitor.wait_for_sample(20) is None


@given(
    due_s=st.floats(0, 1e6),
    interval_s=st.floats(0.001, 10),
    late_s=st.lists(st.floats(0, 100), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_a_schedule_never_drifts_and_counts_what_it_passed_over(due_s, interval_s, late_s):
    schedule = _Schedule(due_s, interval_s)
    instants = 0
    for late in late_s:
        now_s = schedule.due_s + late
        instants += schedule.advance(now_s) + 1
        assert now_s - 1e-6 <= schedule.due_s <= now_s + interval_s + 1e-6

    assert schedule.due_s == pytest.approx(due_s + instants * interval_s)


def test_slow_readings_do_not_shift_the_grid_and_count_as_missed():
    def slow():
        time.sleep(0.03)  # the GPU's own delay is what is under test
        return 1

    with Sampler(FakeDevice([slow]), interval_s=0.01) as monitor:
        wait_for_samples(monitor, 4)
    trace = monitor.trace()

    assert trace.missed_ticks >= 2 * (len(trace.samples) - 1)


def test_the_cost_of_reading_is_counted_also_while_it_goes_on():
    def burn():
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            pass
        return 1

    with Quick(FakeDevice([burn])) as monitor:
        wait_for_samples(monitor, 5)
        during = monitor.trace()
    after = monitor.trace()

    assert during.reading_s >= 0.01 * len(during.samples) * 0.9
    assert after.reading_s >= during.reading_s


# --- what could not be read


def test_failed_readings_are_gaps_with_their_reasons_and_no_numbers():
    failing = [DeviceError("first"), DeviceError("second"), DeviceError("second")]
    with Quick(FakeDevice([100, *failing, 200, DeviceError("no answer")])) as monitor:
        wait_until(lambda: len(monitor.trace().gaps) == 3)
        during = monitor.trace()
        assert during.gaps[-1].end_s == during.duration_s, "one that has not ended is told up to now"
    trace = monitor.trace()

    before, after = trace.samples
    first, second, last = trace.gaps
    assert [before.used_bytes, after.used_bytes] == [100, 200]
    assert [gap.reason for gap in trace.gaps] == ["first", "second", "no answer"]
    assert (first.start_s, first.end_s, second.end_s) == (before.elapsed_s, second.start_s, after.elapsed_s)
    assert last.end_s == trace.duration_s
    assert (trace.rejected, trace.lost) == (0, None)

    with Sampler(FakeDevice([DeviceError("no")]), interval_s=0.002) as never:
        wait_until(lambda: never.trace().gaps)
    assert (never.peak(), never.latest(), never.trace().samples) == (None, None, ())


@pytest.mark.parametrize("nonsense", [17 * 10**12, -1, ImplausibleReading("17 TB")])
def test_a_number_that_cannot_be_true_is_rejected_and_counted(nonsense):
    with Quick(FakeDevice([100, nonsense, nonsense, 200])) as monitor:
        wait_for_samples(monitor, 2)
    trace = monitor.trace()

    assert trace.peak.used_bytes == 200
    assert trace.rejected == 2
    assert len(trace.gaps) == 1


def test_a_lost_gpu_ends_the_sampling_and_is_kept():
    with Quick(FakeDevice([100, DeviceLost("GPU-fake: fell off the bus"), 900])) as monitor:
        wait_until(lambda: monitor.lost)
    trace = monitor.trace()

    assert trace.lost == monitor.lost == "GPU-fake: fell off the bus"
    assert [sample.used_bytes for sample in trace.samples] == [100]
    assert (trace.gaps[-1].start_s, trace.gaps[-1].end_s) == (trace.samples[-1].elapsed_s, trace.duration_s)

    device = FakeDevice([100], vitals=DeviceLost("gone"))  # during the vitals it ends the sampling too
    with Quick(device) as monitor:
        wait_until(lambda: monitor.lost)
        reads = device.reads
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")])
    assert monitor.trace().lost == "gone"
    assert device.reads - reads <= 1


@pytest.mark.parametrize("where", ["memory", "vitals", "processes"])
def test_a_mistake_of_ours_is_kept_and_not_a_short_trace(where):
    device = FakeDevice([1], **({} if where == "memory" else {where: ZeroDivisionError("our mistake")}))
    if where == "memory":
        device._script = [1, ZeroDivisionError("our mistake")]
    with Quick(device) as monitor:
        wait_until(lambda: monitor.lost)

    assert "failed: ZeroDivisionError: our mistake" in monitor.trace().lost


def test_a_blocked_call_is_a_gap_that_can_be_seen_from_outside(monkeypatch):
    monkeypatch.setattr(monitor_module, "SLOW_ANSWER_S", 0.02)
    blocking = Blocking(500)
    with Quick(FakeDevice([100, blocking, 200])) as monitor:
        assert blocking.entered.wait(20)
        wait_until(lambda: quiet_s(monitor) > 0.1)
        during = monitor.trace()
        blocking.released.set()
        wait_for_samples(monitor, 3)
    after = monitor.trace()

    assert during.gaps[-1].reason == "the GPU has not answered yet"
    assert during.gaps[-1].end_s == during.duration_s
    assert len(after.gaps) == 1
    assert after.gaps[0].end_s - after.gaps[0].start_s >= 0.08  # from the last sample, which came a little later
    assert "s to answer" in after.gaps[0].reason
    assert after.missed_ticks >= 10


def test_a_call_that_never_comes_back_does_not_stop_the_end_and_records_nothing_later(monkeypatch):
    monkeypatch.setattr(monitor_module, "SLOW_ANSWER_S", 0.02)
    monkeypatch.setattr(monitor_module, "_JOIN_S", 0.05)
    blocking = Blocking(8000)
    with Quick(FakeDevice([100, blocking])) as monitor:
        assert blocking.entered.wait(20)
    ended = monitor.trace()
    blocking.released.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")])

    assert [sample.used_bytes for sample in ended.samples] == [100]
    assert ended.gaps[-1].reason == "the GPU has not answered yet"
    later = monitor.trace()
    assert (later.samples, later.gaps) == (ended.samples, ended.gaps)


def test_blocked_vitals_cost_no_sample():
    blocking = Blocking()
    device = FakeDevice([1])
    device.vitals = blocking
    with Quick(device) as monitor:
        assert blocking.entered.wait(20)
        wait_for_samples(monitor, len(monitor.trace().samples) + 5)
        blocking.released.set()

    assert monitor.trace().gaps == ()


def test_a_suspended_machine_is_a_gap(monkeypatch):
    asleep_s = [5.0]
    monkeypatch.setattr(monitor_module, "_asleep_s", lambda: asleep_s[0])
    with Quick(FakeDevice([1])) as monitor:
        wait_for_samples(monitor, 2)
        assert monitor.trace().gaps == ()
        asleep_s[0] += 3600
        wait_until(lambda: monitor.trace().gaps)

    trace = monitor.trace()
    assert [gap.reason for gap in trace.gaps] == ["the machine was suspended for 3600.0 s"]
    assert trace.longest_gap_s(0.0, trace.duration_s) == 3600, "which the monotonic clock has not seen"


def test_a_monitor_without_processor_time_says_so(monkeypatch):
    """The waking is late although no reading was slow: another thread keeps the interpreter busy, say."""
    monkeypatch.setattr(monitor_module, "SLOW_ANSWER_S", 0.0)
    monitor = Sampler(FakeDevice([1]), interval_s=0.002)
    wait = monitor._stop.wait

    def oversleep(timeout_s):
        return wait(timeout_s + 0.02)

    monitor._stop.wait = oversleep
    with monitor:
        wait_until(lambda: monitor.trace().gaps)

    assert "no processor time for 0.0" in monitor.trace().gaps[0].reason
    assert monitor.trace().missed_ticks >= 5


# --- the slow readings


def test_vitals_are_read_all_along_with_their_time():
    vitals = Vitals(power_mw=60_000, temperature_c=45)
    before = time.time()
    with Quick(FakeDevice([1], vitals=vitals)) as monitor:
        wait_until(lambda: len(monitor.vitals()) >= 3)
    readings = monitor.vitals()

    assert {reading[2] for reading in readings} == {vitals}
    assert [*readings] == sorted(readings, key=lambda reading: reading[0])
    assert all(before <= unix <= time.time() for _, unix, _ in readings)


def test_failed_vitals_are_none_and_never_numbers():
    with Quick(FakeDevice([1], vitals=DeviceError("no answer"))) as monitor:
        wait_until(lambda: monitor.vitals())

    assert monitor.vitals()[0][2] == Vitals()
    assert monitor.trace().lost is None


def test_the_process_list_is_read_rarely_unless_asked():
    device = FakeDevice([1], processes=[DeviceProcess(7, 100)])
    with Sampler(device, 0.002, 0.01, processes_interval_s=3600) as monitor:
        wait_until(lambda: len(monitor.vitals()) >= 5)
        assert device.process_reads == 1
        monitor.ask_for_processes()
        monitor.ask_for_processes()
        wait_until(lambda: len(monitor.process_lists()) == 2)
        assert device.process_reads == 2
    (first_s, first), (second_s, _) = monitor.process_lists()

    assert first == (DeviceProcess(7, 100),)
    assert second_s - first_s >= 0.99, "asking must not read the list more often than once a second"


@pytest.mark.parametrize("processes", [None, DeviceError("no list")])
def test_a_driver_that_does_not_tell_has_no_lists_rather_than_empty_ones(processes):
    with Quick(FakeDevice([1], processes=processes)) as monitor:
        wait_for_samples(monitor, 3)
        wait_until(lambda: monitor._device.process_reads)

    assert monitor.process_lists() == []
    assert monitor.trace().gaps == ()


# --- energy


class Counter:
    """Vitals whose energy counter goes through a script, the last of it for ever."""

    def __init__(self, *energies_mj):
        self.energies_mj = [*energies_mj]

    def __call__(self):
        energy_mj = self.energies_mj.pop(0) if len(self.energies_mj) > 1 else self.energies_mj[0]
        return Vitals(energy_mj=energy_mj)


@pytest.mark.parametrize(
    ("counter", "energy_j"),
    [((5000, 6000, 9500), 4.5), ((5000, None, 9500), 4.5), ((5000, 100, 9500), None), ((None,), None)],
)
def test_energy_is_the_difference_of_the_gpus_own_counter(counter, energy_j):
    device = FakeDevice([1])
    device.vitals = Counter(*counter)
    with Quick(device) as monitor:
        wait_until(lambda: len(monitor.vitals()) > len(counter))

    assert monitor.gpu_energy_j() == energy_j


def test_the_processors_energy_is_updated_with_the_vitals_and_both_are_read_at_the_end():
    class Meter:
        updates = 0

        def update(self):
            self.updates += 1

    meter = Meter()
    with Sampler(FakeDevice([1]), 0.002, vitals_interval_s=3600, cpu_energy=meter) as monitor:
        wait_until(lambda: monitor.vitals())

    assert len(monitor.vitals()) == meter.updates == 2


# --- on the simulated NVIDIA GPU


@pytest.fixture
def device(fake_nvml):
    with NvidiaDevice(fake_nvml.uuid()) as device:
        yield device


def test_a_driver_that_holds_a_call_holds_no_other_thread(fake_nvml, device, monkeypatch):
    monkeypatch.setattr(monitor_module, "SLOW_ANSWER_S", 0.05)
    fake_nvml.allocate(100 * MIB)
    fake_nvml.answer(MEMORY, 17 * 10**12, after=3, times=2)
    with Quick(device) as monitor:
        wait_for_samples(monitor, 6)
    assert (monitor.peak().used_bytes, monitor.trace().rejected) == (100 * MIB, 2)

    fake_nvml.heal()
    fake_nvml.block(MEMORY, 0.3, after=3, times=1)
    with Quick(device) as monitor:
        wait_until(lambda: quiet_s(monitor) > 0.1)
        vitals = len(monitor.vitals())
        wait_until(lambda: len(monitor.vitals()) > vitals)
        wait_until(lambda: quiet_s(monitor) < 0.1)

    assert [gap.reason for gap in monitor.trace().gaps] == ["the GPU took 0.3 s to answer"]


@pytest.mark.slow
def test_the_default_rates_are_kept(fake_nvml, device):
    """Twenty samples a second, one reading of the vitals a second, the process list once in five."""
    with Sampler(device) as monitor:
        wait_until(lambda: monitor.trace().duration_s > 2.02)
    trace = monitor.trace()

    assert len(trace.samples) + trace.missed_ticks == pytest.approx(41, abs=1)
    assert fake_nvml.calls("nvmlDeviceGetPowerUsage") == 4  # at 0, 1, 2 and at the end
    assert fake_nvml.calls("nvmlDeviceGetComputeRunningProcesses_v3") <= 2  # one question is two calls when not empty
