# SPDX-License-Identifier: Apache-2.0
"""vulberta_cnn: finds vulnerable C functions with convolutions over frozen embeddings (ICL-ml4csec/VulBERTa, CNN).

Start   python -m workloads.vulberta_cnn --epochs 1
Data    D2A, functions: 4,643 + 596 token sequences of 1024, without a mask. 37 steps of 128 in the order of the file,
        then a validation of 5 batches.
Model   the 50,000 x 768 word embeddings of VulBERTa, frozen (38,400,000 values); three 1-D convolutions of 200
        filters, kernels 3, 4 and 5; maximum over the sequence; linear layers 600 -> 256 -> 128 -> 2.
        2,030,810 trained parameters, 40,430,810 in all. No transformer.
Train   cross-entropy with balanced class weights, Adam, no schedule. FP32; deterministic cuDNN.
Memory  the embedded batch is (128, 1024, 768) float32, 384 MiB; each convolution copies its transposed view into a
        contiguous one of the same size, in the forward and again in the backward pass.

In the study this training was an empty function that returned at once and passed 42 times. This is the real one, from
the authors' notebook. With --weights FILE the embeddings are read from there, under "embedding.weight".
"""

import gc
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader

from workloads import common, samples

EMBEDDING_SIZE = 768
FILTERS = 200
KERNELS = (3, 4, 5)


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=20, batch_size=128, lr=5e-4, seed=1234)
    parser.add_argument("--weight-decay", type=float, default=0.0, help="default 0")
    parser.add_argument("--dropout", type=common.fraction, default=0.5, help="default 0.5")
    parser.add_argument("--weights", type=Path, help="state dict of the model to start from (default: random)")
    return parser.parse_args(argv)


# ---- model ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(samples.D2A_VOCABULARY, EMBEDDING_SIZE, padding_idx=samples.D2A_PADDING)
        self.embedding.weight.requires_grad = False
        self.convolutions = nn.ModuleList(nn.Conv1d(EMBEDDING_SIZE, FILTERS, kernel) for kernel in KERNELS)
        self.dropout = nn.Dropout(dropout)
        self.linear1 = nn.Linear(len(KERNELS) * FILTERS, 256)
        self.linear2 = nn.Linear(256, 128)
        self.linear3 = nn.Linear(128, 2)

    def forward(self, tokens: Tensor) -> Tensor:  # (N, 1024)
        embedded = self.embedding(tokens).permute(0, 2, 1)  # (N, 768, 1024), a view: the convolutions copy it
        found = [F.relu(convolution(embedded)) for convolution in self.convolutions]  # (N, 200, 1022 | 1021 | 1020)
        strongest = [F.max_pool1d(channel, channel.shape[2]).squeeze(2) for channel in found]  # three of (N, 200)
        x = self.dropout(torch.cat(strongest, dim=1))  # (N, 600)
        x = F.relu(self.linear1(x))
        x = F.relu(self.linear2(x))
        return self.linear3(x)  # (N, 2)


def build_model(args: Namespace) -> nn.Module:
    return Network(args.dropout)


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], device: str, class_weights: Tensor) -> Tensor:
    tokens, _, labels = batch
    logits = model(tokens.to(device, non_blocking=True))
    return F.cross_entropy(logits, labels.to(device), weight=class_weights)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(
    model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress, class_weights: Tensor
) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    losses, correct, seen = [], 0.0, 0
    with torch.no_grad():
        for number, (tokens, _, labels) in enumerate(loader, 1):
            logits, labels = model(tokens.to(args.device)), labels.to(args.device)
            losses.append(F.cross_entropy(logits, labels, weight=class_weights).item())
            correct += (logits.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
            progress.step()
            if number == args.max_steps:
                break
    return {"val_loss": sum(losses) / len(losses), "val_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: samples.Functions, dev_set: samples.Functions, progress: common.Progress) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = common.loader_options(args, workers=0)
    train_loader = DataLoader(train_set, args.batch_size, **options)
    dev_loader = DataLoader(dev_set, args.batch_size, **options)

    model = build_model(args)
    if args.weights:
        common.load_weights(model, args.weights)
    model.to(args.device)
    class_weights = train_set.class_weights().to(args.device)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = Adam(trained, lr=args.lr, weight_decay=args.weight_decay)

    steps = common.full_steps(train_loader, args)
    progress.ready(train_set.kind, common.num_parameters(model), steps)
    for _ in range(args.epochs):
        model.train()
        progress.begin("train", steps)
        for index, batch in enumerate(train_loader):
            step, part = divmod(index, args.accumulate)  # a step takes so many batches
            parts = min(args.accumulate, len(train_loader) - index + part)  # the last one those that are left
            if part == 0:
                optimizer.zero_grad()
            loss = batch_loss(model, batch, args.device, class_weights)
            (loss / parts).backward()
            progress.batch(len(batch[0]), loss)
            if part + 1 == parts:
                optimizer.step()
                progress.step()
                if step + 1 == args.max_steps:
                    break
        metrics = evaluate(model, dev_loader, args, progress, class_weights)
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, args.save)
        progress.end_epoch(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("vulberta_cnn", args) as progress:
        train_set, dev_set = samples.d2a(args.data_dir, "train"), samples.d2a(args.data_dir, "dev")
        train(args, train_set, dev_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, dev_set, progress)


if __name__ == "__main__":
    main()
