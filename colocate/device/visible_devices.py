# SPDX-License-Identifier: Apache-2.0
"""``CUDA_VISIBLE_DEVICES``: which GPUs it names, as CUDA itself would read it. Pure; asks no GPU anything."""

import re

from colocate.device.base import DeviceInfo
from colocate.errors import DeviceError

_UUIDS = ("GPU-", "MIG-")
_NUMBER = re.compile(r"\s*\+?(\d+)")  # CUDA reads like C's strtoul: "1gpu" is 1


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
            f"CUDA_VISIBLE_DEVICES: expected UUIDs on a machine with MIG instances, found {selector!r}; name instances "
            "(nvidia-smi -L)"
        )
    names = {device.name for device in devices}
    if len(names) > 1 and order != "PCI_BUS_ID" and _NUMBER.match(selector):
        raise DeviceError(
            f"CUDA_VISIBLE_DEVICES: expected UUIDs on a machine with different GPUs, found {selector!r}; name UUIDs "
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
    if not entry.startswith(_UUIDS):
        return None
    matches = [position for position, device in enumerate(devices) if device.uuid.startswith(entry)]
    return matches[0] if len(matches) == 1 else None


def _by_index(entry: str, devices: tuple[DeviceInfo, ...]) -> int | None:
    number = _NUMBER.match(entry)
    if number is None:
        return None
    matches = [position for position, device in enumerate(devices) if device.index == int(number[1])]
    return matches[0] if matches else None
