# SPDX-License-Identifier: Apache-2.0
"""Data sets that several trainings read: real files where the data folder has them, else samples of the same form.

Synthetic samples have the shape, the dtype and the number of the real ones. They come from a small pool that is drawn
once from a seed and then reused by index, so that making them costs next to nothing beside a training step.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

REAL = "real"
SYNTHETIC = "synthetic"

# ---- MNIST: mnist, mnist_ff, mnist_rnn, siamese ---------------------------------------------------------------------

MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
MNIST_LENGTH = {"train": 60_000, "t10k": 10_000}
MNIST_POOL = 1000


class Digits:
    """MNIST as it is stored: images (N, 28, 28) uint8, labels (N,) int64; fewer stand for all when synthetic."""

    def __init__(self, images: Tensor, labels: Tensor, length: int, kind: str) -> None:
        self.images = images
        self.labels = labels
        self.length = length
        self.kind = kind

    def __len__(self) -> int:
        return self.length

    def image(self, index: int) -> Tensor:
        """One image, (28, 28) uint8."""
        return self.images[index % len(self.images)]

    def label(self, index: int) -> int:
        """Its digit."""
        return int(self.labels[index % len(self.labels)])


def mnist(data_dir: Path, split: str) -> Digits:
    """The split "train" or "t10k", from idx files (also ``.gz``) in ``data_dir`` or ``data_dir/MNIST/raw``."""
    for folder in (data_dir / "MNIST" / "raw", data_dir):
        if _idx_file(folder, f"{split}-images-idx3-ubyte") is not None:
            images = read_idx(folder, f"{split}-images-idx3-ubyte")
            labels = read_idx(folder, f"{split}-labels-idx1-ubyte").long()
            return Digits(images, labels, len(images), REAL)
    # A blurred prototype per digit plus noise: enough structure for a loss to fall.
    generator = torch.Generator().manual_seed(len(split))
    prototypes = torch.randint(0, 160, (10, 7, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    prototypes = prototypes.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels = torch.arange(MNIST_POOL) % 10
    noise = torch.randint(0, 96, (MNIST_POOL, 28, 28), generator=generator, dtype=torch.uint8)
    return Digits(prototypes[labels] + noise, labels, MNIST_LENGTH[split], SYNTHETIC)


def read_idx(folder: Path, name: str) -> Tensor:
    """An idx file of unsigned bytes: two zero bytes, a type, a rank, the big-endian sizes, then the values.

    Raises:
        ValueError: the file is not one, or is shorter than its header says.
    """
    path = _idx_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"{folder}: expected {name} or {name}.gz, found neither")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path}: expected an idx file of unsigned bytes, found a head of {raw[:4]!r}")
    rank = raw[3]
    sizes = [int.from_bytes(raw[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(rank)]
    values = torch.frombuffer(bytearray(raw[4 + 4 * rank :]), dtype=torch.uint8)
    if values.numel() != torch.Size(sizes).numel():
        raise ValueError(f"{path}: expected {torch.Size(sizes).numel()} values, found {values.numel()}")
    return values.reshape(sizes)


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


# ---- Market-1501: pcb, hrnet18, densenet121 -------------------------------------------------------------------------

MARKET_LENGTH = {"train_all": 12_936, "val": 751}
MARKET_IDENTITIES = 751
MARKET_POOL = 64


class SyntheticPersons(Dataset):
    """Images (3, height, width) float32, normalised, with an identity each."""

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length = length
        self.pool = torch.randn(MARKET_POOL, 3, *size, generator=torch.Generator().manual_seed(length))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.pool[index % MARKET_POOL], index % MARKET_IDENTITIES


def market1501(data_dir: Path, split: str, transform: Callable, size: tuple[int, int]) -> tuple[Dataset, str]:
    """The split "train_all" or "val" and whether it is real: a folder of images per identity.

    Looks for ``Market-1501/pytorch/<split>/<identity>/*.jpg`` in the data folder.

    Args:
        data_dir: the data folder.
        split: which half.
        transform: what makes a (3, height, width) float32 tensor of a real image.
        size: (height, width), for the synthetic ones.
    """
    from torchvision.datasets import ImageFolder

    folder = data_dir / "Market-1501" / "pytorch" / split
    if folder.is_dir():
        return ImageFolder(str(folder), transform), REAL
    return SyntheticPersons(MARKET_LENGTH[split], size), SYNTHETIC


# ---- D2A: vulberta_mlp, vulberta_cnn --------------------------------------------------------------------------------

D2A_LENGTH = {"train": 4643, "dev": 596}
D2A_TOKENS = 1024
D2A_VOCABULARY = 50_000
D2A_PADDING = 1
D2A_POOL = 64

# The study's tokenizer splits C code with clang's lexer first. This expression does it without clang: strings,
# identifiers, numbers, the longer operators, then any other single sign. Comments are gone before it is used.
C_TOKEN = re.compile(
    r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|[A-Za-z_]\w*|\.?\d[\w.]*|<<=|>>=|\.\.\.|->|\+\+|--|<<|>>|[<>=!+\-*/%&|^]=|'
    r"&&|\|\||##|\S"
)
C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


