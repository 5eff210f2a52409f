"""Compiles the fake NVML library. Knows the compiler and pynvml's list of symbols, nothing of any state."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
NAME = "libnvidia-ml.so.1"
CUDA_SOURCE = Path(__file__).with_name("fake_cuda.c")
CUDA_NAME = "libcuda.so.1"
_NOT_SUPPORTED = 3


def compiler() -> str | None:
    """The C compiler to use, or None where there is none."""
    candidates = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def build_library(folder: Path) -> Path:
    """Compiles the library into a folder, under the name that pynvml looks for, and returns its path.

    Raises:
        RuntimeError: there is no C compiler, or it refused the source.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("fake NVML: expected a C compiler (cc, gcc or clang) on PATH, found none")
    stubs = folder / "stubs.c"
    stubs.write_text("".join(f"int {name}(void) {{ return {_NOT_SUPPORTED}; }}\n" for name in missing_symbols()))
    return _compiled(command, folder / NAME, SOURCE, stubs)


def build_cuda(folder: Path) -> Path:
    """Compiles the fake CUDA driver into a folder of its own, for real programs must not find it by chance.

    Raises:
        RuntimeError: there is no C compiler, or it refused the source.
    """
    command = compiler()
    if command is None:
        raise RuntimeError("fake CUDA driver: expected a C compiler (cc, gcc or clang) on PATH, found none")
    return _compiled(command, folder / CUDA_NAME, CUDA_SOURCE)


def _compiled(command: str, library: Path, *sources: Path) -> Path:
    # The soname makes glibc take this library when somebody later asks for the real one in the same process.
    flags = ["-O1", "-Wall", "-Wextra", "-shared", "-fPIC", f"-I{SOURCE.parent}", f"-Wl,-soname,{library.name}"]
    done = subprocess.run([command, *flags, "-o", library, *sources], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"fake {library.name}: {command} failed:\n{done.stderr}")
    return library


def real_symbols() -> set[str]:
    """The NVML functions that the C source answers itself."""
    source = SOURCE.read_text()
    return set(re.findall(r"^(?:int|const char \*)\s*(nvml\w+)\(", source, re.MULTILINE)) | set(
        re.findall(r"^LISTING\((nvml\w+),", source, re.MULTILINE)
    )


def missing_symbols() -> list[str]:
    """Everything else that the installed pynvml may look up."""
    spec = importlib.util.find_spec("pynvml")
    assert spec is not None
    assert spec.origin is not None
    looked_up = re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', Path(spec.origin).read_text())
    return sorted(set(looked_up) - real_symbols())
