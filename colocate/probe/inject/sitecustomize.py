"""Runs at the start of every Python process of a training, because the harness puts this folder on ``PYTHONPATH``.

Owns nothing but the first step: it gives way to a ``sitecustomize`` further down the path, and asks for the probe
once torch has been imported. Without the harness's variables, or without torch, nothing happens. A training must
never fail because of it; only the emulation of a GPU, which is asked for by name, may refuse.
"""

import importlib.machinery
import importlib.util
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib would cost every process 10 ms
ALIAS = "colocate_probe"  # not ``colocate.probe``: nothing of our repository becomes importable in the program


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
    importlib.import_module(f"{ALIAS}.start").wait_for_torch()


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
    try:
        load_probe()
    except Exception as error:  # the training comes first, whatever is wrong with us
        print(f"colocate: probe not loaded: {type(error).__name__}: {error}", file=sys.stderr)

run_the_next_sitecustomize()
