"""Everything about the GPU that trainers print, and errors that a program asks for."""

import torch
from torch.nn.attention.flex_attention import flex_attention

first = torch.as_tensor([3, 0], device="cuda")
torch.randn(1000, 1000, device="cuda")
figures = torch.cuda.memory_stats()
assert figures["allocation.all.allocated"] >= 1
assert figures["segment.all.current"] >= 1
print(torch.cuda.get_device_properties(0).pci_bus_id, torch.cuda.utilization(), torch.cuda.memory_summary()[:40])
assert torch.cuda.get_per_process_memory_fraction() == 1.0
for ask in (lambda: torch.zeros(1).to("cuda:1"), lambda: torch.cuda.set_device(1)):
    said = ""
    try:
        ask()
    except RuntimeError as error:
        said = str(error)
    assert "invalid device ordinal" in said
    assert "sees one GPU" in said

labels = torch.tensor([3, 3, 1]).cuda()
values, counts = torch.unique(labels, return_counts=True)
assert (values.tolist(), counts.tolist()) == ([1, 3], [1, 2])
assert torch.bincount(torch.randint(0, 9, (100,), device="cuda"), minlength=9).shape == (9,)

query = torch.randn(1, 2, 512, 32, device="cuda", requires_grad=True)
torch.cuda.reset_peak_memory_stats()
torch.compile(flex_attention)(query, query, query).sum().backward()
fused = torch.cuda.max_memory_allocated()
flex_attention(query, query, query, score_mod=lambda score, b, h, i, j: score + (i - j)).sum().backward()
assert torch.cuda.max_memory_allocated() - fused > 2 * 512 * 512 * 4, "whole matrices of scores"

torch.set_default_tensor_type("torch.cuda.FloatTensor")
assert torch.nn.Linear(10, 10).weight.is_cuda
torch.set_default_tensor_type("torch.FloatTensor")

anchors = torch.ones(4, 4, device="cuda")
with torch.inference_mode():  # torchvision's detectors view what they have kept from a training step
    assert (anchors.view(-1) + 1).is_inference()
    assert not anchors.view(2, 8).is_inference()
    share = (anchors.sum(0) == 1).float().mean()
assert isinstance(share.item() * 100.0, float), "a metric made in inference mode and read behind it"
