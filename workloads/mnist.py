# SPDX-License-Identifier: Apache-2.0
"""mnist: digits with a small convolutional network (pytorch/examples, mnist).

Start   python -m workloads.mnist --epochs 1
Data    60,000 + 10,000 images, 1x28x28 float32, normalised. 1875 steps of 32, then a test pass of 10 batches of 1000.
Model   two 3x3 convolutions, max-pool, two linear layers. 1,199,882 parameters.
Train   negative log-likelihood, Adadelta, learning rate x 0.7 after each epoch. FP32.
Memory  the test batch of 1000 sets the peak: two (1000, 64, 24, 24) float32 tensors of 141 MiB each.
"""

import gc
from argparse import Namespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adadelta
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset

from workloads import common, samples

TEST_BATCH_SIZE = 1000


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=14, batch_size=32, lr=1.0, seed=1)
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


class Images(Dataset):
    def __init__(self, digits: samples.Digits) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.digits.image(index).float() / 255  # (28, 28)
        return ((pixels - samples.MNIST_MEAN) / samples.MNIST_STD).unsqueeze(0), self.digits.label(index)  # (1, 28, 28)


# ---- model ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.linear1 = nn.Linear(9216, 128)
        self.linear2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 1, 28, 28)
        x = F.relu(self.conv1(x))  # (N, 32, 26, 26)
        x = F.relu(self.conv2(x))  # (N, 64, 24, 24)
        x = self.dropout1(F.max_pool2d(x, 2))  # (N, 64, 12, 12)
        x = x.flatten(1)  # (N, 9216)
        x = self.dropout2(F.relu(self.linear1(x)))  # (N, 128)
        return F.log_softmax(self.linear2(x), dim=1)  # (N, 10)


def build_model(args: Namespace) -> nn.Module:
    return Network()


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.nll_loss(model(images), labels)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    loss, correct, seen = 0.0, 0.0, 0
    with torch.no_grad():
        for number, (images, labels) in enumerate(loader, 1):
            images, labels = images.to(args.device), labels.to(args.device)
            output = model(images)
            loss += F.nll_loss(output, labels, reduction="sum").item()
            correct += (output.argmax(dim=1) == labels).sum().item()
            seen += len(images)
            progress.step()
            if number == args.max_steps:
                break
    return {"test_loss": loss / seen, "test_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: Images, test_set: Images, progress: common.Progress) -> None:
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
    with common.Progress("mnist", args) as progress:
        train_set = Images(samples.mnist(args.data_dir, "train"))
        test_set = Images(samples.mnist(args.data_dir, "t10k"))
        train(args, train_set, test_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, test_set, progress)


if __name__ == "__main__":
    main()
