# SPDX-License-Identifier: Apache-2.0
"""What ``nvidia-smi`` says of the virtual GPU: a program run in its place, first in the training's PATH.

Answers the forms that programs ask for: the list (``-L``), queries as CSV, and a short table. Standard library only;
run by path with the harness's interpreter.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

MIB = 1024**2
DRIVER, CUDA = "580.65.06", "13.0"

# Sensors of a GPU on which nothing is computed, as CSV with and without units.
IDLE = {
    "utilization.gpu": "0 %",
    "utilization.memory": "0 %",
    "temperature.gpu": "40",
    "power.draw": "30.00 W",
    "power.limit": "220.00 W",
    "fan.speed": "0 %",
    "pstate": "P8",
    "clocks.sm": "210 MHz",
    "clocks.max.sm": "2100 MHz",
    "compute_mode": "Default",
    "driver_version": DRIVER,
    "count": "1",
    "index": "0",
    "pci.bus_id": "00000000:01:00.0",
}


def virtual_gpu() -> Any:
    """The GPU of this training."""
    path = Path(__file__).parent / "virtual_gpu" / "state.py"
    spec = importlib.util.spec_from_file_location("colocate_virtual_gpu_state", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.VirtualGpu.open(os.environ["COLOCATE_VIRTUAL_GPU"])


def facts(gpu: Any) -> dict[str, str]:
    """Everything that can be queried of the GPU, with units."""
    used = gpu.used_bytes() // MIB
    total = gpu.total_bytes // MIB
    major, minor = gpu.capability or (8, 6)
    return {
        **IDLE,
        "name": gpu.name,
        "gpu_name": gpu.name,
        "uuid": gpu.uuid,
        "gpu_uuid": gpu.uuid,
        "memory.total": f"{total} MiB",
        "memory.used": f"{used} MiB",
        "memory.free": f"{total - used} MiB",
        "compute_cap": f"{major}.{minor}",
    }


def rows(known: list[dict[str, str]], fields: str, form: str) -> list[str]:
    """Lines of CSV."""
    names = [name.strip() for name in fields.split(",")]
    options = {option.strip() for option in form.split(",")}
    lines = [] if "noheader" in options else [", ".join(names)]
    for one in known:
        values = [one.get(name, "[N/A]") for name in names]
        if "nounits" in options:
            values = [value.removesuffix(" MiB").removesuffix(" %").removesuffix(" W") for value in values]
        lines.append(", ".join(values))
    return lines


def answer(words: list[str], gpu: Any) -> list[str]:
    """The lines that are printed for a command line."""
    options = dict(word.partition("=")[::2] for word in words)
    form = options.get("--format", "csv")
    for name in ("--query-gpu", "--query-gpus"):
        if name in options:
            return rows([facts(gpu)], options[name], form)
    for name in ("--query-compute-apps", "--query-accounted-apps"):
        if name in options:
            processes = [
                {"pid": str(pid), "used_memory": f"{size // MIB} MiB", "used_gpu_memory": f"{size // MIB} MiB",
                 "gpu_uuid": gpu.uuid, "process_name": "python", "name": "python", "gpu_name": gpu.name}
                for pid, size in gpu.processes()
            ]  # fmt: skip
            return rows(processes, options[name], form)
    if "-L" in options or "--list-gpus" in options:
        return [f"GPU 0: {gpu.name} (UUID: {gpu.uuid})"]
    known = facts(gpu)
    if "-q" in options or "--query" in options:
        return [f"Driver Version : {DRIVER}", f"CUDA Version : {CUDA}", "Attached GPUs : 1", *(
            f"    {name} : {value}" for name, value in known.items()
        )]  # fmt: skip
    return [
        f"| NVIDIA-SMI {DRIVER}   Driver Version: {DRIVER}   CUDA Version: {CUDA} |",
        f"|   0  {known['name']}   {known['temperature.gpu']}C   P8   30W / 220W "
        f"| {known['memory.used'].replace(' ', '')} / {known['memory.total'].replace(' ', '')} | 0%  Default |",
    ]


if __name__ == "__main__":
    print("\n".join(answer(sys.argv[1:], virtual_gpu())))
