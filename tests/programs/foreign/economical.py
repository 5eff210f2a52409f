"""Mixed precision, accumulated gradients, checkpointed layers, an averaged copy and clipped gradients together."""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True)
        self.embed = nn.Embedding(1000, 256)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(4))
        self.head = nn.Linear(256, 2)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return self.head(x.mean(1))


model = Layers().cuda()
averaged = torch.optim.swa_utils.AveragedModel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
scaler = torch.amp.GradScaler("cuda")
data = TensorDataset(torch.randint(0, 1000, (96, 128)), torch.randint(0, 2, (96,)))
for index, (ids, labels) in enumerate(DataLoader(data, batch_size=16, drop_last=True)):
    with torch.autocast("cuda", dtype=torch.float16):
        loss = nn.functional.cross_entropy(model(ids.cuda(non_blocking=True)), labels.cuda()) / 2
    scaler.scale(loss).backward()
    if index % 2:
        scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        averaged.update_parameters(model)
        print(f"loss {loss.item():.3f} norm {norm:.3f} scale {scaler.get_scale():.0f}")
print(f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB at most")
