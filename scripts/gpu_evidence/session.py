# SPDX-License-Identifier: Apache-2.0
"""One call: what is done already, what the time allows, and the evidence written from all of it."""

import argparse
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from colocate.device import DeviceInfo, FoundGpu, NvidiaDevice, choose_device
from colocate.errors import ColocateError
from colocate.files import safe_name, write_json
from colocate.plan import gpu_model, load_catalog, load_plan
from gpu_evidence import pages
from gpu_evidence.bench import WHOLE_VIRTUAL_BYTES, Bench, stored
from gpu_evidence.units import CUT, DONE, Result, Unit, file_name, units

FAILED, BEGUN = "failed", "begun"
MOST_TRIES = 3

UNFINISHED = 3
"""Exit code: there is more to do, run it again."""


class UnusableError(Exception):
    """What was asked for cannot be done at all."""


class Session:
    """One call of the script.

    Raises:
        UnusableError: no GPU, no plan, or a folder that must not be written to.
    """

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        self.options = options
        try:
            plan = load_plan(options.plan)
            catalog = load_catalog(plan.catalog) if plan.catalog else None
            small_bytes = gpu_model(options.gpu).total_bytes
            gpu, info = _gpu(options.device)
        except ColocateError as error:
            raise UnusableError(str(error)) from error
        work = _folder(options.work, info)
        self.bench = Bench(work, plan, catalog, gpu, small_bytes, info, options.minutes, options)
        self.out = pages.place(self.bench.basis, work.name, root, options.out)
        if self.out is None:
            raise UnusableError(f"--out={options.out}: docs/evidence is for what was measured, this is not")

    def run(self) -> int:
        """As many units as the time allows, then the evidence; 0 when nothing is left to do."""
        bench, wanted = self.bench, list(self._wanted())
        print(f"GPU: {bench.info.name} ({bench.basis}); records: {bench.work}; evidence: {self.out}", flush=True)
        if self.options.list:
            for unit in wanted:
                print(f"{_state(self._earlier(unit)):8} {unit.name}")
            return 0
        if not self.options.write:
            self._work(wanted)
        open_ = [unit for unit in wanted if not self._is_settled(unit)]
        assert self.out is not None
        pages.write(bench, {unit.name: self._earlier(unit) for unit in units(bench)}, self.out)
        print(f"{len(wanted) - len(open_)} of {len(wanted)} units are done; evidence: {self.out}", flush=True)
        return UNFINISHED if open_ else 0

    def _wanted(self) -> Iterator[Unit]:
        for unit in units(self.bench):
            if not self.options.only or unit.name.startswith(tuple(self.options.only)):
                yield unit

    def _work(self, wanted: list[Unit]) -> None:
        for unit in wanted:
            if self._is_settled(unit):
                continue
            if self.bench.left_s < unit.least_s:
                print(f"time: {self.bench.left_s:.0f} s are left, {unit.name} wants {unit.least_s:.0f} s; run it again")
                return
            self._do(unit)

    def _do(self, unit: Unit) -> None:
        """A call that is killed in here leaves a mark, so that the next one does not try for ever."""
        earlier = self._earlier(unit)
        tries, began = (earlier or {}).get("tries", 0) + 1, time.monotonic()
        self._keep(unit, {"state": BEGUN, "tries": tries})
        try:
            result = unit.work(self.bench, earlier)
        except (ColocateError, OSError) as error:
            result = {"state": FAILED, "text": str(error)}
        took_s = round(time.monotonic() - began, 2)
        self._keep(unit, {**result, "tries": tries, "took_s": took_s})
        said = result.get("text") or result.get("outcome") or ""
        print(f"{result['state']:6} {unit.name} ({took_s:.0f} s) {said}", flush=True)

    def _is_settled(self, unit: Unit) -> bool:
        earlier = self._earlier(unit)
        if earlier is None:
            return False
        return earlier["state"] in (DONE, CUT) or earlier.get("tries", 0) >= MOST_TRIES

    def _earlier(self, unit: Unit) -> Result | None:
        return stored(self._path(unit))

    def _keep(self, unit: Unit, result: Result) -> None:
        self._path(unit).parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path(unit), {"unit": unit.name, "basis": self.bench.basis, **result})

    def _path(self, unit: Unit) -> Path:
        return self.bench.work / "units" / f"{file_name(unit.name)}.json"


def _state(result: Result | None) -> str:
    return "open" if result is None else str(result["state"])


def _gpu(kind: Any) -> tuple[FoundGpu, DeviceInfo]:
    """The first GPU that may be used."""
    choice = choose_device(kind)
    if choice.kind == "nvidia":
        with NvidiaDevice(choice.uuids[0]) as device:
            return FoundGpu("nvidia", choice.uuids[0]), device.info
    name = "virtual 80 GB GPU"
    info = DeviceInfo("virtual", "virtual", name, WHOLE_VIRTUAL_BYTES, "predicted", "virtual GPU")
    return FoundGpu("virtual", total_bytes=WHOLE_VIRTUAL_BYTES), info


def _folder(work: Path, info: DeviceInfo) -> Path:
    """The newest folder of this GPU, or a new one with today's date."""
    slug = safe_name(info.name.lower().replace("nvidia", "").strip().replace(" ", "-")).replace("_", "-")
    slug = "-".join(filter(None, slug.split("-")))
    found = sorted(path for path in work.glob(f"{slug}-20??-??-??") if path.is_dir())
    return (found[-1] if found else work / f"{slug}-{date.today().isoformat()}").resolve()
