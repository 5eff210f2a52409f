# SPDX-License-Identifier: Apache-2.0
"""Choose the kind of GPU that a run uses, and explain the choice. Opens no GPU."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from colocate.device.base import DeviceInfo
from colocate.device.nvml import is_simulated
from colocate.device.nvml_library import LIBRARY, library_present
from colocate.device.nvml_survey import survey_devices
from colocate.device.visible_devices import visible_devices
from colocate.errors import DeviceError

Kind = Literal["auto", "nvidia", "virtual"]

VISIBLE = "CUDA_VISIBLE_DEVICES"

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
        return Choice(
            "virtual",
            (),
            f"no NVIDIA driver on this machine ({LIBRARY} is not there): predicting on a virtual GPU; "
            "no number is measured on a GPU",
        )
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
    devices = visible_devices(survey.answering(), selector, order=environment.get("CUDA_DEVICE_ORDER"))
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
