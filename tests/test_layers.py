"""Imports point downwards only: each part may know those below it. docs/design.md has the picture."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From bottom to top; a module may import from its own row's left and from every row above it in this list.
LAYERS = (
    (
        "units",
        "documents",
        "errors",
        "device",
        "device.failures",
        "device.patience",
        "device.ballast_program",
        "logs",
        "processes",
        "energy",
        "environment",
        "arguments",
        "run_directory",
        "salvage",
        "heartbeat",
        "slurm",
        "attached",
        "screen",
        "alignment",
    ),
    ("quarantine", "versions"),
    ("evidence", "supervisor", "live"),
    ("prediction", "events", "recordings", "throttling", "settings", "usage", "command_line"),
    ("peaks", "catalog_file"),
    ("possible", "early", "overlap"),
    ("verdict", "catalog", "runner", "monitor", "cards"),
    ("plan_file",),
    ("plan", "calibration", "holders", "restarts", "device.virtual", "device.nvidia", "device.visible", "device.lock"),
    ("watch", "record", "occupancy", "demand", "device.choice", "device.ballast", "series"),
    ("observation", "verification", "device.opening", "doctor"),
    ("rehearsal", "trial"),
    ("foresight", "variant"),
    ("repetition", "resume"),
    ("advice", "advice.by_group", "advice.search", "advice.packing", "advice.proposals", "advice.worth"),
    ("advice.outlook", "advice.references", "advice.largest", "advice.stress"),
    ("advice.remedies", "advice.sharing"),
    ("advice.pairing",),
    ("report",),
    ("plugin", "commands"),
    ("cli",),
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
LIBRARIES = {
    "pynvml": {"colocate/device/nvidia.py", "colocate/device/failures.py"},
    "torch": set(),
    "pytest": set(),
    "pandas": {"colocate/report/summary.py"},
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(dotted: str) -> str | None:
    """The part of the library that a dotted name belongs to; None for what is not ours."""
    words = dotted.split(".")
    if words[0] != "colocate":
        return None
    for length in (2, 1):
        name = ".".join(words[1 : 1 + length])
        if name in RANK:
            return name
    return None


def test_every_module_has_its_layer_and_its_place_in_the_picture() -> None:
    """A module that stands in no layer may import whatever it likes, and nobody finds it in the house."""
    house = (ROOT / "docs" / "design.md").read_text().partition("## The house")[2].partition("## Processes")[0]
    found = {path.relative_to(ROOT / "colocate").with_suffix("").parts[0] for path in modules("colocate")} - {
        "__init__"
    }

    assert found - {"probe"} == {name.partition(".")[0] for name in RANK}
    assert not {name for name in found if not re.search(rf"\b{name}\b", house)}


@pytest.mark.parametrize("path", modules("colocate"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    ours = part(name)
    if ours is None:
        return
    for imported in imports(path):
        theirs = part(imported)
        if theirs is not None and theirs != ours and not theirs.startswith(f"{ours}."):
            assert RANK[theirs] <= RANK[ours], f"{name} imports {imported}"


@pytest.mark.parametrize("path", modules("colocate"), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_library_is_known_to_few_parts(path: Path) -> None:
    place = str(path.relative_to(ROOT))
    for imported in imports(path):
        library = imported.split(".")[0]
        if library in LIBRARIES and not place.startswith(("colocate/plugin/", "colocate/probe/")):
            assert place in LIBRARIES[library], f"{place} imports {library}"


@pytest.mark.parametrize("path", modules("workloads"), ids=lambda path: path.name)
def test_workloads_know_nothing_of_the_harness(path: Path) -> None:
    assert not [name for name in imports(path) if name.split(".")[0] in ("colocate", "fixtures", "feasibility")]


@pytest.mark.parametrize("path", modules("colocate/probe"), ids=lambda path: path.name)
def test_the_probe_knows_the_standard_library_and_torch_only(path: Path) -> None:
    """It runs in somebody else's interpreter."""
    assert not [name for name in imports(path) if name.split(".")[0] in ("colocate", "pydantic", "pandas", "psutil")]


@pytest.mark.parametrize("path", modules("colocate/plugin"), ids=lambda path: path.name)
def test_what_pytest_and_xdist_promise_nobody_stands_in_two_modules(path: Path) -> None:
    """Another version may take them away; `queued` is a session of xdist and overrides what that calls."""
    if path.name not in ("internals.py", "queued.py"):
        assert not re.findall(r"\b(_tw|_io|_setupstate|_active_nodes|lfplugin|dsession)\b", path.read_text())
