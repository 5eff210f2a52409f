"""A digit read row by row by an LSTM."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(input_size=28, hidden_size=64, batch_first=True)
        self.norm = nn.BatchNorm1d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        self.rnn.flatten_parameters()
        output, _ = self.rnn(x.reshape(-1, 28, 28))
        return self.fc(self.norm(output[:, -1, :]))


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
data = TensorDataset(torch.rand(500, 1, 28, 28), torch.randint(0, 10, (500,)))
model = Reader().to(device)
optimizer = torch.optim.Adadelta(model.parameters(), lr=0.1)
for epoch in range(2):
    for images, labels in DataLoader(data, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
    print("epoch", epoch, f"loss {loss.item():.4f}")
