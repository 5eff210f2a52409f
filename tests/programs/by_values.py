"""Trains what its own values choose.

``branch`` asks a loss for a heavy step, ``search`` the GPU for a batch size, ``best`` a score for what it keeps, and
``patience`` doubles its batch where the loss stays, ``stages`` takes more data where it is low, ``hard`` puts batches
aside.
"""

import copy
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


def best() -> None:
    """Keep the weights of every turn that scores better than all before."""
    net, highest, kept = network(1024), 0.0, []
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(100):
        scores = net(torch.randn(8, 64).cuda())
        scores.mean().backward()
        sgd.step()
        right = scores.argmax(1).eq(0).sum().item()
        if right / 8 > highest:
            highest = right / 8
            kept.append(copy.deepcopy(net.state_dict()))


def patience() -> None:
    """Double the batch after three epochs that were no better."""
    net, data = network(64), torch.utils.data.TensorDataset(torch.randn(5120, 64))
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    lowest, worse, batch = 1e9, 0, 64
    for _ in range(40):
        total = 0.0
        for (x,) in torch.utils.data.DataLoader(data, batch):
            loss = net(x.cuda()).pow(2).mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item()
        if total < lowest:
            lowest, worse = total, 0
        else:
            worse += 1
            if worse >= 3:
                batch, worse = 2 * batch, 0


def stages() -> None:
    """Take more data in each epoch whose loss is lower than before."""
    net = network(64)
    sgd = torch.optim.SGD(net.parameters(), 0.1)
    lowest, stage = 1e9, 1
    for _ in range(500):
        total = 0.0
        for _ in range(20):
            loss = net(torch.randn(256 * stage, 64).cuda()).pow(2).mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += loss.item()
        if total < lowest:
            lowest = total
            stage += 1


def hard() -> None:
    """Put each batch aside whose loss is high."""
    net, data = network(64), torch.utils.data.TensorDataset(torch.randn(200 * 4096, 64))
    sgd, kept = torch.optim.SGD(net.parameters(), 0.1), []
    for _ in range(3):
        for (x,) in torch.utils.data.DataLoader(data, batch_size=4096, collate_fn=lambda rows: data[: len(rows)]):
            x = x.cuda()
            loss = net(x).pow(2).mean()
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            if loss.item() > 2.5:
                kept.append(x)


{"branch": branch, "search": search, "best": best, "patience": patience, "stages": stages, "hard": hard}[sys.argv[1]]()
