"""What has no counterpart on the emulated device: each attempt is caught, the last one ends the program."""

import torch


def operator_without_fake_kernel():
    torch.library.define("mine::op", "(Tensor x) -> Tensor")
    torch.library.impl("mine::op", "CUDA")(lambda x: x)
    torch.ops.mine.op(torch.zeros(3).cuda())


def library_that_takes_over_memory():
    torch.utils.dlpack.to_dlpack(torch.zeros(3).cuda())


def triton_kernel():
    import triton

    def ones(pointer):
        pass

    triton.jit(ones)[(1,)](torch.zeros(4, device="cuda"))


def several_processes():
    torch.distributed.init_process_group("nccl", rank=0, world_size=2)


def cuda_graph():
    torch.cuda.CUDAGraph()


for attempt in (operator_without_fake_kernel, library_that_takes_over_memory, triton_kernel, several_processes):
    try:
        attempt()
    except Exception as error:
        print(f"{attempt.__name__}: {type(error).__name__}")
cuda_graph()
