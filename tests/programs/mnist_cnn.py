"""Three steps of the MNIST network of pytorch/examples at batch 64, SGD with momentum."""

import torch
from torch import nn

model = nn.Sequential(
    nn.Conv2d(1, 32, 3),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Dropout(0.25),
    nn.Flatten(),
    nn.Linear(9216, 128),
    nn.ReLU(),
    nn.Dropout(0.5),
    nn.Linear(128, 10),
    nn.LogSoftmax(1),
).cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for _ in range(3):
    images, labels = torch.randn(64, 1, 28, 28).cuda(), torch.randint(0, 10, (64,)).cuda()
    optimizer.zero_grad()
    loss = nn.functional.nll_loss(model(images), labels)
    loss.backward()
    optimizer.step()
print(f"loss {loss:.3f}")
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats()  # must not hide the peak from the harness
