# SPDX-License-Identifier: Apache-2.0
"""mrt_oast: tells whether two programs are clones, with transformers over syntax trees (MRT-OAST on OJClone).

Start   python -m workloads.mrt_oast --epochs 1
Data    7,500 programs, each as 256 token ids in pre-order, 256 in post-order and a mask; 40,000 training and 5,000
        validation pairs, half of them clones. 625 steps of 64 pairs (an incomplete batch is dropped), reshuffled per
        epoch; then a validation: the features of all programs in 118 batches of 64, and a cosine per pair.
Model   an encoder for either order, a 1x1 convolution that merges them, an encoder for what they make together; each
        has two pre-norm layers of 128 with 8 heads. A convolution over the whole sequence leaves 512 features per
        program. 1,220,615 parameters.
Train   binary cross-entropy on the cosine, cut to 0..1. Adam; the learning rate rises linearly during the first fifth
        of the steps and falls linearly to a tenth of its height. FP32; deterministic cuDNN.
Memory  12 attention calls per step, each with written-out probabilities (64, 8, 256, 256), 128 MiB, and their dropout
        mask and output; each of the six attention modules keeps its last probabilities, also between steps.
        --checkpointing on keeps only what enters a layer and computes the rest again.

The original validates every 1750 steps, hence never in an epoch of 625, and the study's one-epoch results came from an
older checkpoint. Here every epoch ends with a validation. The detailed test after the last epoch, which does the same
again on the other 5,000 pairs, is left out, and CUDA launches stay asynchronous.
"""

import gc
import math
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, Sampler

from workloads import common, samples

PROGRAMS, CLASSES = 7_500, 15
PAIRS = {"train": 40_000, "valid": 5_000}
VOCABULARY = 114  # 113 kinds of node and the padding, 0
LENGTH, WIDTH, HEADS, FEED_FORWARD, LAYERS, CHANNELS = 256, 128, 8, 512, 2, 4
ATTENTION_DROPOUT = 0.1
THRESHOLD = 0.9
FEATURE_BATCH_SIZE = 64


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=10, batch_size=64, lr=1e-4, seed=1334)
    parser.add_argument("--dropout", type=common.fraction, default=0.2, help="outside the attention (default 0.2)")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="default 0")
    parser.add_argument("--checkpointing", choices=["on", "off"], default="off", help="default off")
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


class Programs(Dataset):
    """Token ids (P, 256) int64 in either order and the mask (P, 256) of what is no padding."""

    def __init__(self, preorder: numpy.ndarray, postorder: numpy.ndarray, length: numpy.ndarray, kind: str) -> None:
        self.preorder = torch.from_numpy(preorder.astype(numpy.int64))
        self.postorder = torch.from_numpy(postorder.astype(numpy.int64))
        self.mask = torch.arange(LENGTH) < torch.from_numpy(length.astype(numpy.int64))[:, None]
        self.kind = kind

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.preorder[index], self.postorder[index], self.mask[index]


