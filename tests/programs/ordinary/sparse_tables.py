"""Sparse gradients of large tables, and a sparse matrix of a graph."""

import torch

bag = torch.nn.EmbeddingBag(100_000, 50, sparse=True).cuda()
adam = torch.optim.SparseAdam(bag.parameters())
before = torch.cuda.memory_allocated()
for _ in range(2):
    bag(torch.randint(0, 100_000, (64, 20)).cuda()).sum().backward()
    adam.step()
    adam.zero_grad()
states = torch.cuda.memory_allocated() - before
assert 2 * 100_000 * 50 * 4 <= states < 3 * 100_000 * 50 * 4, states  # Adam's two, and no dense gradient

graph = torch.sparse_coo_tensor(torch.randint(0, 500, (2, 2000)), torch.ones(2000), (500, 500)).cuda()
layer = torch.nn.Linear(16, 8).cuda()
torch.sparse.mm(graph, layer(torch.randn(500, 16, device="cuda"))).sum().backward()
assert layer.weight.grad is not None
