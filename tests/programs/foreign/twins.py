"""Two images through one network, and whether they show the same."""

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self):
        self.images = torch.rand(300, 1, 28, 28)
        self.labels = torch.randint(0, 10, (300,))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        other = int(torch.randint(0, len(self), (1,)))
        same = (self.labels[index] == self.labels[other]).float()
        return self.images[index], self.images[other], same


class Twins(nn.Module):
    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18(weights=None)
        resnet.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
        width = resnet.fc.in_features
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.head = nn.Sequential(nn.Linear(2 * width, 256), nn.ReLU(inplace=True), nn.Linear(256, 1), nn.Sigmoid())
        self.head.apply(self.initialise)

    @staticmethod
    def initialise(module):
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            module.bias.data.fill_(0.01)

    def forward(self, left, right):
        one, two = self.backbone(left).flatten(1), self.backbone(right).flatten(1)
        return self.head(torch.cat((one, two), 1)).squeeze()


device = torch.device("cuda")
model = Twins().to(device)
optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
criterion = nn.BCELoss()
correct = 0
for left, right, same in DataLoader(Pairs(), batch_size=64, shuffle=True):
    left, right, same = left.to(device), right.to(device), same.to(device)
    optimizer.zero_grad()
    output = model(left, right)
    loss = criterion(output, same)
    loss.backward()
    optimizer.step()
    correct += torch.where(output > 0.5, 1, 0).eq(same.view_as(output)).sum().item()
print(f"loss {loss.item():.4f}, correct {correct}")
