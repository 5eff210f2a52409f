"""A small training that every PyTorch from 1.13 on knows: convolution, Adam, six steps."""

import torch
from torch import nn

layers = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 13 * 13, 10)]
model = nn.Sequential(*layers).cuda()
optimizer = torch.optim.Adam(model.parameters())
for _ in range(6):
    images, labels = torch.randn(64, 1, 28, 28).cuda(), torch.randint(0, 10, (64,)).cuda()
    loss = nn.functional.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("done", torch.__version__, loss.item())
