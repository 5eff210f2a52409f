"""Three steps of a torchvision ResNet: name, batch, height and width are arguments."""

import sys

import torch
import torchvision

name, batch, height, width = sys.argv[1], *map(int, sys.argv[2:])
model = torchvision.models.get_model(name).to("cuda")
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for _ in range(3):
    images, labels = torch.randn(batch, 3, height, width).cuda(), torch.randint(0, 10, (batch,)).cuda()
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
