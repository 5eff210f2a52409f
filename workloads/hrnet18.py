# SPDX-License-Identifier: Apache-2.0
"""hrnet18: recognises persons with a high-resolution network (layumi/Person_reID_baseline_pytorch, HRNet-W18).

Start   python -m workloads.hrnet18 --epochs 1
Data    Market-1501, 751 identities: 12,936 training and 751 validation images, 3x256x128 float32, padded, cropped and
        flipped at random. 539 steps of 24, then a validation of 31 batches; incomplete batches are dropped in both.
Model   timm's hrnet_w18 without its classifier, pooled; head 2048 -> 512, batch-norm, dropout, -> 751.
        20,685,379 parameters.
Train   cross-entropy; SGD with Nesterov momentum 0.9 and weight decay 5e-4, the head at the learning rate and the
        backbone at a tenth of it; x 0.1 after two thirds of the epochs. FP32; deterministic cuDNN.

The study's launcher forced batch size 24. Its run failed when timm asked its hub for weights; nothing is fetched here.
Left out: the later processes that extract and match features of the test set.
"""

import gc
from argparse import Namespace
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from workloads import common, samples

SIZE = (256, 128)


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=60, batch_size=24, lr=0.05, seed=1334)
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="default 5e-4")
    parser.add_argument("--dropout", type=common.fraction, default=0.5, help="in the head (default 0.5)")
    parser.add_argument("--weights", type=Path, help="state dict of timm's hrnet_w18 to start from (default: random)")
    return parser.parse_args(argv)


# ---- data -----------------------------------------------------------------------------------------------------------


def load(data_dir: Path) -> tuple[Dataset, Dataset, str]:
    resize = transforms.Resize(SIZE, interpolation=transforms.InterpolationMode.BICUBIC)
    to_tensor = [transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
    augment = [transforms.Pad(10), transforms.RandomCrop(SIZE), transforms.RandomHorizontalFlip()]
    train_set, kind = samples.market1501(
        data_dir, "train_all", transforms.Compose([resize, *augment, *to_tensor]), SIZE
    )
    val_set, _ = samples.market1501(data_dir, "val", transforms.Compose([resize, *to_tensor]), SIZE)
    return train_set, val_set, kind


# ---- model ----------------------------------------------------------------------------------------------------------


class Head(nn.Sequential):
    def __init__(self, dropout: float) -> None:
        squeeze, norm, classify = nn.Linear(2048, 512), nn.BatchNorm1d(512), nn.Linear(512, samples.MARKET_IDENTITIES)
        nn.init.kaiming_normal_(squeeze.weight, a=0, mode="fan_out")
        nn.init.zeros_(squeeze.bias)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        nn.init.normal_(classify.weight, std=0.001)
        nn.init.zeros_(classify.bias)
        super().__init__(squeeze, norm, nn.Dropout(dropout), classify)


class Network(nn.Module):
    def __init__(self, dropout: float, weights: Path | None) -> None:
        super().__init__()
        self.backbone = timm.create_model("hrnet_w18", pretrained=False)
        if weights:
            common.load_weights(self.backbone, weights)
        self.backbone.classifier = nn.Sequential()
        self.head = Head(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 256, 128)
        x = self.backbone.forward_features(x)  # (N, 2048, 8, 4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 2048)
        return self.head(x)  # (N, 751)


def build_model(args: Namespace) -> nn.Module:
    return Network(args.dropout, args.weights)


def batch_loss(model: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Tensor:
    images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
    return F.cross_entropy(model(images), labels)


# ---- optimizer ------------------------------------------------------------------------------------------------------


def build_optimizer(model: nn.Module, args: Namespace) -> Optimizer:
    groups = [
        {"params": list(model.backbone.parameters()), "lr": 0.1 * args.lr},
        {"params": list(model.head.parameters()), "lr": args.lr},
    ]
    return SGD(groups, lr=args.lr, momentum=0.9, nesterov=True, weight_decay=args.weight_decay)


# ---- loop -----------------------------------------------------------------------------------------------------------


def evaluate(model: nn.Module, loader: DataLoader, args: Namespace, progress: common.Progress) -> dict[str, float]:
    model.eval()
    progress.begin("evaluate", len(loader))
    loss, correct, seen = 0.0, 0.0, 0
    with torch.no_grad():
        for number, (images, labels) in enumerate(loader, 1):
            images, labels = images.to(args.device), labels.to(args.device)
            output = model(images)
            loss += F.cross_entropy(output, labels).item() * len(labels)
            correct += (output.argmax(dim=1) == labels).sum().item()
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
    with common.Progress("hrnet18", args) as progress:
        train_set, val_set, kind = load(args.data_dir)
        train(args, train_set, val_set, kind, progress)
        while args.repeat:
            gc.collect()  # frees what the last training held
            train(args, train_set, val_set, kind, progress)


if __name__ == "__main__":
    main()
