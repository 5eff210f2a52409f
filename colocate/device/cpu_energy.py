# SPDX-License-Identifier: Apache-2.0
"""Energy of the processors, from the counters that Linux shows under ``/sys/class/powercap`` (RAPL).

Knows no GPU. Since 2020 the kernel lets only root read these counters (CVE-2020-8694), and many virtual
machines have none: then the energy is unknown, which is None and not 0.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(slots=True)
class _Package:
    """One processor socket. Its counter runs in microjoules from 0 to ``range_uj`` and then starts again."""

    counter: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def update(self) -> None:
        now_uj = int(self.counter.read_text())
        passed_uj = now_uj - self.last_uj
        self.total_uj += passed_uj if passed_uj >= 0 else passed_uj + self.range_uj + 1
        self.last_uj = now_uj


class CpuEnergyMeter:
    """Energy of all processor packages from its making on; a counter may wrap around between two updates, but once.

    At 200 W a counter of the usual range wraps after about twenty minutes, so :meth:`update` must be called more often
    than that. Parts of a package (cores, memory) are counters of their own and not added again.

    Args:
        root: Where the kernel shows the counters.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._lock = threading.Lock()
        self._readable = True
        self._packages: list[_Package] = []
        try:
            self._packages = [_open(zone) for zone in sorted(root.glob("intel-rapl:*")) if _is_package(zone)]
        except (OSError, ValueError):
            self._readable = False

    def update(self) -> None:
        """Reads the counters now. One that cannot be read any more makes the whole energy unknown."""
        with self._lock:
            try:
                for package in self._packages:
                    package.update()
            except (OSError, ValueError):
                self._readable = False

    def energy_j(self) -> float | None:
        """Joules since the making of this meter, None where no counter can be read.

        Check by hand: ``sudo cat /sys/class/powercap/intel-rapl:0/energy_uj`` twice (microjoules).
        """
        self.update()
        if not self._packages or not self._readable:
            return None
        return sum(package.total_uj for package in self._packages) / 1e6


def _is_package(zone: Path) -> bool:
    """Sockets are called ``package-0`` and so on; ``psys`` contains them and would count twice."""
    return (zone / "name").read_text().startswith("package")


def _open(zone: Path) -> _Package:
    counter = zone / "energy_uj"
    range_uj = int((zone / "max_energy_range_uj").read_text())
    return _Package(counter, range_uj, int(counter.read_text()))
