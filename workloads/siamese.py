# SPDX-License-Identifier: Apache-2.0
"""siamese: tells whether two digits are the same (pytorch/examples, siamese_network).

Start   python -m workloads.siamese --epochs 1
Data    60,000 + 10,000 pairs of 1x28x28 float32, raw pixel values 0 to 255, put together at random as they are asked
        for: even numbers are pairs of one digit (target 1), odd ones of two (target 0).
        1875 steps of 32, then a test pass of 10 batches of 1000.
Model   one ResNet-18 trunk, run twice, for both images; 512 + 512 features -> 256 -> 1. 11,432,897 parameters.
Train   binary cross-entropy, Adadelta, learning rate x 0.7 after each epoch. FP32.

The study's programs report a loss about a thousand times too small (batch means divided by samples); this one divides
by the batches.
"""

import gc
import random
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adadelta
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

from workloads import common, samples

TEST_BATCH_SIZE = 1000


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=14, batch_size=32, lr=1.0, seed=1)
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


class Pairs(Dataset):
    def __init__(self, digits: samples.Digits) -> None:
        self.digits = digits
        self.of_digit = [torch.nonzero(digits.labels == digit).flatten().tolist() for digit in range(10)]

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        is_same = index % 2 == 0
        if is_same:
            first, second = random.sample(self.of_digit[random.randrange(10)], 2)
        else:
            first, second = (random.choice(self.of_digit[digit]) for digit in random.sample(range(10), 2))
        return self._pixels(first), self._pixels(second), torch.tensor(float(is_same))

    def _pixels(self, index: int) -> Tensor:
        return self.digits.image(index).float().unsqueeze(0)  # (1, 28, 28), values 0 to 255


# ---- model ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        resnet = resnet18(weights=None)
        resnet.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.trunk = nn.Sequential(*list(resnet.children())[:-1])  # without the layer for 1000 classes
        self.head = nn.Sequential(nn.Linear(1024, 256), nn.ReLU(inplace=True), nn.Linear(256, 1))
        self.head.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.constant_(module.bias, 0.01)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:  # two of (N, 1, 28, 28)
        features = [self.trunk(images).flatten(1) for images in (first, second)]  # two of (N, 512)
        return torch.sigmoid(self.head(torch.cat(features, dim=1))).squeeze(1)  # (N,)


def build_model(args: Namespace) -> nn.Module:
    return Network()


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], device: str) -> Tensor:
    first, second, targets = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.binary_cross_entropy(model(first, second), targets)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    losses, correct, seen = [], 0.0, 0
    with torch.no_grad():
        for number, batch in enumerate(loader, 1):
            first, second, targets = (tensor.to(args.device) for tensor in batch)
            output = model(first, second)
            losses.append(F.binary_cross_entropy(output, targets).item())
            correct += ((output > 0.5) == (targets > 0.5)).sum().item()
            seen += len(targets)
            progress.step()
            if number == args.max_steps:
                break
    return {"test_loss": sum(losses) / len(losses), "test_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: Pairs, test_set: Pairs, progress: common.Progress) -> None:
    common.set_seed(args.seed)
    options = common.loader_options(args, workers=1)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, **options)
    test_loader = DataLoader(test_set, TEST_BATCH_SIZE, shuffle=True, **options)

    model = build_model(args).to(args.device)
    optimizer = Adadelta(model.parameters(), lr=args.lr)
    schedule = StepLR(optimizer, step_size=1, gamma=0.7)

    steps = common.full_steps(train_loader, args)
    progress.ready(train_set.digits.kind, common.num_parameters(model), steps)
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
                progress.step()
                if step + 1 == args.max_steps:
                    break
        metrics = evaluate(model, test_loader, args, progress)
        schedule.step()
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict()}, args.save)
        progress.end_epoch(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("siamese", args) as progress:
        train_set = Pairs(samples.mnist(args.data_dir, "train"))
        test_set = Pairs(samples.mnist(args.data_dir, "t10k"))
        train(args, train_set, test_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, test_set, progress)


if __name__ == "__main__":
    main()
