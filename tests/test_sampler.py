"""The monitor on scripted GPUs, on the simulated NVIDIA GPU, and with everything that can go wrong in between."""

import threading
import time
from functools import partial

import pytest
from doubles import Blocking, FakeDevice, ReplayDevice
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
        wait_for_samples(monitor, 2)
        early = monitor.trace()
        wait_for_samples(monitor, len(early.samples) + 2)
    late = monitor.trace()

    assert late.samples[: len(early.samples)] == early.samples
    assert early.duration_s < late.duration_s
    assert monitor.trace() == late


def test_no_thread_outlives_the_context():
    with Quick(FakeDevice([1])) as monitor:
        monitor.wait_for_sample(5)

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("monitor")]


def test_a_monitor_that_never_sampled_has_no_peak():
    with Sampler(FakeDevice([DeviceError("no")]), interval_s=0.002) as monitor:
        wait_until(lambda: monitor.trace().gaps)

    assert (monitor.peak(), monitor.latest(), monitor.trace().samples) == (None, None, ())


def test_waiting_for_a_sample_returns_a_new_one():
    with Quick(FakeDevice([7])) as monitor:
        first = monitor.wait_for_sample(5)
        second = monitor.wait_for_sample(5)

    assert first.used_bytes == second.used_bytes == 7
    assert second.elapsed_s > first.elapsed_s


def test_waiting_for_a_sample_ends_when_the_gpu_is_lost():
    blocking = Blocking()
    with Quick(FakeDevice([blocking, DeviceLost("gone")])) as monitor:
        threading.Timer(0.05, blocking.released.set).start()
        monitor.wait_for_sample(20)
        assert monitor.wait_for_sample(20) is None


def test_a_replayed_trace_is_sampled_with_its_peak():
    recorded = [Sample(0.0, 10), Sample(5.0, 70), Sample(10.0, 20), Sample(1000.0, 30)]
    with Quick(ReplayDevice(recorded, speed=100)) as monitor:
        wait_until(lambda: monitor.latest() and monitor.latest().used_bytes == 20)

    assert monitor.peak().used_bytes == 70


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


def test_a_failed_reading_is_a_gap_with_its_reason_and_no_number():
    failing = [DeviceError("GPU-fake: no answer")] * 3
    with Quick(FakeDevice([100, *failing, 200])) as monitor:
        wait_for_samples(monitor, 2)
    trace = monitor.trace()

    before, after = trace.samples[:2]
    assert [before.used_bytes, after.used_bytes] == [100, 200]
    assert [(gap.start_s, gap.end_s, gap.reason) for gap in trace.gaps] == [
        (before.elapsed_s, after.elapsed_s, "GPU-fake: no answer")
    ]
    assert trace.rejected == 0
    assert trace.lost is None


def test_each_reason_has_its_own_gap():
    with Quick(FakeDevice([1, DeviceError("first"), DeviceError("second"), DeviceError("second"), 2])) as monitor:
        wait_for_samples(monitor, 2)
    first, second = monitor.trace().gaps

    assert (first.reason, second.reason) == ("first", "second")
    assert first.end_s == second.start_s


def test_a_gap_that_has_not_ended_is_told_up_to_now():
    with Quick(FakeDevice([1, DeviceError("no answer")])) as monitor:
        wait_until(lambda: monitor.trace().gaps)
        trace = monitor.trace()
        assert trace.gaps[-1].end_s == trace.duration_s
    trace = monitor.trace()

    assert [(gap.end_s, gap.reason) for gap in trace.gaps] == [(trace.duration_s, "no answer")]


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


def test_a_gpu_lost_during_the_vitals_ends_the_sampling_too():
    device = FakeDevice([100], vitals=DeviceLost("gone"))
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


def test_a_driver_that_does_not_tell_has_no_lists_rather_than_empty_ones():
    with Quick(FakeDevice([1], processes=None)) as monitor:
        wait_for_samples(monitor, 3)
        wait_until(lambda: monitor._device.process_reads)

    assert monitor.process_lists() == []


def test_a_failed_process_list_is_none_and_leaves_the_trace_alone():
    device = FakeDevice([1], processes=DeviceError("no list"))
    with Quick(device) as monitor:
        wait_until(lambda: device.process_reads)

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


def test_the_last_vitals_are_read_at_the_end_so_that_energy_covers_everything():
    with Sampler(FakeDevice([1]), 0.002, vitals_interval_s=3600) as monitor:
        wait_until(lambda: monitor.vitals())

    assert len(monitor.vitals()) == 2


def test_the_processors_energy_is_updated_with_the_vitals():
    class Meter:
        updates = 0

        def update(self):
            self.updates += 1

    meter = Meter()
    with Quick(FakeDevice([1]), cpu_energy=meter):
        wait_until(lambda: meter.updates >= 3)


# --- on the simulated NVIDIA GPU


@pytest.fixture
def device(fake_nvml):
    with NvidiaDevice(fake_nvml.uuid()) as device:
        yield device


def test_memory_on_a_gpu_is_followed_as_it_comes_and_goes(fake_nvml, device):
    with Quick(device) as monitor:
        for mib in (100, 900, 200):
            fake_nvml.allocate(mib * MIB)
            wait_until(lambda mib=mib: monitor.latest() and monitor.latest().used_bytes == mib * MIB)

    assert monitor.peak().used_bytes == 900 * MIB


def test_a_driver_that_holds_a_call_holds_no_other_thread(fake_nvml, device, monkeypatch):
    monkeypatch.setattr(monitor_module, "SLOW_ANSWER_S", 0.05)
    fake_nvml.block(MEMORY, 0.3, after=3, times=1)
    with Quick(device) as monitor:
        wait_until(lambda: quiet_s(monitor) > 0.1)
        vitals = len(monitor.vitals())
        wait_until(lambda: len(monitor.vitals()) > vitals)
        wait_until(lambda: quiet_s(monitor) < 0.1)

    assert [gap.reason for gap in monitor.trace().gaps] == ["the GPU took 0.3 s to answer"]


def test_a_nonsense_answer_never_becomes_the_peak(fake_nvml, device):
    fake_nvml.allocate(100 * MIB)
    fake_nvml.answer(MEMORY, 17 * 10**12, after=3, times=2)
    with Quick(device) as monitor:
        wait_for_samples(monitor, 6)

    assert monitor.peak().used_bytes == 100 * MIB
    assert monitor.trace().rejected == 2


@pytest.mark.slow
def test_the_default_rates_are_kept(fake_nvml, device):
    """Twenty samples a second, one reading of the vitals a second, the process list once in five."""
    with Sampler(device) as monitor:
        wait_until(lambda: monitor.trace().duration_s > 2.02)
    trace = monitor.trace()

    assert len(trace.samples) + trace.missed_ticks == pytest.approx(41, abs=1)
    assert fake_nvml.calls("nvmlDeviceGetPowerUsage") == 4  # at 0, 1, 2 and at the end
    assert fake_nvml.calls("nvmlDeviceGetComputeRunningProcesses_v3") <= 2  # one question is two calls when not empty