class Pairs(Dataset):
    """Rows of first program, second program, 1 for clones or 0."""

    def __init__(self, programs: Programs, rows: numpy.ndarray) -> None:
        self.programs = programs
        self.rows = torch.from_numpy(rows.astype(numpy.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        first, second, is_clone = self.rows[index].tolist()
        return *self.programs[first], *self.programs[second], torch.tensor(float(is_clone))


class ShuffledBatches(Sampler[list[int]]):
    """Batches of pair numbers in a new order each epoch; an incomplete one is dropped."""

    def __init__(self, num_pairs: int, batch_size: int, seed: int) -> None:
        self.num_pairs, self.batch_size = num_pairs, batch_size
        self.random = numpy.random.default_rng(seed)

    def __len__(self) -> int:
        return self.num_pairs // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        order = self.random.permutation(self.num_pairs)
        for batch in range(len(self)):
            yield order[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()


def ojclone(data_dir: Path) -> tuple[Programs, Pairs, Pairs]:
    """Programs, training pairs and validation pairs, from token arrays in ``data_dir/ojclone``, else synthetic."""
    folder = data_dir / "ojclone"
    if (folder / "programs.npz").is_file():
        arrays = numpy.load(folder / "programs.npz")
        programs = Programs(arrays["preorder"], arrays["postorder"], arrays["length"], samples.REAL)
        return programs, *(Pairs(programs, numpy.load(folder / f"{split}_pairs.npy")) for split in PAIRS)
    random = numpy.random.default_rng(0)
    classes = numpy.arange(PROGRAMS) % CLASSES
    length = random.integers(20, 103, PROGRAMS)  # 61 tokens on average, as in OJClone
    # Programs of one class draw their nodes from the same 30 kinds, so that there is something to learn.
    tokens = 1 + (7 * classes[:, None] + random.integers(0, 30, (PROGRAMS, LENGTH))) % (VOCABULARY - 1)
    tokens[numpy.arange(LENGTH) >= length[:, None]] = 0
    backwards = (length[:, None] - 1 - numpy.arange(LENGTH)) % LENGTH  # the padding stays behind
    postorder = numpy.take_along_axis(tokens, backwards, axis=1)
    programs = Programs(tokens, postorder, length, samples.SYNTHETIC)
    return programs, *(Pairs(programs, synthetic_pairs(random, count)) for count in PAIRS.values())


def synthetic_pairs(random: numpy.random.Generator, count: int) -> numpy.ndarray:
    is_clone = numpy.arange(count) % 2
    first = random.integers(0, PROGRAMS, count)
    distance = CLASSES * random.integers(1, PROGRAMS // CLASSES, count)  # every 15th program is of the same class
    second = (first + distance + (1 - is_clone) * random.integers(1, CLASSES, count)) % PROGRAMS
    return numpy.stack([first, second, is_clone], axis=1)


# ---- model ----------------------------------------------------------------------------------------------------------


class LayerNorm(nn.Module):
    """The original's own: divides by the unbiased deviation plus epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.shift = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.shift


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.dropout = nn.Dropout(ATTENTION_DROPOUT)
        self.probabilities: Tensor | None = None  # kept between steps, as in the original: 128 MiB per module

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # (N, 256, 128), (N, 256)
        query, key, value = (
            linear(x).unflatten(2, (HEADS, WIDTH // HEADS)).transpose(1, 2)  # (N, 8, 256, 16)
            for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(WIDTH // HEADS)  # (N, 8, 256, 256)
        scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
        self.probabilities = self.dropout(scores.softmax(dim=-1))
        return self.out((self.probabilities @ value).transpose(1, 2).flatten(2))  # (N, 256, 128)


class FeedForward(nn.Sequential):
    def __init__(self, dropout: float) -> None:
        super().__init__(nn.Linear(WIDTH, FEED_FORWARD), nn.Dropout(dropout), nn.ReLU(), nn.Linear(FEED_FORWARD, WIDTH))


class Layer(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = LayerNorm(), Attention()
        self.norm2, self.feed_forward = LayerNorm(), FeedForward(dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class Encoder(nn.Module):
    def __init__(self, dropout: float, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(Layer(dropout) for _ in range(LAYERS))
        self.norm = LayerNorm()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False) if self.checkpointing else layer(x, mask)
        return self.norm(x)


class Embedding(nn.Module):
    """Token embeddings plus sines and cosines of the position."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.dropout = nn.Dropout(dropout)
        angles = torch.arange(LENGTH)[:, None] * torch.exp(torch.arange(0, WIDTH, 2) * -(math.log(10_000) / WIDTH))
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1))  # (256, 128)

    def forward(self, tokens: Tensor) -> Tensor:  # (N, 256) -> (N, 256, 128)
        return self.dropout(self.tokens(tokens) * math.sqrt(WIDTH) + self.positions)


class Network(nn.Module):
    def __init__(self, dropout: float, checkpointing: bool) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(Embedding(dropout) for _ in range(2))  # pre-order, post-order
        self.encoders = nn.ModuleList(Encoder(dropout, checkpointing) for _ in range(2))
        self.merge = nn.Conv2d(2, 1, kernel_size=1)
        self.fusion = Encoder(dropout, checkpointing)
        self.summary = nn.Conv2d(1, CHANNELS, kernel_size=(LENGTH, 1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def features(self, preorder: Tensor, postorder: Tensor, mask: Tensor) -> Tensor:  # three of (N, 256)
        orders = zip(self.embeddings, self.encoders, (preorder, postorder), strict=True)
        encoded = [encoder(embedding(tokens), mask) for embedding, encoder, tokens in orders]  # two of (N, 256, 128)
        merged = F.relu(self.merge(torch.stack(encoded, dim=1))).squeeze(1)  # (N, 256, 128)
        fused = self.fusion(merged, mask)
        return F.relu(self.summary(fused.unsqueeze(1))).flatten(1)  # (N, 4, 1, 128) -> (N, 512)

    def forward(self, *programs: Tensor) -> Tensor:
        """Similarity of two programs, (N,), each given as pre-order, post-order and mask."""
        return similarity(self.features(*programs[:3]), self.features(*programs[3:]))


def similarity(first: Tensor, second: Tensor) -> Tensor:
    return F.cosine_similarity(first, second).clamp(0, 1)


def build_model(args: Namespace) -> nn.Module:
    return Network(args.dropout, args.checkpointing == "on")


def batch_loss(model: nn.Module, batch: list[Tensor], device: str) -> Tensor:
    *programs, is_clone = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.binary_cross_entropy(model(*programs), is_clone)


# ---- optimizer ------------------------------------------------------------------------------------------------------


def learning_rate(step: int, total_steps: int, peak: float) -> float:
    """Up to the peak during the first fifth of all steps, then down to a tenth of it, linearly both."""
    warm_up = max(1, total_steps // 5)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (1 - 0.9 * (step - warm_up) / max(1, total_steps - warm_up))


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(
    model: nn.Module, programs: DataLoader, pairs: Pairs, args: Namespace, progress: common.Progress
) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(programs))
    features, row = [], 0
    with torch.no_grad():
        for number, batch in enumerate(programs, 1):
            features.append(model.features(*(tensor.to(args.device) for tensor in batch)))
            row += len(batch[0])
            progress.step()
            if number == args.max_steps:
                break
        # A cut pass saw fewer programs: the pairs of those that it saw, by position.
        table = torch.cat(features)  # (P, 512)
        first, second, is_clone = pairs.rows.to(args.device).unbind(1)
        predicted = similarity(table[first % row], table[second % row]) > THRESHOLD
        is_clone = is_clone == 1
        hits = (predicted & is_clone).sum().item()
        found, clones = predicted.sum().item(), is_clone.sum().item()
        accuracy = (predicted == is_clone).float().mean().item()
    return scores(hits, found, clones) | {"accuracy": accuracy}


def scores(hits: float, found: float, clones: float) -> dict[str, float]:
    """Precision, recall and F1 as fractions; what is undefined is NaN, and so missing from the record."""
    precision = hits / found if found else math.nan
    recall = hits / clones if clones else math.nan
    f1 = 2 * hits / (found + clones) if found + clones else math.nan
    return {"precision": precision, "recall": recall, "f1": f1}


def train(
    args: Namespace, programs: Programs, train_pairs: Pairs, valid_pairs: Pairs, progress: common.Progress
) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = common.loader_options(args, workers=0)
    batches = ShuffledBatches(len(train_pairs), args.batch_size, args.seed)
    train_loader = DataLoader(train_pairs, batch_sampler=batches, **options)
    program_loader = DataLoader(programs, FEATURE_BATCH_SIZE, **options)

    model = build_model(args).to(args.device)
    optimizer = Adam(model.parameters(), lr=1.0, weight_decay=args.weight_decay)
    steps = common.full_steps(train_loader, args)
    total_steps = args.epochs * steps
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, total_steps, args.lr))

    progress.ready(programs.kind, common.num_parameters(model), steps)
    for _ in range(args.epochs):
        model.train()
        progress.begin("train", steps)
        for index, batch in enumerate(train_loader):
            step, part = divmod(index, args.accumulate)  # a step takes so many batches
            parts = min(args.accumulate, len(train_loader) - index + part)  # the last one those that are left
            if part == 0:
                optimizer.zero_grad()
            loss = batch_loss(model, batch, args.device)
            (loss / parts).backward()
            progress.batch(len(batch[0]), loss)
            if part + 1 == parts:
                optimizer.step()
                schedule.step()
                progress.step()
                if step + 1 == args.max_steps:
                    break
        metrics = evaluate(model, program_loader, valid_pairs, args, progress)
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict()}, args.save)
        progress.end_epoch(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("mrt_oast", args) as progress:
        programs, train_pairs, valid_pairs = ojclone(args.data_dir)
        train(args, programs, train_pairs, valid_pairs, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, programs, train_pairs, valid_pairs, progress)


if __name__ == "__main__":
    main()
