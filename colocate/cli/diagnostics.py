# SPDX-License-Identifier: Apache-2.0
"""Looks at a machine before a run: what is here, what works, and how to mend what does not.

Starts nothing on a GPU. The virtual GPU is tried with a program of two lines, because only that shows that the
emulation fits the torch at hand.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from colocate import __version__
from colocate.cli.arguments import default_plan
from colocate.device import (
    LIBRARY,
    DeviceInfo,
    NvidiaDevice,
    is_simulated,
    library_present,
    locked,
    refuse_hidden_library,
    survey_devices,
)
from colocate.errors import ColocateError, DeviceError
from colocate.harness import environment
from colocate.plan import load_plan
from colocate.probe.virtual_gpu import VirtualGpu
from colocate.process import sees_all_processes, slurm
from colocate.units import GIB, MIB, format_mib, format_size

State = Literal["ok", "warning", "error"]

NEEDED = ("pytest", "pytest-xdist", "pytest-html", "nvidia-ml-py", "pydantic", "pandas", "networkx")
WORKLOADS = ("torchvision", "timm", "transformers", "scikit-learn")

# A run of the twelve groups writes some 10 MiB; checkpoints of trainings are theirs. DataLoader workers pass their
# batches through shared memory, of which Docker gives 64 MiB.
ROOM_BYTES = 1 * GIB
SHARED_BYTES = 512 * MIB
HOST_BYTES = 8 * GIB

TRIAL_S = 300.0
_TRIAL = "import torch; x = torch.zeros(1 << 20, device='cuda'); print(torch.cuda.memory_allocated())"


@dataclass(frozen=True)
class Finding:
    """One finding about this machine: ok, a warning (less is possible), or an error (no run is possible)."""

    about: str
    state: State
    text: str
    cure: str = ""


def examine(plan: Path | None, results: Path, *, quick: bool = False) -> Iterator[Finding]:
    """Everything, as it is found. ``quick`` leaves out the trial of the virtual GPU, which loads torch."""
    yield Finding("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}; colocate {__version__}")
    yield _packages("packages", NEEDED, "error", "pip install -e .")
    yield _torch()
    yield _packages("trainings' packages", WORKLOADS, "warning", "pip install -e '.[workloads]'")
    yield from _gpus()
    if not quick:
        yield _virtual_gpu()
    yield _plan(plan)
    yield _disk(results)
    yield _shared_memory()
    yield _host_memory()
    yield _processes()
    yield _slurm()


def verdict_of(findings: list[Finding]) -> tuple[bool, str]:
    """Say in a sentence whether a run is possible, and of which kind."""
    states = {finding.about: finding.state for finding in findings}
    broken = [f.about for f in findings if f.state == "error" and f.about not in ("GPU", "virtual GPU")]
    if broken:
        return False, f"no run is possible before this is mended: {', '.join(broken)}"
    if states.get("GPU") == "ok":
        return True, "ready to measure: colocate run"
    if states.get("GPU") == "error":
        return False, "the GPU cannot be used as it is; mend it, or predict with: colocate run --device=virtual"
    if states.get("virtual GPU", "ok") == "ok" and states.get("torch") == "ok":
        return True, "ready to predict on a virtual GPU, which needs no GPU: colocate run"
    return False, "no run is possible: there is no GPU, and the virtual GPU does not work"


def _packages(about: str, names: tuple[str, ...], state: State, cure: str) -> Finding:
    found = {name: _version(name) for name in names}
    missing = [name for name, number in found.items() if number is None]
    if missing:
        return Finding(about, state, f"missing: {', '.join(missing)}", cure)
    return Finding(about, "ok", ", ".join(f"{name} {number}" for name, number in found.items()))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torch() -> Finding:
    """The build of torch, read from its files: importing it would take seconds."""
    number = _version("torch")
    if number is None or find_spec("torch") is None:
        text = "not installed; only trainings in an environment of their own can be run"
        return Finding("torch", "warning", text, "pip install -e '.[workloads]'")
    cuda = _cuda_of_torch()
    return Finding("torch", "ok", f"{number}, {f'built for CUDA {cuda}' if cuda else 'a build without CUDA'}")


def _cuda_of_torch() -> str | None:
    spec = find_spec("torch")
    built = None if spec is None or spec.origin is None else Path(spec.origin).with_name("version.py")
    text = built.read_text() if built is not None and built.exists() else ""
    match = re.search(r"^cuda[^=]*= ['\"]([\d.]+)", text, re.MULTILINE)
    return None if match is None else match[1]


# --- GPUs


def _gpus() -> Iterator[Finding]:
    try:
        if not library_present():
            refuse_hidden_library()
            text = f"none: {LIBRARY} is not there; predictions on the virtual GPU, verify, report and next still work"
            yield Finding("GPU", "warning", text, "to measure, install the NVIDIA driver (in a container: --gpus all)")
            return
        survey = survey_devices()
    except DeviceError as error:
        yield Finding("GPU", "error", str(error))
        return
    for failure in survey.failures:
        yield Finding("GPU left out", "warning", str(failure))
    if not survey.devices:
        yield Finding("GPU", "error", "the driver is here and knows no GPU", "check nvidia-smi -L")
        return
    busy = [reason for device in survey.devices if (reason := _held(device.uuid))]
    names = ", ".join(f"{device.name}, {format_size(device.total_bytes)}" for device in survey.devices)
    first = survey.devices[0]
    driver = f"driver {first.driver_version}, CUDA {first.cuda_version}, NVML {first.nvml_version}"
    stamp = " (SIMULATED)" if any(is_simulated(device) for device in survey.devices) else ""
    yield Finding("GPU", "ok", f"{names}; {driver}{stamp}; {len(survey.devices) - len(busy)} free")
    for reason in busy:
        yield Finding("GPU in use", "warning", reason, "wait with colocate run --wait=600")
    yield from _process_lists(survey.devices)
    yield _build_for_gpu(first.cuda_version)
    yield _accounting(all(device.accounting for device in survey.devices))


def _held(uuid: str) -> str | None:
    try:
        with locked(uuid, "colocate doctor"):
            return None
    except DeviceError as error:
        return str(error)


def _process_lists(devices: tuple[DeviceInfo, ...]) -> Iterator[Finding]:
    """GPUs whose driver names processes that cannot exist: nobody can be told from a foreign process there."""
    for info in devices:
        with NvidiaDevice(info.uuid) as device:
            text = device.processes_trouble()
        if text is not None:
            cure = "update the driver; until then foreign processes are seen by the memory that they hold only"
            yield Finding("process list", "warning", f"{info.name}: {text}", cure)


def _build_for_gpu(driver_cuda: str | None) -> Finding:
    about, cuda = "torch on the GPU", _cuda_of_torch()
    if cuda is None:
        text = f"expected torch with CUDA, found {_torch().text}"
        return Finding(about, "error", text, "install a build of torch for CUDA")
    least, most = cuda.split(".")[0], (driver_cuda or "").split(".")[0]
    if most.isdecimal() and int(least) > int(most):
        text = f"torch is built for CUDA {least}, the driver goes up to {driver_cuda}"
        return Finding(about, "error", text, "update the driver, or install an older build of torch")
    return Finding(about, "ok", "its CUDA is one that the driver knows")


def _accounting(on: bool) -> Finding:
    if on:
        return Finding("accounting", "ok", "on: the driver keeps the exact peak of every process")
    cure = "sudo nvidia-smi --accounting-mode=1 (lasts until the driver is unloaded)"
    return Finding("accounting", "warning", "off: peaks rest on samples and on PyTorch's allocator", cure)


def _virtual_gpu() -> Finding:
    """A program of two lines on a virtual GPU of 1 GB."""
    if _version("torch") is None:
        return Finding("virtual GPU", "warning", "cannot be tried without torch", "pip install -e '.[workloads]'")
    with tempfile.TemporaryDirectory(prefix="colocate-doctor-") as name:
        folder = Path(name)
        gpu = folder / "gpu"
        VirtualGpu.create(gpu, name="doctor", total_bytes=GIB, baseline_bytes=0)
        (folder / "probe").mkdir()
        env = environment.for_training(
            os.environ,
            cookie="doctor/doctor/foreground",
            events=folder / "events",
            probe=folder / "probe",
            uuid=None,
            virtual_gpu=gpu,
        )
        return _tried([sys.executable, "-c", _TRIAL], env, folder)


def _tried(argv: list[str], env: dict[str, str], folder: Path) -> Finding:
    cure = "see docs/virtual-gpu.md for the versions of torch that it fits"
    try:
        done = subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=TRIAL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("virtual GPU", "error", f"its trial failed: {error}", cure)
    if done.returncode != 0 or done.stdout.strip() != str(4 * MIB):
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["nothing"]
        return Finding("virtual GPU", "error", f"its trial ended with {done.returncode} and said {said[0]!r}", cure)
    return Finding("virtual GPU", "ok", "works with this torch")


# --- the rest of the machine


def _plan(path: Path | None) -> Finding:
    path = path or default_plan()
    try:
        plan = load_plan(path)
    except ColocateError as error:
        return Finding("plan", "error", str(error).replace("\n", "; "))
    missing = {group.id: group.missing for group in plan.groups if group.missing}
    if missing:
        first = next(iter(missing.values()))
        return Finding("plan", "warning", f"{path}: {len(missing)} of {len(plan.groups)} groups cannot be run: {first}")
    return Finding("plan", "ok", f"{path}: {len(plan.groups)} groups, all trainings are there")


def _disk(results: Path) -> Finding:
    folder = results.resolve()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK):
        return Finding("disk", "error", f"{folder} cannot be written", "choose another folder with --results=DIR")
    free = shutil.disk_usage(folder).free
    text = f"{format_mib(free)} free for {results}"
    if free < ROOM_BYTES:
        return Finding("disk", "warning", text, "make room: logs and records of a run need some MiB, checkpoints more")
    return Finding("disk", "ok", text)


def _shared_memory() -> Finding:
    try:
        size = shutil.disk_usage("/dev/shm").total
    except OSError:
        return Finding("shared memory", "warning", "/dev/shm is not there; data loaders with workers need it")
    if size < SHARED_BYTES:
        text = f"/dev/shm has {format_mib(size)}; data loaders with workers may die of it"
        return Finding("shared memory", "warning", text, "in Docker: --shm-size=2g")
    return Finding("shared memory", "ok", format_mib(size))


def _host_memory() -> Finding:
    limit, size = _control_group_limit(), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = size if limit is None else min(limit, size)
    cores = len(os.sched_getaffinity(0))
    text = f"{format_mib(size)}{'' if limit is None else ' (limit of the control group)'}, {cores} cores"
    if size < HOST_BYTES or cores < 2:
        cure = "two trainings want 8 GB and 2 cores; with less they are slow or are killed"
        return Finding("host", "warning", text, cure)
    return Finding("host", "ok", text)


def _control_group_limit() -> int | None:
    """The smallest memory limit of the control groups that this process is in."""
    found = []
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < 2**60:
            found.append(int(text))
    return min(found, default=None)


def _processes() -> Finding:
    if sees_all_processes():
        return Finding("processes", "ok", "all can be seen, so whoever uses the GPU can be named")
    text = "those of others are hidden here; a foreign process on the GPU is seen, but not named"
    return Finding("processes", "warning", text, "in Docker: --pid=host")


def _slurm() -> Finding:
    found = slurm.version()
    if found is None:
        return Finding("Slurm", "ok", "not here; only --executor=slurm needs it")
    try:
        nodes = slurm.nodes(None)
    except ColocateError as error:
        text = f"{found}, which does not answer: {error}"
        return Finding("Slurm", "warning", text, "check sinfo; only --executor=slurm needs it")
    gpus = sum(node.gpus for node in nodes)
    text = f"{found}; {len(nodes)} nodes with {gpus} GPUs take jobs in the default partition"
    return Finding("Slurm", "ok", text)
