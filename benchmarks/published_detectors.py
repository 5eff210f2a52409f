"""Detectors behind published figures: YOLOv5 as its size finder runs it, and RetinaNet of mmdetection."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

STEPS = 3
MOST_OBJECTS = 93  # in an image of COCO's training set


class Conv(nn.Sequential):
    """A convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None) -> None:
        padding = kernel // 2 if padding is None else padding
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int, add: bool) -> None:
        super().__init__()
        self.both, self.add = nn.Sequential(Conv(width, width), Conv(width, width, 3)), add

    def forward(self, x: Any) -> Any:
        """Convolve."""
        return x + self.both(x) if self.add else self.both(x)


class C3(nn.Module):
    """A stage of YOLOv5: bottlenecks on half of the channels."""

    def __init__(self, inputs: int, outputs: int, depth: int, add: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.left, self.right, self.joined = Conv(inputs, half), Conv(inputs, half), Conv(outputs, outputs)
        self.inner = nn.Sequential(*[Bottleneck(half, add) for _ in range(depth)])

    def forward(self, x: Any) -> Any:
        """Convolve."""
        return self.joined(torch.cat((self.inner(self.left(x)), self.right(x)), 1))


class Pyramid(nn.Module):
    """Pools of growing size over one another (SPPF)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = Conv(width, width // 2), Conv(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Any) -> Any:
        """Pool."""
        found = [self.first(x)]
        for _ in range(3):
            found.append(self.pool(found[-1]))
        return self.last(torch.cat(found, 1))


class Yolo(nn.Module):
    """YOLOv5s, version 6.0, with the 80 classes of COCO."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Sequential(
            Conv(3, 32, 6, 2, 2), Conv(32, 64, 3, 2), C3(64, 64, 1), Conv(64, 128, 3, 2), C3(128, 128, 2)
        )
        self.middle = nn.Sequential(Conv(128, 256, 3, 2), C3(256, 256, 3))
        self.large = nn.Sequential(Conv(256, 512, 3, 2), C3(512, 512, 1), Pyramid(512), Conv(512, 256))
        self.up = nn.Upsample(scale_factor=2)
        self.join_middle, self.join_small = (
            nn.Sequential(C3(512, 256, 1, False), Conv(256, 128)),
            C3(256, 128, 1, False),
        )
        self.down_small, self.down_middle = Conv(128, 128, 3, 2), Conv(256, 256, 3, 2)
        self.out_middle, self.out_large = C3(256, 256, 1, False), C3(512, 512, 1, False)
        self.detect = nn.ModuleList([nn.Conv2d(width, 255, 1) for width in (128, 256, 512)])

    def forward(self, x: Any) -> Any:
        """Return what is detected on three scales."""
        small = self.small(x)
        middle = self.middle(small)
        large = self.large(middle)
        joined = self.join_middle(torch.cat((self.up(large), middle), 1))
        first = self.join_small(torch.cat((self.up(joined), small), 1))
        second = self.out_middle(torch.cat((self.down_small(first), joined), 1))
        third = self.out_large(torch.cat((self.down_middle(second), large), 1))
        found = []
        for detect, one in zip(self.detect, (first, second, third), strict=True):
            scores = detect(one)
            batch, _, height, width = scores.shape
            found.append(scores.view(batch, 3, 85, height, width).permute(0, 1, 3, 4, 2).contiguous())
        return found


def yolo(batch: str, size: str, **row: str) -> None:
    """YOLOv5's finder of a batch size: 1, 2, 4 and so on images under autocast, forward and back, up to this batch."""
    from copy import deepcopy

    first = Yolo().cuda()
    network = deepcopy(first).train()
    with torch.autocast("cuda"):
        for number in (1, 2, 4, 8, 16):
            if number > int(batch):
                break
            images = torch.zeros(number, 3, int(size), int(size)).cuda()
            images.requires_grad = True
            for _ in range(STEPS):
                y = network(images)
                sum(one.sum() for one in y).sum().backward()


class Focal(torch.autograd.Function):
    """The fused focal loss of mmcv: one kernel each way, which keeps scores and targets."""

    @staticmethod
    def forward(context: Any, scores: Any, targets: Any) -> Any:
        """A loss for each score."""
        context.save_for_backward(scores, targets)
        return torch.empty_like(scores)

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        """A gradient for each score."""
        scores, _ = context.saved_tensors
        return torch.empty_like(scores).mul_(gradient), None


