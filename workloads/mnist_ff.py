# SPDX-License-Identifier: Apache-2.0
"""mnist_ff: digits by the forward-forward algorithm (pytorch/examples, mnist_forward_forward).

Start   python -m workloads.mnist_ff --epochs 1
Data    60,000 + 10,000 images as 784 float32, normalised; a digit's label is written into its first ten pixels.
Model   linear layers 784 -> 500 -> 500, each trained for itself: no gradient passes between them. 643,000 parameters.
Train   one Adam per layer pushes the goodness (mean squared activation) of rightly labelled images above 2 and that of
        wrongly labelled ones below. Per epoch layer 1 makes a pass of 1875 steps of 32, then layer 2, on what layer 1
        made of the images: 3750 optimizer steps. FP32.
Memory  the test pass sets the peak: 10,000 images at once, with each of the ten labels, and not under no_grad, so that
        ten autograd graphs of about 87 MiB live until the arg-max.

The study trained on 32 images only: upstream trains on one single batch, and the study's launcher turned its
batch_size 32 into the size of that training set, so that an epoch was two steps and the accuracy chance. Here
--batch-size is a mini-batch, as the word says. Upstream also trains layer 1 for all its epochs before layer 2 starts;
here both train within each epoch, so that an epoch has an end. With one epoch that is the same.
"""

import gc
import itertools
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

from workloads import common, samples

TEST_BATCH_SIZE = 10_000
SIZES = (784, 500, 500)
THRESHOLD = 2.0


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=10, batch_size=32, lr=0.03, seed=1)
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


class FlatImages(Dataset):
    def __init__(self, digits: samples.Digits) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.digits.image(index).flatten().float() / 255  # (784,)
        return (pixels - samples.MNIST_MEAN) / samples.MNIST_STD, self.digits.label(index)


def with_label(images: Tensor, labels: Tensor) -> Tensor:
    """The images with a label in their first ten pixels, the brightest value of the batch standing for it."""
    marked = images.clone()  # (N, 784)
    marked[:, :10] = 0.0
    marked[torch.arange(len(images), device=images.device), labels] = images.max()
    return marked


# ---- model ----------------------------------------------------------------------------------------------------------


class Layer(nn.Linear):
    """A layer that sees only the direction of its input, so that the goodness below it cannot be read off."""

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        direction = x / (x.norm(2, 1, keepdim=True) + 1e-4)
        return F.relu(super().forward(direction))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(*pair) for pair in itertools.pairwise(SIZES))

    def below(self, depth: int, x: Tensor) -> Tensor:
        """What the layer at this depth is given: the detached output of those below it."""
        with torch.no_grad():
            for layer in self.layers[:depth]:
                x = layer(x)
        return x

    def predict(self, images: Tensor) -> Tensor:
        """The label whose overlay has the largest goodness over all layers, (N,). Deliberately keeps its graphs."""
        goodness_per_label = []
        for label in range(10):
            x = with_label(images, torch.full((len(images),), label, device=images.device))
            goodness = []
            for layer in self.layers:
                x = layer(x)
                goodness.append(x.pow(2).mean(1))
            goodness_per_label.append(sum(goodness).unsqueeze(1))
        return torch.cat(goodness_per_label, dim=1).argmax(1)  # (N, 10) -> (N,)


def build_model(args: Namespace) -> nn.Module:
    return Network()


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str, depth: int) -> Tensor:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    wrong = (labels + torch.randint(1, 10, labels.shape, device=device)) % 10
    layer = model.layers[depth]
    good = layer(model.below(depth, with_label(images, labels))).pow(2).mean(1)  # (N,)
    bad = layer(model.below(depth, with_label(images, wrong))).pow(2).mean(1)
    return torch.log(1 + torch.exp(torch.cat([THRESHOLD - good, bad - THRESHOLD]))).mean()


# ---- loop -----------------------------------------------------------------------------------------------------------


def error_rate(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> float:
    images, labels = (tensor.to(device) for tensor in batch)
    return 1.0 - (model.predict(images) == labels).float().mean().item()


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> float:
    errors = []
    for number, batch in enumerate(loader, 1):
        errors.append(error_rate(model, batch, args.device))
        progress.step()
        if number == args.max_steps:
            break
    return sum(errors) / len(errors)


def train(args: Namespace, train_set: FlatImages, test_set: FlatImages, progress: common.Progress) -> None:
    common.set_seed(args.seed)
    options = common.loader_options(args, workers=1)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, **options)
    test_loader = DataLoader(test_set, TEST_BATCH_SIZE, **options)

    model = build_model(args).to(args.device)
    optimizers = [Adam(layer.parameters(), lr=args.lr) for layer in model.layers]

    steps = common.full_steps(train_loader, args)
    progress.ready(train_set.digits.kind, common.num_parameters(model), len(optimizers) * steps)
    for _ in range(args.epochs):
        progress.begin("train", steps, passes=len(optimizers))
        for depth, optimizer in enumerate(optimizers):
            for index, batch in enumerate(train_loader):
                step, part = divmod(index, args.accumulate)  # a step takes so many batches
                parts = min(args.accumulate, len(train_loader) - index + part)  # the last one those that are left
                if part == 0:
                    optimizer.zero_grad()
                loss = batch_loss(model, batch, args.device, depth)
                (loss / parts).backward()
                progress.batch(len(batch[0]), loss)
                if part + 1 == parts:
                    optimizer.step()
                    progress.step()
                    if step + 1 == args.max_steps:
                        break
        progress.begin("evaluate", len(test_loader))
        train_error = error_rate(model, batch, args.device)  # upstream too: on the batch it was trained with
        test_error = evaluate(model, test_loader, args, progress)
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict()}, args.save)
        progress.end_epoch({"train_error": train_error, "test_error": test_error})


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("mnist_ff", args) as progress:
        train_set = FlatImages(samples.mnist(args.data_dir, "train"))
        test_set = FlatImages(samples.mnist(args.data_dir, "t10k"))
        train(args, train_set, test_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, test_set, progress)


if __name__ == "__main__":
    main()
