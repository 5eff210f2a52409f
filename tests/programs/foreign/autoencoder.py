"""A variational autoencoder that samples at the end of every epoch."""

import torch
from torch import nn
from torch.utils.data import DataLoader


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.mean, self.spread = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.back, self.out = nn.Linear(20, 400), nn.Linear(400, 784)

    def decode(self, z):
        return torch.sigmoid(self.out(torch.relu(self.back(z))))

    def forward(self, x):
        hidden = torch.relu(self.hidden(x.view(-1, 784)))
        mean, spread = self.mean(hidden), self.spread(hidden)
        sample = mean + torch.randn_like(spread) * torch.exp(0.5 * spread)
        return self.decode(sample), mean, spread


device = torch.device("cuda")
model = Autoencoder().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
loader = DataLoader(torch.rand(1000, 1, 28, 28), batch_size=128, shuffle=True)
for epoch in range(2):
    total = 0
    for data in loader:
        data = data.to(device)
        optimizer.zero_grad()
        again, mean, spread = model(data)
        loss = nn.functional.binary_cross_entropy(again, data.view(-1, 784), reduction="sum")
        loss = loss - 0.5 * torch.sum(1 + spread - mean.pow(2) - spread.exp())
        loss.backward()
        total += loss.item()
        optimizer.step()
    with torch.no_grad():
        pictures = model.decode(torch.randn(64, 20).to(device)).cpu().view(64, 1, 28, 28)
    print(f"epoch {epoch}: {total / len(loader.dataset):.4f}, {tuple(pictures.shape)}")
