"""Three steps of one layer: 4 MiB of parameters, as much of gradients, twice that for Adam, and 4 MiB a sample."""

import argparse

import torch

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8)
options = parser.parse_args()
model = torch.nn.Linear(1024, 1024, bias=False).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    data = torch.zeros(options.batch_size, 1024, 1024, device="cuda")
    optimizer.zero_grad()
    model(data).sum().backward()
    optimizer.step()
