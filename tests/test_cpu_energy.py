import pytest

from colocate.device.cpu_energy import CpuEnergyMeter

RANGE_UJ = 262_143_328_850


@pytest.fixture
def powercap(tmp_path):
    """The kernel's folder of a machine with two sockets, the cores of one, and the whole board."""
    for zone, name in [
        ("intel-rapl:0", "package-0"),
        ("intel-rapl:0:0", "core"),
        ("intel-rapl:1", "package-1"),
        ("intel-rapl:2", "psys"),
    ]:
        folder = tmp_path / zone
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        (folder / "energy_uj").write_text("1000000\n")
    return tmp_path


def set_counter(powercap, zone, energy_uj):
    (powercap / zone / "energy_uj").write_text(f"{energy_uj}\n")


def test_energy_is_that_of_all_sockets_and_of_nothing_twice(powercap):
    meter = CpuEnergyMeter(powercap)
    for zone, energy_uj in [("intel-rapl:0", 3_000_000), ("intel-rapl:1", 1_500_000)]:
        set_counter(powercap, zone, energy_uj)
    set_counter(powercap, "intel-rapl:0:0", 2_000_000)
    set_counter(powercap, "intel-rapl:2", 9_000_000)

    assert meter.energy_j() == pytest.approx(2.5)


def test_a_counter_may_wrap_around_often_if_it_is_updated_in_between(powercap):
    meter = CpuEnergyMeter(powercap)
    for _ in range(3):
        set_counter(powercap, "intel-rapl:0", RANGE_UJ)
        meter.update()
        set_counter(powercap, "intel-rapl:0", 1_000_000)
        meter.update()

    assert meter.energy_j() == pytest.approx(3 * (RANGE_UJ + 1) / 1e6)


def test_a_counter_that_only_root_may_read_or_none_is_unknown(powercap, tmp_path):
    """As the kernel has it since 2020; a folder in its place fails for root as well."""
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    (powercap / "intel-rapl:1" / "energy_uj").mkdir()

    assert CpuEnergyMeter(powercap).energy_j() is None
    assert CpuEnergyMeter(tmp_path / "missing").energy_j() is None


@pytest.mark.parametrize("content", ["", "much\n"])
def test_a_counter_that_fails_later_makes_the_energy_unknown(powercap, content):
    meter = CpuEnergyMeter(powercap)
    (powercap / "intel-rapl:0" / "energy_uj").write_text(content)

    assert meter.energy_j() is None
    set_counter(powercap, "intel-rapl:0", 2_000_000)
    assert meter.energy_j() is None
