# SPDX-License-Identifier: Apache-2.0
"""The balloon: a program that takes memory of a GPU, as much as it is told, and holds it until it is ended.

Standard library only, and nothing of ours: it is started by its path (`colocate.device.constrained` does that), under a
supervisor, so that it never outlives the run. It speaks with CUDA's driver and runs nothing on the GPU.

    balloon_program.py UUID ORDERS STATE

UUID is the GPU's as ``nvidia-smi -L`` prints it. ORDERS is a named pipe with lines of JSON, ``{"order": 1,
"hold_bytes": 1048576}``: all memory that is to be held, its context apart. After every order STATE is replaced by
``{"order": 1, "held_bytes": 1048576, "failed": null}``; order 0 is the start.
"""

import ctypes
import json
import os
import sys
import uuid
from pathlib import Path

LIBRARY = "libcuda.so.1"

GRANULE_BYTES = 2 * 1024**2
"""The least that the driver takes from a GPU at a time."""

CHUNK_BYTES = 1024**3  # small enough that giving some back and taking it again is quick

OUT_OF_MEMORY = 2  # cuda.h: CUDA_ERROR_OUT_OF_MEMORY


class CudaError(Exception):
    """A function of the driver did not succeed; says which, and the driver's own name for it."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function}: expected success, got {name} ({code})")
        self.code = code


class Driver:
    """The few functions of CUDA's driver that are needed, by the names that the library exports."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self.call("cuInit", 0)

    def call(self, function: str, *arguments: object) -> None:
        """Call a function.

        Raises:
            CudaError: it did not return 0.
        """
        code: int = getattr(self._library, function)(*arguments)
        if code:
            raise CudaError(function, code, self._name(code))

    def _name(self, code: int) -> str:
        name = ctypes.c_char_p()
        self._library.cuGetErrorName(code, ctypes.byref(name))
        return (name.value or b"an unknown error").decode()

    def open(self, wanted: str) -> None:
        """Make a context on the GPU with this UUID.

        Raises:
            CudaError: the driver refuses.
            LookupError: it has no such GPU.
        """
        device = self._device(wanted)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxSetCurrent", context)

    def _device(self, wanted: str) -> ctypes.c_int:
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        found = []
        for index in range(count.value):
            device, raw = ctypes.c_int(), (ctypes.c_ubyte * 16)()
            self.call("cuDeviceGet", ctypes.byref(device), index)
            self.call("cuDeviceGetUuid", ctypes.byref(raw), device)
            found.append(f"GPU-{uuid.UUID(bytes=bytes(raw))}")
            if found[-1] == wanted:
                return device
        raise LookupError(f"{wanted}: expected among CUDA's GPUs, found {', '.join(found) or 'none'}")

    def take(self, num_bytes: int) -> ctypes.c_uint64:
        """Take so many bytes in one piece."""
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address

    def give_back(self, address: ctypes.c_uint64) -> None:
        """Give a piece back."""
        self.call("cuMemFree_v2", address)


class Hold:
    """The pieces that are held, the latest last."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pieces: list[tuple[ctypes.c_uint64, int]] = []

    @property
    def held_bytes(self) -> int:
        """Return the size of all pieces together."""
        return sum(size for _, size in self._pieces)

    def resize(self, num_bytes: int) -> None:
        """Hold so many bytes, or as many as there are.

        Raises:
            CudaError: the GPU is full, or the driver refuses.
        """
        while self.held_bytes > num_bytes:
            address, _ = self._pieces.pop()
            self._driver.give_back(address)
        piece_bytes = CHUNK_BYTES
        while (missing := num_bytes - self.held_bytes) > 0:
            size = min(missing, piece_bytes)
            try:
                self._pieces.append((self._driver.take(size), size))
            except CudaError as error:
                # Free memory may lie in smaller pieces than this one.
                piece_bytes = size // 2 // GRANULE_BYTES * GRANULE_BYTES
                if error.code != OUT_OF_MEMORY or not piece_bytes:
                    raise


def answer(state: Path, order: int, held_bytes: int, failed: str | None = None) -> None:
    """Say what is held, in one step."""
    aside = state.with_suffix(".new")
    aside.write_text(json.dumps({"order": order, "held_bytes": held_bytes, "failed": failed}))
    aside.replace(state)


def main(wanted: str, orders: str, state: str) -> None:
    """Carry out orders until ended."""
    driver = Driver()
    driver.open(wanted)
    hold, path = Hold(driver), Path(state)
    print(f"balloon: process {os.getpid()} on {wanted}", flush=True)
    answer(path, 0, 0)
    with open(orders, "r+b", buffering=0) as lines:  # noqa: PTH123 - for both, or it would end with its first writer
        while True:
            order = json.loads(lines.readline())
            failed = None
            try:
                hold.resize(order["hold_bytes"])
            except CudaError as error:
                failed = str(error)
            print(f"balloon: holds {hold.held_bytes / 1024**2:.0f} MiB" + (f"; {failed}" if failed else ""), flush=True)
            answer(path, order["order"], hold.held_bytes, failed)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, CudaError, LookupError) as error:
        sys.exit(f"balloon: {error}")
