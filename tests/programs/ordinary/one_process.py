"""One process of torch.distributed with NCCL, as ``torchrun`` starts it on a machine with one GPU."""

import tempfile

import torch
import torch.distributed as dist

dist.init_process_group("nccl", init_method=f"file://{tempfile.mkdtemp()}/meeting", rank=0, world_size=1)
net = torch.nn.Sequential(torch.nn.Linear(500, 500), torch.nn.BatchNorm1d(500))
net = torch.nn.SyncBatchNorm.convert_sync_batchnorm(net).cuda()
before = torch.cuda.memory_allocated()
net = torch.nn.parallel.DistributedDataParallel(net, device_ids=[0])
assert torch.cuda.memory_allocated() - before >= 500 * 500 * 4, "a second copy of the gradients"
adam = torch.optim.Adam(net.parameters())
net(torch.randn(8, 500).cuda()).sum().backward()
adam.step()
mean = torch.ones(1, device="cuda")
dist.all_reduce(mean)
gathered = [torch.zeros(1, device="cuda")]
dist.all_gather(gathered, mean)
everybody = [None]
dist.all_gather_object(everybody, {"rank": 0})
assert (gathered[0].item(), everybody, dist.get_backend()) == (1.0, [{"rank": 0}], "nccl")
dist.barrier()
dist.destroy_process_group()
