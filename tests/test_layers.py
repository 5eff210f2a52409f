"""Imports point downwards only: each part may know those below it. docs/design.md has the picture."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

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

# What other packages may import from, where it is not the package's own __init__: that of the probe is loaded in every
# training and imports nothing, and the modules at the root are faces themselves.
FACES = {"probe": "colocate.probe.virtual_gpu"}
LIBRARIES = {
    "pynvml": {f"colocate/device/{name}.py" for name in ("nvml", "nvml_library", "nvml_processes")},
    "torch": set(),
    "pytest": set(),
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """The import statements of a module."""
    return tuple(
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
    )


def imports(path: Path) -> Iterator[str]:
    for node in nodes(path):
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


def test_packages_know_each_other_by_their_faces() -> None:
    """A name that a package does not export is its own business, and free to change."""
    past = []
    for path in [*modules("colocate"), *modules("scripts")]:
        place = path.relative_to(ROOT).with_suffix("").parts
        ours = part(".".join(place))
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                theirs = part(node.module)
                if theirs is not None and theirs != ours and node.module != FACES.get(theirs, f"colocate.{theirs}"):
                    past.append(f"{path.relative_to(ROOT)}:{node.lineno} imports from {node.module}")

    assert past == []


def test_every_library_is_known_to_few_parts() -> None:
    unexpected = []
    for path in modules("colocate"):
        place = str(path.relative_to(ROOT))
        for imported in imports(path):
            library = imported.split(".")[0]
            if library in LIBRARIES and not place.startswith(("colocate/plugin/", "colocate/probe/")):
                unexpected += [f"{place} imports {library}"] if place not in LIBRARIES[library] else []

    assert unexpected == []


def test_workloads_know_nothing_of_the_harness() -> None:
    ours = ("colocate", "fixtures", "feasibility")

    assert not [name for path in modules("workloads") for name in imports(path) if name.split(".")[0] in ours]


def test_the_probe_knows_the_standard_library_and_torch_only() -> None:
    """It runs in somebody else's interpreter."""
    others = ("colocate", "pydantic", "pandas", "psutil")

    assert not [name for path in modules("colocate/probe") for name in imports(path) if name.split(".")[0] in others]


def test_private_apis_of_pytest_and_xdist_are_used_in_one_module_only() -> None:
    """Another version may take them away."""
    private = re.compile(r"\b(_tw|_io|_setupstate|_active_nodes|lfplugin|dsession)\b")
    users = {path.name for path in modules("colocate/plugin") if private.search(path.read_text())}

    assert users == {"private_api.py"}


def test_what_is_covered_knows_no_virtual_gpu():
    """`colocate.probe.virtual_gpu` uses `colocate.probe.coverage`, and not the other way round."""
    relative = (
        node.module or ""
        for path in modules("colocate/probe/coverage")
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.level > 1
    )
    assert not [name for name in relative if name.startswith("virtual_gpu")]
