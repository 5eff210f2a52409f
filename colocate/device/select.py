# SPDX-License-Identifier: Apache-2.0
"""Choose the kind of GPU that a run uses and which GPUs it may use, and explain the choice. Opens no GPU."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colocate.device.base import DeviceInfo
from colocate.device.nvml import is_simulated, survey_devices
from colocate.device.nvml_library import LIBRARY, library_present
from colocate.errors import DeviceError

Kind = Literal["auto", "nvidia", "virtual"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
_UUIDS = ("GPU-", "MIG-")
_NUMBER = re.compile(r"\s*\+?(\d+)")  # CUDA reads like C's strtoul: "1gpu" is 1

DEVICE_FOLDER = "/dev"
# Where the library lies on machines whose loader does not look there by itself: Kubernetes' device plugin, WSL.
LIBRARY_FOLDERS = ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib", "/usr/lib64/nvidia")


@dataclass(frozen=True, slots=True)
class Choice:
    """The kind of GPU to use, those that may be used (none for a virtual GPU), and why in a sentence."""

    kind: Literal["nvidia", "virtual"]
    devices: tuple[DeviceInfo, ...]
    sentence: str

    @property
    def uuids(self) -> tuple[str, ...]:
        """The UUIDs of the GPUs."""
        return tuple(device.uuid for device in self.devices)


def choose_device(kind: Kind, environment: Mapping[str, str] = os.environ) -> Choice:
    """Decides between an NVIDIA GPU and the virtual one.

    ``"auto"`` takes an NVIDIA GPU wherever the NVML library is there. A driver that fails, or GPUs that are all
    hidden, are an error and never a silent change to the virtual GPU: a prediction would then pass for a measurement.

    Args:
        kind: What the user asked for.
        environment: Where ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are read.

    Raises:
        DeviceError: a GPU is asked for, or the NVML library is there, and no GPU can be used. Names the cure.
    """
    if kind == "virtual":
        return Choice("virtual", (), "predicting on a virtual GPU, as asked; no number is measured on a GPU")
    if kind == "auto" and not library_present():
        refuse_hidden_library()
        why = f"no NVIDIA driver on this machine ({LIBRARY} is not there)"
        return Choice("virtual", (), f"{why}: predicting on a virtual GPU; no number is measured on a GPU")
    return _nvidia_gpus(environment)


def refuse_hidden_library() -> None:
    """A GPU without its library is a container or a path that is set up by half, and no machine without a GPU.

    Raises:
        DeviceError: this machine has a GPU's device file, and no library. Names the cure.
    """
    gpus = sorted(Path(DEVICE_FOLDER).glob("nvidia[0-9]*"))
    if not gpus:
        return
    found = next((folder for folder in LIBRARY_FOLDERS if (Path(folder) / LIBRARY).exists()), None)
    cure = f"add {found} to LD_LIBRARY_PATH" if found else "pass the driver's libraries in (--gpus all)"
    raise DeviceError(
        f"{LIBRARY}: expected beside {gpus[0]}, found no library that loads; {cure}, or use --device virtual"
    )


def _nvidia_gpus(environment: Mapping[str, str]) -> Choice:
    selector = environment.get(VISIBLE)
    survey = survey_devices()
    if survey.failures and not survey.devices:
        raise survey.failures[0]
    devices = visible_devices(survey.devices, selector, order=environment.get("CUDA_DEVICE_ORDER"))
    if not devices and selector is not None:
        raise DeviceError(
            f"{VISIBLE}: expected at least one GPU of this machine, found {selector!r}; unset it, name a GPU "
            "(nvidia-smi -L), or use --device virtual"
        )
    if not devices:
        raise DeviceError("NVML: expected at least one GPU, found none; check nvidia-smi -L, or use --device virtual")
    named = ", ".join(f"{device.name} ({device.uuid})" for device in devices)
    simulated = any(is_simulated(device) for device in devices)
    verb = "pretending to measure (simulated NVML) on" if simulated else "measuring on"
    left_out = f"; left out: {'; '.join(map(str, survey.failures))}" if survey.failures else ""
    return Choice("nvidia", devices, f"{verb} {named}{left_out}")


def visible_devices(
    devices: tuple[DeviceInfo, ...], selector: str | None, *, order: str | None = None
) -> tuple[DeviceInfo, ...]:
    """The GPUs that a program would see under a value of ``CUDA_VISIBLE_DEVICES``, in its order.

    Args:
        devices: Those of the machine, in NVML's order.
        selector: The variable's value: indices, UUIDs or beginnings of UUIDs, also of MIG instances; None when it is
            not set. Several instances are allowed here, although CUDA itself would show a program only the first.
        order: The value of ``CUDA_DEVICE_ORDER``.

    Raises:
        DeviceError: indices are ambiguous because the machine has different GPUs, which CUDA is free to number by
            speed, or MIG instances.
    """
    if selector is None:
        return devices
    if any(device.instance_of for device in devices) and _NUMBER.match(selector):
        raise DeviceError(
            f"{VISIBLE}: expected UUIDs on a machine with MIG instances, found {selector!r}; name instances "
            "(nvidia-smi -L)"
        )
    names = {device.name for device in devices}
    if len(names) > 1 and order != "PCI_BUS_ID" and _NUMBER.match(selector):
        raise DeviceError(
            f"{VISIBLE}: expected UUIDs on a machine with different GPUs, found {selector!r}; name UUIDs "
            "(nvidia-smi -L), or set CUDA_DEVICE_ORDER=PCI_BUS_ID too"
        )
    return tuple(devices[position] for position in _positions(selector, devices))


def _positions(selector: str, devices: tuple[DeviceInfo, ...]) -> list[int]:
    """CUDA's own reading of the variable: the list ends at the first entry that is wrong, a repetition empties it."""
    by_uuid = selector.startswith(_UUIDS)
    found: list[int] = []
    for entry in selector.split(","):
        position = _by_uuid(entry.strip(), devices) if by_uuid else _by_index(entry, devices)
        if position is None:
            break
        if position in found:
            return []
        found.append(position)
    return found


def _by_uuid(entry: str, devices: tuple[DeviceInfo, ...]) -> int | None:
    matches = [position for position, device in enumerate(devices) if device.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 and entry.startswith(_UUIDS) else None


def _by_index(entry: str, devices: tuple[DeviceInfo, ...]) -> int | None:
    number = _NUMBER.match(entry)
    matches = (position for position, device in enumerate(devices) if number and device.index == int(number[1]))
    return next(matches, None)
