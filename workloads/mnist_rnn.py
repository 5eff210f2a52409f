# SPDX-License-Identifier: Apache-2.0
"""mnist_rnn: digits read row by row by an LSTM (pytorch/examples, mnist_rnn).

Start   python -m workloads.mnist_rnn --epochs 1
Data    60,000 + 10,000 images as 28 steps of 28 float32, normalised. 1875 steps of 32, then a test pass of 10 batches
        of 1000.
Model   one LSTM layer of 64, its last output through batch-norm and two linear layers. 26,602 parameters.
Train   negative log-likelihood, Adadelta, learning rate x 0.7 after each epoch. FP32.

The study left this training on the CPU by accident (upstream wants a flag for the GPU, its launcher gave none), so that
three of its twelve pairs never shared the GPU. Here it runs on the GPU like the others.
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
    parser = common.torch_parser(__doc__, epochs=14, batch_size=32, lr=0.1, seed=1)
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


class Images(Dataset):
    def __init__(self, digits: samples.Digits) -> None:
        self.digits = digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.digits.image(index).float() / 255  # (28, 28): 28 steps of 28 features
        return (pixels - samples.MNIST_MEAN) / samples.MNIST_STD, self.digits.label(index)


# ---- model ----------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size=28, hidden_size=64, batch_first=True)
        self.norm = nn.BatchNorm1d(64)
        # Upstream's Dropout2d drops single values of a 2-D input, as Dropout does, but warns about it.
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.linear1 = nn.Linear(64, 32)
        self.linear2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:  # (N, 28, 28)
        outputs, _ = self.rnn(x)  # (N, 28, 64)
        x = self.dropout1(self.norm(outputs[:, -1, :]))  # (N, 64)
        x = self.dropout2(F.relu(self.linear1(x)))  # (N, 32)
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
    with common.Progress("mnist_rnn", args) as progress:
        train_set = Images(samples.mnist(args.data_dir, "train"))
        test_set = Images(samples.mnist(args.data_dir, "t10k"))
        train(args, train_set, test_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, test_set, progress)


if __name__ == "__main__":
    main()
