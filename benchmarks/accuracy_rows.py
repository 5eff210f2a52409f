"""Published figures of peak memory, and the same beside their predictions."""

import csv
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MEASURED = Path(__file__).parent / "measured"


@dataclass(frozen=True)
class Case:
    """One published figure in MiB. ``quantity`` is what was read: ``gpu``, ``reserved`` or ``allocated`` memory."""

    family: str
    program: str
    model: str
    batch: str
    size: str
    optimizer: str
    dtype: str
    quantity: str
    measured_mib: float
    torch: str
    gpu: str
    source: str

    @property
    def name(self) -> str:
        """What a reader needs to know it by."""
        words = (self.model, f"batch {self.batch}", self.size, self.optimizer, self.dtype, self.quantity)
        return ", ".join(word for word in words if word)

    @property
    def key(self) -> str:
        """The same for cases that differ only in what was read."""
        words = (self.program, self.model, self.batch, self.size, self.optimizer, self.dtype)
        return hashlib.sha256("|".join(words).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """A case with its prediction in MiB, and whether its range held."""

    case: Case
    family: str
    low: float
    expected: float
    high: float

    @property
    def error(self) -> float:
        """Of the expected value: negative where too little was predicted."""
        return self.expected / self.case.measured_mib - 1

    @property
    def held(self) -> bool:
        """The measured figure lies in the range, or beside it by no more than it was rounded."""
        return self.low - 1 <= self.case.measured_mib <= self.high + 1


def cases() -> list[Case]:
    """All of them, those of timm last; readings of timm that stopped growing with the batch are left out."""
    with (MEASURED / "published.csv").open(newline="") as file:
        found = [Case(**{**row, "measured_mib": float(row["measured_mib"])}) for row in csv.DictReader(file)]
    with (MEASURED / "timm.csv").open(newline="") as file:
        rows = [(row["model"], int(row["batch_size"]), int(row["measured_mib"])) for row in csv.DictReader(file)]
    failed = set(_failed(rows))
    rows = sorted(rows, key=lambda row: hashlib.sha256(f"{row[0]}{row[1]}".encode()).hexdigest())
    return found + [
        Case("timm", "timm_script", model, str(batch), "", "SGD", "fp32", "gpu", measured, "", "A100 40 GB", "timm.csv")
        for model, batch, measured in rows
        if (model, batch) not in failed
    ]


def _failed(rows: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, int]]:
    """Readings of runs that must have run out of memory: they grow less than half as fast as those before them."""
    by_model: dict[str, list[tuple[int, int]]] = {}
    for model, batch, measured in rows:
        by_model.setdefault(model, []).append((batch, measured))
    for model, readings in by_model.items():
        readings.sort()
        for (a, low), (b, middle), (c, high) in zip(readings, readings[1:], readings[2:], strict=False):
            if (high - middle) / (c - b) < (middle - low) / (b - a) / 2:
                yield model, c
