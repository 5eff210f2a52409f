# SPDX-License-Identifier: Apache-2.0
"""Patches of torch outside ``torch.cuda``: optimizers, access to values, pinned memory, generators and old types.

Each patch says what would go wrong without it. None changes a number of the host.
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
import torch.nn.parallel
import torch.utils._device
import torch.utils.dlpack
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.optimizer import _foreach_supported_types as optimizer_types
from torch.utils import _pytree as pytree
from torch.utils._foreach_utils import _foreach_supported_types as function_types

from ..coverage.decisions import UNKNOWN, tracked
from .dispatch import EmulationMode, Emulator
from .operators import DEVICE


def install_framework_patches(emulator: Emulator) -> None:
    """Install all of them in this process."""
    _keep_fake_tensors_off_the_driver()
    _use_foreach_kernels()
    _make_fake_tensors_readable(emulator)
    _refuse_access_to_data(emulator)
    _ignore_pinned_memory()
    _share_memory()
    _draw_once()
    _write_gradients_in_place()
    _run_data_parallel_on_one_device()
    _replace_generators()
    _replace_legacy_types()


def _keep_fake_tensors_off_the_driver() -> None:
    """Fake tensors initialise CUDA for some operators, and lift ``torch.tensor([...], device="cuda")`` through it."""
    for name in ("init_gpu_context", "init_cuda_context"):  # the latter before torch 2.6
        if hasattr(fake_tensor, name):
            setattr(fake_tensor, name, lambda *args, **kwargs: None)
    FakeTensorMode.avoid_device_init = property(lambda self: True)
    torch._C._set_only_lift_cpu_tensors(True)


def _use_foreach_kernels() -> None:
    """Optimizers and gradient clipping take their multi-tensor kernels only for types they know.

    Otherwise a slower loop with other temporaries would be simulated.
    """
    for types in (optimizer_types, function_types):
        if FakeTensor not in types:
            types.append(FakeTensor)


def _draw_once() -> None:
    """`torch.nn.init.trunc_normal_` draws until no value is out of range: twenty times where no value is known."""
    draw = torch.nn.init._no_grad_trunc_normal_

    def drawn(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        return tensor if isinstance(tensor, FakeTensor) else draw(tensor, *args, **kwargs)

    torch.nn.init._no_grad_trunc_normal_ = drawn


def _write_gradients_in_place() -> None:
    """Gradients of gather, index, max, sort and topk are written into zeros in place.

    Torch's C++ makes a copy instead where a mode of dispatch is on (``areAnyTensorSubclassLike``), as ours is;
    a program that calls these operators itself has a Python frame below ours.
    """
    if not hasattr(torch.library, "register_torch_dispatch"):  # before torch 2.5
        return
    aten = torch.ops.aten
    in_place = {
        aten.scatter.src: aten.scatter_.src,
        aten.scatter_add.default: aten.scatter_add_.default,
        aten.index_put.default: aten.index_put_.default,
    }

    def run(mode: EmulationMode, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_autograd = sys._getframe().f_back is None
        if function is aten.index_put.default and not (len(args) > 3 and args[3]):
            of_autograd = False  # the gradient of an assignment by index, which is a copy
        return mode.__torch_dispatch__(in_place[function] if of_autograd else function, types, args, kwargs)

    for function in in_place:
        torch.library.register_torch_dispatch(function, EmulationMode, run)


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
    _follow_unknown_numbers(emulator)
    FakeTensor.data_ptr = address_of_tensor
    torch.UntypedStorage.data_ptr = address_of_storage


def _follow_unknown_numbers(emulator: Emulator) -> None:
    """Numbers that are read from unknown values stay recognisable, because programs decide by them."""
    item, to_list, to_numpy = torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy
    values, decisions = emulator.values, emulator.decisions

    def tracked_item(tensor: Any) -> Any:
        outer = values.reads_item
        values.reads_item, values.number_was_unknown = True, False
        try:
            value = item(tensor)
        finally:
            values.reads_item = outer
        return tracked(value, decisions) if values.number_was_unknown else value

    def tracked_list(tensor: Any) -> Any:
        listed = to_list(tensor)
        return pytree.tree_map(lambda one: tracked(one, decisions), listed) if UNKNOWN in tensor.__dict__ else listed

    def scaled_array(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        array = to_numpy(tensor, *args, **kwargs)
        if UNKNOWN in tensor.__dict__ and array.dtype.kind == "f" and array.flags.writeable:
            decisions.escaped()
            array *= decisions.number(1.0)  # arrays forget where they come from, but fall or rise as numbers do
        return array

    torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.numpy = tracked_item, tracked_list, scaled_array


def _refuse_access_to_data(emulator: Emulator) -> None:
    """There is nothing behind a fake tensor: kernels outside torch must not compute on it."""
    torch._functorch.config.fake_tensor_allow_unsafe_data_ptr_access = False  # C++ code gets an error, not a null

    def to_numpy(tensor: Any, *args: Any, force: bool = False) -> Any:
        if force:
            return tensor.detach().cpu().numpy()
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


# Functions that make a tensor of the host in pinned memory where they are asked to.
PINNING = (
    "empty",
    "zeros",
    "ones",
    "full",
    "rand",
    "randn",
    "randint",
    "arange",
    "tensor",
    "empty_strided",
    "empty_like",
    "zeros_like",
    "ones_like",
    "full_like",
    "rand_like",
    "randn_like",
)


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
    torch.utils._device._device_constructors()  # `with torch.device(...)` knows the functions by identity
    for name in PINNING:
        function = getattr(torch, name)
        unpinned = _unpinned(function)
        torch.jit._builtins._register_builtin(unpinned, f"aten::{name}")
        setattr(torch, name, unpinned)


def _unpinned(function: Callable[..., Any]) -> Callable[..., Any]:
    """A factory that reaches for the driver before any operator is dispatched, without that wish."""

    @functools.wraps(function)
    def make(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("pin_memory", None)
        if args and isinstance(args[0], list | tuple) and any(isinstance(one, FakeTensor) for one in args[0]):
            args = ([one.tolist() if isinstance(one, FakeTensor) else one for one in args[0]], *args[1:])
        return function(*args, **kwargs)

    return make


def _share_memory() -> None:
    """Memory of a GPU is shared by its handle; ``share_memory()`` does nothing to it."""
    share, is_shared = torch.Tensor.share_memory_, torch.Tensor.is_shared
    torch.Tensor.share_memory_ = lambda tensor: tensor if isinstance(tensor, FakeTensor) else share(tensor)
    torch.Tensor.is_shared = lambda tensor: isinstance(tensor, FakeTensor) or is_shared(tensor)


def _replace_generators() -> None:
    """``torch.Generator("cuda")`` needs a driver; a host generator serves, as random values are not computed."""
    generator = torch.Generator

    class OfEither(type):
        """Recognises every generator."""

        def __instancecheck__(cls, one: Any) -> bool:
            return isinstance(one, generator)

    class Generator(metaclass=OfEither):
        """A generator of the host, whatever device was asked for."""

        def __new__(cls, device: Any = None) -> Any:
            return generator(device="cpu")

    torch.Generator = Generator
    for other in ("mtia", "xpu"):  # they keep each call, with its stack, for a device that never comes
        if hasattr(torch, other):
            getattr(torch, other).manual_seed_all = lambda seed: None


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
        """Say whether it is a tensor on the device with numbers of this kind."""
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
    _set_default_type(known)


def _set_default_type(known: dict[Any, LegacyType]) -> None:
    """``set_default_tensor_type`` with a type of the device: everything is made there from now on."""
    set_type = torch.set_default_tensor_type

    def set_default(kind: Any) -> None:
        if kind in known:
            torch.set_default_dtype(known[kind].dtype)
            torch.set_default_device("cuda")
        else:
            torch.set_default_device(None)
            set_type(kind)

    torch.set_default_tensor_type = set_default


# --- programs of several devices ------------------------------------------------------------------------------------


def _run_data_parallel_on_one_device() -> None:
    """With one device ``DataParallel`` is its module, but for moving the inputs."""

    def forward(self: Any, *inputs: Any, **kwargs: Any) -> Any:
        def to_device(value: Any) -> Any:
            return value.to(DEVICE) if isinstance(value, torch.Tensor) else value

        inputs, kwargs = pytree.tree_map(to_device, (inputs, kwargs))
        return self.module(*inputs, **kwargs)

    torch.nn.DataParallel.forward = forward
