"""Sine waves continued by LSTM cells in double precision, trained by LBFGS with a closure."""

import numpy
import torch
from torch import nn

device = torch.device("cuda")


class Wave(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.LSTMCell(1, 51), nn.LSTMCell(51, 51), nn.Linear(51, 1)

    def forward(self, given, future=0):
        outputs = []
        sizes = {"dtype": torch.double, "device": given.device}
        one = two = (torch.zeros(given.size(0), 51, **sizes), torch.zeros(given.size(0), 51, **sizes))
        for step in given.split(1, dim=1):
            one = self.first(step, one)
            two = self.second(one[0], two)
            outputs.append(self.out(two[0]))
        for _ in range(future):
            one = self.first(outputs[-1], one)
            two = self.second(one[0], two)
            outputs.append(self.out(two[0]))
        return torch.cat(outputs, dim=1)


waves = torch.from_numpy(numpy.sin(numpy.arange(60)[None] / 5.0 + numpy.arange(20)[:, None])).to(device)
model = Wave().double().to(device)
criterion = nn.MSELoss()
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=3)
for step in range(2):

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(waves[3:, :-1]), waves[3:, 1:])
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        predicted = model(waves[:3, :-1], future=10)
        print(step, criterion(predicted[:, :-10], waves[:3, 1:]).item(), predicted.detach().cpu().numpy().shape)