def matched(objects: int, anchors: int) -> None:
    """The overlap of each anchor with each object of an image, with mmdetection's temporaries (`bbox_overlaps`)."""
    boxes, others = torch.zeros(objects, 4, device="cuda"), torch.zeros(anchors, 4, device="cuda")
    area, other_area = boxes[:, 2] * boxes[:, 3], others[:, 2] * others[:, 3]
    begins = torch.max(boxes[:, None, :2], others[None, :, :2])
    ends = torch.min(boxes[:, None, 2:], others[None, :, 2:])
    sides = (ends - begins).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = area[:, None] + other_area[None] - overlap
    union = torch.max(union, union.new_tensor([1e-6]))
    overlaps = overlap / union
    overlaps.max(dim=0)
    overlaps.max(dim=1)


def retinanet(model: str, batch: str, **row: str) -> None:
    """RetinaNet as mmdetection's configurations have it, on padded images of 800 x 1344 pixels.

    Stem and first stage are frozen, batch norms evaluate, levels are those from 8 to 128 pixels; on several GPUs
    DistributedDataParallel holds each gradient twice. Anchors are matched with as many objects as an image of COCO has
    at most, for the figure is the most of an epoch.
    """
    import torchvision
    from torchvision.models.resnet import Bottleneck as Block
    from torchvision.models.resnet import ResNet

    name = model.split()[1].partition("-")[0]
    if name == "X101":
        backbone = ResNet(Block, [3, 4, 23, 3], groups=32, width_per_group=4)
    else:
        backbone = getattr(torchvision.models, name.replace("R", "resnet"))(weights=None)
    frozen = [backbone.conv1, backbone.bn1, backbone.layer1]
    for part in frozen:
        part.requires_grad_(False)
    backbone.fc = nn.Identity()
    widths = [128, 256, 512] if name == "R18" else [512, 1024, 2048]
    lateral = nn.ModuleList([nn.Conv2d(width, 256, 1) for width in widths])
    smooth = nn.ModuleList([nn.Conv2d(256, 256, 3, padding=1) for _ in widths])
    extra = nn.ModuleList([nn.Conv2d(widths[-1], 256, 3, 2, 1), nn.Conv2d(256, 256, 3, 2, 1)])

    def tower(outputs: int) -> nn.Sequential:
        inner = [part for _ in range(4) for part in (nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True))]
        return nn.Sequential(*inner, nn.Conv2d(256, outputs, 3, padding=1))

    classes, boxes = tower(9 * 80), tower(9 * 4)
    network = nn.ModuleList([backbone, lateral, smooth, extra, classes, boxes]).cuda().train()
    for part in backbone.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    trained = [one for one in network.parameters() if one.requires_grad]
    stepper = torch.optim.SGD(trained, lr=0.01, momentum=0.9, weight_decay=1e-4)
    bucket = None if "1xGPU" in model else torch.empty(sum(one.numel() for one in trained), device="cuda")
    for _ in range(STEPS):
        images = torch.zeros(int(batch), 3, 800, 1344).cuda()
        x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
        stages = [backbone.layer1(x)]
        for stage in (backbone.layer2, backbone.layer3, backbone.layer4):
            stages.append(stage(stages[-1]))
        levels = [side(one) for side, one in zip(lateral, stages[1:], strict=True)]
        for place in (1, 0):
            levels[place] = levels[place] + functional.interpolate(levels[place + 1], size=levels[place].shape[2:])
        levels = [even(one) for even, one in zip(smooth, levels, strict=True)]
        levels.append(extra[0](stages[-1]))
        levels.append(extra[1](levels[-1]))
        losses: Any = 0
        found = [(classes(one), boxes(one)) for one in levels]
        for _ in images:
            matched(MOST_OBJECTS, sum(scores.shape[2] * scores.shape[3] * 9 for scores, _ in found))
        for scores, offsets in found:
            scores = scores.permute(0, 2, 3, 1).reshape(-1, 80)
            targets = torch.zeros(scores.shape[0], dtype=torch.long, device="cuda")
            offsets = offsets.permute(0, 2, 3, 1).reshape(-1, 4)
            weights = torch.ones(scores.shape[0], 1, device="cuda")
            losses = losses + (Focal.apply(scores, targets) * weights).sum()
            losses = losses + (functional.l1_loss(offsets, torch.zeros_like(offsets), reduction="none")).sum()
        stepper.zero_grad()
        losses.backward()
        stepper.step()
    assert bucket is None or bucket.is_cuda


PROGRAMS: dict[str, Callable[..., None]] = {one.__name__: one for one in (yolo, retinanet)}
