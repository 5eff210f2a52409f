"""Two networks against each other: one forges pictures, the other judges them."""

import torch
from torch import nn
from torch.utils.data import DataLoader

torch.backends.cudnn.benchmark = True
device = torch.device("cuda")


def up(inputs, outputs):
    return nn.Sequential(
        nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(True)
    )


def down(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True))


def initialise(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


forger = nn.Sequential(
    nn.ConvTranspose2d(100, 256, 4, 1, 0, bias=False), up(256, 128), up(128, 64), up(64, 32),
    nn.ConvTranspose2d(32, 3, 4, 2, 1, bias=False), nn.Tanh(),
).to(device)  # fmt: skip
judge = nn.Sequential(down(3, 32), down(32, 64), down(64, 128), down(128, 256), nn.Conv2d(256, 1, 4), nn.Sigmoid())
judge = judge.to(device)
forger.apply(initialise)
judge.apply(initialise)
criterion = nn.BCELoss()
fixed = torch.randn(64, 100, 1, 1, device=device)
of_judge = torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999))
of_forger = torch.optim.Adam(forger.parameters(), lr=2e-4, betas=(0.5, 0.999))
for index, real in enumerate(DataLoader(torch.rand(400, 3, 64, 64), batch_size=64)):
    judge.zero_grad()
    real = real.to(device)
    label = torch.full((real.size(0),), 1, dtype=real.dtype, device=device)
    real_loss = criterion(judge(real).view(-1), label)
    real_loss.backward()
    fake = forger(torch.randn(real.size(0), 100, 1, 1, device=device))
    fake_loss = criterion(judge(fake.detach()).view(-1), label.fill_(0))
    fake_loss.backward()
    of_judge.step()
    forger.zero_grad()
    loss = criterion(judge(fake).view(-1), label.fill_(1))
    loss.backward()
    of_forger.step()
    print(f"[{index}] judge {(real_loss + fake_loss).item():.4f}, forger {loss.item():.4f}")
print(tuple(forger(fixed).detach().cpu().shape))
