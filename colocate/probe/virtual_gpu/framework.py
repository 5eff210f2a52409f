"""Patches of torch outside ``torch.cuda``: modules that move, optimizers, pinned memory, compilers and the like.

Each patch says what would go wrong without it. None changes a number of the host.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.nn.parallel
import torch.utils.dlpack
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types as optimizer_types
from torch.utils import _pytree as pytree
from torch.utils._foreach_utils import _foreach_supported_types as function_types

from .dispatch import Emulator
from .operators import DEVICE


def install_framework_patches(emulator: Emulator) -> None:
    """Install all of them in this process."""
    _keep_fake_tensors_off_the_driver()
    _use_foreach_kernels()
    _move_modules(emulator)
    _make_fake_tensors_readable(emulator)
    _refuse_access_to_data(emulator)
    _ignore_pinned_memory()
    _run_data_parallel_on_one_device()
    _replace_compilers(emulator)
    _refuse_collectives(emulator)
    _replace_generators()
    _replace_legacy_types()


def _keep_fake_tensors_off_the_driver() -> None:
    """Fake tensors initialise CUDA for some operators, and lift ``torch.tensor([...], device="cuda")`` through it."""
    fake_tensor.init_gpu_context = lambda *args, **kwargs: None
    FakeTensorMode.avoid_device_init = property(lambda self: True)
    torch._C._set_only_lift_cpu_tensors(True)


def _use_foreach_kernels() -> None:
    """Optimizers and gradient clipping take their multi-tensor kernels only for types they know.

    Otherwise a slower loop with other temporaries would be simulated.
    """
    for types in (optimizer_types, function_types):
        if FakeTensor not in types:
            types.append(FakeTensor)


# --- modules that move ----------------------------------------------------------------------------------------------


def _move_modules(emulator: Emulator) -> None:
    """Moved parameters stay the same objects, as on a GPU.

    Plain torch would make new ones, because a fake tensor cannot take the place of a real one's data: optimizers built
    before the move and tied weights would lose theirs.
    """
    memo = emulator.fake_mode.fake_tensor_converter.meta_converter

    def forget() -> None:
        memo.tensor_memo.clear()
        memo.storage_memo.clear()

    def apply(module: torch.nn.Module, function: Callable[[Any], Any], recurse: bool = True) -> torch.nn.Module:
        if recurse:
            for child in module.children():
                child._apply(function, recurse)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = _moved(parameter, function, forget)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
        return module

    torch.nn.Module._apply = apply
    # cuDNN's one buffer for all weights of a recurrent layer is not modelled.
    torch.nn.RNNBase.flatten_parameters = lambda self: None


def _moved(parameter: Any, function: Callable[[Any], Any], forget: Callable[[], None]) -> Any:
    """The same parameter with the data that the function makes of it.

    ``forget`` drops the fake mode's weak references, which forbid swapping.
    """
    gradient = parameter.grad
    with torch.no_grad():
        data = function(parameter)
        moved_gradient = function(gradient) if gradient is not None else None
    if data is parameter:
        return parameter
    parameter.grad = gradient = None  # swapping needs the only reference
    if isinstance(data, FakeTensor) or isinstance(parameter, FakeTensor):
        requires_grad, attributes = parameter.requires_grad, dict(parameter.__dict__)
        replacement = torch.nn.Parameter(data.detach() if data.requires_grad else data, requires_grad=requires_grad)
        del data
        forget()
        torch.utils.swap_tensors(parameter, replacement)
        _keep_attributes(parameter, attributes)
    else:
        parameter.data = data
    if moved_gradient is not None:
        parameter.grad = moved_gradient.requires_grad_(False)
    return parameter


def _keep_attributes(parameter: Any, attributes: dict[str, Any]) -> None:
    """What a program wrote onto its parameter (HF marks tied or decayed ones) survives a move."""
    for name, value in attributes.items():
        if name not in parameter.__dict__ and name not in FAKE_TENSOR_ATTRIBUTES:
            setattr(parameter, name, value)


FAKE_TENSOR_ATTRIBUTES = {"fake_device", "fake_mode", "constant", "pytype", "dispatch_keys", "real_tensor"}


# --- tensors --------------------------------------------------------------------------------------------------------


def _make_fake_tensors_readable(emulator: Emulator) -> None:
    """Formatting, lists and addresses, which programs take from any tensor."""

    def format_tensor(tensor: Any, specification: str) -> str:
        return format(tensor.item(), specification) if tensor.dim() == 0 else object.__format__(tensor, specification)

    def address_of_tensor(tensor: Any) -> int:
        offset: int = tensor.storage_offset() * tensor.element_size()
        return emulator.memory.address(tensor.untyped_storage()) + offset

    address = torch.UntypedStorage.data_ptr

    def address_of_storage(storage: Any) -> int:
        return emulator.memory.address(storage) or int(address(storage))

    FakeTensor.__format__ = format_tensor
    FakeTensor.tolist = lambda tensor: tensor.cpu().tolist()
    FakeTensor.data_ptr = address_of_tensor
    FakeTensor.__deepcopy__ = _deep_copy
    torch.UntypedStorage.data_ptr = address_of_storage


def _deep_copy(tensor: Any, memo: dict[int, Any]) -> Any:
    """A copy with memory of its own and the same role, as ``Tensor.__deepcopy__`` makes it."""
    if id(tensor) in memo:
        return memo[id(tensor)]
    if not tensor.is_leaf:
        raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol at the moment.")
    with torch.no_grad():
        copy = tensor.detach().clone(memory_format=torch.preserve_format)
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, requires_grad=tensor.requires_grad)
    else:
        copy.requires_grad_(tensor.requires_grad)
    memo[id(tensor)] = copy
    if tensor.grad is not None:
        copy.grad = _deep_copy(tensor.grad, memo)
    return copy


def _refuse_access_to_data(emulator: Emulator) -> None:
    """There is nothing behind a fake tensor: kernels outside torch must not compute on it."""
    torch._functorch.config.fake_tensor_allow_unsafe_data_ptr_access = False  # C++ code gets an error, not a null

    def to_numpy(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"can't convert {tensor.device} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host "
            "memory first."
        )

    def interface(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        raise emulator.unsupported("expected kernels of torch, found a library that takes over device memory")

    to_dlpack = torch.utils.dlpack.to_dlpack

    def to_dlpack_on_host(tensor: Any) -> Any:
        return interface(tensor) if isinstance(tensor, FakeTensor) else to_dlpack(tensor)

    FakeTensor.numpy = FakeTensor.__array__ = to_numpy
    FakeTensor.__dlpack__ = interface
    FakeTensor.__cuda_array_interface__ = property(interface)
    torch.utils.dlpack.to_dlpack = torch.to_dlpack = to_dlpack_on_host


def _ignore_pinned_memory() -> None:
    """Page-locked memory belongs to a driver; it is the host's and moves no peak of the GPU."""
    torch.Tensor.pin_memory = lambda tensor, *args, **kwargs: tensor
    torch.Tensor.is_pinned = lambda tensor, *args, **kwargs: False
    loader = torch.utils.data.DataLoader
    initialise = loader.__init__

    def initialise_unpinned(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.pin_memory = False

    loader.__init__ = initialise_unpinned


def _replace_generators() -> None:
    """``torch.Generator("cuda")`` needs a driver; a host generator serves, as random values are not computed."""
    generator = torch.Generator

    class Generator(generator):  # type: ignore[misc, valid-type]  # torch is untyped here
        """A generator of the host, whatever device was asked for."""

        def __new__(cls, device: Any = None) -> Any:
            return generator(device="cpu")

    torch.Generator = Generator


# Before torch 0.4 a tensor's type was named after device and numbers, and many programs still make tensors by it.
LEGACY_TYPES = {
    "FloatTensor": torch.float32,
    "DoubleTensor": torch.float64,
    "HalfTensor": torch.float16,
    "BFloat16Tensor": torch.bfloat16,
    "LongTensor": torch.int64,
    "IntTensor": torch.int32,
    "ShortTensor": torch.int16,
    "CharTensor": torch.int8,
    "ByteTensor": torch.uint8,
    "BoolTensor": torch.bool,
}


class LegacyType(type):
    """A class such as ``torch.cuda.FloatTensor``: makes tensors on the device and recognises them."""

    dtype: torch.dtype

    def __call__(cls, *given: Any) -> Any:
        """A tensor of a shape, with the content of a list or an array, or another one's."""
        if len(given) == 1 and isinstance(given[0], torch.Tensor):
            return given[0].to(DEVICE, cls.dtype)
        if len(given) == 1 and not isinstance(given[0], int | torch.Size):
            return torch.tensor(given[0], dtype=cls.dtype, device=DEVICE)
        return torch.empty(*(given or (0,)), dtype=cls.dtype, device=DEVICE)

    def __instancecheck__(cls, tensor: Any) -> bool:
        """Whether it is a tensor on the device with numbers of this kind."""
        return isinstance(tensor, torch.Tensor) and tensor.device == DEVICE and tensor.dtype is cls.dtype


def _replace_legacy_types() -> None:
    """The constructors of ``torch.cuda`` ask the driver, and ``tensor.type(...)`` does for their names."""
    known: dict[Any, LegacyType] = {}
    for name, dtype in LEGACY_TYPES.items():
        made = LegacyType(name, (), {"dtype": dtype})
        known[made] = known[f"torch.cuda.{name}"] = made
        setattr(torch.cuda, name, made)
    names = {made.dtype: f"torch.cuda.{made.__name__}" for made in known.values()}
    kind = torch.Tensor.type

    def type_of(tensor: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None and isinstance(tensor, FakeTensor):
            return names.get(tensor.dtype, f"torch.cuda.{tensor.dtype}")
        if dtype in known:
            return tensor.to(DEVICE, known[dtype].dtype)
        return kind(tensor, dtype, *args, **kwargs)

    torch.Tensor.type = type_of


# --- programs of several devices, compilers -------------------------------------------------------------------------


def _run_data_parallel_on_one_device() -> None:
    """With one device ``DataParallel`` is its module, but for moving the inputs."""

    def forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        def to_device(value: Any) -> Any:
            return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

        inputs, kwargs = pytree.tree_map(to_device, (inputs, kwargs))
        return self.module(*inputs, **kwargs)

    torch.nn.DataParallel.forward = forward


def _replace_compilers(emulator: Emulator) -> None:
    """Compiled code has a memory plan of its own, which nobody knows beforehand: the eager program runs instead."""

    def compile(model: Any = None, *args: Any, **kwargs: Any) -> Any:
        emulator.record.note("torch.compile is ignored: the memory of the eager program is predicted")
        return (lambda function: function) if model is None else model

    torch.compile = compile
    torch.nn.Module.compile = lambda self, *args, **kwargs: compile(self) and None
    # The fused path of nn.TransformerEncoder and nn.MultiheadAttention in evaluation has no fake kernels.
    torch.backends.mha.set_fastpath_enabled(False)


def _refuse_collectives(emulator: Emulator) -> None:
    """There is one device: several processes that exchange gradients through NCCL cannot be emulated."""
    if not torch.distributed.is_available():
        return
    initialise = torch.distributed.init_process_group

    def initialise_without_nccl(backend: Any = None, *args: Any, **kwargs: Any) -> Any:
        if backend is None or "nccl" in str(backend).lower():
            raise emulator.unsupported(f"expected a program of one device, found torch.distributed with {backend!r}")
        return initialise(backend, *args, **kwargs)

    torch.distributed.init_process_group = initialise_without_nccl
