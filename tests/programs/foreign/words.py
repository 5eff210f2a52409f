"""A language model with batches, truncated sequences and updates of its own: no DataLoader, no optimizer."""

import math
import time

import torch
from torch import nn

LENGTH, BATCH = 35, 20


class Model(nn.Module):
    def __init__(self, words, size=200):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(words, size)
        self.rnn = nn.LSTM(size, size, 2, dropout=0.2)
        self.decoder = nn.Linear(size, words)
        self.decoder.weight = self.encoder.weight

    def forward(self, inputs, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(inputs)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.decoder.out_features)
        return nn.functional.log_softmax(decoded, dim=1), hidden

    def start(self, batch):
        weight = next(self.parameters())
        return weight.new_zeros(2, batch, 200), weight.new_zeros(2, batch, 200)


def columns(data, batch):
    length = data.size(0) // batch
    return data.narrow(0, 0, length * batch).view(batch, -1).t().contiguous().to(device)


def part(source, place):
    length = min(LENGTH, len(source) - 1 - place)
    return source[place : place + length], source[place + 1 : place + 1 + length].view(-1)


def detached(hidden):
    return tuple(one.detach() for one in hidden)


device = torch.device("cuda")
vocabulary = 5000
training = columns(torch.randint(0, vocabulary, (6000,)), BATCH)
validation = columns(torch.randint(0, vocabulary, (900,)), 10)
model = Model(vocabulary).to(device)
best, rate = None, 20.0
for epoch in range(2):
    model.train()
    started, total = time.time(), 0.0
    hidden = model.start(BATCH)
    for place in range(0, training.size(0) - 1, LENGTH):
        inputs, targets = part(training, place)
        model.zero_grad()
        output, hidden = model(inputs, detached(hidden))
        loss = nn.functional.nll_loss(output, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        for parameter in model.parameters():
            parameter.data.add_(parameter.grad, alpha=-rate)
        total += loss.item()
    model.eval()
    lost = 0.0
    with torch.no_grad():
        hidden = model.start(10)
        for place in range(0, validation.size(0) - 1, LENGTH):
            inputs, targets = part(validation, place)
            output, hidden = model(inputs, detached(hidden))
            lost += len(inputs) * nn.functional.nll_loss(output, targets).item()
    lost /= len(validation) - 1
    print(f"epoch {epoch}: {time.time() - started:.1f} s, perplexity {math.exp(lost):.2f}")
    if not best or lost < best:
        best = lost
    else:
        rate /= 4.0