class Functions(Dataset):
    """Functions as token ids (N, 1024) int64, padded with 1, with a label each: 1 is vulnerable, 0 is not."""

    def __init__(self, tokens: Tensor, labels: Tensor, length: int, kind: str) -> None:
        self.tokens = tokens
        self.labels = labels
        self.length = length
        self.kind = kind

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.tokens[index % len(self.tokens)]
        return tokens, (tokens != D2A_PADDING).long(), self.labels[index % len(self.labels)]

    def class_weights(self) -> Tensor:
        """Balanced weights, (2,) float32: samples / (classes x samples of the class)."""
        counts = torch.bincount(self.labels, minlength=2).clamp(min=1)
        return self.labels.numel() / (2.0 * counts)


def d2a(data_dir: Path, split: str) -> Functions:
    """The split "train" or "dev", cut and padded to 1024 tokens.

    Looks for ``d2a/d2a_lbv1_function_<split>.csv`` (columns ``code`` and ``label``) and for
    ``d2a/tokenizer/drapgh-vocab.json`` and ``drapgh-merges.txt`` in the data folder.
    """
    path = data_dir / "d2a" / f"d2a_lbv1_function_{split}.csv"
    if not path.is_file():
        return _synthetic_functions(split)
    csv.field_size_limit(2**31 - 1)  # one function can be longer than csv's default of 128 KiB
    with path.open(newline="", encoding="utf-8", errors="replace") as lines:
        rows = list(csv.DictReader(lines))
    encode = byte_pair_encoder(data_dir / "d2a" / "tokenizer")
    tokens = torch.full((len(rows), D2A_TOKENS), D2A_PADDING)
    for row, function in zip(tokens, rows, strict=True):
        ids = encode(function["code"])
        row[: len(ids)] = torch.tensor(ids)
    labels = torch.tensor([int(function["label"]) for function in rows])
    return Functions(tokens, labels, len(rows), REAL)


def byte_pair_encoder(folder: Path) -> Callable[[str], list[int]]:
    """What turns C code into at most 1024 ids, with ``<s>`` (0) before and ``</s>`` (2) behind it."""
    from tokenizers.models import BPE

    model = BPE.from_file(str(folder / "drapgh-vocab.json"), str(folder / "drapgh-merges.txt"), unk_token="<unk>")

    def encode(code: str) -> list[int]:
        words = C_TOKEN.findall(C_COMMENT.sub(" ", code))
        ids = [piece.id for word in words for piece in model.tokenize(word)]
        return [0, *ids[: D2A_TOKENS - 2], 2]

    return encode


def _synthetic_functions(split: str) -> Functions:
    """Random ids between ``<s>`` and ``</s>``, 128 to 1024 of them: as in the real set, some reach the full length."""
    generator = torch.Generator().manual_seed(D2A_LENGTH[split])
    tokens = torch.randint(5, D2A_VOCABULARY, (D2A_POOL, D2A_TOKENS), generator=generator)
    lengths = torch.randint(128, D2A_TOKENS + 1, (D2A_POOL,), generator=generator)
    lengths[0] = D2A_TOKENS
    tokens[:, 0] = 0
    tokens[torch.arange(D2A_POOL), lengths - 1] = 2
    tokens[torch.arange(D2A_TOKENS) >= lengths[:, None]] = D2A_PADDING
    labels = torch.randint(0, 2, (D2A_POOL,), generator=generator)
    return Functions(tokens, labels, D2A_LENGTH[split], SYNTHETIC)
