"""True values of small tensors on the emulated device, as far as the host can know them.

Programs decide by values: lengths, counters, masks, a gradient scaler's factor. Where a small tensor on the device
was computed only from values that came from the host, the same operators are run on the host too, storage by storage,
so that views share what they share on a GPU. Everything else is unknown and reads as 1.0, 0 or False.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .memory import DeviceMemory

aten = torch.ops.aten

# Large enough for the token ids and masks of a batch, so that "is the mask all ones?" has a true answer; small enough
# that repeating an operator on the host costs microseconds.
MOST_INTEGERS = 1 << 16
MOST_FLOATS = 1 << 10
MOST_VERDICTS = 1 << 20  # results of isfinite and the like, which are known whatever their input

UNDEFINED = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
# "No gradient is infinite": what the kernel would write into its second argument is what already stands there.
LEAVES_VALUES = {aten._amp_foreach_non_finite_check_and_unscale_.default}


# What one operand decides alone: true or anything, false and anything, which is how loops over the device end.
ABSORBED_BY = {
    aten.bitwise_or.Tensor: True,
    aten.logical_or.default: True,
    aten.bitwise_and.Tensor: False,
    aten.logical_and.default: False,
}


class Unknown(Exception):
    """An operand's values are not known."""


class KnownValues:
    """Reads, computes and forgets the true values behind fake tensors."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._facts: dict[Any, _OperatorFacts] = {}

    def of(self, tensor: Any) -> torch.Tensor | None:
        """The values of a fake tensor, as a host tensor that shares the remembered storage; None if unknown."""
        held = self._memory.held(tensor)
        if held is None or held.known is None:
            return None
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(held.known, tensor.storage_offset(), tensor.size(), tensor.stride())

    def read(self, tensor: Any) -> torch.Tensor:
        """A host tensor with the known values, or with ones, zeros or False where they are unknown."""
        known = self.of(tensor)
        if known is not None:
            return known.clone()
        fill = 1 if tensor.dtype.is_floating_point or tensor.dtype.is_complex else 0
        return torch.full(tuple(tensor.shape), fill, dtype=tensor.dtype)

    def scalar(self, tensor: Any) -> Any:
        """What ``item()`` returns."""
        return self.read(tensor).item()

    def remember(self, tensor: Any, values: torch.Tensor) -> None:
        """Values of a tensor that has just been registered with a storage of its own."""
        held = self._memory.held(tensor)
        if held is None or held.num_bytes != tensor.numel() * tensor.element_size():
            return
        copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        held.known = copy.copy_(values).untyped_storage()

    def assume(self, tensor: Any, value: bool) -> None:
        """All elements have this value, unless the true ones are known."""
        if tensor.numel() <= MOST_VERDICTS and self.of(tensor) is None:
            self.remember(tensor, torch.full(tuple(tensor.shape), value))

    def follow(self, function: Any, args: Any, kwargs: Any, fresh: list[Any], result: Any) -> None:
        """Do on the host what an operator has just done on the device, as far as its inputs are known.

        Args:
            function: the operator.
            args: its arguments, in which fake tensors stand for those on the device.
            kwargs: its keyword arguments.
            fresh: fake tensors among the results whose storages are new.
            result: everything the operator returned.
        """
        facts = self._facts_of(function)
        if facts.mutates:
            self._follow_mutation(function, args, kwargs, facts)
        elif fresh and facts.predictable and isinstance(result, FakeTensor) and _small(result):
            values = self.compute(function, args, kwargs)
            if values is None and function in ABSORBED_BY:
                values = self._absorbed(args, ABSORBED_BY[function], result)
            if values is not None and values.shape == result.shape:
                self.remember(result, values)

    def compute(self, function: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The operator's one result on the host; None if an input is unknown, or the host lacks the operator."""
        values = self.compute_all(function, args, kwargs)
        return values[0] if values is not None and len(values) == 1 else None

    def compute_all(self, function: Any, args: Any, kwargs: Any) -> list[torch.Tensor] | None:
        """The operator's results on the host, if all are tensors; None if an input is unknown."""
        try:
            values = self._run(function, args, kwargs)
        except Exception:
            return None
        found = list(values) if isinstance(values, list | tuple) else [values]
        return found if all(isinstance(one, torch.Tensor) for one in found) else None

    def _absorbed(self, operands: Any, by: bool, result: Any) -> torch.Tensor | None:
        """The result where a known operand decides it alone, whatever the other is."""
        for known in (self.of(one) if isinstance(one, FakeTensor) else one for one in operands):
            if isinstance(known, torch.Tensor) and (result.dtype is torch.bool or not by) and bool((known == by).all()):
                return torch.full(tuple(result.shape), by, dtype=result.dtype)
        return None

    def _follow_mutation(self, function: Any, args: Any, kwargs: Any, facts: "_OperatorFacts") -> None:
        if function in LEAVES_VALUES:
            return
        written = [tensor for tensor in facts.written(args, kwargs) if isinstance(tensor, FakeTensor)]
        if function is aten.copy_.default and self._overwrite(args[0], args[1]):
            return
        if not any(self._is_known(tensor) for tensor in written):
            return
        try:
            self._run(function, args, kwargs)
        except Exception:  # unknown inputs, or an operator that the host lacks
            for tensor in written:
                self._forget(tensor)

    def _overwrite(self, target: Any, source: Any) -> bool:
        """A whole small storage is written: its values are known afterwards if the source's are."""
        if not isinstance(target, FakeTensor) or not _small(target):
            return False
        values = self.of(source) if isinstance(source, FakeTensor) else source
        if values is None:
            return False
        held = self._memory.held(target)
        if held is None or held.num_bytes != target.numel() * target.element_size():
            return False
        self.remember(target, values.expand(target.shape))
        return True

    def _is_known(self, tensor: Any) -> bool:
        held = self._memory.held(tensor)
        return held is not None and held.known is not None

    def _forget(self, tensor: Any) -> None:
        held = self._memory.held(tensor)
        if held is not None:
            held.known = None

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        host_args = [self._on_host(arg) for arg in args]
        host_kwargs = {name: self._on_host(arg) for name, arg in kwargs.items()}
        with torch.no_grad():
            return function(*host_args, **host_kwargs)

    def _on_host(self, arg: Any) -> Any:
        if isinstance(arg, FakeTensor):
            known = self.of(arg)
            if known is None:
                raise Unknown
            return known
        if isinstance(arg, torch.device):
            return torch.device("cpu")
        if type(arg) in (list, tuple):
            return type(arg)(self._on_host(one) for one in arg)
        return arg

    def _facts_of(self, function: Any) -> "_OperatorFacts":
        facts = self._facts.get(function)
        if facts is None:
            facts = self._facts[function] = _OperatorFacts(function)
        return facts


class _OperatorFacts:
    """What the schema of an operator says: which arguments it writes, and whether its result is a function of them."""

    __slots__ = ("_names", "_positions", "mutates", "predictable")

    def __init__(self, function: Any) -> None:
        written = [
            (position, argument.name)
            for position, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self._positions = [position for position, _ in written]
        self._names = [name for _, name in written]
        self.mutates = bool(written)
        self.predictable = torch.Tag.nondeterministic_seeded not in function.tags and function not in UNDEFINED

    def written(self, args: Any, kwargs: Any) -> list[Any]:
        """The tensors that the operator writes."""
        found = [args[position] for position in self._positions if position < len(args)]
        found += [kwargs[name] for name in self._names if name in kwargs]
        return [tensor for one in found for tensor in (one if isinstance(one, list | tuple) else (one,))]


def _small(tensor: Any) -> bool:
    most = MOST_FLOATS if tensor.dtype.is_floating_point or tensor.dtype.is_complex else MOST_INTEGERS
    return bool(tensor.numel() <= most)
