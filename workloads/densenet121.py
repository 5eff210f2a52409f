# SPDX-License-Identifier: Apache-2.0
"""densenet121: recognises persons with a DenseNet (layumi/Person_reID_baseline_pytorch, ft_net_dense).

Data    Market-1501, 751 identities: 12,936 training and 751 validation images, 3x256x128 float32, padded, cropped and
        flipped at random. 539 steps of 24, then a validation of 31 batches; incomplete batches are dropped in both.
Model   torchvision's densenet121, pooled; head 1024 -> 512, batch-norm, dropout, -> 751. 8,889,943 parameters.
Train   cross-entropy; SGD with Nesterov momentum 0.9 and weight decay 5e-4, the head at the learning rate and the
        backbone at a tenth of it; x 0.1 after two thirds of the epochs. FP32; deterministic cuDNN.
Memory  about 84 MiB of saved activations per image. DenseNet's own layer for 1000 classes stays in the module, unused:
        1,025,000 parameters that never get a gradient. --checkpointing on is torchvision's memory_efficient: the inputs
        of a layer are joined again for the backward pass; the running averages of batch-norm then move twice a step.

The study's launcher forced batch size 24.
Left out: the later processes that extract and match features of the test set.
"""

import re
import sys
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import densenet121

if not __package__:  # started as a file: the package lies in the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from workloads import common, samples

SIZE = (256, 128)


def arguments(argv: list[str] | None = None) -> Namespace:
    parser = common.torch_parser(__doc__, epochs=60, batch_size=24, lr=0.05, seed=1334)
    parser.add_argument("--weight-decay", type=float, default=5e-4, help="default 5e-4")
    parser.add_argument("--dropout", type=common.fraction, default=0.5, help="in the head (default 0.5)")
    common.checkpointing_argument(parser)
    common.weights_argument(parser, "torchvision's densenet121")
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
        squeeze, norm, classify = nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.Linear(512, samples.MARKET_IDENTITIES)
        nn.init.kaiming_normal_(squeeze.weight, a=0, mode="fan_out")
        nn.init.zeros_(squeeze.bias)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        nn.init.normal_(classify.weight, std=0.001)
        nn.init.zeros_(classify.bias)
        super().__init__(squeeze, norm, nn.Dropout(dropout), classify)


class Network(nn.Module):
    def __init__(self, dropout: float, weights: Path | None, checkpointing: bool) -> None:
        super().__init__()
        self.backbone = densenet121(weights=None, memory_efficient=checkpointing)
        if weights:
            common.load_weights(self.backbone, weights, rename=modern_name)
        self.head = Head(dropout)

    def forward(self, x: Tensor) -> Tensor:  # (N, 3, 256, 128)
        x = self.backbone.features(x)  # (N, 1024, 8, 4)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # (N, 1024)
        return self.head(x)  # (N, 751)


def modern_name(name: str) -> str:
    """Torchvision's file of weights is older than its module: norm.1 there is norm1 today."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)


def build_model(args: Namespace) -> nn.Module:
    return Network(args.dropout, args.weights, args.checkpointing == "on")


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


def evaluate(model: nn.Module, loader: DataLoader, run: common.Run) -> dict[str, float]:
    model.eval()
    loss, correct, seen = 0.0, 0.0, 0
    with torch.no_grad():
        for images, labels in run.evaluate(loader):
            images, labels = images.to(run.device), labels.to(run.device)
            output = model(images)
            loss += F.cross_entropy(output, labels).item() * len(labels)
            correct += (output.argmax(dim=1) == labels).sum().item()
            seen += len(labels)
    return {"val_loss": loss / seen, "val_accuracy_percent": 100 * correct / seen}


def train(args: Namespace, train_set: Dataset, val_set: Dataset, kind: str, run: common.Run) -> None:
    common.set_seed(args.seed, deterministic=True)
    options = run.loader_options(workers=2)
    train_loader = DataLoader(train_set, args.batch_size, shuffle=True, drop_last=True, **options)
    val_loader = DataLoader(val_set, args.batch_size, shuffle=True, drop_last=True, **options)

    model = build_model(args).to(run.device)
    optimizer = build_optimizer(model, args)
    schedule = StepLR(optimizer, step_size=max(1, args.epochs * 2 // 3), gamma=0.1)

    run.ready(kind, model, train_loader)
    for _ in run.epochs():
        model.train()
        for step in run.train(train_loader):
            optimizer.zero_grad()
            for batch in step.batches:
                loss = batch_loss(model, batch, run.device)
                (loss / len(step.batches)).backward()
            optimizer.step()
            step.done(loss)
        metrics = evaluate(model, val_loader, run)
        schedule.step()
        run.save(model=model.state_dict())
        run.epoch_end(metrics)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    with common.Run("densenet121", args) as run:
        train_set, val_set, kind = load(args.data_dir)
        for _ in run.repeats():
            train(args, train_set, val_set, kind, run)


if __name__ == "__main__":
    main()
