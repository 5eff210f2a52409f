# SPDX-License-Identifier: Apache-2.0
"""Runs at the start of every Python process of a training, because the harness puts this folder on ``PYTHONPATH``.

It gives way to a ``sitecustomize`` further down the path, and asks for the probe once torch has been imported. In the
probe's folder it leaves a line for every process that has the probe, or could not load it: a process without one, as
below ``python -I`` or with an environment of its own, is not followed, and the harness finds that out. Without the
harness's variables, or without torch, nothing else happens. A training must never fail because of it; only the
emulation of a GPU, which is asked for by name, may refuse. Runs on Python 3.8.
"""

import contextlib
import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib would cost every process 10 ms
ALIAS = "colocate_probe"  # not ``colocate.probe``: nothing of our repository becomes importable in the program
STARTED = "started"  # in the probe's folder: a line "PID" for every process with the probe, "PID why" for one without


def load_probe() -> None:
    """Import the probe's package by its location, and let it wait for torch."""
    folder = os.path.dirname(HERE)  # noqa: PTH120
    spec = importlib.util.spec_from_file_location(
        ALIAS,
        os.path.join(folder, "__init__.py"),  # noqa: PTH118
        submodule_search_locations=[folder],
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = package
    spec.loader.exec_module(package)
    importlib.import_module(ALIAS + ".start").wait_for_torch()


def announce(why: str = "") -> None:
    """Leave a line about this process in the probe's folder, where there is one."""
    line = why.replace("\n", " ")[:300]
    try:
        path = os.path.join(os.environ["COLOCATE_PROBE"], STARTED)  # noqa: PTH118
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            os.write(handle, f"{os.getpid()} {line}\n".encode("utf-8", "replace"))
        finally:
            os.close(handle)
    except (KeyError, OSError):
        pass  # without a line the process counts as one without the probe


def load_or_say_why() -> None:
    """Load the probe; what goes wrong is said on stderr and in the folder, and never raised."""
    try:
        load_probe()
    except Exception as error:  # the training comes first, whatever is wrong with us
        why = f"colocate: probe not loaded: {type(error).__name__}: {error}"
        announce(why)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            print("\n" + why, file=sys.stderr)
        return
    announce()
    os.register_at_fork(after_in_child=announce)


def run_the_next_sitecustomize() -> None:
    """Give way to the one that Python would have run without us; its errors are Python's to report, as ever."""
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != HERE]  # noqa: PTH100
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


if os.environ.get("COLOCATE_PROBE") or os.environ.get("COLOCATE_VIRTUAL_GPU"):
    load_or_say_why()

run_the_next_sitecustomize()
