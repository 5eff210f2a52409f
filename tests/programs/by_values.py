"""Trains what its own values choose: ``branch`` asks a loss for a heavy step, ``search`` the GPU for a batch size."""

import sys

import torch
from torch import nn


def network(width: int) -> nn.Module:
    """Two layers of a width."""
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width)).cuda()


def branch() -> None:
    """Train a second, larger network only where the loss of the first is high; check values on the way."""
    small, large = network(64), network(4096)
    adam = torch.optim.Adam([*small.parameters(), *large.parameters()])
    for _ in range(3):
        data = torch.randn(8, 64).cuda()
        output = small(data)
        assert torch.isfinite(output).all()
        if not (output.abs() < 1e4).all():
            raise ValueError("the output exploded")
        loss = output.pow(2).mean()
        if loss.item() > 2:
            loss = loss + large(data).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()


def search() -> None:
    """Double the batch until the GPU refuses, then train with the last one that went well."""
    net, batch = network(1024), 1024
    while True:
        try:
            net(torch.randn(2 * batch, 64, device="cuda")).mean().backward()
            batch *= 2
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    net(torch.randn(batch, 64, device="cuda")).mean().backward()


{"branch": branch, "search": search}[sys.argv[1]]()
