# SPDX-License-Identifier: Apache-2.0
"""The table of known GPUs, `settings/gpu_models.json`, and what ``--gpu`` means.

Figures with their sources only; creates no GPU and knows no device.
"""

import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from colocate.errors import PlanError
from colocate.files import shipped
from colocate.plan.reading import read_json
from colocate.plan.validation import Mistakes, Settings, Size, matching, suggestion, validated
from colocate.units import format_size, parse_size

TABLE = shipped("settings/gpu_models.json")
SCHEMA = "gpu_models.schema.json"

# A GPU of nearly the wanted size is taken as it is: the same product has, by driver and board, some MiB more or less
# than its name says (81559 MiB of "80 GB").
SAME_SIZE = 0.02

# What makes another product of a name that goes before it.
_VARIANTS = frozenset({"ti", "super", "d", "laptop", "max", "mobile", "ada", "mig"})

VIRTUAL = " (virtual)"  # added to the name of a GPU that is only emulated

_CAPABILITY = r"\d{1,2}\.\d"
Capability = Annotated[
    str,
    AfterValidator(matching(_CAPABILITY, "a compute capability such as '8.6'")),
    Field(json_schema_extra={"pattern": f"^{_CAPABILITY}$"}),
]


class Context(Settings):
    """The memory that one process holds besides its tensors, with its range."""

    expected: Size
    low: Size
    high: Size

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low <= self.expected <= self.high:
            raise ValueError("expected low, expected and high in this order")
        return self


class Row(Settings):
    """The figures of one GPU but its name and size; ``sources`` says where each is from, or ``estimated``.

    ``context_with_cudnn`` is there where it is known what cuDNN adds; elsewhere ``context`` holds for every program.
    """

    compute_capability: Capability
    context: Context
    context_with_cudnn: Context | None = None
    cublas_workspace: Size
    baseline: Size
    sources: dict[str, str]

    @model_validator(mode="after")
    def _sourced(self) -> Self:
        figures = set(type(self).model_fields) - {"sources", "name"}
        if self.context_with_cudnn is None:
            figures.remove("context_with_cudnn")
        if set(self.sources) != figures:
            raise ValueError(f"expected sources for {', '.join(sorted(figures))}")
        return self


class NamedRow(Row):
    """A GPU that is sold under a name."""

    name: str = Field(min_length=1, max_length=100)
    total: Size


class OwnGpusFile(Settings):
    """A user's own rows, which go before those of the table."""

    gpus: list[NamedRow]


class GpuModelsFile(Settings):
    """The whole table."""

    model_config = Settings.model_config | {"title": "Known GPUs"}

    schema_: str | None = Field(None, alias="$schema")
    description: str | None = None
    any_size: Row
    gpus: list[NamedRow]


@dataclass(frozen=True, slots=True)
class GpuModel:
    """A GPU that can be emulated; sizes in bytes. ``cudnn_`` figures are of a context in which cuDNN was used."""

    name: str
    total_bytes: int
    capability: tuple[int, int]
    context_bytes: int
    context_range_bytes: tuple[int, int]
    cudnn_context_bytes: int
    cudnn_context_range_bytes: tuple[int, int]
    workspace_bytes: int
    baseline_bytes: int
    sources: tuple[tuple[str, str], ...]

    def source(self, figure: str) -> str:
        """Return the source of a figure."""
        return dict(self.sources)[figure]


# Where the package is installed without the project's settings folder: sizes work, names do not.
_WITHOUT_TABLE = GpuModelsFile.model_validate(
    {
        "any_size": {
            "compute_capability": "8.6",
            "context": {"expected": "344MB", "low": "104MB", "high": "494MB"},
            "cublas_workspace": "8.125MB",
            "baseline": "232MB",
            "sources": dict.fromkeys(
                ("compute_capability", "context", "cublas_workspace", "baseline"),
                "settings/gpu_models.json of the project",
            ),
        },
        "gpus": [],
    }
)


@cache
def table(path: Path = TABLE) -> GpuModelsFile:
    """The table in a file.

    Raises:
        PlanError: the file cannot be read or contains mistakes; all of them, one per line.
    """
    if path == TABLE and not path.is_file():
        return _WITHOUT_TABLE
    mistakes = Mistakes(str(path))
    document = read_json(path, mistakes)
    read = validated(GpuModelsFile, document, (), mistakes)
    mistakes.raise_if_any()
    assert read is not None
    return read


def known_gpus() -> list[NamedRow]:
    """The rows of the table, each replaced by the user's own one of that name, and the user's others.

    Raises:
        PlanError: a file contains mistakes; all of them, one per line.
    """
    own = {row.name: row for row in own_gpus(own_file())}
    shipped_rows = {row.name: row for row in table().gpus}
    return list((shipped_rows | own).values())


