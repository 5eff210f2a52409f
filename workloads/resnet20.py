# SPDX-License-Identifier: Apache-2.0
"""resnet20: CIFAR-10 with the ResNet-20 of the ResNet paper (akamaster/pytorch_resnet_cifar10).

Start   python -m workloads.resnet20 --epochs 1
Data    50,000 + 10,000 images, 3x32x32 float32; training ones flipped and cropped at random. 391 steps of 128 (the
        last has 80), then a validation pass of 79.
Model   three stages of three basic blocks with 16, 32 and 64 channels; shortcuts without parameters. 269,722.
Train   cross-entropy, SGD with momentum 0.9, weight decay 1e-4 on all parameters, learning rate x 0.1 at epochs 100
        and 150. FP32; deterministic cuDNN.

Left out: DataParallel, which on one GPU only passes calls on, and the second process that evaluates the saved model
once more.
"""

import gc
import pickle
from argparse import Namespace
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from workloads import common, samples

LENGTH = {"train": 50_000, "test": 10_000}
POOL = 1000
NORMALIZE = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=200, batch_size=128, lr=0.1, seed=1334)
    parser.add_argument("--weight-decay", type=float, default=1e-4, help="default 1e-4")
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


def cifar10(data_dir: Path, split: str) -> tuple[Tensor, Tensor, str]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) from the python version's batches, else a synthetic pool."""
    folder = data_dir / "cifar-10-batches-py"
    if folder.is_dir():
        names = [f"data_batch_{number}" for number in range(1, 6)] if split == "train" else ["test_batch"]
        batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in names]
        images = numpy.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
        labels = [label for batch in batches for label in batch[b"labels"]]
        return torch.from_numpy(images), torch.tensor(labels), samples.REAL
    generator = torch.Generator().manual_seed(LENGTH[split])
    images = torch.randint(0, 256, (POOL, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images, torch.arange(POOL) % 10, samples.SYNTHETIC


class Images(Dataset):
    def __init__(self, data_dir: Path, split: str) -> None:
        self.images, self.labels, self.kind = cifar10(data_dir, split)
        self.length = len(self.images) if self.kind == samples.REAL else LENGTH[split]
        augment = [transforms.RandomHorizontalFlip(), transforms.RandomCrop(32, 4)] if split == "train" else []
        self.transform = transforms.Compose([*augment, transforms.ConvertImageDtype(torch.float32), NORMALIZE])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        index %= len(self.images)
        return self.transform(self.images[index]), self.labels[index]  # (3, 32, 32)


# ---- model ----------------------------------------------------------------------------------------------------------


def convolution(channels_in: int, channels: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(channels_in, channels, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = convolution(channels, channels, 1), nn.BatchNorm2d(channels)

    def shortcut(self, x: Tensor) -> Tensor:
        """The paper's option A: every second pixel, and zeros for the channels that are new."""
        new = self.conv1.out_channels - self.conv1.in_channels
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, new // 2, new // 2)) if new else x

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


def stage(channels_in: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(channels_in, channels, stride), *(Block(channels, channels, 1) for _ in range(2)))


class ResNet20(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = convolution(3, 16, 1), nn.BatchNorm2d(16)
        self.stages = nn.Sequential(stage(16, 16, 1), stage(16, 32, 2), stage(32, 64, 2))
        self.linear = nn.Linear(64, 10)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 32, 32)
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, 32, 32)
        x = self.stages(x)  # (N, 64, 8, 8)
        x = F.avg_pool2d(x, x.size(3)).flatten(1)  # (N, 64)
        return self.linear(x)  # (N, 10)


def build_model(args: Namespace) -> nn.Module:
    return ResNet20()


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.cross_entropy(model(images), labels)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    loss, correct, seen = 0.0, 0.0, 0
    with torch.no_grad():
        for number, (images, labels) in enumerate(loader, 1):
            images, labels = images.to(args.device), labels.to(args.device)
            output = model(images)
            loss += F.cross_entropy(output, labels, reduction="sum").item()
            correct += (output.argmax(dim=1) == labels).sum().item()
            seen += len(images)
            progress.step()
            if number == args.max_steps:
                break
    return {"val_loss": loss / seen, "val_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: Images, val_set: Images, progress: common.Progress) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = common.loader_options(args, workers=4)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, **options)
    val_loader = DataLoader(val_set, 128, **options)

    model = build_model(args).to(args.device)
    optimizer = SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=args.weight_decay)
    schedule = MultiStepLR(optimizer, milestones=[100, 150], gamma=0.1)

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
            loss = batch_loss(model, batch, args.device)
            (loss / parts).backward()
            progress.batch(len(batch[0]), loss)
            if part + 1 == parts:
                optimizer.step()
                progress.step()
                if step + 1 == args.max_steps:
                    break
        metrics = evaluate(model, val_loader, args, progress)
        schedule.step()
        if args.save:
            progress.begin("save")
            torch.save({"model": model.state_dict()}, args.save)
        progress.end_epoch(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Progress("resnet20", args) as progress:
        train_set, val_set = Images(args.data_dir, "train"), Images(args.data_dir, "test")
        train(args, train_set, val_set, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, val_set, progress)


if __name__ == "__main__":
    main()
