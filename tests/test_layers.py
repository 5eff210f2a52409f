"""Imports point downwards only: each part may know those below it. docs/design.md has the picture."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From bottom to top; a package may import from those above it in this list, and the probe from nobody.
LAYERS = (
    "errors",
    "units",
    "files",
    "process",
    "plan",
    "probe",
    "device",
    "verdict",
    "results",
    "harness",
    "advice",
    "report",
    "cli",
    "plugin",
)
RANK = {name: rank for rank, name in enumerate(LAYERS)}
LIBRARIES = {
    "pynvml": {"colocate/device/nvml.py"},
    "torch": set(),
    "pytest": set(),
    "pandas": {"colocate/report/summary_csv.py"},
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
    """The package that a dotted name belongs to; None for what is not ours."""
    words = dotted.split(".")
    return words[1] if words[0] == "colocate" and words[1:2] and words[1] in RANK else None


def test_every_module_has_its_package_and_every_package_its_place_in_the_picture() -> None:
    """A module that stands in no package may import whatever it likes, and nobody finds it in the house."""
    house = (ROOT / "docs" / "design.md").read_text().partition("## The house")[2].partition("## Processes")[0]
    found = {path.relative_to(ROOT / "colocate").with_suffix("").parts[0] for path in modules("colocate")}

    assert found - {"__init__", "__main__"} == set(RANK)
    assert not {name for name in RANK if not re.search(rf"\b{name}\b", house)}


def test_imports_point_downwards() -> None:
    upwards = []
    for path in modules("colocate"):
        place = path.relative_to(ROOT).with_suffix("").parts
        ours = part(".".join(place))
        if ours is not None:
            found = [name for name in imports(path) if (theirs := part(name)) is not None and RANK[theirs] > RANK[ours]]
            upwards += [f"{path.relative_to(ROOT)} imports {name}" for name in found]

    assert upwards == []


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
