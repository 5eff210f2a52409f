# SPDX-License-Identifier: Apache-2.0
"""Patches of other people's libraries, applied when the program imports them.

Only what keeps a library from importing, makes it ask whether it is being traced, or needs a real device; nothing here
knows memory.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..imports import AfterImport
from ..overlay import redirected

_kept: list[Any] = []  # a library that is collected takes its operators along


def prepare_libraries(watcher: AfterImport, unsupported: Callable[[str], Exception]) -> None:
    """Wait for the libraries that need help, and for those that cannot be helped."""
    # By its modules: torchvision itself may be half imported now, when it is what imports torch.
    watcher.when("torchvision._meta_registrations", lambda module: None, before=_tolerate_missing_operators)
    watcher.when("torchvision.ops", _finish_torchvision)
    watcher.when("torchvision.models.detection.roi_heads", _sample_as_many_as_may_be)
    watcher.when("transformers.utils.import_utils", _hide_fake_tensors)
    watcher.when("safetensors", _load_onto_the_device)
    watcher.when("safetensors.torch", _save_from_the_device)
    watcher.when("transformers.tokenization_utils_base", _redirect_tokenizers)
    watcher.when("triton.runtime.jit", lambda jit: _refuse_kernels(jit, unsupported))
    watcher.when("torch.utils.cpp_extension", lambda module: _refuse_extensions(module, unsupported))
    watcher.when("torch.distributed.fsdp", lambda module: _refuse_sharding(module, unsupported))
    watcher.when("torchao.optim.adam", _step_in_place)
    watcher.when("cupy", lambda module: _refuse_import(module, unsupported))
    watcher.when("numba.cuda", lambda module: _refuse_kernel_decorator(module, unsupported))


def _step_in_place(module: Any) -> None:
    """Its step is always compiled, into kernels that write in place; run eagerly, it would hold six copies of a weight.

    The states that it writes are there before it is called, and nobody knows their values.
    """
    module.single_param_adam = lambda *operands, **options: None


def _tolerate_missing_operators() -> None:
    """The torchvision wheel for CUDA does not import beside a CPU build of torch.

    Its compiled operators cannot be loaded then, and it registers fake kernels for them without looking.
    """
    register = torch.library.register_fake

    def register_if_possible(operator: Any, function: Any = None, /, **options: Any) -> Any:
        if not (isinstance(operator, str) and operator.startswith("torchvision::")):
            return register(operator, function, **options)
        if function is None:
            return lambda later: register_if_possible(operator, later, **options)
        try:
            return register(operator, function, **options)
        except RuntimeError:  # operator torchvision::... does not exist
            return function

    torch.library.register_fake = register_if_possible


def _finish_torchvision(ops: ModuleType) -> None:
    """Give a torchvision without compiled operators its most used one, non-maximum suppression."""
    from torchvision.extension import _has_ops

    if _has_ops():
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", lambda boxes, scores, threshold: torch.arange(boxes.shape[0]), "CPU")
    ops.boxes._assert_has_ops = lambda: None
    _kept.append(library)


def _sample_as_many_as_may_be(roi_heads: Any) -> None:
    """A detector samples proposals by values that nobody knows, and never more of them than its settings say.

    Else each of its masks would count as many as there are proposals, of which suppression may leave thousands.
    """
    sampler, heads = roi_heads.det_utils.BalancedPositiveNegativeSampler, roi_heads.RoIHeads
    sample, select = sampler.__call__, heads.select_training_samples

    def most_positive(balanced: Any) -> int:
        return int(balanced.batch_size_per_image * balanced.positive_fraction)

    def sample_most(self: Any, matched_idxs: Any) -> Any:
        if not all(isinstance(one, FakeTensor) for one in matched_idxs):
            return sample(self, matched_idxs)
        places = [(torch.arange(one.shape[0]), one.device) for one in matched_idxs]
        until, most = most_positive(self), self.batch_size_per_image
        positive = [(place < until).to(torch.uint8).to(device) for place, device in places]
        negative = [((place >= until) & (place < most)).to(torch.uint8).to(device) for place, device in places]
        return positive, negative

    def select_most(self: Any, *args: Any) -> Any:
        proposals, matched_idxs, labels, targets = select(self, *args)
        if not isinstance(self.fg_bg_sampler, sampler):  # one of the program's own, which says nothing
            return proposals, matched_idxs, labels, targets
        most = most_positive(self.fg_bg_sampler)
        labels = [
            (torch.arange(one.shape[0]) < most).to(one.dtype).to(one.device) if isinstance(one, FakeTensor) else one
            for one in labels
        ]
        return proposals, matched_idxs, labels, targets

    sampler.__call__, heads.select_training_samples = sample_most, select_most


def _hide_fake_tensors(import_utils: Any) -> None:
    """The transformers library takes a fake tensor for a sign of tracing and leaves out shortcuts that a GPU takes."""
    if hasattr(import_utils, "is_fake_tensor"):
        import_utils.is_fake_tensor = lambda tensor: False


def _load_onto_the_device(safetensors: Any) -> None:
    """Its compiled reader would ask a driver for memory, and reads files past Python's own functions."""
    opened = safetensors.safe_open

    class Opened:
        """A file whose tensors are read on the host and moved."""

        def __init__(self, filename: Any, framework: str, device: Any = "cpu", **options: Any) -> None:
            self._device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cpu")
            self._file = opened(redirected(filename), framework, "cpu", **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> "Opened":
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def get_tensor(self, name: str) -> Any:
            """One tensor, where it was asked for."""
            return self._placed(self._file.get_tensor(name))

        def get_tensors(self, *names: Any) -> Any:
            """All of them."""
            return {name: self._placed(one) for name, one in self._file.get_tensors(*names).items()}

        def _placed(self, tensor: Any) -> Any:
            on_host = self._device.type == "cpu" or not isinstance(tensor, torch.Tensor)
            return tensor if on_host else tensor.to(self._device)

        def get_slice(self, name: str) -> Any:
            """Parts of a tensor."""
            return Slice(self._file.get_slice(name), self._placed)

    class Slice:
        """A tensor of a file of which parts are read."""

        def __init__(self, part: Any, placed: Callable[[Any], Any]) -> None:
            self._slice, self._placed = part, placed

        def __getattr__(self, name: str) -> Any:
            return getattr(self._slice, name)

        def __getitem__(self, index: Any) -> Any:
            return self._placed(self._slice[index])

    safetensors.safe_open = Opened
    serialise = safetensors.serialize_file
    safetensors.serialize_file = lambda tensors, filename, *args, **options: serialise(
        tensors, redirected(filename, writes=True), *args, **options
    )


def _save_from_the_device(module: Any) -> None:
    """It reads a tensor's bytes by its address: those of a tensor without data are ones, as everywhere."""

    def of_host(function: Any) -> Any:
        def call(tensor: Any, *args: Any) -> Any:
            return function(tensor.detach().cpu().contiguous() if isinstance(tensor, FakeTensor) else tensor, *args)

        return call

    for name in ("_to_ndarray", "_tobytes"):  # of newer and older versions
        if hasattr(module, name):
            setattr(module, name, of_host(getattr(module, name)))


def _redirect_tokenizers(module: Any) -> None:
    """Fast tokenizers are written by compiled code: into the scratch folder itself."""
    kind = module.PreTrainedTokenizerBase
    save = kind.save_pretrained

    def save_here(self: Any, save_directory: Any, *args: Any, **options: Any) -> Any:
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        return save(self, redirected(save_directory, writes=True), *args, **options)

    kind.save_pretrained = save_here


def _refuse_kernels(jit: Any, unsupported: Callable[[str], Exception]) -> None:
    """A Triton kernel is compiled for a GPU and computes on its memory; importing one does no harm."""

    def run(kernel: Any, *args: Any, **kwargs: Any) -> Any:
        raise unsupported(f"expected kernels of torch, found the Triton kernel {getattr(kernel, '__name__', kernel)}")

    jit.JITFunction.run = run


def _refuse_extensions(module: Any, unsupported: Callable[[str], Exception]) -> None:
    """CUDA code that is compiled on the spot computes on a GPU's memory; C++ for the host does not."""
    load, load_inline = module.load, module.load_inline

    def load_host_only(name: str, sources: Any, *args: Any, **kwargs: Any) -> Any:
        listed = [sources] if isinstance(sources, str) else list(sources)
        if kwargs.get("with_cuda") or any(str(source).endswith((".cu", ".cuh")) for source in listed):
            raise unsupported(f"expected kernels of torch, found the custom CUDA extension {name!r}")
        return load(name, sources, *args, **kwargs)

    def load_inline_host_only(name: str, cpp_sources: Any, cuda_sources: Any = None, *args: Any, **kwargs: Any) -> Any:
        if cuda_sources or kwargs.get("with_cuda"):
            raise unsupported(f"expected kernels of torch, found the custom CUDA extension {name!r}")
        return load_inline(name, cpp_sources, cuda_sources, *args, **kwargs)

    module.load, module.load_inline = load_host_only, load_inline_host_only


def _refuse_sharding(module: Any, unsupported: Callable[[str], Exception]) -> None:
    """Parameters in shards are kept by collectives of their own."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise unsupported("expected whole parameters, found FSDP")

    module.fully_shard = module.FullyShardedDataParallel.__init__ = refuse


def _refuse_import(module: Any, unsupported: Callable[[str], Exception]) -> None:
    """A library that is good for nothing but computing on a GPU with kernels of its own."""
    raise unsupported(f"expected kernels of torch, found {module.__name__}")


def _refuse_kernel_decorator(module: Any, unsupported: Callable[[str], Exception]) -> None:
    """Kernels written for Numba are compiled for a GPU; importing its package does no harm."""

    def jit(*args: Any, **kwargs: Any) -> Any:
        raise unsupported("expected kernels of torch, found a kernel of numba.cuda")

    module.jit = jit
