"""Three steps of a word language model: two LSTM layers of 200, 35 steps, batch 20, 33278 words."""

import torch
from torch import nn

WORDS, SIZE, STEPS, BATCH = 33_278, 200, 35, 20


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, SIZE)
        self.lstm = nn.LSTM(SIZE, SIZE, 2)
        self.head = nn.Linear(SIZE, WORDS)

    def forward(self, words):
        hidden, _ = self.lstm(self.embedding(words))
        return self.head(hidden)


model = LanguageModel().cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(3):
    words = torch.randint(0, WORDS, (STEPS, BATCH)).cuda()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(words).flatten(0, 1), words.flatten()).backward()
    optimizer.step()