def own_file() -> Path:
    """Where a user's own GPUs are: ``colocate/gpu_models.json`` of the folder for settings."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home, "colocate", "gpu_models.json")


@cache
def own_gpus(path: Path) -> tuple[NamedRow, ...]:
    """The rows of a user's own file; none where there is no such file.

    Raises:
        PlanError: it cannot be read or contains mistakes; all of them, one per line.
    """
    if not path.is_file():
        return ()
    mistakes = Mistakes(str(path))
    read = validated(OwnGpusFile, read_json(path, mistakes), (), mistakes)
    mistakes.raise_if_any()
    assert read is not None
    return tuple(read.gpus)


def gpu_model(text: str) -> GpuModel:
    """The GPU that ``--gpu`` means: a size such as ``8GB``, or a name of the table such as ``RTX 3080``.

    Raises:
        PlanError: neither.
    """
    try:
        total_bytes = parse_size(text)
    except ValueError:
        row = named_row(text)
        return _gpu(row, row.name + VIRTUAL, row.total)
    if total_bytes <= 0:
        raise PlanError(f"--gpu: expected a size above zero, got {text!r}")
    return model_of_size(total_bytes)


def model_of_size(total_bytes: int) -> GpuModel:
    """A GPU of which only the size is known."""
    return _gpu(table().any_size, f"virtual {format_size(total_bytes)} GPU", total_bytes)


def model_called(name: str, total_bytes: int) -> GpuModel:
    """The GPU behind the name of an emulated device."""
    rows = [row for row in known_gpus() if row.name + VIRTUAL == name]
    return _gpu(rows[0], name, total_bytes) if rows else model_of_size(total_bytes)


def is_of_size(gpu_bytes: int, wanted_bytes: int) -> bool:
    """The GPU has the wanted size already and needs no balloon."""
    return abs(gpu_bytes - wanted_bytes) <= SAME_SIZE * wanted_bytes


def asked_bytes(asked: str) -> int | None:
    """The size of the GPU that a group asks for; None for a name that is not in the table."""
    try:
        return gpu_model(asked).total_bytes
    except PlanError:
        return None


def satisfies(name: str, total_bytes: int, asked: str) -> bool:
    """A GPU is what a group asks for: of that size, or of that product.

    ``"RTX 3080"`` is an ``NVIDIA GeForce RTX 3080`` and no ``RTX 3080 Ti``; a MIG instance is not its GPU.
    """
    try:
        return is_of_size(total_bytes, parse_size(asked))
    except ValueError:
        return _is_called(name, asked)


@cache
def may_mean(word: str, asked: str) -> bool:
    """A cluster's word for its GPUs, such as ``rtx_3080`` or ``nvidia_a100-sxm4-80gb``, may mean a GPU asked for.

    A size is looked for in the word, then in the table. A word without a digit, such as ``rtx``, means too many GPUs.
    """
    if not any(map(str.isdigit, word)):
        return False
    try:
        wanted_bytes = parse_size(asked)
    except ValueError:
        return _is_called(word, asked) or _is_called(asked, word)
    sizes = [parse_size(size) for size in re.split(r"[^a-z0-9]+", word.lower()) if re.fullmatch(r"\d+gb", size)]
    rows = [row.total for row in known_gpus() if _is_called(row.name, word)]
    return any(is_of_size(size, wanted_bytes) for size in sizes or (rows if len(rows) == 1 else ()))


def _is_called(name: str, asked: str) -> bool:
    wanted = _plain(asked)
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in ("", "nvidia", "geforce")]
    if "mig" in words and "mig" not in wanted:
        return False
    return any(
        "".join(words[start:end]) == wanted and not _VARIANTS & set(words[end : end + 1])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
    )


def checked_wish(text: str) -> str:
    """The GPU that a group asks for, as it was written.

    Raises:
        ValueError: it is neither a size above zero nor a name.
    """
    try:
        sound = parse_size(text) > 0
    except ValueError:
        sound = len(text) <= 100 and any(character.isalpha() for character in _plain(text))
    if not sound:
        raise ValueError(f"expected a size such as '24GB' or a GPU's name such as 'RTX 3080', got {text!r}")
    return text


def named_row(text: str) -> NamedRow:
    """The row of a GPU's name, which may leave out what people leave out.

    Raises:
        PlanError: none, or more than one.
    """
    rows = {_plain(row.name): row for row in known_gpus()}
    wanted = _plain(text)
    found = [row for name, row in rows.items() if wanted and wanted in name]
    exact = [row for name, row in rows.items() if name == wanted]
    for row in exact or found[:1] if len(exact or found) == 1 else ():
        return row
    known = [row.name for row in rows.values()]
    what = "one of the table's names" if not found else "one name: " + ", ".join(repr(row.name) for row in found)
    hint = suggestion(text, known)
    raise PlanError(
        f"--gpu: expected a size such as 8GB or {what}, got {text!r}{hint}; "
        f"settings/gpu_models.json has {', '.join(known)}"
    )


def _plain(name: str) -> str:
    """A name without what people leave out."""
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())


def _gpu(row: Row, name: str, total_bytes: int) -> GpuModel:
    major, minor = row.compute_capability.split(".")
    with_cudnn = row.context_with_cudnn or row.context
    return GpuModel(
        name=name,
        total_bytes=total_bytes,
        capability=(int(major), int(minor)),
        context_bytes=row.context.expected,
        context_range_bytes=(row.context.low, row.context.high),
        cudnn_context_bytes=with_cudnn.expected,
        cudnn_context_range_bytes=(with_cudnn.low, with_cudnn.high),
        workspace_bytes=row.cublas_workspace,
        baseline_bytes=row.baseline,
        sources=tuple(row.sources.items()),
    )


def schema() -> str:
    """The JSON Schema of the table."""
    document: dict[str, Any] = GpuModelsFile.model_json_schema()
    return json.dumps(document, indent=2) + "\n"
