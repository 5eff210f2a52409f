"""Does operators twice on equal shapes: the second results must share memory, be written and be shaped as the first."""

import torch

device = torch.device("cuda")
storage = torch.Tensor.untyped_storage

for _ in range(2):
    data, other, target = (torch.ones(4, 6, device=device) for _ in range(3))
    before = torch.cuda.memory_allocated()

    assert data.add_(other) is data
    assert torch.add(data, other, out=target) is target
    views = (data.t(), data.view(2, 12), data[1:], data.expand(3, 4, 6), data.detach(), *data.split(2))
    assert {storage(view)._cdata for view in views} == {storage(data)._cdata}
    assert [view.storage_offset() for view in (data[1:], data.split(2)[1])] == [6, 12]
    assert data.t().stride() == (1, 6)
    assert torch.cuda.memory_allocated() == before, "neither a view nor a written argument takes memory"

    made = (
        data + other,
        data.t() @ other,
        data.t().contiguous(),
        torch.batch_norm(data, *[None] * 4, True, 0.1, 1e-5, True),
    )
    assert len({storage(one)._cdata for one in (data, other, *made)}) == 6
    assert torch.cuda.memory_allocated() >= before + 4 * 512
    assert (data / 2).dtype is torch.float32
    assert (data.to(torch.int64) + 1).dtype is torch.int64
    assert (data.to(torch.int64) + 1.0).dtype is torch.float32
    assert (data > 1).dtype is torch.bool
    del data, other, target, views, made
