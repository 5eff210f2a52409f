# SPDX-License-Identifier: Apache-2.0
"""pcb: recognises persons by six horizontal parts (layumi/Person_reID_baseline_pytorch, PCB).

Start   python -m workloads.pcb --epochs 1
Data    Market-1501, 751 identities: 12,936 training and 751 validation images, 3x384x192 float32, flipped at random.
        404 steps of 32, then a validation of 23 batches; incomplete batches are dropped in both.
Model   ResNet-50 whose last stage keeps its resolution; the map is pooled to 6x1 and each part has a head of its own:
        2048 -> 256, batch-norm, dropout 0.5, -> 751. 29,865,410 parameters.
Train   the sum of six cross-entropies; SGD with Nesterov momentum 0.9 and weight decay 5e-4, heads at the learning
        rate and the backbone at a tenth of it; x 0.1 after two thirds of the epochs. FP32; deterministic cuDNN.
Memory  about 136 MiB of saved activations per image. ResNet's own layer for 1000 classes stays in the module and,
        unused, in the optimizer's head group: 2,049,000 parameters that never get a gradient. --checkpointing on keeps
        only what enters each of the 16 blocks; the running averages of batch-norm then move twice a step.

The study's launcher overrode the plan's learning rate and batch size with 0.02 and 32; here what is asked for is used.
Left out: the later processes that extract and match features of the test set.
"""

import gc
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet50

from workloads import common, samples

SIZE = (384, 192)
PARTS = 6
DROPOUT = 0.5  # fixed, as in the original


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=60, batch_size=32, lr=0.02, seed=1334)
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="default 5e-4")
    parser.add_argument("--dropout", type=common.fraction, default=DROPOUT, help="default 0.5")
    parser.add_argument("--checkpointing", choices=["on", "off"], default="off", help="default off")
    parser.add_argument(
        "--weights", type=Path, help="state dict of torchvision's resnet50 to start from (default: random)"
    )
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


def load(data_dir: Path) -> tuple[Dataset, Dataset, str]:
    resize = transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC)
    to_tensor = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    augmented = transforms.Compose([resize, transforms.RandomHorizontalFlip(), *to_tensor])
    train_set, kind = samples.market1501(data_dir, "train_all", augmented, SIZE)
    val_set, _ = samples.market1501(data_dir, "val", transforms.Compose([resize, *to_tensor]), SIZE)
    return train_set, val_set, kind


# ---- model ----------------------------------------------------------------------------------------------------------


class Head(nn.Sequential):
    def __init__(self, dropout: float) -> None:
        squeeze, norm, classify = nn.Linear(2048, 256), nn.BatchNorm1d(256), nn.Linear(256, samples.MARKET_IDENTITIES)
        nn.init.kaiming_normal_(squeeze.weight, a=0, mode="fan_out")
        nn.init.zeros_(squeeze.bias)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        nn.init.normal_(classify.weight, std=0.001)
        nn.init.zeros_(classify.bias)
        super().__init__(squeeze, norm, nn.Dropout(dropout), classify)


class Network(nn.Module):
    def __init__(self, dropout: float, weights: Path | None, checkpointing: bool) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.backbone = resnet50(weights=None)
        if weights:
            common.load_weights(self.backbone, weights)
        self.backbone.layer4[0].conv2.stride = (1, 1)
        self.backbone.layer4[0].downsample[0].stride = (1, 1)
        self.backbone.avgpool = nn.AdaptiveAvgPool2d((PARTS, 1))
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(Head(dropout) for _ in range(PARTS))

    def forward(self, x: Tensor) -> list[Tensor]:  # (N, 3, 384, 192) -> six of (N, 751)
        net = self.backbone
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))  # (N, 64, 96, 48)
        for block in (*net.layer1, *net.layer2, *net.layer3, *net.layer4):
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)  # (N, 2048, 24, 12)
        x = self.dropout(net.avgpool(x)).squeeze(3)  # (N, 2048, 6)
        return [head(x[:, :, part]) for part, head in enumerate(self.heads)]


def build_model(args: Namespace) -> nn.Module:
    return Network(args.dropout, args.weights, args.checkpointing == "on")


def parts_loss(outputs: list[Tensor], labels: Tensor) -> Tensor:
    return sum(F.cross_entropy(output, labels) for output in outputs)


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return parts_loss(model(images), labels)


# ---- optimizer ------------------------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, args: Namespace) -> Optimizer:
    heads = [*model.heads.parameters(), *model.backbone.fc.parameters()]
    in_heads = {id(parameter) for parameter in heads}
    backbone = [parameter for parameter in model.parameters() if id(parameter) not in in_heads]
    groups = [{"params": backbone, "lr": 0.1 * args.lr}, {"params": heads, "lr": args.lr}]
    return SGD(groups, lr=args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    loss, correct, seen = 0.0, 0.0, 0
    with torch.no_grad():
        for number, (images, labels) in enumerate(loader, 1):
            images, labels = images.to(args.device), labels.to(args.device)
            outputs = model(images)
            votes = sum(output.softmax(dim=1) for output in outputs)  # (N, 751)
            loss += parts_loss(outputs, labels).item() * len(labels)
            correct += (votes.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
            progress.step()
            if number == args.max_steps:
                break
    return {"val_loss": loss / seen, "val_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: Dataset, val_set: Dataset, kind: str, progress: common.Progress) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = common.loader_options(args, workers=2)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, **options)
    val_loader = DataLoader(val_set, args.batch_size, shuffle=True, drop_last=True, **options)

    model = build_model(args).to(args.device)
    optimizer = build_optimizer(model, args)
    schedule = StepLR(optimizer, step_size=max(1, args.epochs * 2 // 3), gamma=0.1)

    steps = common.full_steps(train_loader, args)
    progress.ready(kind, common.num_parameters(model), steps)
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
    with common.Progress("pcb", args) as progress:
        train_set, val_set, kind = load(args.data_dir)
        train(args, train_set, val_set, kind, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, val_set, kind, progress)


if __name__ == "__main__":
    main()
