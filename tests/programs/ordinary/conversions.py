"""Modules and tensors that are converted on the device, as trainings with half precision, EMA and lazy layers do."""

import copy

import torch
from torch import nn


class Image(torch.Tensor):
    """An ordinary subclass, as MONAI and fastai have."""


net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 10)).cuda().half()
net = net.to(memory_format=torch.channels_last)
net(torch.randn(4, 3, 32, 32).cuda().half().to(memory_format=torch.channels_last)).float().sum().backward()
net.cpu().float().to("cuda").to(torch.bfloat16).float()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
for _ in range(2):
    optimizer.zero_grad()
    net(torch.randn(4, 3, 32, 32, device="cuda")).sum().backward()
    optimizer.step()
for change in (torch.Tensor.half, torch.Tensor.cpu, torch.Tensor.cuda, torch.Tensor.float):
    for parameter in net.parameters():
        parameter.data = change(parameter.data)
assert all(parameter.is_cuda and parameter.dtype is torch.float32 for parameter in net.parameters())
average = copy.deepcopy(net).requires_grad_(False)
for mean, parameter in zip(average.parameters(), net.parameters(), strict=True):
    mean.data.mul_(0.9).add_(parameter.data, alpha=0.1)

lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)).cuda()
lazy(torch.randn(4, 3, 16, 16).cuda()).sum().backward()
assert lazy[3].weight.shape == (10, 1568)

image = torch.randn(2, 3, 32, 32).as_subclass(Image).cuda()
assert isinstance(image, Image)
net[0](image).mean().backward()
net.share_memory()
compiled = torch.compile(net)
assert compiled._orig_mod is net
assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
